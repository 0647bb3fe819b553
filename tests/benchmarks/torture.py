"""``congrad sketch`` killed over and over at random moments: are the rows those of a whole run?

One run is left alone. Then ranks (``--shard I/N``, all at once) sketch the same pairs into other
stores, are killed and started again until all is there, while a reader opens the store all the
time; and so on until there were enough kills. Processes are forked from one that has imported
torch: kills during imports would prove little. Windows are of 8 rows, and every batch is a commit.

    OMP_NUM_THREADS=1 python tests/benchmarks/torture.py --kills 100
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import patched
import preloaded
import torturing

from congrad_cli.header import read_header
from congrad_cli.store import GradientStore, open_shard, shard_files, stored_digests
from congrad_cli.tensors import map_arrays

ROOT = Path(__file__).resolve().parent.parent.parent
OPTIONS = ("--dim", "512", "--width", "8", "--leading", "2", "--store-dtype", "float16",
           "--batch-tokens", "100", "--threads", "1")  # fmt: skip


def write_pairs(path: Path, count: int) -> None:
    """The shortest sample pairs, told apart by their ids; one answer in twelve is too long."""
    lines = (ROOT / "sample_data" / "preferences.jsonl").read_bytes().splitlines()
    pairs = [json.loads(line) for line in sorted(lines, key=len)[:12]]
    pairs[11]["chosen"] = pairs[11]["rejected"] + " "
    pairs[11]["prompt"] = pairs[11]["prompt"] * 20  # --max-length leaves no room for answers
    with path.open("w") as file:
        for row in range(count):
            file.write(json.dumps(pairs[row % 12] | {"id": f"pair-{row}"}) + "\n")


def prepare() -> None:
    """Import what the command imports; make windows and shards small."""
    for name in preloaded.PRELOADED:
        import_module(name)
    patched.patch({"WINDOW": 8, "SHARD_ROWS": 1})


def sketch(data: Path, model: str, store: Path, shard: str) -> None:
    """The command, in a process that is forked for it."""
    arguments = ["sketch", str(data), "--model", model, "--store", str(store),
                 "--max-length", "128", "--shard", shard, *OPTIONS]  # fmt: skip
    torturing.congrad(arguments, store.with_suffix(".out"), store.with_suffix(".log"))


def read(store: Path, end: Path) -> None:
    """Open the store all the time; what was there once stays."""
    before = 0
    while not end.exists():
        if (store / "store.json").exists():
            found = GradientStore.open(store)
            rows = len(found) + len(found.skipped())
            assert rows >= before, (rows, before)
            before = rows
        time.sleep(0.005)


def rows_of(store: Path) -> dict[bytes, dict[str, bytes]]:
    """Every column's bytes by pair; raises where a pair is stored twice, or something is left."""
    header = read_header(store)
    digests = stored_digests([open_shard(file, header) for file in shard_files(store)])
    assert len(np.unique(digests, axis=0)) == len(digests), "a pair is stored twice"
    left = [str(file) for file in store.rglob(".*")]
    assert not left, left
    rows: dict[bytes, dict[str, bytes]] = {}
    for file in shard_files(store):
        arrays = map_arrays(file)[0]
        for place, digest in enumerate(arrays["digest"]):
            rows[digest.tobytes()] = {
                name: column[place].tobytes() for name, column in arrays.items()}
    return rows


def torture(folder: Path, model: str, wanted: int, ranks: int, pairs: int) -> str:
    """Kill that often; returns a summary."""
    data, whole = folder / "pairs.jsonl", folder / "whole"
    write_pairs(data, pairs)
    began = time.monotonic()
    assert os.waitpid(torturing.fork(partial(sketch, data, model, whole, "0/1")), 0)[1] == 0
    alone = time.monotonic() - began
    expected = rows_of(whole)
    skipped = GradientStore.open(whole).skipped()
    chance, kills, rounds = random.Random(0), 0, 0
    while kills < wanted:
        store = folder / str(rounds)
        tasks = [partial(sketch, data, model, store, f"{rank}/{ranks}") for rank in range(ranks)]
        with torturing.reader(read, store):
            kills += torturing.torture(tasks, chance, alone)
        rounds += 1
        assert rows_of(store) == expected, store
        assert GradientStore.open(store).skipped() == skipped
    took = time.monotonic() - began - alone
    return (f"killed {kills} processes of {ranks} ranks in {rounds} rounds of {pairs} pairs "
            f"({len(skipped)} without a sketch): rows identical, each once, nothing left; "
            f"{took:.0f} s, a whole run {alone:.1f} s")


def main() -> None:
    """Read the options, torture, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--model", default=str(ROOT / "sample_data" / "tiny-model"))
    args = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        try:
            said = torture(Path(folder), args.model, args.kills, args.ranks, args.pairs)
        except AssertionError:
            for log in Path(folder).glob("*.log"):
                sys.stderr.write(log.read_text())
            raise
    print(said, flush=True)


if __name__ == "__main__":
    main()
