"""What long work tells about itself; ``console`` shows it, a notebook may ignore it."""

from typing import Protocol


class Progress(Protocol):
    """Receives what a command has to say while it works. Nothing of it goes to stdout."""

    def step(self, what: str) -> None:
        """A slow step begins."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Counting begins: ``done`` of ``total`` pairs are there already."""

    def advance(self, count: int) -> None:
        """``count`` more pairs are done."""

    def finish(self) -> None:
        """Counting ends."""

    def warn(self, message: str) -> None:
        """Something the user should know that stops nothing."""


class Silent:
    """Says nothing."""

    def step(self, what: str) -> None:
        """Ignored."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Ignored."""

    def advance(self, count: int) -> None:
        """Ignored."""

    def finish(self) -> None:
        """Ignored."""

    def warn(self, message: str) -> None:
        """Ignored."""
