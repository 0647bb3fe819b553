"""From a batch of rows to the log-probability of every response token, and back to the states."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from congrad_cli.log_probs import BodyAndHead, target_log_prob
from congrad_cli.sketch import long_rows
from congrad_cli.sketch.attention import CHOSEN, PADDING, PROMPT, REJECTED, shared_rows
from congrad_cli.sketch.pairs import PairBatch


class PairForward:
    """Body and head of one model, run apart: the head sees response positions only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._parts = BodyAndHead(model)

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
            return self._parts.states(**arguments)

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
        ids = torch.arange(24, device=self._model.device)[None] % self._parts.vocabulary
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
        with self._parts.head() as head:
            for part in self._parts.chunks(states):
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
        with self._parts.head() as head:
            for part in self._parts.chunks(states):
                logp[part] = target_log_prob(head(states[part]), batch.targets[part])
        return batch.sum_sides(logp), batch.sum_sides(logp * batch.weights)
