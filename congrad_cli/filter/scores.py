"""How far each pair's own gradient points along the consensus of the others."""

import numpy as np

from congrad_cli.direction import Consensus
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats

CANCELLED = 1e-12
"""A squared length this small beside its parts' counts as zero; G is summed in float32."""


def pair_scores(
    store: GradientStore, consensus: Consensus, scale: Floats, share: Floats, leave_one_out: bool
) -> Floats:
    """cos(g_i, d_-i) of every pair, [N]; NaN where one of the two is zero.

    ``scale`` [N] turns a stored unit direction into g_i, ``share`` [N] is c_i. With the solver's
    coefficients a fixed, leaving pair i of group l out of its average moves the consensus to

        d_-i = d + a_l k (G_l - g_i),   k = c_i / (1 - c_i);

    a pair that is its whole group takes the group with it: d_-i = d - a_l G_l. All products
    follow from <g_i, d>, <g_i, G_l> and |g_i|^2, so the store is read once.
    """
    d, groups = consensus.direction, consensus.gradients
    unit = np.abs(scale).max() or 1.0  # keeps squares of tiny gradients away from underflow
    d, groups, scale = d / unit, groups / unit, scale / unit
    d_square, d_group = d @ d, groups @ d  # scalar, [L]
    group_square = np.einsum("ld,ld->l", groups, groups)
    result = np.empty(len(store))
    begin = 0
    for block in store.blocks():
        rows = slice(begin, begin + len(block.row))
        begin = rows.stop
        label, direction = block.group, block.direction.astype(np.float64)
        # a zero weight leaves the score on the sketch itself
        factor = np.where(scale[rows] == 0, 1.0, scale[rows])
        square = np.einsum("nd,nd->n", direction, direction) * factor**2  # |g_i|^2
        along_d = factor * (direction @ d)
        if not leave_one_out:
            result[rows] = _cosine(along_d, square, d_square)
            continue
        along_group = factor * np.einsum("nd,nd->n", direction, groups[label])
        part = share[rows]
        alone = part > 1 - 1e-12
        k = np.divide(part, 1 - part, out=np.zeros_like(part), where=~alone)
        # d_-i = d + b G_l - e g_i
        b = consensus.coefficients[label] * np.where(alone, -1.0, k)
        e = consensus.coefficients[label] * np.where(scale[rows] == 0, 0.0, k)
        dot = along_d + b * along_group - e * square
        parts = d_square + b**2 * group_square[label] + e**2 * square
        length = parts + 2 * (b * d_group[label] - e * along_d - b * e * along_group)
        # where the parts cancel, what is left is rounding and points nowhere
        result[rows] = _cosine(dot, square, np.where(length > CANCELLED * parts, length, 0))
    return result


def _cosine(dot: Floats, square: Floats, other: Floats | float) -> Floats:
    scale = np.sqrt(square * other)
    return np.clip(np.divide(dot, scale, out=np.full_like(dot, np.nan), where=scale > 0), -1, 1)
