"""One writer per rank of a store: lock files that need no flock and hold across hosts.

``STORE/locks/rRRR.lock`` says who writes as rank RRR. A thread of its owner touches it every
15 s; :mod:`congrad_cli.claims` says when it counts and how it changes hands.

What remains is a process that stands still for more than 120 s, with another host after the same
lock. It owns nothing any more when it wakes up; :meth:`RankLock.check` tells it so.
"""

import contextlib
import errno
import os
import re
import threading
import time
from pathlib import Path
from types import TracebackType

from congrad_cli.claims import (
    NO_RESOURCES,
    HeldError,
    LockInfo,
    claim,
    holds,
    left_behind,
    look,
    myself,
    server_time,
    take,
    temporary_ending,
    touched,
)
from congrad_cli.errors import StoreError

BEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
WRITTEN = ("", "shards", "skipped")
"""The folders of a store that only the owners of locks write to."""

_TRIES = 100


class RankLock:
    """The right to write to ``store`` as ``rank`` of ``world`` ranks, as a context manager.

    Entering raises :class:`StoreError` where another process has the rank, or where a run of
    another world size is writing, and OSError where the machine lacks what it takes. A process
    that is killed leaves its lock, which is stale at once on the same machine.
    """

    def __init__(
        self, store: Path, rank: int, world: int, *,
        beat: float = BEAT_SECONDS, stale_after: float = STALE_SECONDS,
    ) -> None:  # fmt: skip
        self.store, self.rank, self.world = store, rank, world
        self._beat, self._stale_after = beat, stale_after
        self._path = store / "locks" / f"r{rank:03d}.lock"
        self._info = myself(world)
        self._end = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "RankLock":
        self._info, self._lost = myself(self.world), False
        self._end.clear()
        try:
            self._acquire()
            others(self.store, self.rank, self.world, self._stale_after)
            thread = threading.Thread(target=self._beats, name="lock", daemon=True)
            thread.start()
            self._thread = thread
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._release()

    @property
    def lost(self) -> bool:
        """Whether the lock was seen to be another's, or gone. It does not come back."""
        return self._lost

    def check(self) -> None:
        """Raise :class:`StoreError` unless the lock is still ours; call it before a commit.

        It reads the file: after a long sleep the caller may be awake before the thread is.
        """
        if self._still_ours():
            return
        raise StoreError(
            f"{self.store}: this process is no longer its writer of rank {self.rank}"
            f"{_by_whom(self._path)}.",
            f"it stood still for more than {self._stale_after:.0f} s, or the lock was removed",
            "run the same command again when no other does; what was committed is kept",
        )

    def _acquire(self) -> None:
        try:
            self._take()
            self._sweep()
        except HeldError as held:
            raise self._refusal(held.info, held.age) from None
        except OSError as error:
            if error.errno in NO_RESOURCES:
                raise
            raise StoreError(f"{self._path} cannot be made: {error.strerror}.") from error

    def _take(self) -> None:
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):  # who ends removes the empty folder
                self._path.parent.mkdir(parents=True, exist_ok=True)
                take(self._path, self._info, self._stale_after)
                return
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _still_ours(self) -> bool:
        with contextlib.suppress(OSError):  # a server that does not answer says nothing
            if not holds(self._path, self._info.content()):
                self._lost = True
        return not self._lost

    def _beats(self) -> None:
        while not self._end.wait(self._beat) and self._still_ours():
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _release(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if os.getpid() != self._info.pid:
            return  # a forked child leaves its parent's lock alone
        content = self._info.content()
        # Where it cannot be removed, it is being taken over, or goes stale with this process.
        with contextlib.suppress(HeldError, OSError):
            if self._still_ours():
                with claim(self._path, content, self._info, self._stale_after):
                    if holds(self._path, content):
                        self._path.unlink()

    def _sweep(self) -> None:
        """Remove what killed processes left of this rank: their claims are of locks long gone.

        Who lives and finds its file gone takes the lock with another, see :meth:`_take`.
        """
        now = touched(self._path)
        for pattern in (f".{self._path.stem}.*", ".clock.*"):
            for file in self._path.parent.glob(pattern):
                found = look(file)
                if found and (left_behind(file) or not found.alive(now, self._stale_after)):
                    with contextlib.suppress(OSError):
                        file.unlink()

    def _refusal(self, info: LockInfo | None, age: float) -> StoreError:
        stale = f"goes stale after {self._stale_after:.0f} s"
        if info is None:
            return StoreError(
                f"{self.store} may be in use: the lock of rank {self.rank} cannot be read,"
                f" and is {age:.0f} s old.",
                f"see {self._path}",
                f"try again later: such a lock {stale}",
            )
        return StoreError(
            f"{self.store} is being written by another process: rank {self.rank}, "
            f"PID {info.pid} on {info.host}, alive {info.age:.0f} s ago.",
            f"it has had the lock since {_date(info.since)}",
            f"wait for it, or stop it; if it is dead, its lock {stale}",
        )


def others(store: Path, rank: int, world: int, stale_after: float = STALE_SECONDS) -> None:
    """Raise :class:`StoreError` while another rank writes for another number of ranks.

    Ranks share out the pairs by rank and world size. It means something only to the owner of
    ``rank``'s lock: of two that start at once, the second to lock sees the first.
    """
    for other, info in live_ranks(store, stale_after).items():
        if other != rank and info.world != world:
            raise StoreError(
                f"{store} is being written by a run of {info.world} rank"
                f"{'s' * (info.world != 1)} (rank {other}: PID {info.pid} on {info.host}); "
                f"this one has {world}.",
                f"it has had the lock since {_date(info.since)}",
                "wait for it, or stop it; or start all ranks with the same number of them",
            )


def live_ranks(store: Path, stale_after: float = STALE_SECONDS) -> dict[int, LockInfo]:
    """Who writes to the store now, by rank. Locks that are stale or unreadable are left out.

    In a store that may only be read, ages are by this machine's clock.
    """
    files = {
        int(match[1]): path
        for path in sorted((store / "locks").glob("r*.lock"))
        if (match := re.fullmatch(r"r([0-9]{3,9})\.lock", path.name))
    }
    if not files:
        return {}
    now = server_time(store / "locks")
    live = {}
    for rank, path in files.items():
        found = look(path)
        if found and found.alive(now, stale_after) and (info := found.info(now)):
            live[rank] = info
    return live


def remove_leftovers(store: Path) -> None:
    """Remove the temporary files of killed writers; for who has the lock of a rank.

    A file that was there before the locks were read is nobody's, unless its name tells the host
    and the PID of a lock: who writes to these folders has had a lock since before.
    """
    files = [file for folder in WRITTEN for file in (store / folder).glob(".*.tmp")]
    owned = tuple("." + temporary_ending(info.host, info.pid)
                  for info in live_ranks(store).values())
    for file in files:
        if not file.name.endswith(owned):
            file.unlink(missing_ok=True)


def _date(since: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since))


def _by_whom(path: Path) -> str:
    found = look(path)
    info = found.info(found.mtime) if found else None
    return f"; PID {info.pid} on {info.host} is" if info else ""
