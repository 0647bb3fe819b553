"""How well numbers tell bad labels from good ones, with bootstrap weights; no script.

All functions take the numbers [n], the higher the better, which pairs are bad [n], and weights
[R, n] of R resamples; they return [R]. Ties count half.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def auroc(value: Floats, bad: Flags, weight: Floats) -> Floats:
    """The chance that a bad pair has a lower number than a good one; NaN without both."""
    right, wrong = value[~bad], value[bad]
    above = (right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)  # [right, wrong]
    of_right, of_wrong = weight[:, ~bad], weight[:, bad]
    total = of_right.sum(1) * of_wrong.sum(1)
    return np.divide((of_right @ above * of_wrong).sum(1), total,
                     out=np.full(len(weight), np.nan), where=total > 0)


def precision(value: Floats, bad: Flags, weight: Floats) -> Floats:
    """The share of bad pairs among as many of the lowest as there are bad ones."""
    order = np.argsort(value, kind="stable")
    weight, bad = weight[:, order], bad[order]
    wanted = (weight * bad).sum(1)
    before = np.cumsum(weight, 1) - weight
    taken = np.clip(wanted[:, None] - before, 0, weight)
    return np.divide((taken * bad).sum(1), wanted, out=np.full(len(weight), np.nan),
                     where=wanted > 0)


def within(value: Floats, bad: Flags, weight: Floats, group: NDArray[np.int32]) -> Floats:
    """The mean AUROC over the groups that have bad and good pairs."""
    parts = []
    for one in np.unique(group):
        rows = group == one
        if bad[rows].any() and not bad[rows].all():
            parts.append(auroc(value[rows], bad[rows], weight[:, rows]))
    if not parts:
        return np.full(len(weight), np.nan)
    there = ~np.isnan(parts)
    total = np.where(there, parts, 0).sum(0)
    return np.divide(total, there.sum(0), out=np.full(len(weight), np.nan), where=there.any(0))


def resamples(labels: int, count: int, rng: np.random.Generator) -> Floats:
    """How often each of ``labels`` things is drawn when as many are drawn with replacement,
    [count + 1, labels]; the first row holds every thing once."""
    drawn = rng.multinomial(labels, np.full(labels, 1 / labels), size=count)
    return np.vstack([np.ones(labels), drawn]).astype(np.float64)


def over_seeds(parts: list[Floats], seeds: Floats) -> Floats:
    """The mean of the seeds' results [S of R], the seeds themselves resampled by [R, S], [R]."""
    values = np.stack(parts, 1)
    there = ~np.isnan(values)
    weight = seeds * there
    total = weight.sum(1)
    return np.divide((np.where(there, values, 0) * weight).sum(1), total,
                     out=np.full(len(seeds), np.nan), where=total > 0)


T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""The 97.5 % quantile of Student's t for 1 to 10 degrees of freedom."""


def student95(free: int) -> float:
    """The 97.5 % quantile of Student's t, to 0.5 %."""
    return T95[free - 1] if free <= len(T95) else 1.96 + 2.4 / free


def seeds_interval(parts: list[Floats], seeds: Floats) -> tuple[float, float, float]:
    """The mean of the seeds' results, and 95 %: those of the bootstrap over items and seeds, and
    where it is wider those of Student's t over the seeds' own means.

    The bootstrap alone is too narrow for few seeds: where all scatter is of theirs, it holds the
    truth in 76 % of cases with three of them and in 83 % with five.
    """
    value, low, high = interval(over_seeds(parts, seeds))
    means = [float(part[0]) for part in parts if not np.isnan(part[0])]
    if len(means) < 2:
        return value, low, high
    half = student95(len(means) - 1) * float(np.std(means, ddof=1)) / len(means) ** 0.5
    return value, min(low, value - half), max(high, value + half)


def interval(values: Floats) -> tuple[float, float, float]:
    """The first of [R], and the middle 95 % of the others."""
    rest = values[1:][~np.isnan(values[1:])]
    if not len(rest):
        return float(values[0]), float("nan"), float("nan")
    low, high = np.quantile(rest, [0.025, 0.975])
    return float(values[0]), float(low), float(high)
