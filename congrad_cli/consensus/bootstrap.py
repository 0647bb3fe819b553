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
    size = np.diff(first)
    groups = np.repeat(np.arange(len(size)), size)
    told = size > 1
    if not told.any():
        return _unknown(len(size))
    square = _sums(_sums(products, first).T, first)  # the Gramian, with noise
    length = np.sqrt(np.maximum(np.diagonal(square), 0))
    inverse = np.divide(1.0, length, out=np.zeros(len(length)), where=length > 0)
    unit = (products * inverse[groups, None] * inverse[groups]).astype(np.float32)
    np.fill_diagonal(unit, 0)  # products of different blocks only
    weight = draw_weights(first, DRAWS, seed).astype(np.float32)
    spare = 1 - _sums(share**2, first)
    norm = np.divide(1.0, spare, out=np.ones(len(size)), where=told & (spare > 0))
    drawn = _Draws(unit, share, first, weight, norm)

    count, pull = len(size), coefficients * length
    conflict, conflict_range = np.full((count, count), np.nan), np.full((count, count, 2), np.nan)
    own, own_drawn = np.zeros(count), np.zeros((count, DRAWS))
    along, along_drawn = np.zeros(count), np.zeros((count, DRAWS))
    for group in range(count):
        value, draws = drawn.with_others(group)  # [l + 1], [l + 1, R]
        own[group], own_drawn[group] = value[-1], draws[-1]
        others = slice(group)
        along[group] += pull[: group + 1] @ value
        along_drawn[group] += pull[: group + 1] @ draws
        along[others] += pull[group] * value[:-1]
        along_drawn[others] += pull[group] * draws[:-1]
        cosine = _cosine(value[:-1], own[others] * own[group])
        ends = _range(_cosine(draws[:-1], own_drawn[others] * own_drawn[group],
                              (own_drawn[others] > 0) & (own_drawn[group] > 0)))
        conflict[group, others] = conflict[others, group] = np.where(
            (own[others] > 0) & (own[group] > 0), cosine, np.nan)
        conflict_range[group, others] = conflict_range[others, group] = ends
    unclear = ~told | (length == 0)
    conflict[unclear] = conflict[:, unclear] = np.nan
    conflict_range[unclear] = conflict_range[:, unclear] = np.nan
    d, d_drawn = pull @ along, pull @ along_drawn
    whole = _cosine(along, own * d)
    ends = _range(_cosine(along_drawn, own_drawn * d_drawn, (own_drawn > 0) & (d_drawn > 0)))
    whole[unclear | (own <= 0) | (d <= 0)] = np.nan
    ends[unclear] = np.nan
    signal = np.where(unclear, np.nan, own)
    return Intervals(conflict, conflict_range, whole, ends, signal)


def _unknown(groups: int) -> Intervals:
    """What one block a group tells."""
    nothing = np.full((groups, groups, 2), np.nan)
    return Intervals(nothing[..., 0], nothing, nothing[0, :, 0], nothing[0], nothing[0, :, 0])


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


class _Draws:
    """Products of groups, as they are and drawn again; all lengths are about 1."""

    def __init__(
        self, products: NDArray[np.float32], share: Floats, first: NDArray[np.int64],
        weight: NDArray[np.float32], norm: Floats,
    ) -> None:
        self._products, self._share, self._first = products, share, first
        self._weight, self._norm = weight, norm
        self._wide = np.array([widening(size) ** 2 if size > 1 else 0.0
                               for size in np.diff(first).tolist()])

    def with_others(self, group: int) -> tuple[Floats, Floats]:
        """Of this group and every one up to itself: the products [l + 1], and draws of them."""
        first = self._first[: group + 2]
        begin, end = first[-2:].tolist()
        part = self._products[begin:end, :end]  # [B_l, blocks up to here]
        value = _sums(part.sum(0, dtype=np.float64), first)
        products = part.T @ self._weight[begin:end]
        products *= self._weight[:end]
        draws = _sums(products, first).astype(np.float64)
        draws -= draws.mean(1, keepdims=True)
        draws *= np.sqrt(self._drawn_in(group, part.astype(np.float64), value))[:, None]
        draws += value[:, None]
        value[-1] *= self._norm[group]
        draws[-1] *= self._norm[group]
        return value, draws

    def _drawn_in(self, group: int, part: Floats, value: Floats) -> Floats:
        """The variance that products with each group have over that of their draws, [l + 1].

        The variance of a product is V_l + V_k - V_lk: of this group's blocks against the other's
        whole gradient, the other way round, and of blocks against blocks.
        """
        first = self._first[: group + 2]
        begin, end = first[-2:].tolist()
        label = np.repeat(np.arange(group + 1), np.diff(first))
        own, other = self._share[begin:end], self._share[:end]
        by_own = _sums(part.T, first).T  # [B_l, l + 1]
        by_other = part.sum(0)  # [blocks]
        mine = by_own - own[:, None] * value
        theirs = by_other - other * value[label]
        both = part - np.outer(own, by_other) - by_own[:, label] * other
        both += np.outer(own, other * value[label])
        v_own = self._wide[group] * (mine**2).sum(0)
        v_other = self._wide[: group + 1] * _sums(theirs**2, first)
        v_both = _sums((both**2).sum(0), first)
        drawn = v_own + v_other + self._wide[group] * self._wide[: group + 1] * v_both
        ratio = np.divide(v_own + v_other - v_both, drawn, out=np.ones(group + 1), where=drawn > 0)
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


def _cosine(product: Floats, square: Floats, valid: NDArray[np.bool_] | None = None) -> Floats:
    """product / sqrt(square) within -1 and 1; the product's sign where there is no square."""
    valid = square > 0 if valid is None else valid
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
