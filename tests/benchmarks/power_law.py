"""How a cost grows: exponents by least squares on logarithms; no script, ``scaling.py`` uses it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from measures import student95


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """``factor * size ** exponent``, and the exponent's 95 % interval."""

    exponent: float
    low: float
    high: float
    factor: float

    def __str__(self) -> str:
        """The exponent and its interval."""
        return f"{self.exponent:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def at(self, size: float) -> float:
        """The value that the law gives."""
        return self.factor * size**self.exponent


def fit_power(runs: Iterable[tuple[float, float]]) -> PowerLaw:
    """The law through (size, value) of every run, all positive, of two sizes at least.

    The interval is made of how far runs are from one line: their noise, and the bend of a cost that
    has two regimes. Two runs have a line but no interval (nan).
    """
    found = np.array(list(runs), float).reshape(-1, 2)
    if len(set(found[:, 0])) < 2 or found.min() <= 0:
        raise ValueError(f"no power law through {found.tolist()}")
    x, y = np.log(found).T
    centred = x - x.mean()
    exponent = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - exponent * centred
    free = len(x) - 2
    half = math.nan
    if free:
        half = student95(free) * math.sqrt(float(rest @ rest) / free / float(centred @ centred))
    factor = math.exp(y.mean() - exponent * x.mean())
    return PowerLaw(exponent, exponent - half, exponent + half, factor)


def beyond_start(values: Mapping[float, float]) -> dict[float, float]:
    """The growth from the least size on: a fixed start, however large, has no part in it."""
    first = min(values)
    return {size - first: value - values[first] for size, value in values.items() if size > first}


def local_exponents(values: Mapping[float, float]) -> dict[float, float]:
    """The exponent between every size and the one before it, by the larger size."""
    sizes = sorted(values)
    return {
        size: math.log(values[size] / values[before]) / math.log(size / before)
        for before, size in pairwise(sizes)
    }
