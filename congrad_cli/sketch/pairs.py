"""TokenizedPair -> PairBatch: tokenised pairs laid out as rows, and cut into batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from congrad_cli.sketch.attention import CHOSEN, PADDING, PROMPT, REJECTED
from congrad_cli.sketch.tokens import TokenizedPair


@dataclass(frozen=True, slots=True)
class PairBatch:
    """B rows of T tokens for n pairs, and the S response tokens whose log-probability counts.

    With a shared prompt a pair is one row (B = n); separate sequences take two rows a pair,
    chosen before rejected (B = 2n).
    """

    input_ids: Tensor  # [B, T]
    positions: Tensor  # [B, T]
    segments: Tensor  # [B, T]
    predictors: Tensor  # [S] flat places (row * T + column) whose state predicts a response token
    targets: Tensor  # [S] the token predicted
    sides: Tensor  # [S] 2 * pair + (0 chosen, 1 rejected), ascending
    weights: Tensor  # [S] weight of the token's log-probability in its answer's
    pairs: Sequence[TokenizedPair]
    shared: bool

    def to(self, device: torch.device) -> "PairBatch":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    @property
    def rows(self) -> Tensor:
        """The row of each response token, [S], ascending."""
        return self.sides // 2 if self.shared else self.sides

    def sum_sides(self, values: Tensor) -> Tensor:
        """Values of the response tokens [S], summed over each answer: [n, 2]."""
        lengths = torch.bincount(self.sides, minlength=2 * len(self.pairs))
        return torch.segment_reduce(values, "sum", lengths=lengths).view(-1, 2)


def token_weights(weighting: str, length: int, other: int) -> list[float]:
    """How much each of an answer's ``length`` tokens counts, the other answer having ``other``.

    ``sum``: 1 (DPO). ``mean``: 1 / length (IPO, LN-DPO). ``ld:A``: 1 up to the shorter answer's
    length, A beyond it (LD-DPO).
    """
    if weighting == "sum":
        return [1.0] * length
    if weighting == "mean":
        return [1.0 / length] * length
    shared = min(length, other)
    return [1.0] * shared + [float(weighting.removeprefix("ld:"))] * (length - shared)


def batch_pairs(
    pairs: Sequence[TokenizedPair],
    pad_id: int,
    shared: bool,
    padding: int = 0,
    weighting: str = "sum",
) -> PairBatch:
    """Lay pairs out as rows, padded on the right to the longest and ``padding`` tokens more."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    predictors: list[tuple[int, int]] = []
    targets: list[int] = []
    sides: list[int] = []
    weights: list[float] = []

    def score(pair: TokenizedPair, side: int, start: int) -> None:
        """Token j of the answer stands at start + j of the last row."""
        answer, other = (pair.chosen, pair.rejected)[:: 1 - 2 * (side % 2)]
        weight = token_weights(weighting, len(answer), len(other))
        for offset, target in enumerate(answer):
            place = (len(pair.prompt) if offset == 0 else start + offset) - 1
            if place >= 0:  # a first token with nothing before it has no probability
                predictors.append((len(rows) - 1, place))
                targets.append(target)
                sides.append(side)
                weights.append(weight[offset])

    for index, pair in enumerate(pairs):
        prompt = len(pair.prompt)
        if shared:
            rows.append(_row(pair.prompt, (pair.chosen, CHOSEN), (pair.rejected, REJECTED)))
            score(pair, 2 * index, prompt)
            score(pair, 2 * index + 1, prompt + len(pair.chosen))
            continue
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            rows.append(_row(pair.prompt, (answer, CHOSEN)))
            score(pair, 2 * index + side, prompt)
    width = max(len(ids) for ids, _, _ in rows) + padding
    return PairBatch(
        input_ids=_pad([ids for ids, _, _ in rows], width, pad_id),
        positions=_pad([positions for _, positions, _ in rows], width, 0),
        segments=_pad([segments for _, _, segments in rows], width, PADDING),
        predictors=torch.tensor([row * width + place for row, place in predictors]),
        targets=torch.tensor(targets),
        sides=torch.tensor(sides),
        weights=torch.tensor(weights),
        pairs=pairs,
        shared=shared,
    )


def _row(
    prompt: list[int], *answers: tuple[list[int], int]
) -> tuple[list[int], list[int], list[int]]:
    """Ids, positions and segments of one row; every answer continues the prompt's positions."""
    ids, positions, segments = list(prompt), list(range(len(prompt))), [PROMPT] * len(prompt)
    for answer, segment in answers:
        ids += answer
        positions += range(len(prompt), len(prompt) + len(answer))
        segments += [segment] * len(answer)
    return ids, positions, segments


def _pad(rows: list[list[int]], width: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def cut_batches(
    pairs: Sequence[TokenizedPair], budget: int, shared: bool
) -> Iterator[list[TokenizedPair]]:
    """Cut one window's pairs into batches of at most ``budget`` padded tokens (or one pair).

    Longest first, so that memory peaks at the start and rows of like length meet.
    """
    batch: list[TokenizedPair] = []
    for pair in sorted(pairs, key=lambda pair: (-row_tokens(pair, shared), pair.record.row)):
        if batch and row_tokens(batch[0], shared) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def row_tokens(pair: TokenizedPair, shared: bool) -> int:
    """The tokens a pair takes up, padding to its own longer answer included."""
    if shared:
        return pair.length
    return 2 * (len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))


def padded_tokens(batch: Sequence[TokenizedPair], shared: bool) -> int:
    """The tokens of a batch, padding included."""
    return len(batch) * max(row_tokens(pair, shared) for pair in batch)
