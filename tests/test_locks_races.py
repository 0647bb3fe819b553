"""Many processes after one lock: one has it, whoever is killed wherever it stands."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from locking import assert_free, elsewhere, place

from congrad_cli import claims

# Each line on stdin names a store and a moment to try at; the answer is "won" or "lost".
# Every system call that changes hands waits a little, which widens all windows.
RACER = """
import os, pathlib, random, sys, time
from congrad_cli import claims
from congrad_cli.errors import StoreError
from congrad_cli.locks import RankLock
delay = random.Random(int(sys.argv[1]))
def slow(function):
    def slowed(*args, **options):
        time.sleep(delay.random() * 0.002)
        return function(*args, **options)
    return slowed
def refused(*args):
    raise PermissionError(1, "Operation not permitted")
os.link = slow(refused if sys.argv[2] == "no links" else os.link)
for name in ("replace", "unlink", "rename"):
    setattr(pathlib.Path, name, slow(getattr(pathlib.Path, name)))
claims.look = slow(claims.look)
for line in sys.stdin:
    store, moment = line.rsplit(" ", 1)
    while time.monotonic() < float(moment):
        pass
    lock = RankLock(pathlib.Path(store), 0, 1)
    try:
        lock.__enter__()
    except StoreError:
        print("lost", flush=True)
    else:
        print("won", flush=True)
        sys.stdin.readline()
        lock.check()
        lock.__exit__(None, None, None)
        print("released", flush=True)
"""

# Forked children take the lock, look for company, and release it; many are killed on the way.
CROWD = """
import os, pathlib, random, signal, sys, time
from congrad_cli import claims
from congrad_cli.errors import StoreError
from congrad_cli.locks import RankLock
store, links = pathlib.Path(sys.argv[1]), sys.argv[2] == "links"
def child(number):
    chance = random.Random(number)
    calls = iter(range(chance.randrange(30) if number % 3 else 10**9))  # a third lives on
    def mortal(function):
        def called(*args, **options):
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(chance.random() * 0.001)
            return function(*args, **options)
        return called
    def refused(*args):
        raise PermissionError(1, "Operation not permitted")
    os.link = mortal(os.link if links else refused)
    for name in ("replace", "unlink"):
        setattr(pathlib.Path, name, mortal(getattr(pathlib.Path, name)))
    claims.look = mortal(claims.look)
    if not links:
        os.fsync = mortal(os.fsync)  # a new lock is empty, then whole
    for _ in range(200):
        try:
            with RankLock(store, 0, 1, stale_after=0.2):  # which torn ones wait for
                inside = store / "inside"
                if inside.exists() and claims._process(int(inside.read_text()))[0]:
                    os.write(1, b"company\\n")
                inside.write_text(str(os.getpid()))
                time.sleep(0.001)
                os.unlink(inside)
            os.write(1, b"done\\n")
            return
        except StoreError:
            time.sleep(0.002)
    os.write(1, b"never\\n")
running, number = set(), 0
while number < 60 or running:
    if number < 60 and len(running) < 6:
        pid = os.fork()
        if pid == 0:
            try:
                child(number)
            finally:
                os._exit(0)
        running.add(pid)
        number += 1
    else:
        running.discard(os.waitpid(-1, 0)[0])
"""


@pytest.fixture(scope="module", params=["links", "no links"])
def racers(request) -> "Iterator[list[subprocess.Popen[str]]]":
    """Eight processes that take a lock when they are told to."""
    commands = [[sys.executable, "-c", RACER, str(seed), request.param] for seed in range(8)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, **pipes) for command in commands]
    yield racers
    for racer in racers:
        racer.communicate()
        assert racer.returncode == 0


@pytest.mark.parametrize(("leftover", "rounds"), [("lock", 20), ("torn", 5), ("claim", 10)])
def test_of_many_that_take_over_a_stale_lock_one_wins(tmp_path, racers, leftover, rounds):
    for number in range(rounds):
        store = tmp_path / str(number)
        stale_lock(store, leftover)
        moment = time.monotonic() + 0.01
        for racer in racers:
            racer.stdin.write(f"{store} {moment}\n")
            racer.stdin.flush()
        answers = [racer.stdout.readline() for racer in racers]
        assert sorted(answers) == ["lost\n"] * 7 + ["won\n"]
        winner = racers[answers.index("won\n")]
        winner.stdin.write("release\n")
        winner.stdin.flush()
        assert winner.stdout.readline() == "released\n"
        assert list((store / "locks").iterdir()) == []


def stale_lock(store: Path, leftover: str) -> None:
    """What a killed owner leaves; with ``claim``, also the one that was killed taking over."""
    dead = elsewhere(host=claims._host(), machine=claims._machine(), pid=2**22 + 1)
    path = place(store, b"" if leftover == "torn" else dead.content(), age=999)
    if leftover == "claim":
        taker = dataclasses.replace(dead, token="another")
        with claims.claim(path, dead.content(), taker, 120):
            (claim,) = path.parent.glob("*.claim")
            kept = claim.read_bytes()
        claim.write_bytes(kept)


@pytest.mark.parametrize("file_system", ["links", "no links"])
def test_nobody_has_company_whoever_is_killed_where(tmp_path, file_system):
    """Processes die at random places of taking, holding, taking over and releasing."""
    done = subprocess.run(
        [sys.executable, "-c", CROWD, str(tmp_path), file_system],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = done.stdout.split()
    assert set(said) == {"done"}, said
    assert 20 <= len(said) < 60, "a third lives on, and some must be killed"
    for left in (tmp_path / "locks").iterdir():
        os.utime(left, (1, 1))
    assert_free(tmp_path)
