"""What every test shares: one thread, no network, sample pairs, and ways to run ``congrad``.

The environment is set before anything imports torch: torch counts its threads when it is first
imported, and the hub's client reads ``HF_HUB_OFFLINE`` then too.
"""

# ruff: noqa: E402

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",  # two threads on busy cores were ten times slower
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
for name in ("CONGRAD_MODEL", "CONGRAD_DEBUG"):
    os.environ.pop(name, None)  # a developer's own settings must not reach the commands

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from preloaded import PreloadedCongrad
from synthetic import write_store

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES, PAIRS_EACH = 6, 4

SMALL = ("--dim", "512", "--width", "8", "--store-dtype", "float16")
"""Sketch options that make a sketch cheap where its numbers do not matter."""

Run = Callable[..., subprocess.CompletedProcess[bytes]]

hypothesis_settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
hypothesis_settings.load_profile("ci")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Pin torch, where a test module has imported it; importing it here would cost seconds."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The repository's ``sample_data``."""
    return ROOT / "sample_data"


@pytest.fixture(scope="session")
def tiny_model(sample_data) -> str:
    """What ``--model`` takes for the bundled model."""
    return str(sample_data / "tiny-model")


@pytest.fixture(scope="session")
def congrad() -> Run:
    """Runs ``congrad ARGS`` as the process a user starts: new interpreter, pipes, exit code."""

    def run(*args, stdin: bytes = b"", **options) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "congrad_cli", *map(str, args)]
        return subprocess.run(command, input=stdin, capture_output=True, check=False, **options)

    return run


@pytest.fixture(scope="session")
def forked_congrad(tmp_path_factory) -> Iterator[Run]:
    """As ``congrad``, but forked from a process that has imported torch: seconds cheaper."""
    with PreloadedCongrad(tmp_path_factory.mktemp("forked")) as server:
        yield server.run


@pytest.fixture(scope="session")
def small_lines(sample_data) -> list[bytes]:
    """About 24 short sample pairs over 6 languages, as the lines of their file, mixed up."""
    by_language = defaultdict(list)
    for line in (sample_data / "preferences.jsonl").read_bytes().splitlines(keepends=True):
        by_language[json.loads(line)["language"]].append(line)
    shortest = {
        language: sorted(lines, key=len)[:PAIRS_EACH] for language, lines in by_language.items()
    }
    cheapest = sorted(shortest, key=lambda language: sum(map(len, shortest[language])))
    chosen = [shortest[language] for language in cheapest[:LANGUAGES]]
    # languages alternate: a mistake in the order of rows must not hide behind sorted groups
    return [line for lines in zip(*chosen, strict=True) for line in lines]


@pytest.fixture(scope="session")
def small_pairs(small_lines, tmp_path_factory) -> Path:
    """A file of ``small_lines``."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_bytes(b"".join(small_lines))
    return path


@pytest.fixture(scope="session")
def small_store(forked_congrad, small_pairs, tiny_model, tmp_path_factory) -> Path:
    """``small_pairs``, sketched once for all tests. Read only: tests that write take a copy."""
    store = tmp_path_factory.mktemp("stores") / "small.congrad"
    done = forked_congrad("sketch", small_pairs, "--model", tiny_model, "--store", store, *SMALL)
    assert done.returncode == 0, done.stderr.decode()
    return store


@pytest.fixture
def store_copy(small_store, tmp_path) -> Path:
    """A copy of ``small_store`` that a test may write into."""
    return Path(shutil.copytree(small_store, tmp_path / "copy.congrad"))


@pytest.fixture(scope="session")
def agreed_store(small_store, forked_congrad, tmp_path_factory) -> Path:
    """``small_store`` with the default consensus in it; ``filter`` only reads it."""
    store = tmp_path_factory.mktemp("stores") / "agreed.congrad"
    shutil.copytree(small_store, store)
    done = forked_congrad("consensus", store)
    assert done.returncode == 0, done.stderr.decode()
    return store


@pytest.fixture(scope="session")
def make_store(tmp_path_factory) -> Callable[..., Path]:
    """Writes a store of given numbers without torch; see :func:`synthetic.write_store`."""

    def make(directions, norms=None, groups=None, **options) -> Path:
        folder = tmp_path_factory.mktemp("synthetic")
        return write_store(folder, directions, norms, groups, **options)

    return make
