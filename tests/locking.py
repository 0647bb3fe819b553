"""Locks for tests: processes that have one, files that claim to be one, and who may take them."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from congrad_cli.claims import LockInfo, myself
from congrad_cli.errors import StoreError
from congrad_cli.locks import RankLock, live_ranks

OWNER = """
import signal, sys
from pathlib import Path
from congrad_cli.locks import RankLock
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # as the commands do
with RankLock(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), beat=0.05):
    print("locked", flush=True)
    sys.stdin.read()
"""


def start(store: Path, rank: int = 0, world: int = 1) -> "subprocess.Popen[str]":
    """A process that has the lock, and keeps it until its stdin ends."""
    command = [sys.executable, "-c", OWNER, str(store), str(rank), str(world)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n", process.communicate()[1]
    return process


def place(store: Path, info: LockInfo | bytes, age: float = 0.0, rank: int = 0) -> Path:
    """A lock file that was touched ``age`` seconds ago."""
    path = store / "locks" / f"r{rank:03d}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(info if isinstance(info, bytes) else info.content())
    os.utime(path, (time.time() - age,) * 2)
    return path


def elsewhere(world: int = 1, **changes) -> LockInfo:
    """A process on another host."""
    fields = {"host": "node7", "machine": "boot pid:[1]", "pid": 4711} | changes
    return dataclasses.replace(myself(world), **fields)


def ended() -> int:
    """The PID of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def assert_taken(store: Path, rank: int = 0) -> None:
    """Nobody can take it, and the refusal is one of the store."""
    with pytest.raises(StoreError) as refused, RankLock(store, rank, 1):
        pass
    assert refused.value.exit_code == 4


def assert_free(store: Path, rank: int = 0) -> None:
    """It can be taken, and nothing is left afterwards."""
    with RankLock(store, rank, 1) as lock:
        lock.check()
        assert live_ranks(store)[rank].pid == os.getpid()
    assert [path.name for path in (store / "locks").iterdir()] == []
