"""Small histograms made of text: one character for each bin."""

import math
import shutil
import sys
from collections.abc import Sequence
from typing import IO

from congrad_cli.console import on_terminal

LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
PLAIN = ".:-=+*#@"
"""For terminals and logs that cannot write blocks."""
BINS = 16
LEAST_WIDTH = 76
"""Narrower terminals have no room for histograms beside the numbers."""


def blocks(counts: Sequence[int], stream: IO[str] | None = None) -> str:
    """The counts as characters of growing height; a bin with nothing is a space."""
    most = max(counts, default=0)
    levels = LEVELS if _writes(stream or sys.stderr, LEVELS) else PLAIN
    return "".join(
        " " if not count else levels[-(-count * len(levels) // most) - 1] for count in counts)


def histogram(values: Sequence[float], low: float, high: float) -> str:
    """The values as :func:`blocks`, in bins from ``low`` to ``high``; those outside not at all."""
    counts, width = [0] * BINS, (high - low) or 1.0
    for value in values:
        if math.isfinite(value) and low <= value <= high:
            counts[min(int(BINS * (value - low) / width), BINS - 1)] += 1
    return blocks(counts)


def roomy() -> bool:
    """Whether there is room for histograms; in a log, always."""
    return not on_terminal() or shutil.get_terminal_size().columns >= LEAST_WIDTH


def _writes(stream: IO[str], text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
