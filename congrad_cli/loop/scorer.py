"""log pi(response | messages) of given texts, as TRL's DPOTrainer would have it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from congrad_cli.log_probs import BodyAndHead, target_log_prob
from congrad_cli.loop.batches import Batches, release_memory
from congrad_cli.loop.loading import Checkpoint, load
from congrad_cli.loop.model_access import Message, Scorer, Weighed
from congrad_cli.loop.settings import ModelSection
from congrad_cli.loop.tokens import split_ids

BATCH_TOKENS = 8192
"""Tokens of a batch, padding included."""


def open_scorer(
    model: str, about: ModelSection, max_length: int, note: Callable[[str], None] = lambda _: None
) -> Scorer:
    """Load ``model`` to weigh texts of up to ``max_length`` tokens, prompt included."""
    return TransformersScorer(load(model, about), max_length, note)


@dataclass(frozen=True, slots=True)
class _Row:
    """One text: its first ``start`` tokens are not weighed."""

    number: int
    ids: list[int]
    start: int

    @property
    def weighed(self) -> int:
        """How many tokens are weighed."""
        return len(self.ids) - self.start


class TransformersScorer:
    """Weighs texts in right-padded batches. Holds the model."""

    def __init__(
        self, checkpoint: Checkpoint, max_length: int, note: Callable[[str], None]
    ) -> None:
        self._checkpoint = checkpoint
        positions = checkpoint.positions
        self._limit = max_length if positions is None else min(max_length, positions)
        self._batches = Batches(BATCH_TOKENS, note)

    def weigh(self, texts: Sequence[tuple[tuple[Message, ...], str]]) -> list[Weighed]:
        """Of (messages, response) each, in order.

        Texts longer than ``max_length``, or than the model has positions for, are cut at their
        end; where nothing is left of a response its log-probability is 0, of 0 tokens. The first
        token of a text has nothing before it and is not weighed.
        """
        found = [Weighed(0.0, 0)] * len(texts)
        rows = [self._row(number, *text) for number, text in enumerate(texts)]
        rows = sorted(
            (row for row in rows if row.weighed > 0), key=lambda row: (-len(row.ids), row.number)
        )
        for batch, sums in self._batches.work(rows, lambda row: len(row.ids), self._sums):
            for row, logp in zip(batch, sums, strict=True):
                found[row.number] = Weighed(logp, row.weighed)
        return found

    def close(self) -> None:
        """Let go of the model."""
        del self._checkpoint
        release_memory()

    def _row(self, number: int, messages: tuple[Message, ...], response: str) -> _Row:
        prompt, answer = split_ids(messages, response, self._checkpoint.tokenizer)
        return _Row(number, (prompt + answer)[: self._limit], max(1, len(prompt)))

    @torch.inference_mode()
    def _sums(self, rows: Sequence[_Row]) -> list[float]:
        """The summed log-probabilities of one batch; float32 logits, of weighed tokens only."""
        width = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = torch.tensor(row.ids)
            mask[number, : len(row.ids)] = 1
        # a token's probability comes from the state before it
        before = torch.cat([
            number * width + torch.arange(row.start - 1, len(row.ids) - 1)
            for number, row in enumerate(rows)
        ])  # fmt: skip
        device = self._checkpoint.device
        ids, before = ids.to(device), before.to(device)
        parts = BodyAndHead(self._checkpoint.model)
        states = parts.states(input_ids=ids, attention_mask=mask.to(device))  # [B, T, H]
        states = states.flatten(0, 1)[before]  # [S, H]
        targets = ids.flatten()[before + 1]
        with parts.head() as head:
            found = [
                target_log_prob(head(states[part]), targets[part]) for part in parts.chunks(states)
            ]
        return _sum_rows(torch.cat(found), [row.weighed for row in rows])


def _sum_rows(logp: Tensor, counts: Sequence[int]) -> list[float]:
    """logp [S] of rows with ``counts`` tokens each -> their sums."""
    return [float(part.sum()) for part in torch.split(logp.double().cpu(), list(counts))]
