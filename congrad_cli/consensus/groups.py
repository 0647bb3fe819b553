"""Group gradients and their Gramian."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.block_sums import BlockSums, block_sums
from congrad_cli.products import gramian
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, Members


@dataclass(frozen=True)
class GroupGradients:
    """L groups: names, numbers of pairs [L], G [L, D] and its Gramian M = G G^T [L, L], float64.

    ``excess`` [L, r] is what decoding adds to |G_l|^2, by sub-sketch; M is free of it.
    """

    names: list[str]
    pairs: NDArray[np.int64]
    gradients: Floats
    gramian: Floats
    excess: Floats


def group_gradients(
    store: GradientStore, names: Sequence[str], members: Members
) -> GroupGradients:
    """G_l = sum over the group's pairs of c_i g_i, in one pass over the store."""
    found = block_sums(
        store, members.label.astype(np.int64), len(names), members.scale * members.share)
    return add_blocks(found, np.arange(len(names) + 1), names, members)


def add_blocks(
    found: BlockSums, first: NDArray[np.int64], names: Sequence[str], members: Members
) -> GroupGradients:
    """The groups' gradients from those of their blocks; group l has first[l] to first[l + 1]."""
    total = np.zeros((len(names), found.sums.shape[1]))
    excess = np.zeros((len(names), found.excess.shape[1]))
    for group, (begin, end) in enumerate(zip(first[:-1].tolist(), first[1:].tolist(), strict=True)):
        total[group] = found.unit[begin:end] @ found.sums[begin:end].astype(np.float64)
        excess[group] = found.excess[begin:end].sum(0)
    pairs = np.bincount(members.label, minlength=len(names)).astype(np.int64)
    return GroupGradients(list(names), pairs, total, gramian(total, excess), excess)


def cosines(products: Floats) -> Floats:
    """Cosine of every two groups from their Gramian, [L, L]; 0 where a group has no gradient."""
    norm = np.sqrt(np.maximum(np.diagonal(products), 0))
    scale = np.outer(norm, norm)
    result = np.zeros_like(products)
    np.divide(products, scale, out=result, where=scale > 0)
    return np.clip(result, -1, 1)  # coarse codes are right on average, not in every case
