"""The parts of ``scaling.py``: each yields points, its sizes in turns; no script."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import scale
from expected import SIZES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from synthetic import columns, digests_of, header, unit_rows

from congrad_cli.settings import ROW_SIZES, SketchSettings
from congrad_cli.store import shard_files
from congrad_cli.writer import ShardWriter, create_store

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "sample_data" / "tiny-model"


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement; ``measures`` are named as the table's columns are."""

    part: str
    variant: str
    size: float
    turn: int
    measures: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    folder: Path
    turns: int = 2
    pairs: Sequence[int] = (64, 512, 1024, 2048, 4096, 8192)
    ranked: int = 2048  # pairs of the ranks, two windows at least
    start: int = 64  # pairs whose run is all start
    options: Sequence[str] = ()  # of every ``congrad sketch``
    models: Sequence[str] = tuple(SIZES)
    once: Sequence[str] = ("64M", "256M", "1B")  # models of one turn
    startless: Sequence[str] = ("1B",)  # models whose start takes too long
    dim_model: str = "4M"
    dims: Sequence[int] = (2048, 8192, 32768, 131072)
    row_sizes: Sequence[str] = tuple(ROW_SIZES)
    length_model: str = "16M"
    lengths: Sequence[int] = (150, 300, 600, 1200, 1950, 2400, 3600)
    rows: Sequence[int] = (3000, 10_000, 30_000, 100_000)  # 1,600 fill the blocks of 50 groups
    few_rows: int = 10_000  # where rows do not vary
    store_dim: int = 32768
    store_dims: Sequence[int] = (2048, 8192, 32768, 131072)
    groups: Sequence[int] = (2, 8, 32, 128, 500)
    group_dim: int = 8192
    different: int = 1024  # rows of a store of random ones
    codes: Sequence[str] = ("float16", "int8", "int4", "1bit")
    extra: dict[str, int] = field(default_factory=dict)  # of every SketchPoint


Part = Callable[[Plan], Iterator[Point]]


def sketch_point(**point: object) -> dict[str, float]:
    """What ``scaling_sketch.py`` finds, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("scaling_sketch.py")),
               json.dumps(point)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def short_pairs(path: Path, count: int) -> Path:
    """The bundled pairs, cut short, over and over, with ids of their own."""
    text = (ROOT / "sample_data" / "preferences.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    cut = [{**record, "prompt": record["prompt"][:40], "chosen": record["chosen"][:24],
            "rejected": record["rejected"][:24]} for record in records]
    fine = [one for one in cut if one["chosen"].strip() and one["rejected"].strip()
            and one["chosen"].strip() != one["rejected"].strip()]  # fmt: skip
    with path.open("w", encoding="utf-8") as file:
        for number, record in enumerate(islice(cycle(fine), count)):
            file.write(json.dumps({**record, "id": f"pair-{number}"}) + "\n")
    return path


def sketch_command(data: Path, store: Path, plan: Plan, *more: str) -> list[str]:
    """``congrad sketch`` with the tiny model, on one thread."""
    return ["-m", "congrad_cli", "sketch", str(data), "--model", str(TINY), "--store", str(store),
            "--threads", "1", "--quiet", *plan.options, *more]


def sketch_n(plan: Plan) -> Iterator[Point]:
    """The whole command against the number of pairs."""
    for turn in range(plan.turns):
        for count in plan.pairs:
            data = short_pairs(plan.folder / "pairs.jsonl", count)
            store = plan.folder / "n.congrad"
            _, cpu, memory = scale.measure(sketch_command(data, store, plan))
            shutil.rmtree(store, ignore_errors=True)
            yield Point("sketch-n", "congrad sketch", count, turn, {"CPU s": cpu, "MiB": memory})


def ranks(plan: Plan) -> Iterator[Point]:
    """One process and two on the same data, and a run that is all start."""
    for turn in range(plan.turns):
        alone = 0.0
        for world, count in ((1, plan.start), (1, plan.ranked), (2, plan.ranked)):
            data = short_pairs(plan.folder / "pairs.jsonl", count)
            store = plan.folder / "ranks.congrad"
            commands = [sketch_command(data, store, plan, "--shard", f"{rank}/{world}")
                        for rank in range(world)]
            with ThreadPoolExecutor(world) as threads:
                found = list(threads.map(scale.measure, commands))
            shutil.rmtree(store, ignore_errors=True)
            cpu = sum(one for _, one, _ in found)
            measures = {"CPU s": cpu, "s": max(one for one, _, _ in found),
                        "MiB a rank": max(one for *_, one in found)}
            name = f"{count:,} pairs"
            if count == plan.start:
                start = cpu
            elif world == 1:
                alone = cpu
            else:
                measures["efficiency"] = alone / cpu
                measures["beyond the start"] = (alone - start) / (cpu - world * start)
            yield Point("ranks", name, world, turn, measures)


def sketch_model(plan: Plan) -> Iterator[Point]:
    """The sketch's own work against the model, all pairs of 300 tokens."""
    pairs = dict(zip(SIZES, (24, 12, 6, 6, 3, 2), strict=True))
    for turn in range(plan.turns):
        for name in plan.models:
            if turn and name in plan.once:
                continue
            found = sketch_point(
                model=name, start=not turn and name not in plan.startless,
                **{"pairs": pairs[name], "repeat": 1 if name == "1B" else 2} | plan.extra)
            yield Point("sketch-model", name, found["parameters"], turn, of_sketch(found))


def of_sketch(found: dict[str, float]) -> dict[str, float]:
    """The columns of a point in a process of its own."""
    predicted = found["operations"] / found["rate"]
    return {
        "GFLOP a pair": found["operations"] / 1e9,
        "predicted ms": 1e3 * predicted,
        "rows, ms": 1e3 * found["rows"],
        "sketch, ms": 1e3 * found["sketch"],
        "share of the matmul rate": predicted / found["sketch"],
        "sketch / rows": found["sketch"] / found["rows"],
        "coding, ms": 1e3 * found["code"],
        "peak KiB a token": found["peak_bytes"] / 1024 / found["batch_tokens"],
        "predicted KiB a token": found["batch_bytes"] / 1024 / found["batch_tokens"],
    } | ({"start, s": found["start"]} if "start" in found else {})


def sketch_dim(plan: Plan) -> Iterator[Point]:
    """Against the numbers of a row (int4, 32 random directions), and for every row size."""
    for turn in range(plan.turns):
        sizes = [("int4", dim, "int4", 32) for dim in plan.dims]
        sizes += [(size, ROW_SIZES[size][0], ROW_SIZES[size][1], 64) for size in plan.row_sizes]
        for name, dim, code, width in sizes:
            found = sketch_point(**{
                "model": plan.dim_model, "dim": dim, "code": code, "width": width, "pairs": 12,
                "repeat": 3} | plan.extra)
            measures = of_sketch(found)
            yield Point("sketch-dim", name, dim, turn, {
                key: measures[key] for key in (
                    "rows, ms", "sketch, ms", "coding, ms", "peak KiB a token")})


def sketch_length(plan: Plan) -> Iterator[Point]:
    """Against the tokens of a row: a third prompt, two answers."""
    for turn in range(plan.turns):
        for tokens in plan.lengths:
            found = sketch_point(**{
                "model": plan.length_model, "prompt": tokens // 3, "answer": tokens // 3,
                "pairs": max(1800 // tokens, 1), "repeat": 1 if tokens > 1000 else 2} | plan.extra)
            measures = of_sketch(found)
            yield Point("sketch-length", f"row of {tokens:,}", tokens, turn, {
                key: measures[key] for key in (
                    "GFLOP a pair", "predicted ms", "rows, ms", "sketch, ms",
                    "share of the matmul rate", "peak KiB a token",
                    "predicted KiB a token")})


def store(plan: Plan) -> Iterator[Point]:
    """Bytes on disk of real shards beside what ``--dry-run`` says."""
    from congrad_cli.sketch.token_report import store_bytes

    count = 256
    for code in plan.codes:
        for dim in plan.store_dims:
            about = header(dim, width=64, store_dtype=code)
            path = plan.folder / "bytes.congrad"
            create_store(path, about)
            rows = unit_rows(np.random.default_rng(0).standard_normal((count, dim)))
            writer = ShardWriter(path, about)
            writer.append(columns(range(count), rows, np.ones(count), digests_of(count),
                                  about.codec))
            writer.commit()
            found = sum(file.stat().st_size for file in shard_files(path))
            shutil.rmtree(path)
            settings = SketchSettings(model="", dim=dim, width=64, store_dtype=code)
            yield Point("store", code, dim, 0, {
                "bytes a pair": found / count, "predicted": store_bytes(settings, 1)})


def padding(plan: Plan) -> Iterator[Point]:
    """Tokens that batches hold for one of the rows', lengths as in a log-normal law."""
    from congrad_cli.records.record import Record
    from congrad_cli.settings import WINDOW
    from congrad_cli.sketch.pairs import cut_batches, padded_tokens
    from congrad_cli.sketch.tokens import TokenizedPair

    mean = 800
    for spread in (0.3, 0.6, 0.9):
        drawn = np.random.default_rng(0).lognormal(-(spread**2) / 2, spread, WINDOW)
        lengths = np.clip(mean * drawn, 8, 2046).astype(int)
        pairs = [TokenizedPair(Record(row, "", row, b"", "", "", "", "en", None),
                               [0] * int(length), [], []) for row, length in enumerate(lengths)]
        for budget in (2048, 16384, 65536):
            padded = sum(padded_tokens(batch, True) for batch in cut_batches(pairs, budget, True))
            yield Point("padding", f"log-lengths spread by {spread}", budget, 0, {
                "tokens of batches for one of the rows": padded / lengths.sum(),
                "mean square / squared mean": float((lengths**2).mean() / lengths.mean() ** 2)})


def _on_store(
    plan: Plan, part: str, size: float, turn: int, methods: Sequence[str], path: Path
) -> Iterator[Point]:
    """``consensus`` by every method, and the scores of ``filter``."""
    for method in methods:
        _, cpu, memory = scale.measure(["-m", "congrad_cli", "consensus", str(path), "--quiet",
                                        "--method", method])
        yield Point(part, f"consensus, {method}", size, turn, {"CPU s": cpu, "MiB": memory})
    _, cpu, memory = scale.measure([scale.__file__, "--part", "scores", "--folder", str(path)])
    yield Point(part, "filter's scores", size, turn, {"CPU s": cpu, "MiB": memory})


def _stores(
    plan: Plan, part: str, sizes: Sequence[tuple[float, int, int, int]]
) -> Iterator[Point]:
    """(size, rows, numbers, groups) each: written once, measured in turns, removed."""
    paths = []
    try:
        for size, rows, dim, groups in sizes:
            paths.append(plan.folder / f"{part}-{size:.0f}.congrad")
            about = header(dim, width=64, store_dtype="int4")
            different = max(plan.different, 4 * groups)
            scale.write_store(paths[-1], rows, about, groups, different)
        for turn in range(plan.turns):
            for path, (size, *_) in zip(paths, sizes, strict=True):
                yield from _on_store(plan, part, size, turn, ("mean", "pcgrad"), path)
    finally:
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)


def consensus_n(plan: Plan) -> Iterator[Point]:
    """Against the pairs of the store, 50 groups."""
    yield from _stores(plan, "consensus-n", [
        (rows, rows, plan.store_dim, 50) for rows in plan.rows])


def consensus_dim(plan: Plan) -> Iterator[Point]:
    """Against the numbers of a row, 50 groups."""
    yield from _stores(plan, "consensus-dim", [
        (dim, plan.few_rows, dim, 50) for dim in plan.store_dims])


def consensus_groups(plan: Plan) -> Iterator[Point]:
    """Against the number of groups."""
    yield from _stores(plan, "consensus-groups", [
        (groups, plan.few_rows, plan.group_dim, groups) for groups in plan.groups])


PARTS: dict[str, Part] = {
    "sketch-n": sketch_n, "sketch-model": sketch_model, "sketch-dim": sketch_dim,
    "sketch-length": sketch_length, "padding": padding, "store": store,
    "consensus-n": consensus_n, "consensus-dim": consensus_dim,
    "consensus-groups": consensus_groups, "ranks": ranks,
}  # fmt: skip
