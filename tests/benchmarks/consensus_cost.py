"""What a consensus costs: the pass over the store, its memory, and every method on many groups.

Makes a store of random rows in FOLDER (kept for the next run), then prints how long the sums over
blocks take beside a bare pass (every row decoded, two dot products), what ``consensus`` takes as a
whole, at its peak with how much memory of its own, and the time of each method.

    OMP_NUM_THREADS=1 python tests/benchmarks/consensus_cost.py --folder FOLDER
    OMP_NUM_THREADS=1 python tests/benchmarks/consensus_cost.py --folder FOLDER --groups 500 \\
        --dim 32768 --code int4 --pairs 8192
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from congrad_cli.block_sums import block_sums
from congrad_cli.consensus.averages import averages
from congrad_cli.consensus.blocks import deal, most_blocks
from congrad_cli.consensus.run import run
from congrad_cli.consensus.solver import solve
from congrad_cli.errors import NumericsError
from congrad_cli.progress import Silent
from congrad_cli.settings import METHODS, ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.store_index import write_index
from congrad_cli.weights import members
from congrad_cli.writer import ShardWriter, create_store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from synthetic import columns, digests_of, header, index_of

SHARD = 1024
ROUNDS = 5


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--pairs", type=int, default=16384)
    parser.add_argument("--code", default="float16")
    args = parser.parse_args()
    path = args.folder / f"{args.groups}-{args.dim}-{args.pairs}-{args.code}.congrad"
    if not path.exists():
        make(path, args)
    store = GradientStore.open(path)
    print(f"{args.pairs:,} pairs, {args.groups} groups, {args.dim:,} numbers, {args.code}")
    one_pass(store)
    whole(path)
    every_method(store)


def make(path: Path, args: argparse.Namespace) -> None:
    """A store whose groups share a weak direction."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, args.groups, args.pairs)
    common = rng.standard_normal((1 + args.groups, args.dim), np.float32)
    about = header(args.dim, width=8, store_dtype=args.code)
    digests = digests_of(args.pairs)
    create_store(path, about)
    write_index(path, index_of([f"g{n:04d}" for n in label], digests))
    writer = ShardWriter(path, about)
    for begin in range(0, args.pairs, SHARD):
        here = label[begin : begin + SHARD]
        rows = rng.standard_normal((len(here), args.dim), np.float32)
        rows += 0.1 * common[0] + 0.2 * common[1 + here]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        writer.append(columns(range(len(here)), rows, rng.lognormal(size=len(here)),
                              digests[begin : begin + SHARD], about.codec))
        writer.commit()


def one_pass(store: GradientStore) -> None:
    """Sums over blocks beside a pass that only decodes and takes two dot products, by turns."""
    groups, count = len(store.groups), len(store)
    dealt = deal(store.column("digest"), store.column("group"), groups,
                 most_blocks(groups, store.header.dim))
    terms = np.full(count, 1 / count)
    one, other = np.ones((2, store.header.dim), np.float32)

    def bare() -> None:
        for block in store.blocks(128):
            block.direction @ one
            block.direction @ other

    def sums() -> None:
        block_sums(store, dealt.block, dealt.count, terms)

    taken = {work: [seconds(work) for _ in range(ROUNDS)] for work in (bare, sums)}
    for work, found in taken.items():
        print(f"  {work.__name__:6} {1e6 * np.median(found) / count:8.1f} us a pair, "
              f"least {1e6 * min(found) / count:.1f}")
    print(f"  ratio {np.median(taken[sums]) / np.median(taken[bare]):.2f} "
          f"({dealt.count // groups} blocks a group)")


def whole(path: Path) -> None:
    """The command itself, and its memory while a thread watches."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], own_memory())

    before = own_memory()
    watcher = threading.Thread(target=watch)
    watcher.start()
    took = seconds(lambda: run(path, ConsensusSettings(), Silent()))
    done.set()
    watcher.join()
    print(f"  consensus {took:.1f} s of one core; RssAnon {before / 1024:.0f} MiB before, "
          f"{peak[0] / 1024:.0f} MiB at the peak")


def every_method(store: GradientStore) -> None:
    """The solvers on the groups' Gramian."""
    wanted = ConsensusSettings()
    belong = members(store, store.column("group"), len(store.groups), wanted)
    gramian = averages(store, store.groups, belong, wanted).groups.gramian
    rng = np.random.default_rng(1)
    rough = rng.standard_normal((len(gramian), 2 * len(gramian)))
    for name, products in (("store", gramian), ("half of all in conflict", rough @ rough.T)):
        print(f"  methods, {name}:", ", ".join(
            f"{method} {solver_seconds(method, products)}" for method in METHODS))


def solver_seconds(method: str, products: np.ndarray) -> str:
    """How long it takes, or that it finds nothing."""
    begun = time.process_time()
    try:
        solve(products, ConsensusSettings(method=method))
    except NumericsError:
        return f"(none, {time.process_time() - begun:.2f} s)"
    return f"{time.process_time() - begun:.2f} s"


def own_memory() -> int:
    """RssAnon of this process in KiB: memory that is no file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    return 0


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
