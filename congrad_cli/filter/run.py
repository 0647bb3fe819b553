"""The filter command: store and consensus -> decisions -> the original lines."""

import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import UsageError
from congrad_cli.filter.conflict import count_conflicts
from congrad_cli.filter.cosines import group_cosines
from congrad_cli.filter.distinct import decide_distinct
from congrad_cli.filter.duplicates import NearDuplicates
from congrad_cli.filter.gates import check_gate_options
from congrad_cli.filter.items import Items, make_items, read_values
from congrad_cli.filter.policy import check_rule, decide
from congrad_cli.filter.quotas import group_quotas, read_quotas
from congrad_cli.filter.ranking import (
    COSINES,
    check_ranking,
    own_loss,
    own_weights,
    rank_pairs,
)
from congrad_cli.filter.summary import FilterSummary, summarise
from congrad_cli.filter.target import Target, find_target
from congrad_cli.filter.verdicts import Outcome, Verdicts, as_json
from congrad_cli.filter.writing import check_outputs, data_files, write_outputs
from congrad_cli.outputs import whole_file
from congrad_cli.progress import Progress
from congrad_cli.settings import FilterSettings
from congrad_cli.store import GradientStore, require_complete
from congrad_cli.weights import check_settings as check_loss


def check_settings(settings: FilterSettings) -> None:
    """Raise :class:`UsageError` for options that make no sense, alone or together."""
    check_rule(settings)
    check_ranking(settings)
    check_gate_options(settings)
    if settings.group_cosines and settings.scores is None:
        raise UsageError("--group-cosines adds to the score file, and none was asked for.",
                         "pass --scores FILE as well")
    if settings.leave_group_out and (settings.leave_out_by or not settings.leave_one_out):
        other = "--leave-out-by" if settings.leave_out_by else "--no-leave-one-out"
        raise UsageError(f"--leave-group-out and {other} contradict each other.",
                         "give one of them")
    if settings.leave_out_by is not None and not settings.leave_one_out:
        raise UsageError("--leave-out-by and --no-leave-one-out contradict each other.",
                         "give one of them")


@dataclass(frozen=True)
class Judged:
    """What becomes of a store's pairs, and what they were compared with; nothing is written."""

    store: GradientStore
    target: Target
    outcome: Outcome
    summary: FilterSummary


def run(
    path: Path, settings: FilterSettings, stdout: BinaryIO, progress: Progress
) -> FilterSummary:
    """Write the kept lines, byte for byte and in input order, to ``settings.output`` or stdout.

    Kept and dropped lines together are the input. Nothing is written before every line of the
    source has been found to be the one that was sketched. Gates are judged, not enforced: that is
    :func:`congrad_cli.filter.gates.require_gates`.
    """
    begun = time.monotonic()
    check_outputs(settings)  # a wrong name shall not cost a pass over the store
    judged = judge(path, settings, progress)
    verdicts = Verdicts(judged.store, judged.target, judged.outcome, settings.rank_by)
    write_outputs(judged.store, settings, verdicts, stdout)
    summary = replace(judged.summary, seconds=time.monotonic() - begun)
    if settings.summary is not None:
        with whole_file(settings.summary) as file:
            file.write(as_json(summary.to_json()).encode() + b"\n")
    return summary


def judge(path: Path, settings: FilterSettings, progress: Progress) -> Judged:
    """Score the store's pairs and decide which are kept."""
    begun = time.monotonic()
    check_settings(settings)
    store = GradientStore.open(path)
    require_complete(store, settings.allow_partial, progress)
    target = find_target(store, settings.consensus, progress)
    _check_target(store, target, settings)
    quotas = _quotas(target, settings)
    items = _items(store, target, settings, progress)
    progress.step(
        f"scoring {len(store):,} pairs" if settings.rank_by == "score"
        else f"ranking {len(store):,} pairs by {settings.rank_by}"
    )  # fmt: skip
    ranking = rank_pairs(store, target, settings, items)
    weight = own_weights(store, target, settings)
    scores = ranking.scores
    case = (scores.score, target.label, settings, scores.error, quotas)
    if settings.dedup is None:
        decisions = decide(*case)
    else:
        progress.step("looking for near-duplicates")
        with closing(NearDuplicates(store, weight, settings.dedup)) as rows:
            decisions = decide_distinct(*case, rows)
    cosines = conflicts = None
    if settings.group_cosines:
        progress.step("comparing pairs with groups")
        cosines = group_cosines(store, target.consensus, target.members, weight, items)
    if settings.max_conflict is not None:
        conflicts = count_conflicts(store, target, own_loss(target.settings, settings))
    outcome = Outcome(ranking, decisions, store.skipped(), cosines, conflicts)
    summary = summarise(store, target, outcome, settings, time.monotonic() - begun)
    return Judged(store, target, outcome, summary)


def _check_target(store: GradientStore, target: Target, settings: FilterSettings) -> None:
    """Raise :class:`UsageError` for options that this store and consensus have no use for."""
    scored_by = own_loss(target.settings, settings)
    check_loss(scored_by)
    for name, loss in (("length_penalty", "lp-dpo"), ("label_smoothing", "robust")):
        if getattr(settings, name) is not None and scored_by.loss != loss:
            raise UsageError(f"--{name.replace('_', '-')} does nothing with --loss "
                             f"{scored_by.loss}.", f"leave it out, or pass --loss {loss}")
    if settings.confidence is not None and store.header.width < 2:
        raise UsageError("--confidence needs the scores' errors, and this store has none.",
                         "sketch with a --width above 1")
    if settings.leave_group_out and np.count_nonzero(target.consensus.coefficients) < 2:
        raise UsageError("--leave-group-out leaves nothing: one group alone made the consensus.",
                         "leave it out, or sketch with another --group-by")
    if target.released and (settings.leave_out_by is not None or settings.leave_group_out):
        option = "--leave-group-out" if settings.leave_group_out else "--leave-out-by"
        raise UsageError(f"{option} does nothing here: these pairs had no part in the "
                         f"consensus of {target.store}.", "leave it out")


def _items(
    store: GradientStore, target: Target, settings: FilterSettings, progress: Progress
) -> Items | None:
    """The pairs that leave each other out; None where nothing is left out."""
    needed = settings.rank_by in COSINES or settings.group_cosines
    if target.released or settings.leave_group_out or not (settings.leave_one_out and needed):
        return None
    field = settings.leave_out_by
    if field is None:
        return make_items(store.column("digest"))
    progress.step(f"reading '{field}' of every record")
    value = read_values(store, data_files(store, settings), field)
    items = make_items(store.column("digest"), value)
    largest = int(np.diff(items.start).max(initial=1))
    progress.note(f"--leave-out-by {field}: {len(items) + int(items.single.sum()):,} items, "
                  f"the largest of {largest:,} pairs")
    return items


def _quotas(target: Target, settings: FilterSettings) -> NDArray[np.int64] | None:
    if settings.quotas is None:
        return None
    pairs = np.bincount(target.label, minlength=len(target.names))
    return group_quotas(read_quotas(settings.quotas), target.names, pairs)
