"""Solvers: the Gramian M = G G^T [L, L] -> coefficients a [L]; the consensus is d = G^T a."""

import numpy as np
from numpy.typing import NDArray

from congrad_cli.consensus.methods import METHODS, Solution
from congrad_cli.errors import NumericsError
from congrad_cli.settings import ConsensusSettings
from congrad_cli.weights import Floats

CANCELLED = 1e-15
"""A square this small beside its parts' is what rounding leaves of zero in a Gramian."""


def solve(gramian: Floats, settings: ConsensusSettings) -> Solution:
    """The coefficients of ``settings.method``.

    The Gramian is scaled to a largest entry of 1 first: what is decided does not depend on the
    gradients' overall size, and sizes like 1e-8 lose nothing. All but pcgrad and mean need every
    group to have a gradient.
    """
    largest = np.diagonal(gramian).max()
    if not np.isfinite(gramian).all() or largest <= 0:
        raise NumericsError("all group gradients are zero or not finite; there is no direction.")
    scaled = gramian / largest
    if settings.method == "mean":
        return Solution(np.full(len(scaled), 1.0 / len(scaled)))
    if settings.method == "pcgrad":
        return Solution(pcgrad(scaled, settings.orders, settings.seed))
    scaled = semidefinite(scaled)
    try:
        found = METHODS[settings.method](scaled)
    except np.linalg.LinAlgError as error:
        raise NumericsError(f"{settings.method} found no solution ({error}).",
                            "try --method pcgrad, or --normalize-groups unit") from error
    a = found.coefficients
    if a @ scaled @ a <= CANCELLED * (np.abs(a) @ np.sqrt(np.diagonal(scaled))) ** 2:
        raise NumericsError(f"the groups oppose each other; {settings.method} finds no direction.",
                            "try --method pcgrad or mean")
    return found


def semidefinite(gramian: Floats) -> Floats:
    """The Gramian without negative eigenvalues, its diagonal kept, [L, L].

    Coarse codes leave products right on average, and a matrix of them that no vectors have.
    """
    length = np.sqrt(np.diagonal(gramian))
    values, vectors = np.linalg.eigh(gramian / np.outer(length, length))
    if values[0] >= -1e-12 * values[-1]:
        return gramian
    nearest = (vectors * np.maximum(values, 0)) @ vectors.T
    length = length / np.sqrt(np.diagonal(nearest))
    return np.asarray(nearest * np.outer(length, length), np.float64)


def pcgrad(gramian: Floats, orders: int, seed: int) -> Floats:
    """PCGrad (Yu et al., NeurIPS 2020), averaged over ``orders`` random orders.

    Each g_i is projected, in a random order of the others, against every g_j it conflicts with:
    ``if <g_i, g_j> < 0: g_i -= <g_i, g_j> / |g_j|^2 g_j``. The projected gradients are added.
    All of it happens on coefficients: row i of ``a`` [L, L] holds g_i in terms of the originals,
    row i of ``dots`` [L, L] its products with them.
    """
    count = len(gramian)
    total = np.zeros(count)
    square = np.diagonal(gramian)
    everyone = np.arange(count)
    for order in random_orders(count, orders, seed):
        a, dots = np.eye(count), gramian.copy()
        for other in order.T:  # [L]: the next opponent of every i
            dot = dots[everyone, other]
            hit = np.flatnonzero((dot < 0) & (other != everyone) & (square[other] > 0))
            step = dot[hit] / square[other[hit]]
            a[hit, other[hit]] -= step
            dots[hit] -= step[:, None] * gramian[other[hit]]
        total += a.sum(0)
    return total / orders


def random_orders(count: int, orders: int, seed: int) -> NDArray[np.int64]:
    """``orders`` times a random order for every group, [orders, L, L], the same on any machine."""
    words = np.random.Philox(key=seed).random_raw(orders * count * count)
    return np.argsort(words.reshape(orders, count, count), axis=-1, kind="stable")
