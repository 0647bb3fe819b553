"""Random blocks of every group's pairs, and the products of their sums.

A group's gradient is the sum of its blocks'. How much blocks differ says how sure the gradient
is, and products of different blocks are free of the noise that a gradient's own square has.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.block_sums import BlockSums
from congrad_cli.weights import Floats

BLOCKS = 32
ROOM = 1 << 29
"""Bytes that the sums of all blocks may take."""
ALTOGETHER = 4096
"""Blocks of all groups together, whose products are kept."""
COLUMNS = 2048
"""Numbers of every sum multiplied at a time."""


@dataclass(frozen=True)
class Deal:
    """Which of K blocks every pair is in, [N]; group l has the blocks first[l] to first[l + 1]."""

    block: NDArray[np.int64]
    first: NDArray[np.int64]

    @property
    def count(self) -> int:
        """K."""
        return int(self.first[-1])

    def groups(self) -> NDArray[np.int64]:
        """The group of every block, [K]."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))


def most_blocks(groups: int, dim: int) -> int:
    """Blocks that a group may have: 32, or what ``ROOM`` and ``ALTOGETHER`` leave, at least 1."""
    groups = max(groups, 1)
    return max(1, min(BLOCKS, ROOM // (4 * groups * dim), ALTOGETHER // groups))


def deal(
    digest: NDArray[np.uint8], label: NDArray[np.int32], groups: int, most: int
) -> Deal:
    """Deal the pairs of each group to at most ``most`` random blocks of equal size.

    A pair's place is that of its digest [N, 16] among its group's: random, and the same whatever
    the order of the data. Copies of a pair are in one block: they tell nothing of each other.
    """
    high, low = np.ascontiguousarray(digest).view(">u8").T
    order = np.lexsort((low, high, label))
    sorted_label = label[order]
    new = np.ones(len(label), bool)
    new[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    new[1:] |= sorted_label[1:] != sorted_label[:-1]
    different = np.bincount(sorted_label[new], minlength=groups)  # pairs of each group
    size = np.minimum(different, most)
    first = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    start = np.cumsum(different) - different
    rank = np.cumsum(new) - 1 - start[sorted_label]
    block = np.empty(len(label), np.int64)
    block[order] = first[sorted_label] + rank % size[sorted_label]
    return Deal(block, first)


def block_products(found: BlockSums) -> Floats:
    """<S_b, S_c> of all blocks, [K, K], free of what decoding adds; no square is negative.

    Products of up to ``COLUMNS`` numbers are summed in float32, their sums in float64.
    """
    total = np.zeros((len(found.sums), len(found.sums)))
    for begin in range(0, found.sums.shape[1], COLUMNS):
        part = np.ascontiguousarray(found.sums[:, begin : begin + COLUMNS])
        total += part @ part.T
    total *= found.unit[:, None]
    total *= found.unit
    square = np.diagonal(total) - found.excess.sum(1)
    np.fill_diagonal(total, np.maximum(square, 0))
    return total
