"""Sums of a store's rows by block or group, in one pass."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.products import row_squares, with_copies
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats

CACHED = 1 << 20
"""So many numbers are decoded at a time: few enough to stay in the processor's caches."""


@dataclass(frozen=True)
class BlockSums:
    """Of K blocks: ``unit`` [K] times ``sums`` [K, D] is the sum of their pairs' terms.

    ``unit`` is a power of two near the block's largest term: float32 ends where gradients of good
    models begin. ``excess`` [K, r] is what decoding adds to a sum's square, by sub-sketch.
    """

    sums: NDArray[np.float32]
    unit: Floats
    excess: Floats


def block_sums(
    store: GradientStore, block: NDArray[np.int64], count: int, terms: Floats
) -> BlockSums:
    """The sums of ``terms`` [N] times the store's rows over each of ``count`` blocks.

    Float32, row by row in row order: beside decoding a row, adding it to its block costs little.
    """
    codec, dim = store.header.codec, store.header.dim
    largest = np.zeros(count)
    np.maximum.at(largest, block, np.abs(terms))
    unit = np.ldexp(1.0, np.frexp(np.where(largest > 0, largest, 1.0))[1])
    weight = (terms / unit[block]).astype(np.float32)
    sums = np.zeros((count, dim), np.float32)
    excess = np.zeros((count, codec.width))
    spare = np.empty(dim, np.float32)
    twice = terms * with_copies(store, block, terms)
    begin = 0
    for rows in store.blocks(max(CACHED // dim, 1)):
        here = slice(begin, begin + len(rows.row))
        begin = here.stop
        if not codec.exact:
            squares = row_squares(rows.direction, codec)
            np.add.at(excess, block[here], twice[here, None] * squares.excess)
        for place, row, own in zip(
            block[here].tolist(), rows.direction, weight[here], strict=True
        ):
            np.multiply(row, own, out=spare)
            np.add(sums[place], spare, out=sums[place])
    return BlockSums(sums, unit, excess)
