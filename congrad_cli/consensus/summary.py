"""What ``consensus`` found, for people and as one JSON object."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.consensus.bootstrap import DRAWS, LEVEL, Intervals
from congrad_cli.consensus.certificate import Certificate
from congrad_cli.consensus.grouping import Grouping
from congrad_cli.consensus.outliers import Outlier
from congrad_cli.settings import ConsensusSettings
from congrad_cli.tensors import Arrays
from congrad_cli.weights import Floats

SCHEMA = "congrad.consensus/1"
BINS = 16
"""Of the histograms of lengths that people are shown."""


@dataclass(frozen=True)
class ConsensusSummary:
    """Per group, and between groups."""

    store: Path
    names: list[str]
    pairs: list[int]
    blocks: list[int]  # [L] random blocks that the intervals come from
    lengths: list[list[int]]  # [L][BINS] pairs by the logarithm of their gradient's length
    span: tuple[float, float]  # the least and the largest such length; (0, 0) without any
    norm: Floats  # [L] |G_l|
    cosine: Floats  # [L] cos(d, G_l)
    coefficient: Floats  # [L]
    conflict: Floats  # [L, L] cosines of the group gradients
    intervals: Intervals
    left_out: dict[str, str]  # groups that take no part, and why
    certificate: Certificate
    outliers: list[Outlier]
    hint: str | None
    settings: ConsensusSettings
    seconds: float
    grouping: Grouping | None = None  # how the groups came about
    after: Floats | None = None  # [L, L] cosines between what the groups add to d

    def to_json(self) -> dict[str, Any]:
        """One object; new keys may come, these stay."""
        return {
            "schema": SCHEMA,
            "command": "consensus",
            "store": str(self.store),
            **self.findings(),
            "conflicts": {
                "groups": self.names,
                "cosine": _plain(self.conflict),
                "unbiased": _plain(self.intervals.conflict),
                "interval": _ranges(self.intervals.conflict_range),
                "pairs": self.certificate.pairs,
                "negative": self.certificate.conflicts,
                "unresolved": self.certificate.unresolved,
            },
            "settings": asdict(self.settings),
            "seconds": round(self.seconds, 3),
        }

    def findings(self) -> dict[str, Any]:
        """What depends on the data and the settings alone, without the matrices."""
        found = self.intervals
        columns = zip(
            self.names, self.pairs, self.blocks, _plain(self.norm), _plain(self.cosine),
            _plain(found.along), _ranges(found.along_range), _plain(found.signal),
            _plain(self.coefficient), strict=True,
        )  # fmt: skip
        return {
            "groups": {
                name: {"pairs": pairs, "blocks": blocks, "norm": norm, "cosine": cosine,
                       "unbiased": unbiased, "interval": interval, "signal": signal,
                       "coefficient": coefficient, "takes_part": name not in self.left_out,
                       **({"why_not": self.left_out[name]} if name in self.left_out else {})}
                for name, pairs, blocks, norm, cosine, unbiased, interval, signal, coefficient
                in columns
            },
            "certificate": {**self.certificate.to_json(), "level": LEVEL, "draws": DRAWS},
            "outliers": [outlier.to_json() for outlier in self.outliers],
            "hint": self.hint,
            **(self.grouping.to_json() if self.grouping else {}),
        }

    def matrices(self) -> Arrays:
        """The conflicts between groups, their intervals and what surgery leaves of them."""
        after = {} if self.after is None else {"after": self.after}
        return {"conflict": self.conflict, "conflict_unbiased": self.intervals.conflict,
                "conflict_range": self.intervals.conflict_range, **after}


def length_histograms(
    label: NDArray[np.int32], length: Floats, count: int
) -> tuple[list[list[int]], tuple[float, float]]:
    """Of ``count`` groups the numbers of pairs [N] by the logarithm of their length, and its span.

    Pairs of length 0 are in no bin.
    """
    there = length > 0
    if not there.any():
        return [[0] * BINS for _ in range(count)], (0.0, 0.0)
    logs = np.log10(length, out=np.full_like(length, np.nan), where=there)
    ends = (float(logs[there].min()), float(logs[there].max()))
    found = [np.histogram(logs[there & (label == one)], BINS, ends)[0].tolist()
             for one in range(count)]
    return found, (10 ** ends[0], 10 ** ends[1])


def _plain(values: Floats) -> list[Any]:
    """Numbers as JSON has them, to seven digits: null for nan."""
    if values.ndim > 1:
        return [_plain(row) for row in values]
    return [None if np.isnan(value) else float(f"{value:.7g}") for value in values.tolist()]


def _ranges(values: Floats) -> list[Any]:
    """Intervals [.., 2] as pairs of numbers; null where they are nan."""
    if values.ndim > 2:
        return [_ranges(row) for row in values]
    return [None if None in ends else ends for ends in _plain(values)]
