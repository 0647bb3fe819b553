"""Solvers: the Gramian M = G G^T [L, L] -> coefficients a [L]; the consensus is d = G^T a."""

import numpy as np
from numpy.typing import NDArray

from congrad_cli.consensus.methods import METHODS, Solution
from congrad_cli.errors import NumericsError
from congrad_cli.settings import ConsensusSettings
from congrad_cli.weights import Floats

NUMBERS = 1 << 22
"""pcgrad takes as many orders at once as have so many coefficients."""
TOGETHER = 64
"""Opponents between two products of matrices: more cost more in the recursion between them."""
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
        parts = pcgrad(scaled, settings.orders, settings.seed)
        return Solution(parts.sum(0), parts=parts)
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
    ``if <g_i, g_j> < 0: g_i -= <g_i, g_j> / |g_j|^2 g_j``. The projected gradients are added: d is
    the sum of the rows of the result [L, L], of which row i is what is left of g_i in terms of the
    originals. All of it happens on coefficients, for many orders at once.
    """
    count = len(gramian)
    words = np.random.Philox(key=seed)
    together = max(1, min(orders, NUMBERS // count**2))
    total = np.zeros((count, count))
    for begin in range(0, orders, together):
        drawn = _draw(words, count, min(together, orders - begin))
        total += _surgery(gramian, drawn.reshape(-1, count))
    return total / orders


def _surgery(gramian: Floats, order: NDArray[np.int64]) -> Floats:
    """What is left of each g_i, summed over its orders, [L, L]; ``order`` [P, L] has in row p
    the opponents of i = p mod L.

    Row p of ``a`` [P, L] holds g_i in terms of the originals. Opponents are met some at a time:
    one product of matrices gives what <g_i, g_j> is for all of them when the first is met, and
    the projections since then are a small triangular recursion.
    """
    count = len(gramian)
    square = np.diagonal(gramian)
    inverse = np.divide(1.0, square, out=np.zeros(count), where=square > 0)
    row = np.arange(len(order))
    a = np.zeros(order.shape)
    a[row, row % count] = 1.0
    for begin in range(0, count, TOGETHER):
        other = order[:, begin : begin + TOGETHER]  # [P, t]
        dots = np.take_along_axis(a @ gramian, other, 1)
        own = other == (row % count)[:, None]
        for place in range(other.shape[1]):
            opponent = other[:, place]
            hit = np.flatnonzero((dots[:, place] < 0) & ~own[:, place])
            step = dots[hit, place] * inverse[opponent[hit]]
            a[hit, opponent[hit]] -= step
            ahead = other[hit, place + 1 :]
            dots[hit, place + 1 :] -= step[:, None] * gramian[opponent[hit, None], ahead]
    return np.asarray(a.reshape(-1, count, count).sum(0), np.float64)


def random_orders(count: int, orders: int, seed: int) -> NDArray[np.int64]:
    """``orders`` times a random order for every group, [orders, L, L], the same on any machine."""
    return _draw(np.random.Philox(key=seed), count, orders)


def _draw(words: np.random.Philox, count: int, orders: int) -> NDArray[np.int64]:
    """The next ``orders`` of them."""
    drawn = words.random_raw(orders * count * count)
    return np.argsort(drawn.reshape(orders, count, count), axis=-1, kind="stable")
