"""Ctrl-C and SIGTERM while pairs are sketched: the rows in hand are written first."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

TERMINATED = 143
GRACE_SECONDS = 5.0
"""So long a batch may go on after the first signal; schedulers kill after 30 s or so."""


class Stopping:
    """Within it the first signal only asks: :meth:`check`, called between batches, then raises.

    A second signal, or the end of the grace, raises at once. SIGINT becomes KeyboardInterrupt,
    SIGTERM SystemExit(143). A signal that was ignored before stays so. Outside the main thread,
    which alone gets signals, nothing changes.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._out_of_time)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise what the signal asks for, if there was one."""
        if self._asked is not None:
            self._stop(self._asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            self._stop(number)
        self._asked = number
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        self._on_first()

    def _out_of_time(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            self._stop(self._asked)

    def _stop(self, number: int) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # what is in hand is still to be written
        if number == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        raise KeyboardInterrupt
