"""How many pairs of the data's groups pull in conflicting directions."""

import numpy as np

from congrad_cli.block_sums import block_sums
from congrad_cli.filter.target import Target
from congrad_cli.products import gramian
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, members


def count_conflicts(
    store: GradientStore, target: Target, settings: ConsensusSettings
) -> tuple[int, int]:
    """How many pairs of groups have gradients with a negative product, and how many there are.

    Groups without a gradient are not counted. A consensus of the store's own pairs has the groups'
    gradients; for a released one they are averaged here, weighed by ``settings``, in one pass.
    """
    if target.released:
        gradients = _group_gradients(store, settings)
        products = gradients @ gradients.T
    else:
        consensus = target.consensus
        products = gramian(consensus.gradients, consensus.excess)
    there = np.diagonal(products) > 0
    among = products[np.ix_(there, there)]
    count = len(among)
    return int((np.triu(among, 1) < 0).sum()), count * (count - 1) // 2


def _group_gradients(store: GradientStore, settings: ConsensusSettings) -> Floats:
    """G of the data's groups, [L, D]. Products of different groups hold no row twice, so what
    decoding adds does not matter here."""
    label, count = store.column("group"), len(store.groups)
    belong = members(store, label, count, settings)
    found = block_sums(store, label.astype(np.int64), count, belong.scale * belong.share)
    return found.unit[:, None] * found.sums
