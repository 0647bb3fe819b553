"""The filter command: store and consensus -> decisions -> the original lines."""

import time
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import read_consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter.gates import check_gate_options
from congrad_cli.filter.policy import check_rule, decide
from congrad_cli.filter.quotas import group_quotas, read_quotas
from congrad_cli.filter.scores import pair_scores, turn_scores
from congrad_cli.filter.summary import FilterSummary, summarise
from congrad_cli.filter.verdicts import Outcome, Verdicts, as_json
from congrad_cli.filter.writing import write_outputs
from congrad_cli.outputs import whole_file
from congrad_cli.progress import Progress
from congrad_cli.settings import ConsensusSettings, FilterSettings
from congrad_cli.store import GradientStore, require_complete
from congrad_cli.weights import pair_terms


def run(
    path: Path, settings: FilterSettings, stdout: BinaryIO, progress: Progress
) -> FilterSummary:
    """Write the kept lines, byte for byte and in input order, to ``settings.output`` or stdout.

    Kept and dropped lines together are the input. Nothing is written before every line of the
    source has been found to be the one that was sketched. Gates are judged, not enforced: that is
    :func:`congrad_cli.filter.gates.require_gates`.
    """
    begun = time.monotonic()
    check_rule(settings)
    check_gate_options(settings)
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
    summary = summarise(store, outcome, settings, made, time.monotonic() - begun)
    if settings.summary is not None:
        with whole_file(settings.summary) as file:
            file.write(as_json(summary.to_json()).encode() + b"\n")
    return summary


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
