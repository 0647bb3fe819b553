"""The filter command: store and consensus -> decisions -> the original lines."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import read_consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter.policy import borderline, check_rule, decide
from congrad_cli.filter.quotas import group_quotas, read_quotas
from congrad_cli.filter.scores import pair_scores, turn_scores
from congrad_cli.filter.verdicts import Outcome, Verdicts
from congrad_cli.filter.writing import write_outputs
from congrad_cli.progress import Progress
from congrad_cli.settings import ConsensusSettings, FilterSettings
from congrad_cli.store import GradientStore, require_complete
from congrad_cli.weights import Floats, pair_terms


@dataclass(frozen=True)
class FilterSummary:
    """What the command shows, per group and in all."""

    names: list[str]
    pairs: list[int]
    kept: list[int]
    median: list[float]  # of the group's scores
    reasons: dict[str, int]  # of what was dropped
    borderline: int | None  # pairs within one error of the threshold; None without errors


def run(
    path: Path, settings: FilterSettings, stdout: BinaryIO, progress: Progress
) -> FilterSummary:
    """Write the kept lines, byte for byte and in input order, to ``settings.output`` or stdout.

    Kept and dropped lines together are the input. Nothing is written before every line of the
    source has been found to be the one that was sketched.
    """
    check_rule(settings)
    store = GradientStore.open(path)
    require_complete(store, settings.allow_partial, progress)
    quotas = _quotas(store, settings)
    consensus, made = read_consensus(path, settings.consensus, store)
    if settings.confidence is not None and store.header.width < 2:
        raise UsageError("--confidence needs the scores' errors, and this store has none.",
                         "sketch with a --width above 1")
    progress.step(f"scoring {len(store):,} pairs")
    terms = pair_terms(store, made)
    scores = pair_scores(store, consensus, terms.scale, terms.share, settings.leave_one_out)
    weight = pair_terms(store, _own_loss(made, settings)).weight
    scores = turn_scores(scores, terms.weight, weight)
    decisions = decide(scores.score, store.column("group"), settings, scores.error, quotas)
    outcome = Outcome(scores, decisions, weight == 0, store.skipped())
    write_outputs(store, settings, Verdicts(store, outcome), stdout)
    return _summary(store, outcome)


def _summary(store: GradientStore, outcome: Outcome) -> FilterSummary:
    group, count = store.column("group"), len(store.groups)
    scores, decisions = outcome.scores, outcome.decisions
    waiting = store.rows - len(store) - len(outcome.skipped)  # with --allow-partial
    return FilterSummary(
        names=store.groups,
        pairs=np.bincount(group, minlength=count).tolist(),
        kept=np.bincount(group[decisions.keep], minlength=count).tolist(),
        median=[_median(scores.score[group == label]) for label in range(count)],
        reasons=dict(Counter([
            *outcome.skipped.values(),
            *waiting * ["not-sketched"],
            *(reason for reason in decisions.reason if reason != "kept"),
        ])),
        borderline=None if np.isnan(scores.error).all() else borderline(scores, decisions),
    )


def _quotas(store: GradientStore, settings: FilterSettings) -> NDArray[np.int64] | None:
    if settings.quotas is None:
        return None
    pairs = np.bincount(store.column("group"), minlength=len(store.groups))
    return group_quotas(read_quotas(settings.quotas), store.groups, pairs)


def _own_loss(made: ConsensusSettings, settings: FilterSettings) -> ConsensusSettings:
    """The consensus' settings with the loss that the pairs are scored by."""
    names = ("loss", "beta", "length_penalty", "label_smoothing")
    given = {name: getattr(settings, name) for name in names}
    return replace(made, **{name: value for name, value in given.items() if value is not None})


def _median(score: Floats) -> float:
    """The median of the scores there are; nan where there are none."""
    defined = score[~np.isnan(score)]
    return float(np.median(defined)) if len(defined) else float("nan")
