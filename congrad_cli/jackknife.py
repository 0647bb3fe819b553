"""The error of a cosine, from the sub-sketches that it is made of."""

import numpy as np

from congrad_cli.weights import Floats

NOTHING = 1e-12
"""A share of a sum this small is what rounding leaves after taking everything else away."""


def jackknife_error(dot: Floats, own: Floats, other: Floats) -> Floats:
    """The standard error of sum(dot) / sqrt(sum(own) sum(other)), [n]; arguments [n, r].

    Column j holds the products <g, d>, |g|^2 and |d|^2 inside sub-sketch j. A sketch is r
    sub-sketches of equal standing, drawn independently, so leaving each out in turn shows how
    much the draw matters:

        error^2 = (r - 1) / r  sum_j (cos_(-j) - mean)^2

    It covers everything that was drawn, the input side's random directions and the fold alike,
    and what a coarse code of the rows adds. NaN where there is one sub-sketch only, or where a
    cosine without one of them is not defined.
    """
    count = dot.shape[1]
    if count < 2:
        return np.full(len(dot), np.nan)
    own, other = _others(own), _others(other)
    scale = np.sqrt(own * other)
    cos = np.divide(_sum(dot) - dot, scale, out=np.full_like(dot, np.nan), where=scale > 0)
    spread = ((cos - cos.mean(1, keepdims=True)) ** 2).sum(1)
    return np.asarray(np.sqrt((count - 1) / count * spread), np.float64)


def _sum(part: Floats) -> Floats:
    return np.asarray(part.sum(1, keepdims=True), np.float64)


def _others(square: Floats) -> Floats:
    """The sum over all columns but each one, [n, r]; 0 where nothing is left."""
    whole = _sum(square)
    rest = whole - square
    return np.where(rest > NOTHING * whole, np.maximum(rest, 0), 0)
