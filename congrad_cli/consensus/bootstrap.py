"""How sure conflicts and cosines are: the blocks of every group weighed again, many times.

A group's gradient is the sum of its random blocks, so blocks drawn anew, with repetition, give
gradients as other data of the same kind would. Everything follows from the products K of the
blocks; a draw is a vector of weights m_b, and G*_l = sum_b m_b S_b.

*Products* of two groups hold no noise twice and are right on average. The square of a group's own
gradient is too large by its noise, which draws every cosine of a small group towards zero. It is
taken from products of *different* blocks: sum_(b != c) <S_b, S_c> / (1 - sum_b p_b^2), with p_b
the block's share of the average.

*Draws* meet the noise of both factors three times, as noise alone by signal, the same again, and
noise by noise, where the data have it once if noise is all there is. Their spread is therefore
drawn in by the ratio that the two-way decomposition of K gives (1 where signal prevails, 3^-1/2
where there is none). Few blocks tell little of their own spread: it is widened by
sqrt(B / (B - 1)) and by Student's quantile over the normal one.

The solver's coefficients stay as they are: what is asked is how sure the groups' gradients are,
and what this d does to them.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.weights import Floats

DRAWS = 1000
LEVEL = 0.95
NORMAL = 1.959964
"""Two-sided quantile of the normal distribution at ``LEVEL``."""
LEAST = 0.2
"""The least that variances are drawn in to."""


@dataclass(frozen=True)
class Intervals:
    """Cosines free of noise, and 95 % intervals of them; nan where the blocks cannot tell.

    ``conflict`` [L, L] is between groups, ``along`` [L] with d; ``*_range`` [.., 2] are lowest and
    highest. ``signal`` [L] is the share of |G_l|^2 that is not noise.
    """

    conflict: Floats
    conflict_range: Floats
    along: Floats
    along_range: Floats
    signal: Floats

    def holding(self, conflict: Floats, along: Floats) -> "Intervals":
        """Intervals that hold the cosines with their noise, too.

        Squares of little but noise may come out so small that no cosine below 1 agrees with them.
        """
        return replace(self, conflict_range=_hold(self.conflict_range, conflict),
                       along_range=_hold(self.along_range, along))


def intervals(
    products: Floats, share: Floats, first: NDArray[np.int64], coefficients: Floats, seed: int
) -> Intervals:
    """From K [K, K], p_b [K], the blocks first[l] to first[l + 1] of every group, and a [L].

    p_b sums to 1 in each group. Groups of fewer than two blocks have no intervals.
    """
    count, told = len(first) - 1, np.diff(first) > 1
    if not told.any():
        return _unknown(count)
    drawn = _Draws(products, share, first, seed)
    own, pull = drawn.own(), coefficients * drawn.length
    found = _unknown(count)
    along = _Drawn(np.zeros(count), np.zeros((count, DRAWS)))
    for group in range(count):
        each = drawn.with_others(group)  # and with itself, last
        along.value[group] += pull[: group + 1] @ each.value
        along.draws[group] += pull[: group + 1] @ each.draws
        along.value[:group] += pull[group] * each.value[:-1]
        along.draws[:group] += pull[group] * each.draws[:-1]
        if group:
            cosine, ends = _cosines(each.part(slice(-1)), own.part(slice(group)),
                                    own.part(slice(group, group + 1)))
            found.conflict[group, :group] = found.conflict[:group, group] = cosine
            found.conflict_range[group, :group] = found.conflict_range[:group, group] = ends
    d = _Drawn(np.atleast_1d(pull @ along.value), (pull @ along.draws)[None])
    found.along[:], found.along_range[:] = _cosines(along, own, d)
    found.signal[:] = own.value
    unclear = ~told | (drawn.length == 0)
    for values in vars(found).values():
        values[unclear] = np.nan
    found.conflict[:, unclear] = found.conflict_range[:, unclear] = np.nan
    return found


def _unknown(groups: int) -> Intervals:
    """What one block a group tells: nothing."""
    shapes = (groups, groups), (groups, groups, 2), (groups,), (groups, 2), (groups,)
    return Intervals(*(np.full(shape, np.nan) for shape in shapes))


def draw_weights(first: NDArray[np.int64], draws: int, seed: int) -> Floats:
    """m_b of every block, [K, draws]: how often it was drawn, its spread widened; mean 1."""
    words = np.random.Philox(key=np.array([seed, 1], np.uint64))
    result = np.ones((int(first[-1]), draws))
    for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        size = end - begin
        if size > 1:
            picks = (words.random_raw(draws * size) % np.uint64(size)).astype(np.int64)
            picks += np.repeat(np.arange(draws), size) * size
            often = np.bincount(picks, minlength=draws * size).reshape(draws, size)
            result[begin:end] = 1 + widening(size) * (often.T - 1)
    return result


def widening(blocks: int) -> float:
    """What the spread of ``blocks`` (2 or more) blocks is multiplied by for an interval."""
    degrees, z = blocks - 1, NORMAL
    if degrees == 1:
        student = 12.7062
    else:  # Cornish and Fisher's expansion; within 1 % from 3 degrees on
        student = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (
            96 * degrees**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return float(student / z * np.sqrt(blocks / degrees))


@dataclass(frozen=True)
class _Drawn:
    """n numbers as they are, [n], and drawn again, [n, R]."""

    value: Floats
    draws: Floats

    def part(self, rows: slice) -> "_Drawn":
        """Some of them."""
        return _Drawn(self.value[rows], self.draws[rows])


class _Draws:
    """Products of groups, as they are and drawn again; ``length`` [L] is taken out of them."""

    def __init__(
        self, products: Floats, share: Floats, first: NDArray[np.int64], seed: int
    ) -> None:
        size = np.diff(first)
        groups = np.repeat(np.arange(len(size)), size)
        square = np.diagonal(_sums(_sums(products, first).T, first))  # |G_l|^2, with its noise
        self.length = np.sqrt(np.maximum(square, 0))
        inverse = np.divide(
            1.0, self.length, out=np.zeros(len(size)), where=self.length > 0)[groups]
        self._products = (products * inverse[:, None] * inverse).astype(np.float32)
        np.fill_diagonal(self._products, 0)  # products of different blocks only
        self._share, self._first = share, first
        self._weight = draw_weights(first, DRAWS, seed).astype(np.float32)
        spare = 1 - _sums(share**2, first)
        self._norm = np.divide(1.0, spare, out=np.ones(len(size)), where=(size > 1) & (spare > 0))
        self._wide = np.array([widening(n) ** 2 if n > 1 else 0.0 for n in size.tolist()])

    def own(self) -> _Drawn:
        """The squares of all groups, free of noise."""
        each = [self.with_others(group, group) for group in range(len(self.length))]
        return _Drawn(np.concatenate([one.value for one in each]),
                      np.concatenate([one.draws for one in each]))

    def with_others(self, group: int, start: int = 0) -> _Drawn:
        """The products of this group and every one from ``start`` up to itself."""
        first = self._first[start : group + 2]
        begin, end = first[-2:].tolist()
        offset = int(first[0])
        part = self._products[begin:end, offset:end]  # [B_l, blocks up to here]
        value = _sums(part.sum(0, dtype=np.float64), first - offset)
        products = part.T @ self._weight[begin:end]
        products *= self._weight[offset:end]
        draws = _sums(products, first - offset).astype(np.float64)
        draws -= draws.mean(1, keepdims=True)
        ratio = self._drawn_in(part.astype(np.float64), value, group, start)
        draws *= np.sqrt(ratio)[:, None]
        draws += value[:, None]
        value[-1] *= self._norm[group]
        draws[-1] *= self._norm[group]
        return _Drawn(value, draws)

    def _drawn_in(self, part: Floats, value: Floats, group: int, start: int) -> Floats:
        """The variance that products with each group have over that of their draws, [n].

        The variance of a product is V_l + V_k - V_lk: of this group's blocks against the other's
        whole gradient, the other way round, and of blocks against blocks.
        """
        first = self._first[start : group + 2]
        offset, (begin, end) = int(first[0]), first[-2:].tolist()
        label = np.repeat(np.arange(len(value)), np.diff(first))
        own, other, first = self._share[begin:end], self._share[offset:end], first - offset
        by_own = _sums(part.T, first).T  # [B_l, n]
        by_other = part.sum(0)  # [blocks]
        mine = by_own - own[:, None] * value
        theirs = by_other - other * value[label]
        both = part - np.outer(own, by_other) - by_own[:, label] * other
        both += np.outer(own, other * value[label])
        wide, wides = self._wide[group], self._wide[start : group + 1]
        v_own, v_other = wide * (mine**2).sum(0), wides * _sums(theirs**2, first)
        v_both = _sums((both**2).sum(0), first)
        drawn = v_own + v_other + wide * wides * v_both
        ratio = np.divide(v_own + v_other - v_both, drawn, out=np.ones(len(value)), where=drawn > 0)
        return np.asarray(np.clip(ratio, LEAST, 1), np.float64)


def _sums(values: NDArray[Any], first: NDArray[np.int64]) -> NDArray[Any]:
    """The sums over each group's blocks, along the first axis; 0 for a group without any."""
    there = np.flatnonzero(np.diff(first))
    result = np.zeros((len(first) - 1, *values.shape[1:]), values.dtype)
    if values.ndim == 1 and len(there):
        result[there] = np.add.reduceat(values, first[there])
        return result
    for group in there.tolist():  # many times faster than reduceat along rows
        np.add.reduce(values[first[group] : first[group + 1]], axis=0, out=result[group])
    return result


def _cosines(product: _Drawn, square: _Drawn, other: _Drawn) -> tuple[Floats, Floats]:
    """The cosines [n], nan where there is no square, and their intervals [n, 2]."""
    valid = (square.value > 0) & (other.value > 0)
    cosine = _cosine(product.value, square.value * other.value, valid)
    drawn = _cosine(product.draws, square.draws * other.draws,
                    (square.draws > 0) & (other.draws > 0))
    return np.where(valid, cosine, np.nan), _range(drawn)


def _cosine(product: Floats, square: Floats, valid: NDArray[np.bool_]) -> Floats:
    """product / sqrt(square) within -1 and 1; the product's sign where there is no square."""
    root = np.sqrt(np.where(valid, square, 1))
    return np.asarray(np.where(valid, np.clip(product / root, -1, 1), np.sign(product)), np.float64)


def _hold(ends: Floats, value: Floats) -> Floats:
    """Intervals [.., 2], widened where they leave out the value; nan stays."""
    return np.stack([np.minimum(ends[..., 0], value), np.maximum(ends[..., 1], value)], axis=-1)


def _range(draws: Floats) -> Floats:
    """The lowest and the highest of the middle 95 % of draws [.., R], [.., 2]."""
    last = draws.shape[-1] - 1
    low = round((1 - LEVEL) / 2 * last)
    found = np.partition(draws, [low, last - low], axis=-1)
    return np.stack([found[..., low], found[..., last - low]], axis=-1)
