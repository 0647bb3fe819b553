"""What ``filter`` did, for people and as one JSON object."""

import math
import platform
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from congrad_cli import __version__
from congrad_cli.filter.gates import Gate, gates
from congrad_cli.filter.policy import KEPT, borderline
from congrad_cli.filter.target import Target
from congrad_cli.filter.verdicts import Outcome, number
from congrad_cli.settings import FORMAT, FilterSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats

SCHEMA = "congrad.summary/1"
BINS = 16
"""Of the histograms of scores that people are shown."""


@dataclass(frozen=True)
class FilterSummary:
    """What was kept and dropped, per group and in all.

    ``pairs`` are those with a sketch; ``reasons`` count everything that was dropped, pairs
    without a sketch and records that are no pairs among them.
    """

    store: Path
    names: list[str]
    pairs: list[int]
    kept: list[int]
    median: list[float]  # of the group's scores
    histogram: list[list[int]]  # of the group's scores, in BINS bins over the span
    span: tuple[float, float]  # of all scores
    reasons: dict[str, int]
    borderline: int | None  # pairs within one error of the threshold; None without errors
    gates: list[Gate]
    about: str  # what the scores are
    settings: FilterSettings
    target: Target
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """One object; new keys may come, these stay."""
        kept, dropped = sum(self.kept), sum(self.reasons.values())
        groups = zip(self.names, self.pairs, self.kept, self.median, strict=True)
        return {
            "schema": SCHEMA,
            "command": "filter",
            "store": str(self.store),
            "records": kept + dropped,
            "pairs": sum(self.pairs),
            "kept": kept,
            "dropped": dropped,
            "reasons": dict(Counter(self.reasons).most_common()),
            "borderline": self.borderline,
            "groups": {
                name: {"pairs": pairs, "kept": left, "median_score": number(median)}
                for name, pairs, left, median in groups
            },
            "rank_by": self.settings.rank_by,
            "score_is": self.about,
            "gates": {gate.name: gate.to_json() for gate in self.gates},
            "settings": _plain(asdict(self.settings)),
            "consensus": _plain(asdict(self.target.settings)) | {
                "store": str(self.target.store), "sha256": self.target.sha256,
                "pairs_seen": self.target.seen,
            },
            "versions": {"congrad": __version__, "store_format": FORMAT,
                         "python": platform.python_version(), "numpy": np.__version__},
            "seconds": round(self.seconds, 3),
        }


def summarise(
    store: GradientStore,
    target: Target,
    outcome: Outcome,
    settings: FilterSettings,
    seconds: float,
) -> FilterSummary:
    """Count what was decided about the store's data."""
    group, count = target.label, len(target.names)
    scores, decisions = outcome.ranking.scores, outcome.decisions
    waiting = store.rows - len(store) - len(outcome.skipped)  # with --allow-partial
    pairs = np.bincount(group, minlength=count).tolist()
    kept = np.bincount(group[decisions.keep], minlength=count).tolist()
    span = _span(scores.score)
    return FilterSummary(
        store=store.path,
        names=target.names,
        pairs=pairs,
        kept=kept,
        median=[_median(scores.score[group == label]) for label in range(count)],
        histogram=[_counts(scores.score[group == label], span) for label in range(count)],
        span=span,
        reasons=dict(Counter([
            *outcome.skipped.values(),
            *waiting * ["not-sketched"],
            *(reason for reason in decisions.reason if reason != KEPT),
        ])),
        borderline=None if np.isnan(scores.error).all() else borderline(scores, decisions),
        gates=gates(target.names, pairs, kept, settings, outcome.conflicts),
        about=outcome.ranking.about,
        settings=settings,
        target=target,
        seconds=seconds,
    )


def _span(score: Floats) -> tuple[float, float]:
    """The least and the largest score; both 0 where there is none."""
    defined = score[np.isfinite(score)]
    return (float(defined.min()), float(defined.max())) if len(defined) else (0.0, 0.0)


def _counts(score: Floats, span: tuple[float, float]) -> list[int]:
    """How many of the scores lie in each of the bins."""
    counts: list[int] = np.histogram(score[np.isfinite(score)], BINS, span)[0].tolist()
    return counts


def _median(score: Floats) -> float:
    """The median of the scores there are; nan where there are none."""
    defined = score[~np.isnan(score)]
    return float(np.median(defined)) if len(defined) else float("nan")


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them: paths are texts, and so are numbers that are not finite."""
    return {
        name: str(value)
        if isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value))
        else value
        for name, value in settings.items()
    }
