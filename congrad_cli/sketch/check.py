"""The check at start: does a shared row give what plain separate sequences give?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from congrad_cli.sketch.gradients import BatchSketch, PairSketcher
from congrad_cli.sketch.pairs import TokenizedPair, batch_pairs

FLOAT32_TOLERANCE = 1e-5
PADDING_FACTOR = 3.0
PADDING = 16


@dataclass(frozen=True, slots=True)
class LayoutCheck:
    """How far the two layouts differ, relative to the sketch's norm, and what is allowed."""

    difference: float
    tolerance: float

    @property
    def agree(self) -> bool:
        """Whether prompts may be shared."""
        return self.difference <= self.tolerance


def compare_layouts(
    sketcher: PairSketcher, pairs: Sequence[TokenizedPair], pad_id: int
) -> LayoutCheck:
    """Sketch the first pair both ways.

    In float32 they must agree to 1e-5. In other precisions the yardstick is what a few tokens of
    padding change, which is rounding alone; three times that is allowed.
    """
    pair = [pairs[0]]
    shared = _sketch(sketcher, pair, pad_id, shared=True)
    apart = _sketch(sketcher, pair, pad_id, shared=False)
    difference = _distance(shared, apart)
    if sketcher.dtype == torch.float32:
        return LayoutCheck(difference, FLOAT32_TOLERANCE)
    padded = _sketch(sketcher, pair, pad_id, shared=False, padding=PADDING)
    return LayoutCheck(difference, PADDING_FACTOR * _distance(padded, apart) + FLOAT32_TOLERANCE)


def _sketch(
    sketcher: PairSketcher,
    pairs: Sequence[TokenizedPair],
    pad_id: int,
    shared: bool,
    padding: int = 0,
) -> BatchSketch:
    return sketcher.sketch(batch_pairs(pairs, pad_id, shared, padding).to(sketcher.device))


def _distance(left: BatchSketch, right: BatchSketch) -> float:
    """The larger of the sketches' and the log-probabilities' relative differences."""
    sketches = (left.sketch - right.sketch).norm() / right.sketch.norm()
    logps = (left.logp - right.logp).norm() / right.logp.norm()
    return float(torch.maximum(sketches, logps))
