"""Two ranks that write a store of given numbers while they are killed again and again.

A program: forks are cheap only from a small process. ``python torturing.py FOLDER SEED KILLS``
fills ``FOLDER/0``, ``FOLDER/1``, ... until it has killed so often, and prints what readers saw.
"""

import hashlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from synthetic import columns, header, index_of, unit_rows

from congrad_cli.locks import RankLock, remove_leftovers
from congrad_cli.store import GradientStore
from congrad_cli.store_index import write_index
from congrad_cli.tensors import Arrays
from congrad_cli.writer import ShardWriter, create_store

ROWS, DIM, WORLD, WINDOW, BATCH = 48, 16, 2, 8, 3
SKIPPED_EVERY = 11
UMASK = 0o027
HEADER = header(DIM)
INDEX = index_of(["en", "de"] * (ROWS // 2))
ALIVE = 0.02
"""Seconds that a process lives at most, at first."""


def contents(digests: np.ndarray) -> Arrays:
    """What the source has for pairs of these digests: it follows from the digest alone."""
    seeds = [int.from_bytes(hashlib.sha256(digest.tobytes()).digest()[:8]) for digest in digests]
    random_rows = [np.random.default_rng(seed).standard_normal(DIM) for seed in seeds]
    norms = np.array([1 + seed % 1000 for seed in seeds])
    return columns(range(len(seeds)), unit_rows(np.array(random_rows)), norms, digests)


def work(store: Path, rank: int) -> None:
    """What ``sketch`` does, without a model."""
    os.umask(UMASK)
    with RankLock(store, rank, WORLD) as lock:
        remove_leftovers(store)
        store.mkdir(exist_ok=True)
        write_index(store, INDEX)
        create_store(store, HEADER)
        found = GradientStore.open(store)
        done = {*found.row.tolist(), *found.skipped()}
        writer = ShardWriter(store, HEADER, rank, lock.check)
        rows = [row for row in range(ROWS) if row // WINDOW % WORLD == rank and row not in done]
        for begin in range(0, len(rows), BATCH):
            fine = [row for row in rows[begin : begin + BATCH] if row % SKIPPED_EVERY]
            for row in set(rows[begin : begin + BATCH]) - set(fine):
                writer.skip(INDEX.digest[row].tobytes(), "data.jsonl", row + 1, "no-room", "long")
            if fine:
                writer.append(contents(INDEX.digest[fine]))
            writer.commit()


def read(store: Path, end: Path) -> None:
    """Open the store over and over; what was there once stays, and is right."""
    opened, before = 0, 0
    while not end.exists():
        if (store / "store.json").exists():
            found = GradientStore.open(store)
            rows = len(found) + len(found.skipped())
            assert rows >= before, (rows, before)
            for block in found.blocks():
                source = contents(INDEX.digest[block.row])
                np.testing.assert_array_equal(block.direction, np.float32(source["direction"]))
                np.testing.assert_array_equal(block.norm, source["norm"])
            opened, before = opened + 1, rows
        time.sleep(0.001)
    os.write(1, f"opened {opened}\n".encode())


def slow_down() -> None:
    """Widen the moments between system calls that belong together."""

    def slow(call: Callable) -> Callable:
        def slowed(*args, **options):
            time.sleep(random.random() * 0.001)
            result = call(*args, **options)
            time.sleep(random.random() * 0.001)
            return result

        return slowed

    os.link, os.fsync, os.utime = slow(os.link), slow(os.fsync), slow(os.utime)
    for name in ("replace", "unlink"):
        setattr(Path, name, slow(getattr(Path, name)))


def fork(task: Callable[[], None]) -> int:
    """A process that does this; exit code 1 and a traceback where it fails."""
    pid = os.fork()
    if pid:
        return pid
    try:
        random.seed(os.getpid())
        task()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def congrad(arguments: list[str], out: Path, err: Path) -> None:
    """The command, in a process that was forked for it; its streams are added to these files."""
    from congrad_cli.cli import main

    # before fd 1 and 2 are others: the objects that go close theirs
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    sys.argv = ["congrad", *arguments]
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(int(end.code or 0))


@dataclass
class Rank:
    """One rank's processes, one after the other: each does ``task``, and may be killed."""

    task: Callable[[], None]
    chance: random.Random
    longest: float  # seconds that the first lives at most; each kill adds a tenth
    kills: int = 0
    done: bool = False
    _pid: int = 0
    _end: float = 0.0

    def step(self) -> None:
        """Start a process, look after it, or kill it."""
        if self.done:
            return
        if not self._pid:
            longest = self.longest * (1 + self.kills / 10)
            self._end = time.monotonic() + self.chance.random() * longest
            self._pid = fork(self.task)
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid and time.monotonic() > self._end:
            os.kill(self._pid, signal.SIGKILL)
            pid, status = os.waitpid(self._pid, 0)
        if pid:
            assert status in (0, signal.SIGKILL), f"a rank's process ended with {status}"
            self.done, self._pid, self.kills = not status, 0, self.kills + bool(status)


def torture(tasks: list[Callable[[], None]], chance: random.Random, longest: float) -> int:
    """Do all tasks at once, however often they are killed; returns how often they were."""
    ranks = [Rank(task, chance, longest) for task in tasks]
    while not all(rank.done for rank in ranks):
        for rank in ranks:
            rank.step()
        time.sleep(0.0005)
    return sum(rank.kills for rank in ranks)


@contextmanager
def reader(task: Callable[[Path, Path], None], store: Path) -> Iterator[None]:
    """Within it a process runs ``task(store, end)``, which returns when the file ``end`` is."""
    end = store.with_suffix(".end")
    pid = fork(partial(task, store, end))
    yield
    end.touch()
    assert os.waitpid(pid, 0)[1] == 0, "the reader"


def main() -> None:
    """Fill stores until enough processes were killed."""
    folder, seed, wanted = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    import safetensors.numpy  # noqa: F401  once, before the forks

    slow_down()
    chance, kills, rounds = random.Random(seed), 0, 0
    while kills < wanted:
        store = folder / str(rounds)
        with reader(read, store):
            kills += torture([partial(work, store, rank) for rank in range(WORLD)], chance, ALIVE)
        rounds += 1
    print(f"killed {kills} in {rounds} rounds", flush=True)


if __name__ == "__main__":
    main()
