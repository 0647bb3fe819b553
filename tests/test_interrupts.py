"""Ctrl-C at a real terminal and SIGTERM, at every stage: what is done is safe and goes on."""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
from conftest import SMALL

from congrad_cli.store import GradientStore

CTRL_C = b"\x03"


class Terminal:
    """A terminal, the command that runs on it, and what it shows."""

    def __init__(self, run, *args, **constants):
        self._ours, theirs = os.openpty()
        termios.tcsetwinsize(self._ours, (40, 160))
        self.shown = b""
        self._theirs = theirs  # while it is open, reading gives no error
        self._done = []
        self._thread = threading.Thread(target=lambda: self._done.append(
            run(*args, terminal=os.ttyname(theirs), **constants)))
        self._thread.start()

    def wait_for(self, pattern):
        """Read until the terminal has shown it."""
        while not re.search(pattern, self.shown):
            assert self._thread.is_alive() or self._readable(), self.shown.decode()
            if self._readable(0.05):
                self.shown += os.read(self._ours, 1 << 16)

    def _readable(self, seconds=0.0):
        return select.select([self._ours], [], [], seconds)[0]

    def press(self, keys):
        os.write(self._ours, keys)

    def end(self):
        """The command's exit code and stdout, once it has ended."""
        while self._thread.is_alive() or self._readable():
            if self._readable(0.05):
                self.shown += os.read(self._ours, 1 << 16)
        self._thread.join()
        os.close(self._ours)
        os.close(self._theirs)
        (done,) = self._done
        return done.returncode, done.stdout


@pytest.fixture
def arguments(small_pairs, tiny_model, tmp_path):
    return ["sketch", small_pairs, "-m", tiny_model, "-s", tmp_path / "s.congrad", *SMALL]


def test_ctrl_c_keeps_the_rows_in_hand_and_the_same_command_goes_on(
    forked_congrad, arguments, small_store, tmp_path
):
    store = tmp_path / "s.congrad"
    arguments += ["--batch-tokens", "100"]
    terminal = Terminal(forked_congrad, *arguments)
    terminal.wait_for(rb"[^0-9][1-9][0-9]*/24")
    terminal.press(CTRL_C)
    assert terminal.end() == (130, b"")
    assert b"interrupted" in terminal.shown
    assert b"Traceback" not in terminal.shown
    count = len(GradientStore.open(store))
    assert 0 < count < 24
    assert f"{count} of 24 pairs are safe in {store}. The same command continues." in said(terminal)
    assert not list(store.rglob(".*"))
    again = forked_congrad(*arguments)
    assert (again.returncode, again.stdout) == (0, str(store).encode() + b"\n")
    whole = GradientStore.open(small_store)
    for name in ("digest", "tokens"):
        np.testing.assert_array_equal(GradientStore.open(store).column(name), whole.column(name))


def said(terminal):
    """What the terminal showed as one line: a narrow one breaks them."""
    return " ".join(terminal.shown.decode().split())


def test_a_second_ctrl_c_does_not_wait_for_the_batch(forked_congrad, arguments, tmp_path):
    """The one batch that all pairs are in is never finished; the grace would wait for it."""
    terminal = Terminal(forked_congrad, *arguments, "--batch-tokens", "100000", GRACE_SECONDS=600)
    terminal.wait_for(rb"weights hold .*")  # said before the first batch
    terminal.press(CTRL_C)
    terminal.wait_for(rb"again")
    terminal.press(CTRL_C)
    assert terminal.end() == (130, b"")
    assert b"Traceback" not in terminal.shown
    assert "0 of 24 pairs are safe" in said(terminal)
    store = GradientStore.open(tmp_path / "s.congrad")
    assert (len(store), store.rows) == (0, 24)


def test_a_batch_that_takes_longer_than_the_grace_is_given_up(
    forked_congrad, arguments, tmp_path
):
    terminal = Terminal(forked_congrad, *arguments, "--batch-tokens", "100000", GRACE_SECONDS=0.01)
    terminal.wait_for(rb"weights hold .*")
    terminal.press(CTRL_C)
    assert terminal.end() == (130, b"")
    assert "0 of 24 pairs are safe" in said(terminal)


@pytest.mark.parametrize("stage", ["reading", "loading"])
def test_ctrl_c_before_the_first_pair_ends_it_quietly(stage, forked_congrad, arguments, tmp_path):
    terminal = Terminal(forked_congrad, *arguments)
    terminal.wait_for(b"congrad: " + stage.encode())
    terminal.press(CTRL_C)
    assert terminal.end() == (130, b"")
    assert b"congrad: error: interrupted" in terminal.shown
    assert b"Traceback" not in terminal.shown
    assert_nothing_but_a_start(tmp_path / "s.congrad")


def test_sigterm_while_libraries_are_imported_ends_it_quietly(arguments, tmp_path):
    command = [sys.executable, "-m", "congrad_cli", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stderr.readline()  # "reading ...": torch comes next, and takes seconds
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert process.returncode == 143, err.decode()
    assert out == b""
    assert b"Traceback" not in err
    assert_nothing_but_a_start(tmp_path / "s.congrad")


def assert_nothing_but_a_start(store):
    """What no data is in goes again; leading directions may be kept for the next run."""
    with contextlib.suppress(FileNotFoundError):
        assert {path.name for path in store.iterdir()} <= {"projection.safetensors"}
