"""The methods beside pcgrad and mean: a Gramian M [L, L] -> coefficients a [L], and their gap.

Each function takes M with a positive diagonal and says in its docstring what it solves. The gap is
how far the answer is from the optimum that defines it, as the conditions of optimality
(Karush, Kuhn, Tucker) tell from M alone, relative to the lengths involved: 0 but for rounding.
"""

import math
from dataclasses import dataclass

import numpy as np

from congrad_cli.consensus.cone import project, ridge_for, shortest
from congrad_cli.errors import NumericsError
from congrad_cli.weights import Floats

CAGRAD_RADIUS = 0.5
"""c of cagrad: how far it may leave the mean, in lengths of the mean."""
NASH_STEPS = 200
UNSEEN = 1e-7
"""A length this small beside its parts' may be rounding: a Gramian holds the squares."""


@dataclass(frozen=True)
class Solution:
    """Coefficients a [L], and the gap of a method that is defined by an optimum.

    ``parts`` [L, L], of methods that change each group's gradient and add them up: row l is what
    group l adds, in terms of the gradients; its sum is a, but for a factor.
    """

    coefficients: Floats
    gap: float | None = None
    parts: Floats | None = None


def upgrad(gramian: Floats) -> Solution:
    """UPGrad: the mean of all G_l, each projected onto the dual cone of all."""
    cosines, length = _parts(gramian)
    parts, gap, ridge = np.zeros(cosines.shape), 0.0, ridge_for(cosines)
    for label, own in enumerate(np.eye(len(length))):
        v = project(cosines, own, ridge)
        gap = max(gap, _cone_gap(cosines, own, v))
        parts[label] = v * length[label] / length
    return Solution(parts.mean(0), gap, parts)


def dualproj(gramian: Floats) -> Solution:
    """DualProj (GEM with all groups as memories): the mean, projected onto the dual cone."""
    cosines, length = _parts(gramian)
    mean = length / length.max() / len(length)
    v = project(cosines, mean, ridge_for(cosines))
    return Solution(v * length.max() / length, _cone_gap(cosines, mean, v))


def mgda(gramian: Floats) -> Solution:
    """MGDA: the shortest convex combination of the G_l; every <d, G_l> is at least |d|^2."""
    w = shortest(*_parts(gramian))
    products = gramian @ w
    gap = float((w @ products - products.min()) / np.diagonal(gramian).max())
    return Solution(w, max(gap, 0.0))


def cagrad(gramian: Floats) -> Solution:
    """CAGrad: of all d with |d - g| <= c |g|, g the mean, the one whose least <d, G_l> is largest.

    Its dual is the least ``<g, s> + c |g| |s|`` over convex combinations s of the G_l. For a fixed
    t the s with the least ``|s + t g|`` is the shortest combination of the ``G_l + t g``; at the
    optimum ``t c |g| = |s|``, and t is found by halving.
    """
    count = len(gramian)
    with_mean = gramian.mean(1)
    square = float(with_mean.mean())
    radius = CAGRAD_RADIUS * _root(square)
    lengths = np.sqrt(np.diagonal(gramian))
    largest = float(lengths.max())
    if radius <= UNSEEN * largest:
        raise NumericsError("the mean of the groups is zero; cagrad has nothing to start from.",
                            "try --method pcgrad, upgrad or mgda")
    low, high = 0.0, largest / radius
    for _ in range(50):
        t = (low + high) / 2
        w = _shifted_shortest(gramian, with_mean, square, t)
        length = _root(float(w @ gramian @ w))
        low, high = (low, t) if t * radius > length else (t, high)
    if length <= UNSEEN * (w @ lengths):
        raise NumericsError("no direction is better for all groups; cagrad has none to turn to.",
                            "try --method pcgrad or mean")
    a = 1 / count + radius / length * w
    gap = with_mean @ w + radius * length - (gramian @ a).min()
    return Solution(a, max(float(gap / largest**2), 0.0))


def imtl_g(gramian: Floats) -> Solution:
    """IMTL-G: a direction with the same projection on every group, coefficients adding up to 1."""
    length = np.sqrt(np.diagonal(gramian))
    v = np.linalg.pinv(gramian, rtol=_rounding(gramian), hermitian=True) @ length
    total = float(v.sum())
    if abs(total) <= 1e-12 * np.abs(v).sum():
        raise NumericsError("imtl-g finds no direction: its coefficients add up to zero.",
                            "try --method pcgrad or upgrad")
    return Solution(np.asarray(v / total, np.float64))


def aligned_mtl(gramian: Floats) -> Solution:
    """Aligned-MTL: the mean after the G_l were made orthogonal, all as long as the shortest axis.

    a = sqrt(lambda_min) M^(-1/2) 1 / L, over the eigenvalues of M that are not zero.
    """
    values, vectors = np.linalg.eigh(gramian)
    there = values > values[-1] * _rounding(gramian)
    values, vectors = values[there], vectors[:, there]
    mean = np.full(len(gramian), 1 / len(gramian))
    a = vectors @ (np.sqrt(values[0] / values) * (vectors.T @ mean))
    return Solution(np.asarray(a, np.float64))


def nash_mtl(gramian: Floats) -> Solution:
    """Nash-MTL: the bargain of the groups, ``a_l <d, G_l> = 1`` for each, a > 0; |d| = sqrt(L).

    It is the least ``a M a / 2 - sum log a``, by damped Newton steps; where some convex
    combination of the G_l is zero there is none. Lengths of the G_l do not matter to d.
    """
    cosines, length = _parts(gramian)
    a, size = np.ones(len(length)), np.inf
    for _ in range(NASH_STEPS):
        slope = cosines @ a - 1 / a
        # in units of a, the matrix has no eigenvalue below 1
        step = a * np.linalg.solve(cosines * np.outer(a, a) + np.eye(len(a)), a * slope)
        size = _root(float(slope @ step))
        a = a - step / (1 + size)
        if size < 1e-13 or a.max() > 1e6:
            break
    gap = float(np.abs(a * (cosines @ a) - 1).max())
    if not gap <= 1e-6:
        raise NumericsError("the groups oppose each other; nash-mtl finds no bargain.",
                            "try --method pcgrad or upgrad")
    return Solution(a / length, gap)


METHODS = {
    "mgda": mgda, "upgrad": upgrad, "dualproj": dualproj, "cagrad": cagrad, "imtl-g": imtl_g,
    "aligned-mtl": aligned_mtl, "nash-mtl": nash_mtl,
}  # fmt: skip


def _parts(gramian: Floats) -> tuple[Floats, Floats]:
    """Cosines [L, L] and lengths [L]."""
    length = np.sqrt(np.diagonal(gramian))
    return np.asarray(gramian / np.outer(length, length), np.float64), length


def _rounding(gramian: Floats) -> float:
    """Eigenvalues this small beside the largest are what rounding leaves of zero."""
    return float(len(gramian) * np.finfo(np.float64).eps)


def _cone_gap(cosines: Floats, vector: Floats, v: Floats) -> float:
    """Of a projection, over |u|^2 or |u|: how far <d, g_l> is below zero, and <v - u, N v> off."""
    products = cosines @ v
    below = max(0.0, -float(products.min()))
    beside = abs(float((v - vector) @ products))
    square = float(np.abs(vector) @ np.abs(cosines) @ np.abs(vector))
    return max(below / _root(square), beside / square)


def _root(square: float) -> float:
    """A length from its square, which rounding may have made negative."""
    return math.sqrt(max(square, 0))


def _shifted_shortest(gramian: Floats, with_mean: Floats, square: float, t: float) -> Floats:
    """Shares of the shortest combination of the ``G_l + t g``, from products with the mean g."""
    shifted = gramian + t * (with_mean[:, None] + with_mean) + t**2 * square
    length = np.sqrt(np.maximum(np.diagonal(shifted), 0))
    zero = length <= 1e-12 * length.max()
    if zero.any():  # one of them is the shortest already
        return np.asarray(zero / zero.sum(), np.float64)
    return shortest(shifted / np.outer(length, length), length)
