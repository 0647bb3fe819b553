"""The consensus command: store -> group gradients -> direction -> consensus/NAME.safetensors."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from congrad_cli.consensus.averages import Averages, averages
from congrad_cli.consensus.bootstrap import intervals
from congrad_cli.consensus.certificate import certify
from congrad_cli.consensus.grouping import choose_groups
from congrad_cli.consensus.groups import GroupGradients, cosines
from congrad_cli.consensus.methods import Solution
from congrad_cli.consensus.outliers import find_outliers, safety_hint
from congrad_cli.consensus.part import Part, take_part
from congrad_cli.consensus.solver import solve
from congrad_cli.consensus.summary import ConsensusSummary, length_histograms
from congrad_cli.direction import (
    Consensus,
    StoredConsensus,
    consensus_file,
    write_consensus,
)
from congrad_cli.errors import NumericsError, StoreError
from congrad_cli.products import group_products
from congrad_cli.progress import Progress
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore, require_complete
from congrad_cli.weights import Floats, Members, check_settings, members


def run(path: Path, settings: ConsensusSettings, progress: Progress) -> ConsensusSummary:
    """Find the consensus of the store at ``path`` and write it there under ``settings.name``."""
    begun = time.monotonic()
    check_settings(settings)
    consensus_file(path, settings.name)  # a bad name shall not cost a pass over the store
    store = GradientStore.open(path)
    require_complete(store, settings.allow_partial, progress)
    if not len(store):
        raise StoreError(
            f"{path} holds no sketched pairs.",
            "every pair was skipped; see skipped/" if len(store.skipped()) == store.rows
            else "the sketch command continues where it stopped",
        )
    grouping = choose_groups(store, settings, progress)
    progress.step(f"averaging {len(store):,} pairs")
    names = grouping.names
    belong = members(store, grouping.label, len(names), settings)
    _tell_weights(store, belong, settings, progress)
    average = averages(store, names, belong, settings)
    part = take_part(average.groups, settings)
    found_by, coefficients = _reconcile(average.groups, part.factor, settings)
    groups = average.groups
    found = Consensus(
        coefficients @ groups.gradients, groups.gradients, coefficients, groups.excess)
    summary = replace(
        _summarise(store, average, part, found, found_by.gap, settings),
        grouping=grouping, after=_after(groups, part.factor, found_by),
    )
    if summary.hint is not None:
        progress.note(summary.hint)
    write_consensus(
        path, StoredConsensus(found, names, average.members, settings, summary.findings()), store,
        summary.matrices(),
    )
    return replace(summary, seconds=time.monotonic() - begun)


def _summarise(
    store: GradientStore, average: Averages, part: Part, found: Consensus, gap: float | None,
    settings: ConsensusSettings,
) -> ConsensusSummary:
    """What was found; raises :class:`NumericsError` where d is nothing."""
    groups = average.groups
    products = group_products(found)
    length = float(np.sqrt(max(products.d_square.sum(), 0)))
    norm = np.sqrt(np.diagonal(groups.gramian))
    # What opposed groups leave of each other is rounding, and no direction.
    if not length > 1e-12 * (np.abs(found.coefficients) @ norm):
        raise NumericsError("the groups cancel each other; there is no direction.")
    along = products.d_group.sum(1)
    cosine = np.divide(along, norm * length, out=np.zeros_like(norm), where=norm > 0)
    cosine, conflict = np.clip(cosine, -1, 1), cosines(groups.gramian)
    sure = intervals(
        average.products, average.share, average.first, found.coefficients, settings.seed
    ).holding(conflict, cosine)
    belong = average.members
    lengths, span = length_histograms(belong.label, np.abs(belong.scale), len(groups.names))
    return ConsensusSummary(
        store=store.path,
        names=groups.names,
        pairs=groups.pairs.tolist(),
        blocks=np.diff(average.first).tolist(),
        lengths=lengths,
        span=span,
        norm=norm,
        cosine=cosine,
        coefficient=found.coefficients,
        conflict=conflict,
        intervals=sure,
        left_out=part.left_out,
        certificate=certify(groups.names, cosine, conflict, part.factor > 0, gap, sure),
        outliers=find_outliers(store, groups.names, average.members),
        hint=safety_hint(average.members, sure.signal, settings),
        settings=settings,
        seconds=0.0,
    )


def _reconcile(
    groups: GroupGradients, factor: Floats, settings: ConsensusSettings
) -> tuple[Solution, Floats]:
    """What the solver finds for the H_l = f_l G_l that take part, and a [L] with d = G^T a."""
    inside = factor > 0
    f = factor[inside]
    solution = solve(groups.gramian[np.ix_(inside, inside)] * np.outer(f, f), settings)
    coefficients = np.zeros(len(factor))
    coefficients[inside] = f * solution.coefficients
    return solution, coefficients


def _after(groups: GroupGradients, factor: Floats, found_by: Solution) -> Floats | None:
    """The cosines [L, L] between what the groups add to d; 0 for those that add nothing."""
    if found_by.parts is None:
        return None
    inside = factor > 0
    parts = found_by.parts * factor[inside]  # in terms of the G_l
    among = parts @ groups.gramian[np.ix_(inside, inside)] @ parts.T
    result = np.zeros(groups.gramian.shape)
    result[np.ix_(inside, inside)] = cosines(among)
    return result


def _tell_weights(
    store: GradientStore, belong: Members, settings: ConsensusSettings, progress: Progress
) -> None:
    """Say what the loss does to the pairs, where that is not what its name promises."""
    if settings.loss not in ("dpo", "lp-dpo") and not store.has("ref_logp"):
        progress.warn(
            f"--loss {settings.loss} weighs all pairs alike here: the store has no reference "
            "log-probabilities, so the model is its own reference"
        )
    flipped, silent = int((belong.scale < 0).sum()), int((belong.scale == 0).sum())
    if flipped:
        progress.warn(f"{flipped:,} pairs have a negative weight: the loss pushes them back")
    if silent:
        progress.warn(f"{silent:,} pairs have weight 0 and no part in the consensus")
