"""The terminal: stdout is kept for data alone; messages, progress and tables go to stderr."""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from congrad_cli.errors import UsageError

OPEN_WIDTH = 400
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor, ends lines, or turns the direction of what follows."""


def reserve_stdout() -> BinaryIO:
    """Hand out the real stdout and point everything else that prints there at stderr.

    Libraries, compiled code and child processes may print; none of it may reach a pipe that
    carries data.
    """
    if sys.stdout is None:
        raise UsageError("stdout is closed.", "redirect it to a file, or to /dev/null")
    sys.stdout.flush()
    data = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return data


def print_path(path: Path, out: BinaryIO) -> None:
    """The one line that goes to stdout; any bytes that a path can have."""
    out.write(os.fsencode(path) + b"\n")
    out.flush()


def print_json(value: dict[str, Any], out: BinaryIO) -> None:
    """One JSON object on stdout."""
    text = json.dumps(value, ensure_ascii=False)
    out.write(text.encode(errors="backslashreplace") + b"\n")  # names need not be UTF-8
    out.flush()


def say(kind: str, message: str, *hints: str) -> None:
    """One message on stderr: ``congrad: KIND: message`` and indented hints."""
    lines = [f"congrad: {kind}: {one_line(message)}", *(f"  {one_line(hint)}" for hint in hints)]
    sys.stderr.write("\n".join(lines).encode("utf-8", "replace").decode("utf-8") + "\n")
    sys.stderr.flush()


def one_line(text: str) -> str:
    """Text that may come from data: no control character of it reaches the terminal."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


def on_terminal(stream: IO[Any] | None = None) -> bool:
    """Whether a person watches the stream; stderr, where none is named."""
    return (stream or sys.stderr).isatty() and os.environ.get("TERM") != "dumb"


def counted(count: int, what: str) -> str:
    """Such as "1 pair" or "2 pairs"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    padding: int = 1,
    stream: IO[str] | None = None,
    pictures: bool = False,
) -> None:
    """A table on stderr, or on ``stream``: the first column to the left, numbers to the right.

    With ``pictures`` the last column stands to the left as well, so that its spaces count.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    person = on_terminal(stream)
    grid = Table(box=box.SIMPLE_HEAD if person else None, padding=(0, padding))
    left = (0, len(columns) - 1) if pictures else (0,)
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index in left else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*map(one_line, row))
    # off a terminal nobody can scroll sideways: lines are as wide as they need to be
    width = None if person else OPEN_WIDTH
    target = Console(file=stream or sys.stderr, width=width, highlight=False, markup=False)
    target.print(title, style="bold" if person else None)  # a table's own title wraps to its width
    target.print(grid)
