"""The consensus command: store -> group gradients -> direction -> consensus/NAME.safetensors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from congrad_cli.consensus.certificate import Certificate, certify
from congrad_cli.consensus.grouping import Grouping, choose_groups
from congrad_cli.consensus.groups import GroupGradients, cosines, group_gradients
from congrad_cli.consensus.methods import Solution
from congrad_cli.consensus.part import take_part
from congrad_cli.consensus.solver import solve
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
from congrad_cli.weights import Floats, Members, members


@dataclass(frozen=True)
class ConsensusSummary:
    """What the command shows: per group, and between groups."""

    names: list[str]
    pairs: list[int]
    norm: Floats  # [L] |G_l|
    cosine: Floats  # [L] cos(d, G_l)
    coefficient: Floats  # [L]
    conflict: Floats  # [L, L] cosines of the group gradients
    left_out: dict[str, str]  # groups that take no part, and why
    certificate: Certificate
    grouping: Grouping  # how the groups came about


def run(path: Path, settings: ConsensusSettings, progress: Progress) -> ConsensusSummary:
    """Find the consensus of the store at ``path`` and write it there under ``settings.name``."""
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
    groups = group_gradients(store, names, belong)
    part = take_part(groups, settings)
    found_by, coefficients = _reconcile(groups, part.factor, settings)
    direction = coefficients @ groups.gradients
    found = Consensus(direction, groups.gradients, coefficients, groups.excess)
    products = group_products(found)
    length = float(np.sqrt(max(products.d_square.sum(), 0)))
    # What opposed groups leave of each other is rounding, and no direction.
    pulled = np.abs(coefficients) @ np.sqrt(np.diagonal(groups.gramian))
    if not length > 1e-12 * pulled:
        raise NumericsError("the groups cancel each other; there is no direction.")
    write_consensus(path, StoredConsensus(found, names, belong, settings), store)
    norm = np.sqrt(np.diagonal(groups.gramian))
    along = products.d_group.sum(1)
    cosine = np.divide(along, norm * length, out=np.zeros_like(norm), where=norm > 0)
    cosine, conflict = np.clip(cosine, -1, 1), cosines(groups.gramian)
    return ConsensusSummary(
        names=groups.names,
        pairs=groups.pairs.tolist(),
        norm=norm,
        cosine=cosine,
        coefficient=coefficients,
        conflict=conflict,
        left_out=part.left_out,
        certificate=certify(groups.names, cosine, conflict, part.factor > 0, found_by.gap),
        grouping=grouping,
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
