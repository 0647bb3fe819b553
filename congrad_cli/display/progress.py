"""Progress on stderr: a bar where a person watches, plain lines in a log."""

import math
import os
import sys
import threading
import time
from collections import Counter
from typing import Any

from congrad_cli.console import on_terminal, one_line, say

HEARTBEAT_SECONDS = 30.0
MESSAGES_SHOWN = 5


class TerminalProgress:
    """Shows a bar on a terminal, elsewhere a plain line every 30 seconds.

    Steps that nothing is counted in get such a line too: silence in a log looks like a hang.
    """

    def __init__(self, quiet: bool, verbose: bool = False) -> None:
        self._quiet, self._verbose = quiet, verbose and not quiet
        self._step: str | None = None  # the slow step that is under way
        self._stepped = 0.0
        self._beating = False
        self._bar: Any = None
        self._task: Any = None
        self._shown: Counter[str] = Counter()  # notes and warnings, by kind
        self._total = self._done = self._new = 0
        self._began = self._spoke = 0.0
        self._what = self._unit = ""

    def step(self, what: str) -> None:
        """Say that a slow step begins."""
        self._end_step()
        if not self._quiet:
            sys.stderr.write(f"congrad: {what} ...\n")
            sys.stderr.flush()
            self._step, self._stepped = what, time.monotonic()
            self._beat()

    def _end_step(self) -> None:
        """What was under way is over, and something else begins."""
        if self._verbose and self._step is not None:
            seconds = time.monotonic() - self._stepped
            sys.stderr.write(f"congrad: {self._step}: {seconds:.2f} s\n")
        self._step = None

    def done(self) -> None:
        """The work is over; what follows is its result."""
        self._end_step()

    def _beat(self) -> None:
        """Let a thread say every 30 seconds that the step goes on; it ends with the process."""
        if not self._beating:
            self._beating = True
            threading.Thread(target=self._keep_beating, daemon=True).start()

    def _keep_beating(self) -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            step, seconds = self._step, time.monotonic() - self._stepped
            if step is not None and seconds >= HEARTBEAT_SECONDS:
                sys.stderr.write(f"congrad: {step}: still at it, {_clock(seconds)}\n")
                sys.stderr.flush()

    def start(self, what: str, total: int, done: int = 0, unit: str = "pairs") -> None:
        """Begin to count."""
        self._end_step()
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
        return self._verbose or self._shown[kind] <= MESSAGES_SHOWN

    def tell_hidden(self) -> None:
        """Say how many messages of which kind were not shown."""
        for kind, count in self._shown.items():
            if count > MESSAGES_SHOWN and not (self._quiet or self._verbose):
                what = kind.strip().replace(" ", "s of the kind ", 1)
                sys.stderr.write(f"congrad: {count - MESSAGES_SHOWN:,} more {what}\n")
        self._shown.clear()


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
