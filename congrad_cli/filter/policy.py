"""Scores -> keep or drop, with a reason for every pair.

One rule decides: a least score, or the best pairs by number or share, over all, inside each group
or by quotas. Ties go to the earlier pair, and a pair without a score is never kept. Two additions
only ever keep more: pairs whose score may be above the threshold after all (``confidence``), and
the best of a group that the rule would leave with too few (``keep_at_least``).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import UsageError
from congrad_cli.filter.quotas import share_of
from congrad_cli.filter.scores import PairScores
from congrad_cli.settings import FilterSettings
from congrad_cli.weights import Floats

KEPT = "kept"
BELOW = "below-min-score"
BEYOND_RATIO = "beyond-keep-ratio"
BEYOND_COUNT = "beyond-keep"
BEYOND_QUOTA = "beyond-quota"
NO_DIRECTION = "no-direction"
UNCERTAIN = "uncertain"
AT_LEAST = "keep-at-least"
NEAR_DUPLICATE = "near-duplicate"

RULES = ("min_score", "keep_ratio", "keep", "quotas")


@dataclass(frozen=True)
class Decisions:
    """For every pair: whether it is kept [N], why, and the score that decided [N].

    The threshold of a rule by number lies midway between the last score kept and the first one
    dropped; it is NaN where nothing was kept or nothing dropped. ``flag`` names the addition
    that kept a pair which the rule alone would have dropped; "" elsewhere. ``duplicate_of`` names,
    of pairs dropped for it, the kept one whose gradient they repeat.
    """

    keep: NDArray[np.bool_]
    reason: list[str]
    threshold: Floats
    flag: list[str]
    duplicate_of: dict[int, int] = field(default_factory=dict)


def check_rule(settings: FilterSettings) -> None:
    """Raise :class:`UsageError` unless the options name one rule with sensible numbers."""
    given = [name for name in RULES if getattr(settings, name) is not None]
    if len(given) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{names} are two rules.",
                         "give one of --min-score, --keep-ratio, --keep, --quotas")
    if settings.min_score is not None and math.isnan(settings.min_score):
        raise UsageError(f"--min-score {settings.min_score} is not a number.")
    if settings.keep_ratio is not None and not 0 <= settings.keep_ratio <= 1:
        raise UsageError(f"--keep-ratio {settings.keep_ratio} is not between 0 and 1.")
    if settings.keep is not None and settings.keep < 0:
        raise UsageError(f"--keep {settings.keep} is negative.")
    if settings.dedup is not None and not 0 < settings.dedup <= 1:
        raise UsageError(f"--dedup {settings.dedup} is no cosine above 0.",
                         "give one up to 1, such as 0.98")
    _check_additions(settings)


def _check_additions(settings: FilterSettings) -> None:
    if settings.per_group and settings.quotas is not None:
        raise UsageError("--per-group changes nothing: --quotas are those of each group.")
    if settings.per_group and by_score(settings):
        raise UsageError(
            "--per-group changes nothing where every pair is judged by its own score.",
            "give --keep-ratio or --keep with it",
        )
    if settings.keep_at_least is not None and settings.keep_at_least < 1:
        raise UsageError(f"--keep-at-least {settings.keep_at_least} is no number of pairs from 1.")
    if settings.confidence is None:
        return
    if not by_score(settings):
        raise UsageError("--confidence speaks of a least score, and this rule has none.",
                         "give --min-score with it")
    if not (math.isfinite(settings.confidence) and settings.confidence > 0):
        raise UsageError(f"--confidence {settings.confidence} is no number above 0.",
                         "give a number of standard errors, such as 1 or 2")


def by_score(settings: FilterSettings) -> bool:
    """Whether every pair is judged by its own score, not by how many are better."""
    return settings.keep_ratio is None and settings.keep is None and settings.quotas is None


def decide(
    score: Floats,
    group: NDArray[np.int32],
    settings: FilterSettings,
    error: Floats | None = None,
    quotas: NDArray[np.int64] | None = None,
) -> Decisions:
    """Apply the rule to the scores [N] of pairs in these groups [N].

    ``error`` [N] are the scores' standard errors, for ``confidence``; a pair whose error is NaN
    is judged by its score alone. ``quotas`` [L] are the groups' numbers, for ``--quotas``.
    """
    defined = ~np.isnan(score)
    flag, why = [""] * len(score), dropped_because(settings)
    if by_score(settings):
        threshold = least_scores(len(score), settings, error)
        keep = defined & (score >= threshold)
        _note(flag, keep & (score < (settings.min_score or 0.0)), UNCERTAIN)
    else:
        keep, threshold = np.zeros(len(score), bool), np.full(len(score), np.nan)
        for inside, most in parts(group, settings, quotas):
            best = best_first(score, inside & defined)
            keep[best[:most]] = True
            if 0 < most < len(best):
                threshold[inside] = score[best[most - 1 : most + 1]].mean()
    if settings.keep_at_least is not None:
        more = np.zeros(len(score), bool)
        for label in np.unique(group):
            more[best_first(score, (group == label) & defined)[: settings.keep_at_least]] = True
        _note(flag, more & ~keep, AT_LEAST)
        keep |= more
    reason = [
        KEPT if kept else why if known else NO_DIRECTION
        for kept, known in zip(keep.tolist(), defined.tolist(), strict=True)
    ]
    return Decisions(keep, reason, threshold, flag)


def borderline(scores: PairScores, decisions: Decisions) -> int:
    """How many pairs lie within one error of the score that decided about them."""
    return int((np.abs(scores.score - decisions.threshold) <= scores.error).sum())


def least_scores(
    count: int, settings: FilterSettings, error: Floats | None
) -> Floats:
    """The least score that each pair may be kept with, [N], by a rule that judges by score."""
    least = np.full(count, settings.min_score or 0.0)
    if settings.confidence is not None and error is not None:
        least -= settings.confidence * np.nan_to_num(error)
    return least


def dropped_because(settings: FilterSettings) -> str:
    """Why the rule drops a pair."""
    if by_score(settings):
        return BELOW
    if settings.quotas is not None:
        return BEYOND_QUOTA
    return BEYOND_RATIO if settings.keep is None else BEYOND_COUNT


def parts(
    group: NDArray[np.int32], settings: FilterSettings, quotas: NDArray[np.int64] | None
) -> Iterator[tuple[NDArray[np.bool_], int]]:
    """The parts of the pairs that a rule by number looks at, [N] each, and how many each keeps."""
    if settings.quotas is not None and quotas is None:
        raise ValueError("quotas of the store's groups are needed")
    whole = quotas is None and not settings.per_group
    for label in [None] if whole else np.unique(group):
        inside = np.ones(len(group), bool) if label is None else group == label
        if quotas is not None:
            yield inside, int(quotas[label])
        elif settings.keep is not None:
            yield inside, settings.keep
        else:
            yield inside, share_of(settings.keep_ratio or 0.0, int(inside.sum()))


def best_first(score: Floats, where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The pairs there, the best first, equal ones in their order."""
    rows = np.flatnonzero(where)
    return rows[np.argsort(-score[rows], kind="stable")]


def _note(flag: list[str], where: NDArray[np.bool_], name: str) -> None:
    for row in np.flatnonzero(where).tolist():
        flag[row] = name
