"""Group gradients and their Gramian, streamed from the store."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.products import gramian, row_squares
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
    """G_l = sum over the group's pairs of c_i g_i.

    Blocks are summed in float32, their sums in float64, in row order.
    """
    codec, terms = store.header.codec, members.scale * members.share
    total = np.zeros((len(names), store.header.dim))
    pairs = np.zeros(len(names), np.int64)
    excess = np.zeros((len(names), codec.width))
    begin = 0
    for block in store.blocks():
        end = begin + len(block.row)
        label = members.label[begin:end]
        # The largest term of a block is made 1: gradients may be as small as float32 goes.
        scale = np.abs(terms[begin:end]).max() or 1.0
        picks = np.zeros((len(names), end - begin), np.float32)  # [L, n]
        picks[label, np.arange(end - begin)] = terms[begin:end] / scale
        total += scale * (picks @ block.direction)
        if not codec.exact:
            squares = row_squares(block.direction.astype(np.float64), codec)
            np.add.at(excess, label, terms[begin:end, None] ** 2 * squares.excess)
        pairs += np.bincount(label, minlength=len(names))
        begin = end
    return GroupGradients(list(names), pairs, total, gramian(total, excess), excess)


def cosines(products: Floats) -> Floats:
    """Cosine of every two groups from their Gramian, [L, L]; 0 where a group has no gradient."""
    norm = np.sqrt(np.diagonal(products))
    scale = np.outer(norm, norm)
    result = np.zeros_like(products)
    np.divide(products, scale, out=result, where=scale > 0)
    return np.clip(result, -1, 1)  # coarse codes are right on average, not in every case
