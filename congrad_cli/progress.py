"""What long work tells about itself; ``console`` shows it, a notebook may ignore it."""

from typing import Protocol


class Progress(Protocol):
    """Receives what a command has to say while it works. Nothing of it goes to stdout."""

    def step(self, what: str) -> None:
        """A slow step begins."""

    def start(self, what: str, total: int, done: int = 0, unit: str = "pairs") -> None:
        """Counting begins: ``done`` of ``total`` pairs, or other units, are there already."""

    def advance(self, count: int) -> None:
        """``count`` more of them are done."""

    def finish(self) -> None:
        """Counting ends."""

    def stopping(self) -> None:
        """A signal asked to stop; what is in hand is finished first. Called in its handler."""

    def note(self, message: str, kind: str = "") -> None:
        """Something that was found out. Of a ``kind`` only the first few are shown."""

    def warn(self, message: str, kind: str = "") -> None:
        """Something the user should know that stops nothing; ``kind`` as for notes."""


class Silent:
    """Says nothing."""

    def step(self, what: str) -> None:
        """Ignored."""

    def start(self, what: str, total: int, done: int = 0, unit: str = "pairs") -> None:
        """Ignored."""

    def advance(self, count: int) -> None:
        """Ignored."""

    def finish(self) -> None:
        """Ignored."""

    def stopping(self) -> None:
        """Ignored."""

    def note(self, message: str, kind: str = "") -> None:
        """Ignored."""

    def warn(self, message: str, kind: str = "") -> None:
        """Ignored."""
