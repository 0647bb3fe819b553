"""Numbers -> shapes on a canvas: heat maps, histograms, the map of groups, curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.report.content import Curve, Floats, GroupScores

CELL, TEXT = 34, 13
STEPS = 10
"""Shades on each side of zero."""
BINS = 40
MAP_WIDTH, MAP_HEIGHT, EDGE = 720, 460, 56
LABEL_HEIGHT = 15


@dataclass(frozen=True)
class Cell:
    """A square of a heat map."""

    x: int
    y: int
    shade: int  # -STEPS (conflict) to STEPS (agreement)
    text: str
    tip: str
    unresolved: bool


@dataclass(frozen=True)
class HeatMap:
    """A square of cells with names on two sides; ``small`` where numbers have no room."""

    names: list[str]
    cells: list[Cell]
    margin: int
    size: int
    cell: int


def heat_map(
    names: Sequence[str], cosine: Floats, unresolved: NDArray[np.bool_] | None = None
) -> HeatMap:
    """Cosines [L, L] as squares; numbers are in hundredths."""
    count = len(names)
    cell = CELL if count <= 40 else max(4, 1400 // count)
    margin = min(220, 14 + 8 * max((len(name) for name in names), default=0))
    cells = []
    for i in range(count):
        for j in range(count):
            value = float(cosine[i, j])
            doubt = unresolved is not None and i != j and bool(unresolved[i, j])
            cells.append(Cell(
                x=margin + j * cell, y=margin + i * cell, shade=shade(value),
                text="" if i == j or cell < CELL else f"{100 * value:+.0f}".replace("-", "\u2212"),
                tip=f"{names[i]} and {names[j]}: {value:+.3f}" + (", unresolved" if doubt else ""),
                unresolved=doubt,
            ))  # fmt: skip
    return HeatMap(list(names), cells, margin, margin + count * cell + 2, cell)


def shade(value: float) -> int:
    """The shade of a cosine; the root spreads small ones, which are the common ones."""
    if not math.isfinite(value):
        return 0
    step = round(STEPS * math.sqrt(min(abs(value), 1.0)))
    return step if value >= 0 else -step


@dataclass(frozen=True)
class Bar:
    """One bin: kept on top of dropped pairs."""

    x: float
    width: float
    kept_y: float
    kept: float
    dropped_y: float
    dropped: float
    tip: str


@dataclass(frozen=True)
class Histogram:
    """Scores of one group, with its threshold."""

    name: str
    bars: list[Bar]
    threshold: float | None  # x
    zero: float | None  # x
    low: str
    high: str
    pairs: int
    kept: int


def histograms(
    scores: Sequence[GroupScores], width: float = 240, height: float = 84
) -> list[Histogram]:
    """All groups on one scale of scores; each has its own scale of numbers."""
    defined = [one.score[np.isfinite(one.score)] for one in scores]
    everything = np.concatenate(defined) if defined else np.zeros(0)
    if not len(everything):
        return []
    low, high = float(everything.min()), float(everything.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    return [_histogram(one, edges, width, height) for one in scores]


def _histogram(one: GroupScores, edges: Floats, width: float, height: float) -> Histogram:
    low, high = float(edges[0]), float(edges[-1])

    def place(value: float) -> float | None:
        inside = low <= value <= high
        return width * (value - low) / (high - low) if inside else None

    fine = np.isfinite(one.score)
    kept = np.histogram(one.score[fine & one.keep], edges)[0]
    dropped = np.histogram(one.score[fine & ~one.keep], edges)[0]
    most = max(int((kept + dropped).max()), 1)
    step, bars = width / BINS, []
    for number, (up, down) in enumerate(zip(kept.tolist(), dropped.tolist(), strict=True)):
        if up or down:
            tall, short = height * up / most, height * down / most
            bars.append(Bar(
                x=number * step, width=step - 0.6, kept_y=height - short - tall, kept=tall,
                dropped_y=height - short, dropped=short,
                tip=f"{edges[number]:+.3f} to {edges[number + 1]:+.3f}: {up} kept, {down} dropped",
            ))  # fmt: skip
    threshold = one.threshold
    return Histogram(
        name=one.name, bars=bars, zero=place(0.0),
        threshold=None if threshold is None or math.isnan(threshold) else place(threshold),
        low=f"{low:+.2f}", high=f"{high:+.2f}", pairs=len(one.score), kept=int(one.keep.sum()),
    )  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """A point of the map and its label, which a line joins where they are far apart."""

    name: str
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    consensus: bool
    apart: bool


def spots(names: Sequence[str], points: Floats) -> list[Spot]:
    """Places on the canvas for groups and, last, the consensus; labels do not overlap."""
    low, high = points.min(0), points.max(0)
    room = np.array([MAP_WIDTH - 2 * EDGE, MAP_HEIGHT - 2 * EDGE])
    # one scale for both axes: distances mean something
    scale = float((room / np.maximum(high - low, 1e-9)).min())
    middle = (low + high) / 2
    at = (points - middle) * [scale, -scale] + [MAP_WIDTH / 2, MAP_HEIGHT / 2]
    taken: list[tuple[float, float, float, float]] = []
    found = []
    labels = [*names, "consensus"]
    for number in np.argsort(at[:, 1], kind="stable").tolist():
        x, y, label = float(at[number, 0]), float(at[number, 1]), labels[number]
        wide = 8.0 * len(label)
        right = x + 10 + wide < MAP_WIDTH
        left_edge = x + 9 if right else x - 9 - wide
        label_y = y + 4
        while any(_overlap((left_edge, label_y, wide), box) for box in taken):
            label_y += 3
        taken.append((left_edge, label_y, wide, LABEL_HEIGHT))
        found.append(Spot(
            label, x, y, x + 9 if right else x - 9, label_y, "start" if right else "end",
            number == len(names), label_y - y > 12,
        ))  # fmt: skip
    return found


def _overlap(label: tuple[float, float, float], box: tuple[float, float, float, float]) -> bool:
    x, y, wide = label
    return x < box[0] + box[2] and box[0] < x + wide and abs(y - box[1]) < LABEL_HEIGHT


@dataclass(frozen=True)
class Line:
    """One language's curve."""

    name: str
    path: str  # of an SVG polyline: "x,y x,y"
    ends: list[tuple[float, float, str]]  # points with their values
    overall: bool
    unseen: bool


@dataclass(frozen=True)
class Chart:
    """One measure over the rounds."""

    measure: str
    lines: list[Line]
    low: str
    high: str
    rounds: list[tuple[float, int]]


def chart(curve: Curve, width: float = 200, height: float = 92) -> Chart:
    """A curve for each language; ``all`` is drawn strongly."""
    points = [point for line in curve.lines.values() for point in line]
    rounds = sorted({number for number, _ in points})
    values = [value for _, value in points if math.isfinite(value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    across = {number: width * (place / max(len(rounds) - 1, 1)) for place, number in
              enumerate(rounds)}
    lines = []
    for name, line in sorted(curve.lines.items(), key=lambda item: (item[0] == "all", item[0])):
        ends = [(across[number], height * (high - value) / (high - low),
                 f"{name}, round {number}: {value:.4g}")
                for number, value in sorted(line) if math.isfinite(value)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in ends)
        lines.append(Line(name, path, ends, name == "all", name in curve.unseen))
    return Chart(curve.measure, lines, f"{low:.4g}", f"{high:.4g}",
                 [(x, number) for number, x in across.items()])
