"""Writers that are killed over and over: each pair is there once, right, and nothing else is."""

import re
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torturing

from congrad_cli.store import open_shard, read_entries, shard_files, stored_digests
from congrad_cli.tensors import map_arrays

KILLS = 120
A_STORES_FILES = re.compile(
    r"store\.json|index\.safetensors|shards/r00[01]-\d{5}\.safetensors|skipped/r00[01]\.jsonl"
)


def test_killed_writers_leave_each_pair_once_and_nothing_else(tmp_path):
    done = subprocess.run(
        [sys.executable, torturing.__file__, str(tmp_path), "0", str(KILLS)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *readers, last = done.stdout.splitlines()
    kills, rounds = map(int, re.fullmatch(r"killed (\d+) in (\d+) rounds", last).groups())
    assert kills >= KILLS
    assert len(readers) == rounds
    assert all(int(line.removeprefix("opened ")) > 0 for line in readers)
    for number in range(rounds):
        check_store(tmp_path / str(number))


def check_store(store):
    shards = [open_shard(file, torturing.HEADER) for file in shard_files(store)]
    digests = stored_digests(shards)
    skipped = range(0, torturing.ROWS, torturing.SKIPPED_EVERY)
    wanted = np.delete(torturing.INDEX.digest, skipped, axis=0)
    assert sorted(map(bytes, digests)) == sorted(map(bytes, wanted)), "each once, over all shards"
    for file in shard_files(store):
        arrays = map_arrays(file)[0]
        source = torturing.contents(arrays["digest"])
        assert arrays.keys() == source.keys()
        for name, column in source.items():
            np.testing.assert_array_equal(arrays[name], column)
    noted = Counter(entry["digest"] for entry in read_entries(store / "skipped"))
    assert noted == Counter(bytes(torturing.INDEX.digest[row]).hex() for row in skipped)
    for path in store.rglob("*"):
        name, mode = path.relative_to(store).as_posix(), stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert name in ("shards", "skipped", "consensus", "locks")
            assert mode == 0o777 & ~torturing.UMASK
        else:
            assert A_STORES_FILES.fullmatch(name), "no lock, no temporary file"
            assert mode == 0o666 & ~torturing.UMASK


def test_a_killed_sketch_ends_with_the_rows_of_one_that_was_left_alone(forked_congrad):
    """``tests/benchmarks/torture.py`` checks the rows; with ``--kills 100`` it takes minutes."""
    program = Path(__file__).parent / "benchmarks" / "torture.py"
    done = forked_congrad("--kills", "5", "--pairs", "24", program=program)
    assert done.returncode == 0, done.stderr.decode()
    assert re.match(rb"killed ([5-9]|\d\d+) processes of 2 ranks .* rows identical", done.stdout)
