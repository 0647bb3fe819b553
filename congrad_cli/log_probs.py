"""Log-probabilities of chosen tokens, without a table of logits for every position."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from congrad_cli.errors import ModelError

HEAD_ELEMENTS = 1 << 25
"""The head is run on chunks of at most this many logits."""


class BodyAndHead:
    """Body and head of one causal language model, run apart: the head sees few positions only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._body = _body_of(model)
        names = [name for name, part in model.named_modules() if part is self._body]
        self._parent, self._name = model, names[0]
        if "." in self._name:
            parent, self._name = self._name.rsplit(".", 1)
            self._parent = model.get_submodule(parent)

    def states(self, **arguments: Tensor) -> Tensor:
        """The last hidden states of rows, [B, T, H]; the arguments are those of the body."""
        hidden: Tensor = self._body(**arguments, use_cache=False)[0]
        return hidden

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self._model.config.get_text_config().vocab_size)

    def chunks(self, states: Tensor) -> Iterator[slice]:
        """Cut states [S, H] into pieces whose logits fit."""
        step = max(1, HEAD_ELEMENTS // self.vocabulary)
        for begin in range(0, len(states), step):
            yield slice(begin, begin + step)

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
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
