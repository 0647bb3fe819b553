"""The terminal: stdout is kept for data alone; messages, progress and tables go to stderr."""

import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from congrad_cli.errors import UsageError

OPEN_WIDTH = 400
HEARTBEAT_SECONDS = 30.0
MESSAGES_SHOWN = 5
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


class TerminalProgress:
    """Shows a bar on a terminal, elsewhere a plain line every 30 seconds."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._shown: Counter[str] = Counter()  # notes and warnings, by kind
        self._total = self._done = self._new = 0
        self._began = self._spoke = 0.0
        self._what = self._unit = ""

    def step(self, what: str) -> None:
        """Say that a slow step begins."""
        if not self._quiet:
            sys.stderr.write(f"congrad: {what} ...\n")
            sys.stderr.flush()

    def start(self, what: str, total: int, done: int = 0, unit: str = "pairs") -> None:
        """Begin to count."""
        self._what, self._unit = what, unit
        self._total, self._done, self._new = total, done, 0
        self._began = self._spoke = time.monotonic()
        if self._quiet or not on_terminal():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        # rich's defaults would send what we print to stdout to the terminal instead of the pipe
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TextColumn("eta"), TimeRemainingColumn(),
            console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False,
        )
        self._task = self._bar.add_task(what, total=total, completed=done, rate="")
        self._bar.start()

    def advance(self, count: int) -> None:
        """Count on."""
        self._done, self._new = self._done + count, self._new + count
        now = time.monotonic()
        rate = self._new / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=f"{rate:.1f} {self._unit}/s")
        elif not self._quiet and now - self._spoke >= HEARTBEAT_SECONDS:
            self._spoke = now
            self._line(rate)

    def _line(self, rate: float) -> None:
        left = max(self._total - self._done, 0) / rate if rate else math.inf
        sys.stderr.write(
            f"{self._what} {self._done:,}/{self._total:,} ({self._done / self._total:.0%}) "
            f"{rate:.1f} {self._unit}/s eta {_clock(left)}\n"
        )
        sys.stderr.flush()

    def finish(self) -> None:
        """Stop counting and say how it went."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self.tell_hidden()
        seconds = time.monotonic() - self._began
        if not self._quiet:
            sys.stderr.write(
                f"congrad: {self._what}: {self._done:,} of {self._total:,} {self._unit}, "
                f"{self._new / max(seconds, 1e-9):.1f} {self._unit}/s, {_clock(seconds)}\n"
            )

    def stopping(self) -> None:
        """Say so at once, past ``sys.stderr``: the signal may have come in the midst of it."""
        os.write(2, b"\ncongrad: stopping; writing the rows in hand (Ctrl-C again to stop now)\n")

    def note(self, message: str, kind: str = "") -> None:
        """Show the first few notes of a kind; all are counted."""
        if self._may_show(f"note {kind}") and not self._quiet:
            sys.stderr.write(f"congrad: {one_line(message)}\n")
            sys.stderr.flush()

    def warn(self, message: str, kind: str = "") -> None:
        """Show the first few warnings of a kind; all are counted."""
        if self._may_show(f"warning {kind}"):
            say("warning", message)

    def _may_show(self, kind: str) -> bool:
        self._shown[kind] += 1
        return self._shown[kind] <= MESSAGES_SHOWN

    def tell_hidden(self) -> None:
        """Say how many messages of which kind were not shown."""
        for kind, count in self._shown.items():
            if count > MESSAGES_SHOWN and not self._quiet:
                what = kind.strip().replace(" ", "s of the kind ", 1)
                sys.stderr.write(f"congrad: {count - MESSAGES_SHOWN:,} more {what}\n")
        self._shown.clear()


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(count: int, what: str) -> str:
    """Such as "1 pair" or "2 pairs"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    padding: int = 1,
    stream: IO[str] | None = None,
) -> None:
    """A table on stderr, or on ``stream``: the first column to the left, numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    person = on_terminal(stream)
    grid = Table(box=box.SIMPLE_HEAD if person else None, padding=(0, padding))
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*map(one_line, row))
    # off a terminal nobody can scroll sideways: lines are as wide as they need to be
    width = None if person else OPEN_WIDTH
    target = Console(file=stream or sys.stderr, width=width, highlight=False, markup=False)
    target.print(title, style="bold" if person else None)  # a table's own title wraps to its width
    target.print(grid)
