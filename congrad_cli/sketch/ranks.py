"""Many processes on one store: who does what, and waiting until all of it is there.

Ranks share nothing but the store's folder. Rank i of n takes the windows of records whose number
is i modulo n; what is stored is done, whoever did it and however many ranks there were.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import StoreError
from congrad_cli.locks import live_ranks
from congrad_cli.settings import WINDOW
from congrad_cli.store import GradientStore

POLL_SECONDS = 2.0
GIVE_UP_SECONDS = 600.0
"""So long nothing may happen while no other rank is at work. They may still be starting."""


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the windows that this process takes: rank ``rank`` of ``world``.

    ``waits``: rank 0 waits for the others, which were started with it.
    """

    rank: int = 0
    world: int = 1
    waits: bool = False

    def has(self, row: int) -> bool:
        """Whether the record of this row is in it."""
        return row // WINDOW % self.world == self.rank

    def rows(self, count: int) -> NDArray[np.bool_]:
        """Which of so many rows are in it, [N]."""
        return np.asarray(np.arange(count) // WINDOW % self.world == self.rank)


def missing(path: Path) -> int:
    """How many of the data's pairs are neither stored nor known to have no sketch."""
    store = GradientStore.open(path)
    return store.rows - len(store) - len(store.skipped())


def wait_for_others(path: Path) -> None:
    """Return when all pairs are there; raise :class:`StoreError` when nobody works on the rest."""
    seen: list[tuple[str, int]] | None = None
    left, since = 0, time.monotonic()
    while True:
        found = _committed(path)
        if found != seen:
            seen, since = found, time.monotonic()
            left = missing(path)
            if not left:
                return
        if any(rank for rank in live_ranks(path)):
            since = time.monotonic()
        if time.monotonic() - since > GIVE_UP_SECONDS:
            raise StoreError(
                f"{path}: {left:,} pairs are missing, and no other rank is at work.",
                "run the same command again; it continues where it stopped",
            )
        time.sleep(POLL_SECONDS)


def _committed(path: Path) -> list[tuple[str, int]]:
    """Names and sizes of what ranks commit."""
    files = [*path.glob("shards/r*.safetensors"), *path.glob("skipped/*.jsonl")]
    return sorted((file.name, file.stat().st_size) for file in files)
