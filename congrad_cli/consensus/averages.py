"""Every group's average, and what its random blocks add to it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from congrad_cli.block_sums import BlockSums, block_sums
from congrad_cli.consensus.blocks import (
    Deal,
    block_products,
    deal,
    most_blocks,
)
from congrad_cli.consensus.groups import GroupGradients, add_blocks
from congrad_cli.errors import UsageError
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, Members

STEPS = 1000
FEWEST_FOR_MEDIAN = 3


@dataclass(frozen=True)
class Averages:
    """The groups' gradients, what every pair adds to them, and the blocks that they are made of.

    Group l has the blocks first[l] to first[l + 1], [L + 1]; ``products`` [K, K] are theirs, free
    of what decoding adds, and ``share`` [K] is what each has of its average: the sum of its c_i.
    """

    groups: GroupGradients
    members: Members
    first: NDArray[np.int64]
    products: Floats
    share: Floats


def averages(
    store: GradientStore, names: Sequence[str], members: Members, settings: ConsensusSettings
) -> Averages:
    """Average each group by ``settings.average``, in one pass over the store."""
    most = most_blocks(len(names), store.header.dim)
    median = settings.average == "median-of-means"
    if median and most < FEWEST_FOR_MEDIAN:
        raise UsageError(
            f"--average median-of-means: there is room for {most} blocks in each of "
            f"{len(names):,} groups, and a median needs {FEWEST_FOR_MEDIAN}.",
            "take part of the groups, or --average trimmed",
        )
    dealt = deal(store.column("digest"), members.label, len(names), most)
    if median:
        members = replace(members, share=mean_of_blocks(dealt))
    found = block_sums(store, dealt.block, dealt.count, members.scale * members.share)
    products = block_products(found)
    if median:
        factor = median_factors(products, dealt.first)
        found = BlockSums(found.sums, found.unit * factor, found.excess * factor[:, None] ** 2)
        products *= np.outer(factor, factor)
        members = replace(members, share=members.share * factor[dealt.block])
    share = np.bincount(dealt.block, members.share, minlength=dealt.count).astype(np.float64)
    groups = add_blocks(found, dealt.first, names, members)
    return Averages(groups, members, dealt.first, products, share)


def mean_of_blocks(dealt: Deal) -> Floats:
    """c_i [N] that make a group's average the mean of its blocks' means."""
    blocks = np.diff(dealt.first)[dealt.groups()]  # of the block's group, [K]
    pairs = np.bincount(dealt.block, minlength=dealt.count)
    return np.asarray((1.0 / (blocks * pairs))[dealt.block], np.float64)


def median_factors(products: Floats, first: NDArray[np.int64]) -> Floats:
    """What turns the mean of each group's blocks into their geometric median, [K]."""
    result = np.ones(len(products))
    for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        own = slice(begin, end)
        result[own] = (end - begin) * geometric_median(products[own, own])
    return result


def geometric_median(gramian: Floats) -> Floats:
    """Shares w [B], w >= 0 with sum 1: sum_b w_b x_b has the least sum of distances to the x_b.

    ``gramian`` [B, B] holds the products of the x_b. Weiszfeld's steps, w_b as 1 / distance; a
    point in the way is left behind as Vardi and Zhang do (PNAS 2000), or is the median itself.
    """
    count = len(gramian)
    w = np.full(count, 1.0 / max(count, 1))
    square = np.diagonal(gramian)
    size = square.max(initial=0)
    for _ in range(STEPS if size > 0 else 0):
        along = gramian @ w
        distance = np.sqrt(np.maximum(square - 2 * along + w @ along, 0))
        here = distance <= 1e-9 * np.sqrt(size)
        pull = np.where(here, 0, 1 / np.where(here, 1, distance))
        if not pull.any():
            break  # all points are one
        step = pull / pull.sum()
        if here.any():
            # what the others pull, beside the points that are here and hold on
            change = pull - pull.sum() * w
            force = np.sqrt(max(change @ gramian @ change, 0))
            hold = min(1.0, here.sum() / force) if force > 0 else 1.0
            step = (1 - hold) * step + hold * w
        before, w = w, step
        if np.abs(w - before).max() <= 1e-13:
            break
    return w
