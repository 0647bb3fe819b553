"""The checks at start: is a row its pair's own, and does it matter how the pair is laid out?"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from congrad_cli.errors import ModelError, out_of_memory
from congrad_cli.records.record import Record
from congrad_cli.sketch.gradients import BatchSketch, PairSketcher
from congrad_cli.sketch.layers import Layer, cannot_sketch
from congrad_cli.sketch.pairs import batch_pairs
from congrad_cli.sketch.projection import Projection, random_words
from congrad_cli.sketch.tokens import TokenizedPair
from congrad_cli.sketch.uses import MixedRowsError

FLOAT32_TOLERANCE = 1e-5
PADDING_FACTOR = 3.0
ROUNDING_FACTOR = 8.0
BATCH_TOLERANCE, HALF_BATCH_TOLERANCE = 1e-4, 0.25
"""Wrong rows are off by about 1. In half precision a token may choose other experts by rounding."""

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
    apart = _sketch(sketcher, [pair], shared=False)
    silent = without_peers(sketcher.silent, sketcher.heard)
    if silent:
        raise cannot_sketch(silent[0], "it takes no part in the model's answer, as far as "
                            f"can be seen (and {len(silent) - 1} more)")
    if not can_share:
        return LayoutCheck(math.inf, FLOAT32_TOLERANCE)
    difference = _distance(_sketch(sketcher, [pair], shared=True), apart)
    if sketcher.dtype == torch.float32:
        return LayoutCheck(difference, FLOAT32_TOLERANCE)
    padded = _distance(_sketch(sketcher, [pair], shared=False, padding=PADDING), apart)
    rounding = ROUNDING_FACTOR * torch.finfo(sketcher.dtype).eps
    return LayoutCheck(difference, max(PADDING_FACTOR * padded, rounding))


def check_batches(model: Any, layers: Mapping[str, Layer], projection: Projection) -> None:
    """Raise :class:`ModelError` where a pair's row depends on what else is in its batch.

    Or where a vector is used as neither a bias nor a scale, so that one copy of it per row breaks
    the model's code; the first of its kind is named.
    """
    trouble, norm = _batch_trouble(model, layers, projection, None)
    if trouble is None:
        return
    kinds = {_kind(name): layer for name, layer in layers.items() if layer.kind == "vector"}
    for layer in kinds.values():
        found, _ = _batch_trouble(model, {layer.name: layer}, projection, norm)
        if found:
            raise cannot_sketch(layer.name, found)
    raise ModelError(
        f"this model cannot be sketched: {trouble}.",
        "a half-precision model may overflow: try --dtype float32",
    )


def _batch_trouble(
    model: Any, layers: Mapping[str, Layer], projection: Projection, norm: float | None
) -> tuple[str | None, float | None]:
    """What is wrong, if anything; and the length of the pair's sketch, which differences are
    relative to (one layer's own gradient may be nothing but rounding)."""
    with PairSketcher(model, layers, projection) as sketcher:
        pair, other = (probe(sketcher.vocabulary, name) for name in ("tokens", "company"))
        try:
            alone = _sketch(sketcher, [pair], shared=False)
            both = _sketch(sketcher, [pair, other], shared=False)
        except MixedRowsError:
            return None, None  # known, and sketched one pair at a time
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if out_of_memory(error):
                raise
            said = str(error).splitlines()[0]
            return f"the model cannot take one copy of it per row ({said})", norm
        tolerance = (
            BATCH_TOLERANCE if sketcher.dtype == torch.float32 else HALF_BATCH_TOLERANCE
        )
    length = float(alone.sketch.norm())
    difference = float((both.sketch[:1] - alone.sketch).norm()) / (norm or length)
    if not math.isfinite(difference):
        return "its gradients are not finite", norm
    if difference <= tolerance:
        return None, length
    return f"a row changes with the batch it is in, by {difference:.1e}", length


def without_peers(silent: set[str], heard: set[str]) -> list[str]:
    """The silent layers whose like was not heard anywhere: names that differ in numbers only.

    An expert to which no token of the probe was sent is silent by chance; its peers are not.
    """
    known = {_kind(name) for name in heard}
    return sorted(name for name in silent if _kind(name) not in known)


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def probe(vocabulary: int, name: str = "tokens") -> TokenizedPair:
    """A pair of random tokens, the same for every model with this vocabulary."""
    words = random_words(0, "probe", name, sum(LENGTHS)) % np.uint64(vocabulary)
    prompt, chosen, rejected = np.split(words.astype(np.int64), np.cumsum(LENGTHS)[:2])
    record = Record(0, "probe", 1, b"", "", "", "", "", None)
    return TokenizedPair(record, prompt.tolist(), chosen.tolist(), rejected.tolist())


def _sketch(
    sketcher: PairSketcher, pairs: Sequence[TokenizedPair], shared: bool, padding: int = 0
) -> BatchSketch:
    return sketcher.sketch(batch_pairs(pairs, 0, shared, padding).to(sketcher.device))


def _distance(left: BatchSketch, right: BatchSketch) -> float:
    """The larger of the sketches' and the log-probabilities' relative differences."""
    sketches = (left.sketch - right.sketch).norm() / right.sketch.norm()
    logps = (left.logp - right.logp).norm() / right.logp.norm()
    return float(torch.maximum(sketches, logps))
