"""What a report says, before anything is drawn."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupFacts:
    """One row of the table of groups; what is not known is None."""

    name: str
    pairs: int
    kept: int
    norm: float  # |G_l|
    cosine: float  # cos(d, G_l)
    others: float | None  # cos(d without l, G_l)
    share: float  # of d: a_l <G_l, d> / |d|^2
    coefficient: float  # a_l
    median: float | None  # of its scores
    interval: tuple[float, float] | None = None  # of the cosine
    left_out: str | None = None  # why it takes no part


@dataclass(frozen=True)
class GroupScores:
    """The scores of one group's pairs, [n], which of them are kept [n], and the threshold."""

    name: str
    score: Floats
    keep: NDArray[np.bool_]
    threshold: float | None


@dataclass(frozen=True)
class Example:
    """One pair, for people to read."""

    group: str
    score: float | None
    error: float | None
    keep: bool
    reason: str
    place: str  # file and line
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class LeftOut:
    """One record that got no sketch, and why."""

    place: str
    code: str
    message: str


@dataclass(frozen=True)
class Curve:
    """One measure over the rounds, a line for each language: (round, value) points."""

    measure: str
    lines: dict[str, list[tuple[int, float]]]
    unseen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Report:
    """The whole report. Groups are in one order everywhere: that of ``groups``."""

    title: str
    made: str  # date and version
    verdict: list[str]  # the first line is the verdict itself
    good: bool
    groups: list[GroupFacts]
    conflict: Floats  # [L, L] cosines between group gradients
    after: Floats | None  # [L, L] the same between their parts in the consensus
    unresolved: NDArray[np.bool_] | None  # [L, L] cosines whose interval holds 0
    points: Floats  # [L + 1, 2] groups and, last, the consensus
    explained: float  # share of the differences that the map shows
    scores: list[GroupScores]
    score_name: str  # what the scores are
    examples: dict[str, list[Example]]
    reasons: dict[str, int]  # why pairs were dropped
    left_out: list[LeftOut]
    left_out_counts: dict[str, int]
    commands: list[str]
    facts: list[tuple[str, str]]  # fingerprints, settings
    curves: list[Curve] = field(default_factory=list)
    rounds: list[dict[str, str]] = field(default_factory=list)  # a row of numbers for each round
