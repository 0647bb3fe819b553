"""Pairs that rule their group's average by their length, and when lengths make it unsafe."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, Members

TIMES_MEDIAN = 5.0
EVEN_SHARES = 25.0
FEWEST = 100
"""Pairs that a store must have for a hint: what the longest 1 % hold says nothing of fewer."""
TOO_MUCH = 0.3
"""A share of all squares that the longest 1 % should not hold: 0.14 and 0.15 in two stores, and
0.57 in a third, where one pair was almost all of its group."""
NOISE = 0.05
"""The groups' mean signal below which raw lengths were much worse than unit ones: 0.03 in the one
store where they were, 0.09 and 0.12 where they were not. Lengths alone do not tell these apart."""


@dataclass(frozen=True)
class Outlier:
    """A pair with an extreme share of its group's squares, ``sum_i c_i^2 |g_i|^2``."""

    row: int
    digest: str
    group: str
    length: float  # |g_i|
    times_median: float  # |g_i| beside the group's median
    share: float

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def find_outliers(store: GradientStore, names: list[str], members: Members) -> list[Outlier]:
    """All of them, the largest share first.

    A pair is one if it is 5 times as long as the median of its group, and has 25 times an even
    share of the group's squares; from half of them on it always is, and with less than a 20th of
    them never. Of groups of one or two nothing is said.
    """
    length = np.abs(members.scale)
    square = (members.share * (length / (length.max() or 1.0))) ** 2
    found = []
    digest = store.column("digest")
    for label, name in enumerate(names):
        inside = np.flatnonzero(members.label == label)
        total = square[inside].sum()
        there = length[inside][length[inside] > 0]
        if len(there) < 3 or not total > 0:
            continue
        share, median = square[inside] / total, float(np.median(there))
        extreme = (share >= np.clip(EVEN_SHARES / len(inside), 0.05, 0.5)) & (
            length[inside] >= TIMES_MEDIAN * median)
        found += [
            Outlier(int(store.row[pair]), digest[pair].tobytes().hex(), name, float(length[pair]),
                    float(length[pair] / median), float(own))
            for pair, own in zip(inside[extreme].tolist(), share[extreme].tolist(), strict=True)
        ]
    return sorted(found, key=lambda outlier: (-outlier.share, outlier.row))


def top_share(members: Members) -> float:
    """What share of the sum of all |g_i|^2 the longest 1 % of the pairs hold."""
    length = np.abs(members.scale)
    square = np.sort((length / (length.max() or 1.0)) ** 2)[::-1]
    return float(square[: -(-len(square) // 100)].sum() / (square.sum() or 1.0))


def safety_hint(members: Members, signal: Floats, settings: ConsensusSettings) -> str | None:
    """Why plain averages of raw gradients look unsafe here; None where not, or not used.

    ``signal`` [L] is the share of every group's |G_l|^2 that is not noise, nan where unknown.
    """
    robust = settings.pair_norm != "raw" or settings.average not in ("mean", "ema")
    if robust or len(members.scale) < FEWEST:
        return None
    cure = "try --pair-norm unit or --average median-of-means"
    held = top_share(members)
    if held > TOO_MUCH:
        return (f"the longest 1 % of the gradients hold {held:.0%} of all their squares: a few "
                f"pairs decide; {cure}")
    known = signal[~np.isnan(signal)]
    if len(known) and known.mean() < NOISE:
        return (f"the groups' averages are noise but for {max(known.mean(), 0):.1%} of their "
                f"squares: their pairs agree on little; {cure}")
    return None
