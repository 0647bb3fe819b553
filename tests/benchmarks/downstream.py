"""Are models better that learned from the pairs that congrad keeps?

Draws conflicted preference data, selects pairs in several ways, trains the model on each selection
with the loop's own training (plain DPO, equally many optimiser steps), and weighs held-out pairs
and texts with every model. A line of ``WORK/cells.jsonl`` is a finished cell (scenario, selection,
seed); a cell that is there is not done again, and a model that is there is not trained again.
Seeds come first, so that what is there at any time has all scenarios and selections of a seed.

    python tests/benchmarks/downstream.py --text parallel.jsonl --pool pool.jsonl \\
        --store tiny.congrad --work down --sweep 3e-5 1e-4 3e-4 1e-3
    python tests/benchmarks/downstream.py --text parallel.jsonl --pool pool.jsonl \\
        --store tiny.congrad --work down --learning-rate 1e-4
    python tests/benchmarks/downstream_tables.py down/cells.jsonl --out down/cells.csv

The store is that of ``detection.py``, of the whole pool. Larger evaluations of the same models:
``--held-out 400 --cells FILE``. ``--smoke --work DIR`` tries everything on bundled pairs.
``--chats FOLDER`` adds the real chats of ``real_pairs.py`` to swapped or clean labels, and makes
its own store.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import downstream_plan as plan
import downstream_tables as tables
import numpy as np
from downstream_chats import with_chats
from downstream_data import SCENARIOS, SEEN, HeldOut, Parts, parts_of_bundled, parts_of_text
from finders import Sketches, read_sketches
from scenarios import Pool, Row, read_rows

TINY = Path(__file__).resolve().parents[2] / "sample_data" / "tiny-model"
BATCH, DEVICE_BATCH, BETA, MAX_LENGTH = 8, 4, 0.1, 512
MAX_LENGTH_CHATS, DIM, DIM_SMOKE = 1024, 32_768, 4096
SMOKE = ("en", "de", "ja")
QUIET = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "DO_NOT_TRACK": "1",
         "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class Bench:
    """What all cells share."""

    parts: Parts
    model: str
    work: Path
    steps: int
    max_length: int = MAX_LENGTH
    device_batch: int = DEVICE_BATCH

    def setup(self, rate: float, held_out: HeldOut) -> dict[str, Any]:
        """What must be the same for all lines of a file."""
        from congrad_cli.loop.digests import digest_model

        return {"model": digest_model(self.model, None), "held_out": held_out.digest(),
                "learning_rate": rate, "steps": self.steps, "batch": BATCH, "beta": BETA}

    def train(self, name: str, rows: list[Row], rate: float, seed: int) -> Path:
        """The folder of a model that learned from these pairs."""
        from congrad_cli.loop import train as training
        from congrad_cli.loop.settings import LossSection, ModelSection, TrainSection
        from congrad_cli.progress import Silent

        folder = self.work / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        pairs = folder / "kept.jsonl"
        pairs.write_text(as_lines(rows), encoding="utf-8", newline="\n")
        about = ModelSection(path=self.model, dtype="float32", device="cpu", threads=1)
        spec = training.TrainSpec(
            pairs, self.model, self.model, folder / "training",
            TrainSection(learning_rate=rate, max_steps=self.steps, batch=BATCH,
                         device_batch=self.device_batch, max_length=self.max_length,
                         save_steps=self.steps, save_dtype="float32"),
            LossSection(name="dpo", beta=BETA), about, seed)
        training.run_worker = run_fork
        return training.train(spec, Silent())


def as_lines(rows: list[Row]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def run_fork(spec: Any, progress: Any) -> None:
    """The training's process as a fork of this one, which has imported TRL: that takes 10 s."""
    from congrad_cli.loop import dpo

    child = os.fork()
    if child == 0:
        try:
            log = os.open(spec.output / "train.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os._exit(dpo.main(str(spec.output / "spec.json")))
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a training failed, see {spec.output / 'train.log'}")


def weigh(model: str, held_out: HeldOut, max_length: int = MAX_LENGTH) -> dict[str, Any]:
    """Log-probabilities and tokens of the pairs' answers [n, 2] and of the texts [t].

    Without chat template: the pairs are plain texts, and as such they are sketched and trained on.
    """
    from congrad_cli.loop.loading import load
    from congrad_cli.loop.scorer import TransformersScorer
    from congrad_cli.loop.settings import ModelSection

    checkpoint = load(model, ModelSection(path=model, dtype="float32", device="cpu", threads=1))
    checkpoint.tokenizer.chat_template = None
    scorer = TransformersScorer(checkpoint, max_length, lambda _: None)
    asked: list[Any] = [(({"role": "user", "content": row["prompt"]},), row[side])
                        for row in held_out.pairs for side in ("chosen", "rejected")]
    found = scorer.weigh(asked + [((), row["text"]) for row in held_out.texts])
    scorer.close()
    logp = np.round([one.logp for one in found], 4)
    tokens = np.array([one.tokens for one in found])
    cut = len(asked)
    return {"pairs": logp[:cut].reshape(-1, 2).tolist(), "texts": logp[cut:].tolist(),
            "pair_tokens": tokens[:cut].reshape(-1, 2).tolist(),
            "text_tokens": tokens[cut:].tolist()}


class Cells:
    """The lines of a file; the first one is of the initial model and says what is weighed."""

    def __init__(self, path: Path, setup: dict[str, Any]) -> None:
        self._path, self._setup = path, setup
        self._done: set[tuple[Any, ...]] = set()
        lines = tables.read_lines([path]) if path.exists() else []
        for line in lines:
            if line["setup"] != setup:
                raise SystemExit(f"{path} was made with {line['setup']}, not {setup}")
            self._done.add(self._name(line))
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # cut off while it was written
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def __contains__(self, name: tuple[Any, ...]) -> bool:
        return name in self._done

    def add(self, line: dict[str, Any]) -> None:
        """Write a finished cell."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"setup": self._setup}) + "\n")
        self._done.add(self._name(line))

    def begin(self, held_out: HeldOut, measured: Callable[[], dict[str, Any]]) -> None:
        """Write what is weighed, and what is measured of the initial model, unless it is there."""
        if (tables.INITIAL, "", 0) in self:
            return
        self.add({"scenario": tables.INITIAL, "selection": "", "seed": 0,
                  "languages": [row["language"] for row in held_out.pairs],
                  "items": [row["item"] for row in held_out.pairs],
                  "text_languages": [row["language"] for row in held_out.texts],
                  "text_items": [row["item"] for row in held_out.texts],
                  **measured()})

    @staticmethod
    def _name(line: dict[str, Any]) -> tuple[Any, ...]:
        return line["scenario"], line["selection"], line["seed"]


def weighed(model: Path, held_out: HeldOut, max_length: int) -> dict[str, Any]:
    """The log-probabilities alone."""
    found = weigh(str(model), held_out, max_length)
    return {name: found[name] for name in ("pairs", "texts")}


def sweep(bench: Bench, rates: list[float]) -> None:
    """Train on the sweep's own clean pairs with each learning rate; measure on its own pairs."""
    for rate in rates:
        held_out = bench.parts.sweep_held_out
        cells = Cells(bench.work / f"sweep-{rate:g}.jsonl", bench.setup(rate, held_out))
        cells.begin(held_out, partial(weigh, bench.model, held_out, bench.max_length))
        if ("sweep", f"{rate:g}", 0) not in cells:
            model = bench.train(f"sweep-{rate:g}", bench.parts.sweep_pairs, rate, 0)
            cells.add({"scenario": "sweep", "selection": f"{rate:g}", "seed": 0, "kept": 0,
                       "bad": 0.0, **weighed(model, held_out, bench.max_length)})
        found = tables.measure(tables.read_lines([bench.work / f"sweep-{rate:g}.jsonl"]), count=1)
        print(f"{rate:g}: " + ", ".join(f"{one.measure} {one.value:.4f}" for one in found
                                        if (one.scenario, one.subset) == ("sweep", "all")),
              flush=True)


def grid(bench: Bench, args: argparse.Namespace, draws: dict[str, dict[str, plan.Drawn]]) -> None:
    """All cells that are not there yet."""
    held_out = bench.parts.held_out
    cells = Cells(args.cells, bench.setup(args.learning_rate, held_out))
    cells.begin(held_out, partial(weigh, bench.model, held_out, bench.max_length))
    for name in wanted(args):
        scenario, selection, seed = name
        if name in cells:
            continue
        began = time.time()
        drawn = draws[scenario][str(seed)]
        rows = drawn.rows(bench.parts.pool, selection)
        short = "-".join(map(str, name)).replace(",", "").replace(" ", "-")
        model = bench.train(short, rows, args.learning_rate, seed)
        cells.add({"scenario": scenario, "selection": selection, "seed": seed, "kept": len(rows),
                   "bad": drawn.bad(selection),
                   **weighed(model, held_out, bench.max_length),
                   "seconds": round(time.time() - began, 1)})
        print(f"{short}: {time.time() - began:.0f} s", flush=True)


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Scenario, selection, seed. With clean labels a half of right ones is a random half."""
    for seed in range(args.first_seed, args.seeds):
        for scenario in args.scenarios:
            for selection in args.selections:
                if (scenario, selection) != ("clean", plan.ORACLE):
                    yield scenario, selection, seed


def planned(bench: Bench, args: argparse.Namespace) -> dict[str, dict[str, plan.Drawn]]:
    """The selections, as they were first made."""
    names = args.scenarios if args.smoke or args.chats else SCENARIOS
    plans, known = [], None
    for added, path in enumerate((bench.work / "plan.json", bench.work / "plan-added.json")):
        if not path.exists():
            known = known or sketched(bench, args)
            plan.write(path, plan.make_all(*known, names, args.seeds, bool(added)))
        print(f"{path}: SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}", flush=True)
        plans.append(plan.read(path))
    found = plan.merge(*plans)
    if any(str(seed) not in found.get(scenario, {}) for scenario, _, seed in wanted(args)):
        raise SystemExit(f"{path} was made for fewer seeds or scenarios; take another --work")
    return found


def sketch(bench: Bench, store: Path, dim: int) -> None:
    """Make a store of the pool's rows."""
    from congrad_cli.progress import Silent
    from congrad_cli.records.record import DataFile
    from congrad_cli.settings import RecordSettings, SketchSettings
    from congrad_cli.sketch.index import index_data
    from congrad_cli.sketch.run import run

    path = bench.work / "pool.jsonl"
    path.write_text(as_lines(bench.parts.pool.rows), encoding="utf-8", newline="\n")
    settings = SketchSettings(model=bench.model, device="cpu", threads=1, dim=dim,
                              store_dtype="float16")
    run(index_data([DataFile(path.name, path)], RecordSettings()), store, settings, Silent())


def sketched(bench: Bench, args: argparse.Namespace) -> tuple[Pool, Sketches]:
    """The pool's rows in seen languages, and their sketches; a chat can be too long for one."""
    from congrad_cli.store import GradientStore

    if args.smoke or args.chats:
        sketch(bench, args.store, DIM_SMOKE if args.smoke else DIM)
        store = GradientStore.open(args.store)
        without = store.skipped()
        rows = [row for place, row in enumerate(bench.parts.pool.rows) if place not in without]
        return Pool(rows), read_sketches(store)
    whole = read_sketches(GradientStore.open(args.store))
    place = {row["id"]: number for number, row in enumerate(read_rows(args.draw_from or args.pool))}
    if len(place) != len(whole.norm):
        raise SystemExit(f"the store has {len(whole.norm)} of {len(place)} pairs")
    at = np.array([place[row["id"]] for row in bench.parts.pool.rows])
    return bench.parts.pool, whole.some(at)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options; ``--smoke`` brings its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cells", type=Path, help="else WORK/cells.jsonl")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--draw-from", type=Path, metavar="POOL",
                        help="a level of the pool, where the store has no more")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--chats", type=Path, metavar="FOLDER",
                        help="LLaMA-Factory's data, whose chats join the pairs")
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--selections", nargs="+", choices=(*plan.SELECTIONS, *plan.ADDED),
                        default=[*plan.SELECTIONS, *plan.ADDED])
    parser.add_argument("--held-out", type=int, default=400, help="pairs of each language")
    parser.add_argument("--texts", type=int, default=40, help="texts of each language")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--sweep", type=float, nargs="+", metavar="RATE")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args(words)
    args.cells = args.cells or args.work / "cells.jsonl"
    if args.smoke:
        args.store, args.learning_rate = args.work / "smoke.congrad", 1e-3
        args.scenarios, args.seeds, args.steps = ["swapped-20"], 1, 2
        args.selections = [plan.ALL, plan.RANDOM, "congrad half"]
    elif not (args.text and args.pool and args.store and (args.sweep or args.learning_rate)):
        parser.error("--text, --pool, --store, and --sweep or --learning-rate are needed")
    return args


def main(words: list[str] | None = None) -> None:
    """Sweep, or train and measure all cells; then the table of what is there."""
    args = arguments(words)
    os.environ.update(QUIET)  # read when datasets is imported
    args.work.mkdir(parents=True, exist_ok=True)
    parts = parts_of_bundled(SMOKE, 10, 4) if args.smoke else parts_of_text(
        args.text, read_rows(args.pool), args.held_out, args.texts)
    if args.draw_from:
        parts = replace(parts, pool=Pool([
            row for row in read_rows(args.draw_from) if row["language"] in SEEN]))
    if args.chats:
        parts = with_chats(parts, args.chats)
    bench = Bench(parts, args.model, args.work, args.steps)
    if args.chats:  # one pair at a time: padded to a chat, short ones would cost ten times as much
        bench = replace(bench, max_length=MAX_LENGTH_CHATS, device_batch=1)
    if args.sweep:
        sweep(bench, args.sweep)
        return
    grid(bench, args, planned(bench, args))
    found = tables.measure(tables.read_lines([args.cells]))
    tables.write(args.cells.with_suffix(".csv"), found)
    tables.show(found)


if __name__ == "__main__":
    main()
