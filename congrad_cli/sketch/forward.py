"""From a batch of rows to the log-probability of every response token, and back to the states."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from congrad_cli.errors import ModelError
from congrad_cli.sketch import long_rows
from congrad_cli.sketch.attention import CHOSEN, PADDING, PROMPT, REJECTED, shared_rows
from congrad_cli.sketch.pairs import PairBatch

HEAD_ELEMENTS = 1 << 25
"""The head is run on chunks of at most this many logits."""


class PairForward:
    """Body and head of one model, run apart: the head sees response positions only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._body = _body_of(model)
        names = [name for name, part in model.named_modules() if part is self._body]
        self._parent, self._name = model, names[0]
        if "." in self._name:
            parent, self._name = self._name.rsplit(".", 1)
            self._parent = model.get_submodule(parent)

    def goes_by_segment(self, batch: PairBatch) -> bool:
        """Whether the batch's rows are so long that no table of tokens by tokens may be made."""
        return batch.input_ids.shape[1] > long_rows.LONG_ROW and self._knows_segments

    def states(self, batch: PairBatch, by_segment: bool | None = None) -> Tensor:
        """The last hidden states that predict the response tokens, [S, H]."""
        if by_segment is None:
            by_segment = self.goes_by_segment(batch)
        hidden = self._hidden(  # [B, T, H]
            batch.input_ids, batch.segments, batch.positions if batch.shared else None, by_segment
        )
        return hidden.flatten(0, 1)[batch.predictors.to(hidden.device)]

    def _hidden(
        self, ids: Tensor, segments: Tensor, positions: Tensor | None, by_segment: bool
    ) -> Tensor:
        """The body's last states of rows, [B, T, H]; without positions they are the model's own."""
        arguments = {"input_ids": ids, "attention_mask": (segments != PADDING).long()}
        layout: AbstractContextManager[None] = nullcontext()
        if positions is not None:
            arguments["position_ids"] = positions
        if positions is not None or by_segment:
            if positions is None:
                positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            layout = shared_rows(positions, segments, by_segment)
        with layout:
            hidden: Tensor = self._body(**arguments, use_cache=False)[0]
        return hidden

    @cached_property
    def _knows_segments(self) -> bool:
        """Whether attention without a table gives this model's numbers, on a row of few tokens.

        Some models do not hand their mask on but compute with it (indexers choose keys among those
        it shows); they keep the table, however long a row is.
        """
        segments = torch.tensor(
            [[PROMPT] * 8 + [CHOSEN] * 9 + [REJECTED] * 6 + [PADDING]], device=self._model.device
        )
        positions = torch.tensor([[*range(17), *range(8, 14), 0]], device=self._model.device)
        ids = torch.arange(24, device=self._model.device)[None] % self._vocabulary
        try:
            with torch.no_grad():
                table, without = (
                    self._hidden(ids, segments, positions, by_segment)[:, :-1].float()
                    for by_segment in (False, True)
                )
        except (AttributeError, TypeError, ValueError):
            return False
        rounding = max(1e-4, 16.0 * torch.finfo(self._model.dtype).eps)  # another mask gives O(1)
        return bool((without - table).norm() <= rounding * table.norm())

    def score(
        self,
        states: Tensor,
        batch: PairBatch,
        watch: Callable[[slice], AbstractContextManager[None]],
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each response token [S], and the objective's gradient [S, H].

        The objective is the sum over pairs of weighted log-probabilities, chosen minus rejected.
        The head runs on response positions only, in chunks, so that no [B, T, V] table exists;
        on each inside ``watch``.
        """
        logp = torch.empty(len(states), device=batch.sides.device)
        gradient = torch.empty_like(states)
        pull = batch.weights * (1.0 - 2.0 * (batch.sides % 2))  # chosen +, rejected -
        with self._head() as head:
            for part in self._chunks(states):
                chunk = states[part].requires_grad_()
                with watch(part):
                    logits = head(chunk)
                value = target_log_prob(logits, batch.targets[part])
                torch.autograd.backward(value, pull[part].to(value.device))
                assert chunk.grad is not None
                gradient[part], logp[part] = chunk.grad, value.detach()
        return logp, gradient

    @torch.no_grad()
    def log_probs(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Summed and weighted log-probabilities of both answers, [n, 2] each; no gradient."""
        states = self.states(batch)
        logp = torch.empty(len(states), device=batch.sides.device)
        with self._head() as head:
            for part in self._chunks(states):
                logp[part] = target_log_prob(head(states[part]), batch.targets[part])
        return batch.sum_sides(logp), batch.sum_sides(logp * batch.weights)

    @property
    def _vocabulary(self) -> int:
        return int(self._model.config.get_text_config().vocab_size)

    def _chunks(self, states: Tensor) -> Iterator[slice]:
        step = max(1, HEAD_ELEMENTS // self._vocabulary)
        for begin in range(0, len(states), step):
            yield slice(begin, begin + step)

    @contextmanager
    def _head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """The model's own way from hidden states [s, H] to logits [s, V].

        The model's forward is run with its body replaced by one that returns the given states:
        scales, soft caps and biases are then the model's, in every architecture.
        """
        stand_in = _StandIn(self._body)
        token = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)

        def head(states: Tensor) -> Tensor:
            stand_in.states = states[None]
            logits: Tensor = self._model(input_ids=token, use_cache=False).logits
            return logits.flatten(0, 1)  # no index: its gradient would be a table of zeros

        setattr(self._parent, self._name, stand_in)
        try:
            yield head
        finally:
            setattr(self._parent, self._name, self._body)


def _body_of(model: Any) -> nn.Module:
    """What makes hidden states of tokens; some models call themselves their decoder."""
    for body in (model.get_decoder(), model.base_model, getattr(model, "model", None)):
        if isinstance(body, nn.Module) and body is not model:
            return body
    raise ModelError(f"{type(model).__name__} has no body apart from its head.")


def target_log_prob(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax of ``logits`` [s, V] at ``targets`` [s], in float32."""
    value: Tensor = _TargetLogProb.apply(logits, targets.to(logits.device))  # type: ignore[no-untyped-call]
    return value


class _TargetLogProb(torch.autograd.Function):
    """log softmax of logits z [s, V] at targets y [s], in float32, with its gradient in one table.

    ``d logp / dz = onehot(y) - softmax(z)``: only the logits themselves are kept for it. What
    makes logits of states (scales, soft caps, biases) stays with the model's own code.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """-> [s] float32."""
        wide = logits.float()
        total = torch.logsumexp(wide, dim=-1)
        ctx.save_for_backward(logits, targets, total)
        return wide.gather(1, targets[:, None]).squeeze(1) - total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """gradient [s] -> [s, V]."""
        logits, targets, total = ctx.saved_tensors
        table = torch.sub(logits, total[:, None]).exp_()
        table *= -gradient[:, None]
        table.scatter_add_(1, targets[:, None], gradient[:, None])
        return table.to(logits.dtype), None


class _StandIn(nn.Module):
    """Stands in for the model's body and answers with the states it was given."""

    states: Tensor

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.__dict__["_body"] = body  # no submodule: it is asked for what heads read from it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_body"], name)

    def forward(self, *_: Any, **__: Any) -> "_BodyOutput":
        return _BodyOutput(self.states)


class _BodyOutput(tuple[Tensor]):
    """A body's output with hidden states alone; whatever else a head may ask for is None."""

    def __new__(cls, states: Tensor) -> "_BodyOutput":
        return super().__new__(cls, (states,))

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None
