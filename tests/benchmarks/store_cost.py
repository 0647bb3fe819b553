"""What a store costs beside the model: a commit, opening many shards, and finding what is done.

Rows are random. A commit is what ``ShardWriter`` does with a full shard: pack (with SHA-256),
write, fsync, link, fsync the folder; a plain write and fsync of as many bytes stands beside it. The
resume scan is what ``sketch`` does before the model is loaded: open, skipped pairs, which rows are
done. Each measurement is a process of its own.

    OMP_NUM_THREADS=1 python tests/benchmarks/store_cost.py --folder /tmp
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from synthetic import columns, header, index_of

from congrad_cli.store import GradientStore, shard_files
from congrad_cli.store_index import first_of_each, write_index
from congrad_cli.tensors import Arrays, pack_arrays
from congrad_cli.writer import ShardWriter, create_store

COMMITS = 7


def peak() -> float:
    """MiB of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def random_shard(rows: int, dim: int, digests: np.ndarray) -> Arrays:
    """The columns of random rows."""
    directions = np.random.default_rng(0).standard_normal((rows, dim), np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return columns(range(rows), directions, np.ones(rows), digests)


def random_digests(count: int) -> np.ndarray:
    """Digests that differ, [count, 16]."""
    return np.random.default_rng(1).integers(0, 256, (count, 16), np.uint8)


def commit(folder: Path, mebibytes: int) -> None:
    """Durable commits of shards of that size."""
    dim = 32768
    rows = (mebibytes << 20) // (2 * dim)
    create_store(folder / "store", header(dim))
    writer = ShardWriter(folder / "store", header(dim))
    arrays = random_shard(rows, dim, random_digests(rows))
    packing, plain, whole = [], [], []
    for number in range(COMMITS):
        began = time.monotonic()
        data = pack_arrays(arrays, {})
        packing.append(time.monotonic() - began)
        began = time.monotonic()
        with (folder / f"plain-{number}").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        plain.append(time.monotonic() - began)
        began = time.monotonic()
        writer.append(arrays)
        writer.commit()
        whole.append(time.monotonic() - began)
    said = ", ".join(
        f"{name} {statistics.median(times):.2f} s [{min(times):.2f}, {max(times):.2f}]"
        for name, times in (("commit", whole), ("of it pack and SHA-256", packing),
                            ("a plain write and fsync", plain)))  # fmt: skip
    print(f"{len(data) / 2**20:.0f} MiB shard: {said}", flush=True)


def write_store(path: Path, rows: int, shards: int, dim: int) -> None:
    """A store of random rows, a hundredth of them skipped."""
    digests = random_digests(rows)
    create_store(path, header(dim))
    write_index(path, index_of(["de", "en"] * (rows // 2), digests))
    writer = ShardWriter(path, header(dim))
    for part in np.array_split(np.arange(rows), shards):
        for row in part[::100]:
            writer.skip(digests[row].tobytes(), "data.jsonl", int(row) + 1, "no-room", "too long")
        fine = np.delete(part, np.s_[::100])
        writer.append(random_shard(len(fine), dim, digests[fine]))
        writer.commit()


def open_store(path: Path) -> None:
    """Open it a few times."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        store = GradientStore.open(path)
        times.append(time.monotonic() - began)
    print(f"{len(shard_files(path)):,} shards, {len(store):,} rows: opened in "
          f"{statistics.median(times):.2f} s [{min(times):.2f}, {max(times):.2f}], "
          f"peak {peak():.0f} MiB", flush=True)


def scan(path: Path) -> None:
    """What a run that continues asks first."""
    before, began = peak(), time.monotonic()
    store = GradientStore.open(path)
    opened = time.monotonic()
    skipped = store.skipped()
    listed = time.monotonic()
    done = ~first_of_each(store.index.digest)
    done[store.row] = True
    done[list(skipped)] = True
    end = time.monotonic()
    assert done.all()
    print(f"resume scan of {store.rows:,} rows ({len(skipped):,} skipped) in "
          f"{len(shard_files(path)):,} shards: {end - began:.1f} s (open {opened - began:.1f}, "
          f"skipped {listed - opened:.1f}, done {end - listed:.1f}), "
          f"{peak() - before:.0f} MiB more memory at the peak", flush=True)


def alone(*arguments: object) -> None:
    """Run one part in a process of its own."""
    subprocess.run([sys.executable, __file__, "--part", *map(str, arguments)], check=True)


def main() -> None:
    """Write the stores, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="on the disk to measure")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        name, place, *numbers = args.part
        {"commit": commit, "write": write_store, "open": open_store, "scan": scan}[name](
            Path(place), *map(int, numbers))
        return
    with tempfile.TemporaryDirectory(prefix="store-cost-", dir=args.folder) as folder:
        alone("commit", folder, 64)
        alone("write", f"{folder}/many", 10_000, 1000, 256)
        alone("open", f"{folder}/many")
        alone("write", f"{folder}/large", args.rows, 123, 64)
        alone("scan", f"{folder}/large")


if __name__ == "__main__":
    main()
