"""Small convex programs on a Gramian, exactly: numpy only, finite, no library's epsilon.

A Gramian is used with ones on its diagonal; lengths go where they matter, into the bounds. A group
whose gradient is a million times shorter than another is then solved for as precisely.
"""

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import NumericsError
from congrad_cli.weights import Floats

RIDGE = 1e-9
"""Added to the diagonal where groups depend on each other, and taken out again by rounds."""
ROUNDS = 200
PATIENCE = 3
"""How often all signs may be turned at once without getting closer, before one at a time."""


def ridge_for(quadratic: Floats) -> float:
    """What to add to the diagonal of Q [n, n]: nothing where it is clearly positive definite."""
    values = np.linalg.eigvalsh(quadratic)
    return 0.0 if values[0] > 1e-6 * values[-1] else RIDGE * float(values[-1])


def nonnegative(quadratic: Floats, linear: Floats, ridge: float) -> Floats:
    """The x >= 0 with the least ``x Q x / 2 - b x``, [n]; Q [n, n] is positive semidefinite.

    Block principal pivoting (Judice and Pires 1994), which ends after a few solves, on Q with
    ``ridge`` on its diagonal; the proximal point iteration on top removes what that changes.
    """
    count = len(linear)
    regular = quadratic + ridge * np.eye(count) if ridge else quadratic
    slack = 1e-7 if ridge else 1e-10  # what the solves are right to
    x, free = np.zeros(count), np.zeros(count, bool)
    for _ in range(ROUNDS):
        before = x
        x, free = _pivot(regular, linear + ridge * before, free, slack)
        if not ridge or np.abs(x - before).max() <= 1e-12 * np.abs(x).max():
            break
    return x


def _pivot(
    quadratic: Floats, linear: Floats, free: NDArray[np.bool_], slack: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """The solution for a positive definite Q, and where it is above zero; starts at ``free``."""
    count = len(linear)
    free, fewest, patience = free.copy(), count + 1, PATIENCE
    flat = -1e-11 * float(np.abs(linear).max())
    for _ in range(100 + 20 * count):
        x = np.zeros(count)
        x[free] = np.linalg.solve(quadratic[np.ix_(free, free)], linear[free])
        slope = quadratic @ x - linear
        wrong = np.where(free, x < -slack * float(np.abs(x).max()), slope < flat)
        found = int(wrong.sum())
        if not found:
            return np.maximum(x, 0), free
        if found < fewest:
            fewest, patience = found, PATIENCE
        elif patience:
            patience -= 1
        else:  # Murty's rule: the last one alone; it cannot cycle
            wrong[: np.flatnonzero(wrong)[-1]] = False
        free ^= wrong
    raise NumericsError(
        "the solver did not settle: groups are too nearly dependent on each other.",
        "try --method pcgrad, or --normalize-groups unit",
    )


def project(cosines: Floats, vector: Floats, ridge: float) -> Floats:
    """Coefficients v of the projection of ``sum_l u_l g_l`` onto the dual cone, [L].

    The cone holds the directions that no g_l opposes. v is the vector with the least ``v N v``
    among those with v >= u; ``cosines`` is N [L, L], and the g_l have length 1. ``ridge`` is
    :func:`ridge_for` N.
    """
    slope = cosines @ vector
    if (slope >= 0).all():
        return vector  # inside already
    return np.asarray(vector + nonnegative(cosines, -slope, ridge), np.float64)


def shortest(cosines: Floats, length: Floats) -> Floats:
    """Shares w [L], w >= 0 with sum 1, of the shortest vector ``sum_l w_l g_l``.

    ``length`` [L] holds |g_l|, none of them zero. The least ``x N x + (r x - 1)^2`` over x >= 0
    with r = 1 / length points there: along a ray it grows with the ray's ``x N x / (r x)^2``.
    """
    inverse = length.min() / length
    quadratic = cosines + np.outer(inverse, inverse)
    x = nonnegative(quadratic, inverse, ridge_for(quadratic))
    w = x * inverse
    return np.asarray(w / w.sum(), np.float64)
