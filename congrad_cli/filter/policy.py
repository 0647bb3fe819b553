"""Scores -> keep or drop, with a reason for every pair."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import UsageError
from congrad_cli.filter.scores import PairScores
from congrad_cli.settings import FilterSettings
from congrad_cli.weights import Floats

KEPT = "kept"
BELOW = "below-min-score"
BEYOND_RATIO = "beyond-keep-ratio"
BEYOND_COUNT = "beyond-keep"
NO_DIRECTION = "no-direction"


@dataclass(frozen=True)
class Decisions:
    """For every pair: whether it is kept [N], why, and the score that decided [N].

    The threshold of a rule by number lies midway between the last score kept and the first one
    dropped; it is NaN where nothing was kept or nothing dropped.
    """

    keep: NDArray[np.bool_]
    reason: list[str]
    threshold: Floats


def check_rule(settings: FilterSettings) -> None:
    """Raise :class:`UsageError` unless the options name one rule with sensible numbers."""
    given = [name for name in ("min_score", "keep_ratio", "keep")
             if getattr(settings, name) is not None]
    if len(given) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{names} are two rules.", "give one of --min-score, --keep-ratio, --keep")
    if settings.min_score is not None and math.isnan(settings.min_score):
        raise UsageError(f"--min-score {settings.min_score} is not a number.")
    if settings.per_group and settings.keep_ratio is None and settings.keep is None:
        raise UsageError(
            "--per-group changes nothing where every pair is judged by its own score.",
            "give --keep-ratio or --keep with it",
        )
    if settings.keep_ratio is not None and not 0 <= settings.keep_ratio <= 1:
        raise UsageError(f"--keep-ratio {settings.keep_ratio} is not between 0 and 1.")
    if settings.keep is not None and settings.keep < 0:
        raise UsageError(f"--keep {settings.keep} is negative.")


def decide(score: Floats, group: NDArray[np.int32], settings: FilterSettings) -> Decisions:
    """Apply the rule. Ties go to the earlier pair; a pair without a score is never kept."""
    defined = ~np.isnan(score)
    if settings.keep_ratio is None and settings.keep is None:
        least = 0.0 if settings.min_score is None else settings.min_score
        keep, why = defined & (score >= least), BELOW
        threshold = np.full(len(score), least)
    else:
        why = BEYOND_RATIO if settings.keep is None else BEYOND_COUNT
        keep, threshold = np.zeros(len(score), bool), np.full(len(score), np.nan)
        labels = np.unique(group) if settings.per_group else [None]
        for label in labels:
            inside = np.ones(len(score), bool) if label is None else group == label
            rows = np.flatnonzero(inside & defined)
            best = rows[np.argsort(-score[rows], kind="stable")]
            quota = _quota(int(inside.sum()), settings)
            keep[best[:quota]] = True
            if 0 < quota < len(best):
                threshold[inside] = score[best[quota - 1 : quota + 1]].mean()
    reason = [
        KEPT if kept else why if known else NO_DIRECTION
        for kept, known in zip(keep.tolist(), defined.tolist(), strict=True)
    ]
    return Decisions(keep, reason, threshold)


def borderline(scores: PairScores, decisions: Decisions) -> int:
    """How many pairs lie within one error of the score that decided about them."""
    return int((np.abs(scores.score - decisions.threshold) <= scores.error).sum())


def _quota(pairs: int, settings: FilterSettings) -> int:
    if settings.keep is not None:
        return settings.keep
    assert settings.keep_ratio is not None
    return math.ceil(settings.keep_ratio * pairs - 1e-9)
