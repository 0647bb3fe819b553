"""Time and memory of ``consensus`` and of the scores of ``filter`` on a store of many gigabytes.

Writes a store of random rows (float16: 500,000 x 8,192 numbers are 8 GB) whose shards hold the rows
of every window of 1,024 in another order than the data, as ``sketch`` leaves them. Then, in turns
and each in a process of its own: a bare pass with numpy alone over the same memory maps, which
turns every block into float32 and takes two dot products with it; ``congrad consensus``; and the
scores that ``filter`` ranks by, without reading and writing the data's lines. What is printed are
seconds and CPU seconds of each, their ratios to the bare pass of the same turn, and the peak of
anonymous memory (RssAnon: mapped files, which the kernel may drop, do not count). Last, ``pcgrad``
and ``mean`` on random Gramians of 500 groups.

    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py --folder FOLDER --store-dtype int4
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from synthetic import header, normalised

from congrad_cli.codec import LEVELS
from congrad_cli.consensus.solver import solve
from congrad_cli.filter.ranking import rank_pairs
from congrad_cli.filter.target import find_target
from congrad_cli.header import StoreHeader
from congrad_cli.progress import Silent
from congrad_cli.settings import WINDOW, ConsensusSettings, FilterSettings, RecordSettings
from congrad_cli.store import GradientStore, shard_files
from congrad_cli.store_index import StoreIndex, write_index
from congrad_cli.tensors import Arrays, map_arrays
from congrad_cli.writer import ShardWriter, create_store

POOL = 4096
"""So many different rows there are; every shard holds them in orders of its own."""
PARTS = ("bare", "consensus", "scores")


def coded_pool(about: StoreHeader, groups: int, pool: int) -> tuple[Arrays, np.ndarray]:
    """``pool`` coded unit rows that share a direction, partly by group; and their groups."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, groups, pool).astype(np.int32)
    common = rng.standard_normal(about.dim, np.float32)
    own = rng.standard_normal((groups, about.dim), np.float32)
    rows = rng.standard_normal((pool, about.dim), np.float32)
    for begin in range(0, pool, 256):  # the sum of all at once would take twice the memory
        part = slice(begin, begin + 256)
        rows[part] = normalised(rows[part] + 0.1 * common + 0.2 * own[label[part]])
    return about.codec.encode(rows), label


def write_store(
    path: Path, rows: int, about: StoreHeader, groups: int, different: int = POOL
) -> None:
    """A store of ``rows`` rows, so many ``different``, in shards of whole windows, about 64 MiB."""
    pool, label = coded_pool(about, groups, different)
    rng = np.random.default_rng(1)
    digest = rng.integers(0, 256, (rows, 16), np.uint8)
    picked = rng.integers(0, different, rows)
    names = [f"g{number:03d}" for number in range(groups)]
    create_store(path, about)
    write_index(path, StoreIndex([], RecordSettings(), names, label[picked], digest))
    width = sum(array[0].nbytes for array in pool.values())
    step = max((64 << 20) // (width * WINDOW), 1) * WINDOW
    writer = ShardWriter(path, about)
    for begin in range(0, rows, step):
        windows = np.array_split(np.arange(begin, min(begin + step, rows)),
                                 np.arange(WINDOW, min(step, rows - begin), WINDOW))
        order = np.concatenate([rng.permutation(window) for window in windows])
        count = len(order)
        writer.append({name: array[picked[order]] for name, array in pool.items()} | {
            "norm": rng.lognormal(size=count).astype(np.float32),
            "logp": rng.normal(-50, 10, (count, 2)).astype(np.float32),
            "tokens": rng.integers(10, 200, (count, 3)).astype(np.int32),
            "digest": digest[order],
        })  # fmt: skip
        writer.commit()


def bare_pass(path: Path) -> None:
    """Every row as float32, and two dot products with it."""
    two = np.random.default_rng(0).standard_normal((2, read_dim(path))).astype(np.float32)
    for file in shard_files(path):
        arrays = map_arrays(file)[0]
        for begin in range(0, len(arrays["norm"]), WINDOW):
            part = slice(begin, begin + WINDOW)
            rows = plain_rows({name: arrays[name][part] for name in ("direction", "scale")
                               if name in arrays})
            for vector in two:
                rows @ vector


def plain_rows(arrays: Arrays) -> np.ndarray:
    """A block decoded as one would write it down."""
    coded = arrays["direction"]
    if "scale" not in arrays:
        return coded.astype(np.float32)
    byte = np.arange(256)
    table = LEVELS["int4"][np.stack([byte & 15, byte >> 4], 1)]
    blocks = table[coded].reshape(len(coded), arrays["scale"].shape[1], -1)
    return (blocks * arrays["scale"].astype(np.float32)[:, :, None]).reshape(len(coded), -1)


def read_dim(path: Path) -> int:
    """D of the store."""
    return int(json.loads((path / "store.json").read_bytes())["dim"])


def scores(path: Path) -> None:
    """What ``filter`` does before it reads the data."""
    store = GradientStore.open(path)
    rank_pairs(store, find_target(store, "default", Silent()), FilterSettings())


def measure(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds, and the most MiB of anonymous memory that a process was seen with."""
    began, peak, ended = time.monotonic(), 0, 0
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL) as child:
        while not ended:
            status = Path(f"/proc/{child.pid}/status").read_text()
            if "RssAnon:" in status:
                peak = max(peak, int(status.partition("RssAnon:")[2].split()[0]))
            time.sleep(0.01)
            ended, result, usage = os.wait4(child.pid, os.WNOHANG)
        child.returncode = os.waitstatus_to_exitcode(result)
    if child.returncode:
        raise SystemExit(f"{arguments} failed")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, peak / 1024


def time_parts(path: Path, turns: int) -> None:
    """Run all parts in turns; print medians, and least and most."""
    commands = {part: [__file__, "--part", part, "--folder", str(path)] for part in PARTS}
    commands["consensus"] = ["-m", "congrad_cli", "consensus", str(path), "--quiet"]
    found = {part: [] for part in PARTS}
    for _ in range(turns):
        for part, command in commands.items():
            found[part].append(measure(command))
    for part, mine in found.items():
        print(f"{part}: {spread([seconds for seconds, *_ in mine])} s, "
              f"{spread([cpu for _, cpu, _ in mine])} s of CPU", end="")
        for number, what in ((0, "time"), (1, "CPU time")):
            ratios = [one[number] / bare[number]
                      for one, bare in zip(mine, found["bare"], strict=True)]
            print(f", {spread(ratios, 2)} of the bare pass' {what}", end="")
        print(f", RssAnon {max(peak for *_, peak in mine):,.0f} MiB", flush=True)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, least and most."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} [{least:.{digits}f}, {most:.{digits}f}]"


def time_solvers(groups: int) -> None:
    """Both methods on groups in general position, half of which conflict."""
    vectors = np.random.default_rng(0).standard_normal((groups, 2 * groups))
    for method in ("mean", "pcgrad"):
        began = time.process_time()
        solve(vectors @ vectors.T, ConsensusSettings(method=method))
        print(f"{method}, {groups} groups: {time.process_time() - began:.1f} s of CPU", flush=True)


def main() -> None:
    """Write the store, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the store; it is removed")
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--store-dtype", choices=("float16", "int4"), default="float16")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="leave the store there")
    parser.add_argument("--part", choices=("bare", "scores"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        {"bare": bare_pass, "scores": scores}[args.part](args.folder)
        return
    path = args.folder / f"scale-{args.store_dtype}.congrad"
    try:
        if not path.exists():
            about = header(args.dim, width=args.width, store_dtype=args.store_dtype)
            began = time.monotonic()
            write_store(path, args.rows, about, args.groups)
            print(f"{args.rows:,} rows, {args.groups} groups, written in "
                  f"{time.monotonic() - began:.0f} s", flush=True)
        time_parts(path, args.turns)
    finally:
        if not args.keep:
            shutil.rmtree(path, ignore_errors=True)
    time_solvers(500)


if __name__ == "__main__":
    main()
