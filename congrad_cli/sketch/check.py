"""The check at start: does a shared row give what plain separate sequences give?"""

import math
import re
from dataclasses import dataclass

import numpy as np
import torch

from congrad_cli.records import Record
from congrad_cli.sketch.gradients import BatchSketch, PairSketcher
from congrad_cli.sketch.layers import cannot_sketch
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
    Raises :class:`ModelError` where a layer that should be sketched has given nothing.
    """
    pair = probe(sketcher.vocabulary)
    apart = _sketch(sketcher, pair, shared=False)
    silent = without_peers(sketcher.silent, sketcher.heard)
    if silent:
        raise cannot_sketch(silent[0], "it takes no part in the model's answer, as far as "
                            f"can be seen (and {len(silent) - 1} more)")
    if not can_share:
        return LayoutCheck(math.inf, FLOAT32_TOLERANCE)
    difference = _distance(_sketch(sketcher, pair, shared=True), apart)
    if sketcher.dtype == torch.float32:
        return LayoutCheck(difference, FLOAT32_TOLERANCE)
    padded = _distance(_sketch(sketcher, pair, shared=False, padding=PADDING), apart)
    rounding = ROUNDING_FACTOR * torch.finfo(sketcher.dtype).eps
    return LayoutCheck(difference, max(PADDING_FACTOR * padded, rounding))


def without_peers(silent: set[str], heard: set[str]) -> list[str]:
    """The silent layers whose like was not heard anywhere: names that differ in numbers only.

    An expert to which no token of the probe was sent is silent by chance; its peers are not.
    """
    def kind(name: str) -> str:
        return re.sub(r"\d+", "#", name)

    known = {kind(name) for name in heard}
    return sorted(name for name in silent if kind(name) not in known)


def probe(vocabulary: int, name: str = "tokens") -> TokenizedPair:
    """A pair of random tokens, the same for every model with this vocabulary."""
    words = random_words(0, "probe", name, sum(LENGTHS)) % np.uint64(vocabulary)
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
