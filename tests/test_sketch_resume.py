"""Stopping a sketch loses nothing: the same command continues, and the rows are the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from congrad_cli.store import GradientStore

PAIRS = 48

ANNOUNCED = """
import os, pathlib, sys
from congrad_cli import cli, writer as writing
append = writing.ShardWriter.append
def announced(writer, arrays):
    append(writer, arrays)
    pathlib.Path(os.environ["MARK"]).touch()
writing.ShardWriter.append = announced
cli.main()
"""
"""The real command, which also touches a file when it has its first rows in hand."""


def command(data: Path, model: Path, store: Path, budget: int = 300) -> list[str]:
    """A sketch of small batches: many places to be stopped at."""
    return [sys.executable, "-c", ANNOUNCED, "sketch", str(data), "--model", str(model),
            "--store", str(store), "--threads", "1", "--batch-tokens", str(budget),
            "--dim", "512", "--width", "8", "--leading", "2",
            "--store-dtype", "float16"]  # fmt: skip


@pytest.fixture(scope="module")
def many_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pairs for many batches."""
    sample = Path(__file__).parent.parent / "sample_data" / "preferences.jsonl"
    path = tmp_path_factory.mktemp("data") / "many.jsonl"
    path.write_bytes(b"".join(sample.read_bytes().splitlines(keepends=True)[:PAIRS]))
    return path


@pytest.fixture(scope="module")
def whole(many_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> GradientStore:
    """The store of a run that nobody stopped."""
    model = Path(__file__).parent.parent / "sample_data" / "tiny-model"
    store = tmp_path_factory.mktemp("whole") / "s.congrad"
    mark = {"MARK": str(store.with_suffix(".mark"))}
    subprocess.run(command(many_pairs, model, store), check=True, capture_output=True,
                   env=os.environ | mark)
    return GradientStore.open(store)


@pytest.mark.parametrize(
    ("number", "code", "kept"),
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, True), (signal.SIGKILL, -9, False)],
)
def test_a_stopped_sketch_continues(
    number: signal.Signals, code: int, kept: bool, many_pairs: Path, whole: GradientStore,
    sample_data: Path, tmp_path: Path,
) -> None:  # fmt: skip
    store = tmp_path / "s.congrad"
    arguments = command(many_pairs, sample_data / "tiny-model", store)
    mark = tmp_path / "mark"
    environment = os.environ | {"MARK": str(mark)}
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    stop_after_the_first_batch(process, mark, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err.decode()
    assert out == b"", "a path is printed only when all is there"
    partial = GradientStore.open(store)
    assert len(partial) < PAIRS
    assert (len(partial) > 0) == kept, "Ctrl-C and SIGTERM save the rows in hand"
    assert not list(store.rglob(".*tmp")) or not kept

    # After SIGTERM with another budget: batches are cut elsewhere, across rows that are there.
    budget = 700 if number == signal.SIGTERM else 300
    arguments = command(many_pairs, sample_data / "tiny-model", store, budget)
    again = subprocess.run(arguments, capture_output=True, check=True, env=environment)
    assert again.stdout == os.fsencode(store) + b"\n"
    resumed = GradientStore.open(store)
    assert not list(store.rglob(".*tmp"))
    for column in ("tokens", "group", "digest"):
        np.testing.assert_array_equal(resumed.column(column), whole.column(column))
    for column in ("direction", "norm", "logp"):
        same = {"atol": 0, "rtol": 0} if budget == 300 else {"atol": 1e-3, "rtol": 1e-3}
        np.testing.assert_allclose(resumed.column(column), whole.column(column), **same)


def stop_after_the_first_batch(
    process: "subprocess.Popen[bytes]", mark: Path, number: signal.Signals
) -> None:
    """Send the signal while rows are in hand and nothing is committed yet."""
    deadline = time.monotonic() + 120
    while not mark.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
