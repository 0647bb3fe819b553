"""Small histograms made of text: one character for each bin."""

import shutil
import sys
from collections.abc import Sequence
from typing import IO

from congrad_cli.console import on_terminal

LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
PLAIN = ".:-=+*#@"
"""For terminals and logs that cannot write blocks."""


def blocks(counts: Sequence[int], stream: IO[str] | None = None) -> str:
    """The counts as characters of growing height; a bin with nothing is a space."""
    most = max(counts, default=0)
    levels = LEVELS if _writes(stream or sys.stderr, LEVELS) else PLAIN
    return "".join(
        " " if not count else levels[-(-count * len(levels) // most) - 1] for count in counts)


def roomy(width: int) -> bool:
    """Whether the terminal has room for histograms beside the numbers; a log always has."""
    return not on_terminal() or shutil.get_terminal_size().columns >= width


def _writes(stream: IO[str], text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
