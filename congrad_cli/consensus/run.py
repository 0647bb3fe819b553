"""The consensus command: store -> group gradients -> direction -> consensus/NAME.safetensors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from congrad_cli.consensus.groups import cosines, group_gradients
from congrad_cli.consensus.solver import solve
from congrad_cli.direction import Consensus, consensus_file, write_consensus
from congrad_cli.errors import NumericsError, StoreError
from congrad_cli.progress import Progress
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, average_coefficients, dpo_weights, pair_scales


@dataclass(frozen=True)
class ConsensusSummary:
    """What the command shows: per group, and between groups."""

    names: list[str]
    pairs: list[int]
    norm: Floats  # [L] |G_l|
    cosine: Floats  # [L] cos(d, G_l)
    coefficient: Floats  # [L]
    conflict: Floats  # [L, L] cosines of the group gradients


def run(path: Path, settings: ConsensusSettings, progress: Progress) -> ConsensusSummary:
    """Find the consensus of the store at ``path`` and write it there under ``settings.name``."""
    consensus_file(path, settings.name)  # a bad name shall not cost a pass over the store
    store = GradientStore.open(path)
    store.require_complete()
    if not len(store):
        raise StoreError(f"{path} holds no sketched pairs.", "every pair was skipped; see skipped/")
    progress.step(f"averaging {len(store):,} pairs")
    group = store.column("group")
    weight = dpo_weights(np.zeros(len(store)), settings.beta)
    scale = pair_scales(weight, store.column("norm").astype(np.float64), settings.pair_norm)
    share = average_coefficients(group, len(store.header.groups), settings)
    groups = group_gradients(store, scale * share)
    coefficients = solve(groups.gramian, settings)
    direction = coefficients @ groups.gradients
    length = float(np.linalg.norm(direction))
    if not np.isfinite(length) or length == 0:
        raise NumericsError("the groups cancel each other; there is no direction.")
    write_consensus(path, settings, Consensus(direction, groups.gradients, coefficients), store)
    norm = np.sqrt(np.diagonal(groups.gramian))
    along = groups.gradients @ direction
    return ConsensusSummary(
        names=groups.names,
        pairs=groups.pairs.tolist(),
        norm=norm,
        cosine=np.divide(along, norm * length, out=np.zeros_like(norm), where=norm > 0),
        coefficient=coefficients,
        conflict=cosines(groups.gramian),
    )
