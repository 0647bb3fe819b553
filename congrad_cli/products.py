"""Inner products of decoded rows and their sums, free of what a coarse code adds to them.

A decoded row is x^_i = x_i + e_i, with an error e_i that has nothing to do with the other rows
(see the module ``codec``). So <x^_i, x^_j> is right for i != j, but

    <x^_i, x^_i> = |x_i|^2 + E_i,   E_i = |x^_i|^2 - 1, measured row by row

(0.57 for 1bit). With g_i = f_i x_i and G_l = sum_i t_i x_i, t_i = c_i f_i, every product that
contains a row twice is too large by that row's share:

    <G_l, G_l>  by  E_l = sum_{i in l} t_i^2 E_i      (copies of a pair: see with_copies)
    <d, G_l>    by  a_l E_l              (d = sum_l a_l G_l)
    <d, d>      by  sum_l a_l^2 E_l
    <g_i, G_l>  by  f_i t_i E_i          (i in l)
    <g_i, d>    by  a_l f_i t_i E_i

Products of two groups hold no row twice. Each product is corrected here, once; whatever plain
algebra makes of them (solvers, leaving a pair out) is then right too: a pair that is left out
takes its decoded square with it, and its cosine is taken with its true length.

All but the Gramian is kept by sub-sketch, [.., r], r = ``width``: products are sums over blocks
of numbers. A row's true square in a block is its decoded square there divided by |x^_i|^2: codes
keep the shares of the blocks. float16 rows stand for themselves, and all E are zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.codec import Codec
from congrad_cli.direction import Consensus
from congrad_cli.store import GradientStore
from congrad_cli.store_index import find_digests

Floats = NDArray[np.float64]
Rows = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RowSquares:
    """Of n rows, by sub-sketch, [n, r]: |x_i|^2, and E_i, what decoding adds to it."""

    true: Floats
    excess: Floats


@dataclass(frozen=True, slots=True)
class GroupProducts:
    """Of d and all G_l, by sub-sketch: [r], [L, r], [L, r]."""

    d_square: Floats
    d_group: Floats
    group_square: Floats


@dataclass(frozen=True, slots=True)
class Targets:
    """What rows are multiplied with, by sub-sketch: d [r, W] and all G_l [L, r, W].

    In float32 each is divided by its largest number, the ``*_size``, one and [L, 1]: of tiny
    gradients nothing is lost. ``a`` is [L].
    """

    d: Rows
    groups: Rows
    d_size: float
    group_size: Floats
    a: Floats


@dataclass(frozen=True, slots=True)
class PairProducts:
    """Of n pairs, by sub-sketch, [n, r]: |g_i|^2, <g_i, d>, and <g_i, G_l> for its own group."""

    square: Floats
    with_d: Floats
    with_group: Floats


def row_squares(direction: Rows, codec: Codec) -> RowSquares:
    """The squares of decoded rows [n, D], summed in their own precision in each sub-sketch."""
    blocks = _blocks(direction, codec.width)
    decoded = np.asarray(np.vecdot(blocks, blocks), np.float64)
    if codec.exact:
        return RowSquares(decoded, np.zeros_like(decoded))
    whole = decoded.sum(1, keepdims=True)
    true = np.divide(decoded, whole, out=np.zeros_like(decoded), where=whole > 0)
    return RowSquares(true, decoded - true)


def with_copies(store: GradientStore, part: NDArray[Any], term: Floats) -> Floats:
    """Of every pair, [N]: the sum of ``term`` [N] over its copies in its ``part`` [N], itself
    included.

    Copies (equal digests) are one row of the store with one error E, so the square of a sum that
    holds them with t_1 .. t_k is too large by (t_1 + .. + t_k)^2 E. Where E is 0, ``term`` will do.
    """
    if store.header.codec.exact:
        return term
    digest = store.column("digest")
    first = find_digests(digest, digest)
    if (first == np.arange(len(first))).all():
        return term
    pairs = np.column_stack([first, part])
    _, same = np.unique(pairs, axis=0, return_inverse=True)
    same = same.reshape(-1)
    return np.asarray(np.bincount(same, term)[same], np.float64)


def gramian(gradients: Floats, excess: Floats) -> Floats:
    """<G_l, G_m> from decoded G [L, D] and E_l [L, r], [L, L]; the diagonal is not negative."""
    result = gradients @ gradients.T
    square = np.diagonal(result) - excess.sum(1)
    np.fill_diagonal(result, np.maximum(square, 0))
    return result


def group_products(consensus: Consensus) -> GroupProducts:
    """What does not depend on the pair."""
    width = consensus.excess.shape[1]
    d, groups = _blocks(consensus.direction, width), _blocks(consensus.gradients, width)
    a = consensus.coefficients[:, None]
    return GroupProducts(
        d_square=np.vecdot(d, d) - (a**2 * consensus.excess).sum(0),
        d_group=np.vecdot(groups, d) - a * consensus.excess,
        group_square=np.vecdot(groups, groups) - consensus.excess,
    )


def exact_targets(consensus: Consensus, width: int) -> Targets:
    """d and the G_l as they are."""
    groups = consensus.gradients
    return Targets(_blocks(consensus.direction, width), _blocks(groups, width), 1.0,
                   np.ones((len(groups), 1)), consensus.coefficients)


def fast_targets(consensus: Consensus, width: int) -> Targets:
    """The same in float32, in which products take half the time and half the memory."""
    d, groups = consensus.direction, consensus.gradients
    d_size = float(np.abs(d).max()) or 1.0
    group_size = np.maximum(groups.max(1), -groups.min(1))[:, None]
    group_size[group_size == 0] = 1.0
    short = np.empty(groups.shape, np.float32)
    for to, group, size in zip(short, groups, group_size, strict=True):
        to[:] = group / size
    return Targets(_blocks((d / d_size).astype(np.float32), width), _blocks(short, width), d_size,
                   group_size, consensus.coefficients)


def pair_products(
    direction: Rows,
    label: NDArray[np.int32],
    factor: Floats,
    term: Floats,
    targets: Targets,
    codec: Codec,
) -> PairProducts:
    """Of decoded rows [n, D] in groups ``label``; f_i and t_i are ``factor`` and ``term``, [n].

    Products inside a sub-sketch have the precision of rows and targets, their sums float64.
    It is fastest where rows of one group stand together.
    """
    squares = row_squares(direction, codec)
    rows, factor = _blocks(direction, codec.width), factor[:, None]
    twice = term[:, None] * squares.excess  # too much in <x^_i, G_l>
    with_group = np.empty(twice.shape)
    for run in runs(label):
        with_group[run] = np.vecdot(rows[run], targets.groups[label[run.start]])
    with_group *= targets.group_size[label]
    with_d = targets.d_size * np.vecdot(rows, targets.d).astype(np.float64)
    return PairProducts(
        square=factor**2 * squares.true,
        with_d=factor * (with_d - targets.a[label, None] * twice),
        with_group=factor * (with_group - twice),
    )


def runs(label: NDArray[np.int32]) -> Iterator[slice]:
    """Where equal labels [n] stand together, in order."""
    ends = [*(np.flatnonzero(np.diff(label)) + 1).tolist(), len(label)]
    begin = 0
    for end in ends if len(label) else ():
        yield slice(begin, end)
        begin = end


def _blocks(vectors: Any, width: int) -> Any:
    """[.., D] -> [.., r, W]."""
    return vectors.reshape(*vectors.shape[:-1], width, vectors.shape[-1] // width)
