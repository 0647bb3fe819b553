"""The check at start: does a shared row give what plain separate sequences give?"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from congrad_cli.errors import ModelError
from congrad_cli.records import Record
from congrad_cli.sketch.gradients import BatchSketch, PairSketcher
from congrad_cli.sketch.pairs import TokenizedPair, batch_pairs
from congrad_cli.sketch.projection import random_words

FLOAT32_TOLERANCE = 1e-5
PADDING_FACTOR = 3.0
ROUNDING_FACTOR = 8.0
PADDING = 16
LENGTHS = (24, 20, 13)  # of prompt, chosen, rejected


@dataclass(frozen=True, slots=True)
class LayoutCheck:
    """How far the two layouts differ, relative to the sketch's norm, and what is allowed."""

    difference: float
    tolerance: float

    @property
    def agree(self) -> bool:
        """Whether prompts may be shared."""
        return self.difference <= self.tolerance


def compare_layouts(sketcher: PairSketcher, can_share: bool = True) -> LayoutCheck:
    """Sketch a pair of random tokens both ways; the data has no part in it.

    In float32 they must agree to 1e-5. In other precisions the yardstick is rounding: three times
    what some tokens of padding change, or eight units in the last place, whichever is more.
    Raises :class:`ModelError` where a layer that should be sketched saw nothing.
    """
    pair = probe(sketcher.vocabulary)
    apart = _sketch(sketcher, pair, shared=False)
    if sketcher.silent:
        raise ModelError(
            f"gradients of these layers cannot be seen: {', '.join(sorted(sketcher.silent)[:4])}.",
            "the model uses their weights without calling them; it cannot be sketched yet",
        )
    if not can_share:
        return LayoutCheck(math.inf, FLOAT32_TOLERANCE)
    difference = _distance(_sketch(sketcher, pair, shared=True), apart)
    if sketcher.dtype == torch.float32:
        return LayoutCheck(difference, FLOAT32_TOLERANCE)
    padded = _distance(_sketch(sketcher, pair, shared=False, padding=PADDING), apart)
    rounding = ROUNDING_FACTOR * torch.finfo(sketcher.dtype).eps
    return LayoutCheck(difference, max(PADDING_FACTOR * padded, rounding))


def probe(vocabulary: int) -> TokenizedPair:
    """A pair of random tokens, the same for every model with this vocabulary."""
    words = random_words(0, "probe", "tokens", sum(LENGTHS)) % np.uint64(vocabulary)
    prompt, chosen, rejected = np.split(words.astype(np.int64), np.cumsum(LENGTHS)[:2])
    record = Record(0, "probe", 1, b"", "", "", "", "", None)
    return TokenizedPair(record, prompt.tolist(), chosen.tolist(), rejected.tolist())


def _sketch(
    sketcher: PairSketcher, pair: TokenizedPair, shared: bool, padding: int = 0
) -> BatchSketch:
    return sketcher.sketch(batch_pairs([pair], 0, shared, padding).to(sketcher.device))


def _distance(left: BatchSketch, right: BatchSketch) -> float:
    """The larger of the sketches' and the log-probabilities' relative differences."""
    sketches = (left.sketch - right.sketch).norm() / right.sketch.norm()
    logps = (left.logp - right.logp).norm() / right.logp.norm()
    return float(torch.maximum(sketches, logps))
