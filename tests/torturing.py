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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from synthetic import columns, digests_of, header, index_of, unit_rows

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
"""Seconds that a process lives at most, at first; each kill adds a tenth."""


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


def fork(task: Callable[..., None], *args) -> int:
    """A process that does this; exit code 1 and a traceback where it fails."""
    pid = os.fork()
    if pid:
        return pid
    try:
        random.seed(os.getpid())
        task(*args)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


@dataclass
class Rank:
    """One rank's processes, one after the other."""

    store: Path
    number: int
    chance: random.Random
    kills: int = 0
    pid: int = 0
    end: float = field(default=0.0)
    done: bool = False

    def step(self) -> None:
        """Start it, look after it, or kill it."""
        if self.done:
            return
        if not self.pid:
            longest = ALIVE * (1 + self.kills / 10)
            self.end = time.monotonic() + self.chance.random() * longest
            self.pid = fork(work, self.store, self.number)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.done, self.pid = True, 0
            assert status == 0, f"rank {self.number}: {status}"
        elif time.monotonic() > self.end:
            os.kill(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
            killed = os.WIFSIGNALED(status)
            assert killed or status == 0, f"rank {self.number}: {status}"
            self.done, self.pid, self.kills = not killed, 0, self.kills + killed


def torture(store: Path, chance: random.Random) -> int:
    """Fill one store; returns how many processes were killed on the way."""
    end = store.with_suffix(".end")
    reader = fork(read, store, end)
    ranks = [Rank(store, number, chance) for number in range(WORLD)]
    while not all(rank.done for rank in ranks):
        for rank in ranks:
            rank.step()
        time.sleep(0.0005)
    end.touch()
    assert os.waitpid(reader, 0)[1] == 0, "the reader"
    return sum(rank.kills for rank in ranks)


def main() -> None:
    """Fill stores until enough processes were killed."""
    folder, seed, wanted = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    import safetensors.numpy  # noqa: F401  once, before the forks

    slow_down()
    chance, kills, rounds = random.Random(seed), 0, 0
    while kills < wanted:
        kills += torture(folder / str(rounds), chance)
        rounds += 1
    print(f"killed {kills} in {rounds} rounds", flush=True)


if __name__ == "__main__":
    assert (INDEX.digest == digests_of(ROWS)).all()
    main()
