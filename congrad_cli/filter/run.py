"""The filter command: store and consensus -> decisions -> the original lines."""

import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import StoredConsensus, read_consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter.gates import check_gate_options
from congrad_cli.filter.policy import check_rule, decide
from congrad_cli.filter.quotas import group_quotas, read_quotas
from congrad_cli.filter.ranking import check_ranking, rank_pairs
from congrad_cli.filter.summary import FilterSummary, summarise
from congrad_cli.filter.verdicts import Outcome, Verdicts, as_json
from congrad_cli.filter.writing import write_outputs
from congrad_cli.outputs import whole_file
from congrad_cli.progress import Progress
from congrad_cli.settings import FilterSettings
from congrad_cli.store import GradientStore, require_complete


def check_settings(settings: FilterSettings) -> None:
    """Raise :class:`UsageError` for options that make no sense, alone or together."""
    check_rule(settings)
    check_ranking(settings)
    check_gate_options(settings)


def run(
    path: Path, settings: FilterSettings, stdout: BinaryIO, progress: Progress
) -> FilterSummary:
    """Write the kept lines, byte for byte and in input order, to ``settings.output`` or stdout.

    Kept and dropped lines together are the input. Nothing is written before every line of the
    source has been found to be the one that was sketched. Gates are judged, not enforced: that is
    :func:`congrad_cli.filter.gates.require_gates`.
    """
    begun = time.monotonic()
    check_settings(settings)
    store = GradientStore.open(path)
    require_complete(store, settings.allow_partial, progress)
    found = read_consensus(path, settings.consensus, store)
    quotas = _quotas(found, settings)
    if settings.confidence is not None and store.header.width < 2:
        raise UsageError("--confidence needs the scores' errors, and this store has none.",
                         "sketch with a --width above 1")
    progress.step(
        f"scoring {len(store):,} pairs" if settings.rank_by == "score"
        else f"ranking {len(store):,} pairs by {settings.rank_by}"
    )  # fmt: skip
    ranking = rank_pairs(store, found, settings)
    scores = ranking.scores
    decisions = decide(scores.score, found.members.label, settings, scores.error, quotas)
    outcome = Outcome(ranking, decisions, store.skipped())
    write_outputs(store, settings, Verdicts(store, found, outcome, settings.rank_by), stdout)
    summary = summarise(store, found, outcome, settings, time.monotonic() - begun)
    if settings.summary is not None:
        with whole_file(settings.summary) as file:
            file.write(as_json(summary.to_json()).encode() + b"\n")
    return summary


def _quotas(found: StoredConsensus, settings: FilterSettings) -> NDArray[np.int64] | None:
    if settings.quotas is None:
        return None
    pairs = np.bincount(found.members.label, minlength=len(found.names))
    return group_quotas(read_quotas(settings.quotas), found.names, pairs)
