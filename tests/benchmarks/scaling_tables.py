"""Points of ``scaling.py`` as Markdown, with the exponents of what grows; no script."""

import math
import statistics
from collections.abc import Iterable, Sequence

from expected import MODELS, PEAK, ROW_BYTES, SHARES, batch_bytes, hours, operations
from power_law import beyond_start, fit_power
from scaling_parts import Point

FROM_START = {
    "sketch-n": ("CPU s",), "consensus-n": ("CPU s",), "consensus-dim": ("CPU s",),
    "consensus-groups": ("CPU s",),
}  # fmt: skip
"""Measures that hold a fixed start: their exponents are those of the growth from the least size."""
FITTED_TO = {"sketch-length": 2048}
"""Beyond this size attention goes another way, and its cost with it."""
UNFITTED = ("share of the matmul rate", "sketch / rows")
SIZE_NAMES = {
    "sketch-n": "pairs", "sketch-model": "parameters", "sketch-dim": "numbers a row",
    "sketch-length": "tokens a row", "padding": "tokens a batch", "store": "numbers a row",
    "consensus-n": "pairs", "consensus-dim": "numbers a row", "consensus-groups": "groups",
    "ranks": "processes",
}  # fmt: skip
NO_LAW = ("padding", "ranks")

Column = tuple[str, str]
"""(variant, measure)."""


def medians(points: Iterable[Point]) -> dict[Column, dict[float, float]]:
    """Over the turns, by column and size."""
    found: dict[Column, dict[float, list[float]]] = {}
    for point in points:
        for name, value in point.measures.items():
            found.setdefault((point.variant, name), {}).setdefault(point.size, []).append(value)
    return {column: {size: statistics.median(values) for size, values in by_size.items()}
            for column, by_size in found.items()}


def table(part: str, points: Sequence[Point]) -> str:
    """The part's medians, a line a size; below, the exponents."""
    mine = [point for point in points if point.part == part]
    if part in ("sketch-model", "sketch-length"):  # every size is a variant of its own
        mine = [Point(part, "", point.size, point.turn, point.measures) for point in mine]
    found = medians(mine)
    sizes = sorted({size for by_size in found.values() for size in by_size})
    names = [f"{variant}: {measure}" if variant else measure for variant, measure in found]
    lines = [[f"{size:,.0f}", *(shown(by_size.get(size)) for by_size in found.values())]
             for size in sizes]
    if part not in NO_LAW:
        lines.append(["exponent", *(exponent(part, column, mine) for column in found)])
    return markdown([SIZE_NAMES[part], *names], lines)


def exponent(part: str, column: Column, points: Iterable[Point]) -> str:
    """With its interval, through all runs; nothing of two sizes or fewer, or of what shrinks."""
    variant, measure = column
    if measure in UNFITTED:
        return ""
    turns: dict[int, dict[float, float]] = {}
    for point in points:
        if point.variant == variant and measure in point.measures:
            turns.setdefault(point.turn, {})[point.size] = point.measures[measure]
    if measure in FROM_START.get(part, ()):
        turns = {turn: beyond_start(values) for turn, values in turns.items()}
    runs = [run for values in turns.values() for run in values.items()
            if run[1] > 0 and run[0] <= FITTED_TO.get(part, math.inf)]
    return str(fit_power(runs)) if len({size for size, _ in runs}) > 2 else ""


def shown(value: float | None) -> str:
    """Three digits, or all of a whole number's."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rule = ["---"] * len(names)
    return "\n".join("| " + " | ".join(line) + " |" for line in (names, rule, *lines))


TOKENS, ANSWERS = 800, 600
"""Of the README's tables: prompts of 200 tokens and answers of 300 on average."""
LEAST = 1024
"""Tokens of the smallest batch that congrad tries on a GPU."""


def calculator() -> str:
    """The README's table: hours of one H100 by what it may reach of its rate, and memory."""
    lines = []
    for name, shape in MODELS.items():
        each = sum(operations(shape, TOKENS, ANSWERS).values())
        cells = [span(*(hours(pairs * each, share) for share in SHARES))
                 for pairs in (10_000, 100_000, 1_000_000)]
        weights, batch = 2 * shape.parameters, batch_bytes(shape, LEAST, LEAST, half=True)
        lines.append([name, f"{each / 1e12:.3g}", *cells,
                      f"{weights / 1e9:.3g} + {batch / 1e9:.2g} GB"])
    return markdown(["", "TFLOP a pair", "10,000 pairs", "100,000", "1,000,000",
                     f"weights + a batch of {LEAST:,} tokens"], lines)


UNITS = (("days", 24.0), ("h", 1.0), ("min", 1 / 60))


def span(least: float, most: float) -> str:
    """Hours from least to most, in the largest unit of which there are two."""
    unit, size = next((one for one in UNITS if most >= 2 * one[1]), ("s", 1 / 3600))
    return f"{least / size:.2g} to {most / size:.2g} {unit}"


def stores() -> str:
    """Gigabytes by row size."""
    return markdown(["row size", "10,000 pairs", "100,000", "1,000,000"], [
        [name, *(f"{pairs * size / 1e9:.3g} GB" for pairs in (10_000, 100_000, 1_000_000))]
        for name, size in ROW_BYTES.items()])


def calculators() -> str:
    """Both, and what they assume."""
    return (f"{PEAK / 1e12:.0f} TFLOP/s, of which {SHARES[0]:.0%} to {SHARES[1]:.0%}; rows of "
            f"{TOKENS} tokens, {ANSWERS} of them in answers\n\n{calculator()}\n\n{stores()}")
