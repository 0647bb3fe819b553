"""A million records: rate and peak memory of reading them, of the dry run and of the filter.

Writes records of about 1 KB (bundled pairs, repeated with another id and a longer prompt) and a
store of random rows for them, runs the commands each in a process of its own, and prints wall
time, rate and the peak of resident memory. The data is written by a process of its own, too: what
a parent held counts in its children's peak.

    OMP_NUM_THREADS=1 python tests/benchmarks/million.py --records 1000000 --model sample_data/tiny-model
"""  # noqa: E501

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from synthetic import columns, header

from congrad_cli.records.record import DataFile
from congrad_cli.settings import RecordSettings
from congrad_cli.sketch.index import DataIndex, index_data
from congrad_cli.store_index import write_index
from congrad_cli.writer import ShardWriter, create_store

SAMPLE = Path(__file__).resolve().parent.parent.parent / "sample_data" / "preferences.jsonl"
BYTES, DIM, PART = 1000, 64, 8192


def write_records(path: Path, count: int) -> None:
    """``count`` lines of about BYTES bytes."""
    pairs = [json.loads(line) for line in SAMPLE.read_bytes().splitlines()]
    with path.open("wb") as file:
        for number, pair in enumerate(islice(cycle(pairs), count)):
            line = json.dumps(pair | {"id": f"{number:07d}"}, ensure_ascii=False).encode()
            room = max(BYTES - len(line), 0) // len(pair["prompt"].encode())
            longer = pair | {"id": f"{number:07d}", "prompt": pair["prompt"] * (1 + room)}
            file.write(json.dumps(longer, ensure_ascii=False).encode() + b"\n")


def write_store(path: Path, index: DataIndex) -> None:
    """A store of random rows for the data."""
    create_store(path, header(DIM))
    write_index(path, index.stored)
    writer = ShardWriter(path, header(DIM))
    random = np.random.default_rng(0)
    for begin in range(0, index.rows, PART):
        rows = np.arange(begin, min(begin + PART, index.rows))
        directions = random.standard_normal((len(rows), DIM))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        writer.append(
            columns(range(len(rows)), directions, np.ones(len(rows)), index.digest[rows]))
        writer.commit()


def measure(name: str, count: int, *arguments: str) -> None:
    """Run ``congrad`` and print what it took."""
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "congrad_cli", *arguments],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{name} exited with {child.returncode}: {said.decode()}")
    seconds = time.monotonic() - began
    print(f"{name}: {seconds:.0f} s ({usage.ru_utime + usage.ru_stime:.0f} s of CPU), "
          f"{count / seconds:,.0f} records/s, peak {usage.ru_maxrss / 1024:,.0f} MiB", flush=True)


def prepare(folder: Path, count: int) -> None:
    """Write data and store."""
    data = folder / "pairs.jsonl"
    write_records(data, count)
    print(f"{count:,} records, {data.stat().st_size / 1e6:,.0f} MB", flush=True)
    began = time.monotonic()
    index = index_data([DataFile("pairs.jsonl", data)], RecordSettings())
    seconds = time.monotonic() - began
    print(f"first pass: {seconds:.0f} s, {count / seconds:,.0f} records/s", flush=True)
    write_store(folder / "pairs.congrad", index)


def main() -> None:
    """Write the data, run the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare(args.prepare, args.records)
        return
    with tempfile.TemporaryDirectory(prefix="million-") as place:
        subprocess.run([sys.executable, __file__, "--records", str(args.records), "--model", "-",
                        "--prepare", place], check=True)  # fmt: skip
        data, store = f"{place}/pairs.jsonl", f"{place}/pairs.congrad"
        measure("dry run", args.records, "sketch", data, "--model", args.model, "--dry-run")
        measure("consensus", args.records, "consensus", store)
        measure("filter", args.records, "filter", store, "--output", f"{place}/kept.jsonl")


if __name__ == "__main__":
    main()
