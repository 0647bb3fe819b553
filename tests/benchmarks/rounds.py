"""Do rounds of ``congrad loop`` give better models with its filter than without?

Runs the loop from the command line: prompts are first halves of help paragraphs, the bundled model
writes the answers, and a judge on loopback rates them by the true second half, rightly (``fair``)
or with some verdicts turned round (``spoilt``, see ``rounds_judge.py``). The arms of a seed share
what is made before they differ: candidates, judgements, pairs, and the sketch of round 1. After
each round the model is measured on held-out pairs and texts as in ``downstream.py``, and by its own
answers to held-out prompts.

A line of ``WORK/cells.jsonl`` is a finished round (judge and round, arm, seed); one that is there
is not done again, and a run that was stopped goes on. Seeds come first.

    python tests/benchmarks/rounds.py --text parallel.jsonl --pool pool.jsonl --work rounds
    python tests/benchmarks/rounds_tables.py rounds/cells.jsonl --out rounds/cells.csv

``--smoke --work DIR`` tries everything on bundled pairs. Every command is a fork of this process,
which has imported what it needs: that saves 15 s for each round.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import downstream
import downstream_tables as tables
import numpy as np
import rounds_judge
import rounds_tables
from downstream import MAX_LENGTH, QUIET, TINY, Cells, run_fork, weigh
from rounds_data import Data, data_of_bundled, data_of_text
from rounds_judge import FAIR, SPOILT, Judge
from rounds_tables import ARMS, FILTER, RANDOM
from scenarios import read_rows

ROUNDS = 2
DRAWS = 1
"""Answers to each held-out prompt."""
BATCH, MAX_TOKENS = 64, 48
JUDGES = (SPOILT, FAIR)
CHAT = ("{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}")
"""The model goes on with the prompt's text: it is a language model of plain paragraphs."""
CONFIG = """\
[run]
folder = "run"
rounds = {rounds}

[model]
path = "{model}"
chat_template = "chat.jinja"
dtype = "float32"
device = "cpu"
threads = 1

[prompts]
files = ["prompts.jsonl"]
per_language = {per_language}

[backend]
batch = {batch}

[generate]
temperature = 1.0
top_p = 1.0
max_tokens = {max_tokens}

[judge]
kind = "endpoint"
template = "judge.jinja"
samples = 1

[judge.backend]
kind = "openai"
url = "http://127.0.0.1:1/v1"
model = "fair"
concurrency = 2

[sketch]
max_length = {max_length}

[train]
learning_rate = {learning_rate}
max_steps = {steps}
device_batch = 8
max_length = {max_length}
save_dtype = "float32"
"""
"""All other settings are the loop's defaults, those of the filter too."""


@dataclass(frozen=True)
class Bench:
    """What all runs share: the data, the judge with its address, and the loop's configuration."""

    data: Data
    judge: Judge
    url: str
    work: Path
    config: str
    model: str = str(TINY)

    def prepare(self) -> None:
        """Write the loop's files."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.data.write_prompts(self.work / "prompts.jsonl")
        for name, content in (("chat.jinja", CHAT), ("judge.jinja", rounds_judge.TEMPLATE),
                              ("loop.toml", self.config)):
            (self.work / name).write_text(content, encoding="utf-8", newline="\n")

    def setup(self) -> dict[str, Any]:
        """What must be the same for all lines of a file."""
        from congrad_cli.loop.digests import digest_model

        return {"model": digest_model(self.model, None), "held_out": self.data.held_out.digest(),
                "prompts": self.data.digest(), "draws": DRAWS,
                "config": hashlib.sha256(self.config.replace(self.model, "").encode()).hexdigest()}

    def loop(self, run: Path, seed: int, judge: str, *words: str) -> None:
        """``congrad loop`` on this run."""
        sets = {"run.folder": run, "run.seed": seed, "judge.backend.url": self.url,
                "judge.backend.model": judge}
        congrad(run.with_name(f"{run.name.removesuffix('.part')}.log"), "loop",
                str(self.work / "loop.toml"),
                *(word for name, value in sets.items() for word in ("--set", f"{name}={value}")),
                *words)

    def measured(self, model: str) -> dict[str, Any]:
        """All that is measured of a model."""
        return weigh(model, self.data.held_out) | {"fresh": self.fresh(model)}

    def fresh(self, model: str) -> list[float]:
        """How good the model's own answers to the held-out prompts are, the mean over draws [n].

        Every model is asked with the same numbers; what is not finished is rated as it stands.
        """
        from congrad_cli.loop.generate import seeds
        from congrad_cli.loop.loading import load
        from congrad_cli.loop.model_access import Request, Sampling
        from congrad_cli.loop.settings import ModelSection
        from congrad_cli.loop.transformers_backend import TransformersBackend

        about = ModelSection(path=model, dtype="float32", device="cpu", threads=1)
        checkpoint = load(model, about)
        checkpoint.tokenizer.chat_template = None
        backend = TransformersBackend(checkpoint, BATCH, lambda _: None)
        rows = self.data.held_out.pairs
        answers = backend.complete([
            Request(str(place), ({"role": "user", "content": row["prompt"]},),
                    seeds(0, str(place), DRAWS), Sampling(1.0, 1.0, MAX_TOKENS))
            for place, row in enumerate(rows)])
        found = {int(answer.key): float(np.mean([
            self.judge.quality(rows[int(answer.key)]["prompt"], one.text)
            for one in answer.completions])) for answer in answers}
        backend.close()
        return [round(found[place], 5) for place in range(len(rows))]


def congrad(log: Path, *words: str) -> None:
    """``python -m congrad_cli WORDS`` as a fork of this process, its trainings as forks of it."""
    from congrad_cli.__main__ import main
    from congrad_cli.loop import train as training

    child = os.fork()
    if child == 0:
        code = 99
        try:
            file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.argv = ["congrad", *words]
            training.run_worker = run_fork
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"congrad {' '.join(words)} failed, see {log}")


def copied(source: Path | None, target: Path) -> Iterator[Path]:
    """A copy of a run that is worked on, once, and then takes its name; nothing if it is there."""
    if target.exists():
        return
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    if source is not None:
        shutil.copytree(source, part)
    yield part
    part.rename(target)


def begun(bench: Bench, seed: int, kind: str, arm: str) -> tuple[Path, tuple[str, ...]]:
    """The run of an arm, up to where the arms differ or further, and the arm's options."""
    folder = bench.work / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    judge = judge_of(kind, seed)
    drawn, judged, run = (folder / name for name in (
        "drawn", f"{kind}-judged", f"{kind}-{arm.replace(' ', '-')}"))
    for part in copied(None, drawn):
        bench.loop(part, seed, FAIR, "--until", "1/candidates")
    for part in copied(drawn, judged):
        bench.loop(part, seed, judge, "--until", "1/pairs")
    if arm == RANDOM:
        filtered, _ = begun(bench, seed, kind, FILTER)
        options = as_many(filtered)
        for part in copied(filtered, run):
            bench.loop(part, seed, judge, *options, "--until", "1/filter",
                       "--restart-from", "1/filter")
        return run, options
    for part in copied(judged, run):
        if arm == FILTER:  # as far as the random filter starts from
            bench.loop(part, seed, judge, "--until", "1/filter")
    return run, () if arm == FILTER else ("--set", "filter.enabled=false")


def judge_of(kind: str, seed: int) -> str:
    """The judge's name; a spoilt one has something else spoilt with each seed."""
    return FAIR if kind == FAIR else f"{kind}-{seed}"


def as_many(run: Path) -> tuple[str, ...]:
    """The options of the random filter: the share that congrad's filter keeps in round 1."""
    made, kept = (len(rows) for rows in pairs_of(run, 1))
    return "--set", "filter.rank_by=random", "--set", f"filter.keep_ratio={kept / made:.6f}"


def read_items(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pairs_of(run: Path, number: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pairs of a round, and those that were trained on."""
    folder = run / f"round-{number}"
    made = read_items(folder / "04-pairs" / "pairs.jsonl")
    kept = folder / "07-filter" / "kept.jsonl"
    return made, read_items(kept) if kept.exists() else made


def about_round(bench: Bench, run: Path, number: int) -> dict[str, Any]:
    """How many pairs there were, how many verdicts were wrong, and how good the candidates were."""
    made, kept = pairs_of(run, number)
    wrong = {pair["id"]: bench.judge.is_wrong(pair) for pair in made}
    items = read_items(run / f"round-{number}" / "02-candidates" / "results.jsonl")
    return {
        "made": len(made), "kept": len(kept), "wrong": float(np.mean(list(wrong.values()))),
        "bad": float(np.mean([wrong[pair["id"]] for pair in kept])),
        "own": float(np.mean([bench.judge.quality(item["messages"][-1]["content"], one["text"])
                              for item in items for one in item["candidates"]])),
    }


def grid(bench: Bench, args: argparse.Namespace) -> None:
    """All rounds that are not there yet."""
    cells, held_out = Cells(args.cells, bench.setup()), bench.data.held_out
    cells.begin(held_out, partial(bench.measured, bench.model))
    for seed in range(args.first_seed, args.seeds):
        for kind in args.judges:
            for arm in args.arms:
                if kind == SPOILT or arm != RANDOM:
                    one_run(bench, cells, seed, kind, arm)


def one_run(bench: Bench, cells: Cells, seed: int, kind: str, arm: str) -> None:
    """All rounds of one arm, each measured as soon as it is done."""
    names = [(f"{kind}, round {number}", arm, seed) for number in range(1, ROUNDS + 1)]
    if all(name in cells for name in names):
        return
    began = time.time()
    run, options = begun(bench, seed, kind, arm)
    bench.loop(run, seed, judge_of(kind, seed), *options)
    for number, (scenario, _, _) in enumerate(names, 1):
        model = run / f"round-{number}" / "08-train" / "model"
        if (scenario, arm, seed) not in cells:
            found = bench.measured(str(model))
            cells.add({"scenario": scenario, "selection": arm, "seed": seed,
                       **about_round(bench, run, number),
                       **{name: found[name] for name in ("pairs", "texts", "fresh")}})
    print(f"{kind}, {arm}, {seed}: {time.time() - began:.0f} s, CPU {cpu():.0f} s in all",
          flush=True)


def cpu() -> float:
    """CPU seconds of this process and of those that it started."""
    return sum(os.times()[:4])


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options; ``--smoke`` brings its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cells", type=Path, help="else WORK/cells.jsonl")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=list(JUDGES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--held-out", type=int, default=32, help="pairs of each language")
    parser.add_argument("--texts", type=int, default=12, help="texts of each language")
    parser.add_argument("--per-language", type=int, default=16, help="prompts of each round")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args(words)
    args.work = args.work.absolute()
    args.cells = args.cells or args.work / "cells.jsonl"
    if args.smoke:
        args.seeds, args.per_language, args.steps = 1, 4, 2
    elif not (args.text and args.pool):
        parser.error("--text and --pool are needed")
    return args


def main(words: list[str] | None = None) -> None:
    """Run and measure all rounds; then the tables of what is there."""
    args = arguments(words)
    os.environ.update(QUIET)  # read when datasets is imported
    from congrad_cli import cli  # noqa: F401 - what every fork needs
    from congrad_cli.loop import dpo, transformers_backend  # noqa: F401

    data = data_of_bundled(downstream.SMOKE, 10, 2) if args.smoke else data_of_text(
        args.text, read_rows(args.pool), args.held_out, args.texts)
    config = CONFIG.format(rounds=ROUNDS, model=TINY, per_language=args.per_language, batch=BATCH,
                           max_tokens=MAX_TOKENS, max_length=MAX_LENGTH, steps=args.steps,
                           learning_rate=args.learning_rate)
    judge = data.judge()
    with rounds_judge.served(judge) as url:
        bench = Bench(data, judge, url, args.work, config)
        bench.prepare()
        grid(bench, args)
    lines = tables.read_lines([args.cells])
    found = rounds_tables.measure(lines)
    tables.write(args.cells.with_suffix(".csv"), found)
    rounds_tables.show_counts(lines)
    rounds_tables.show(found)


if __name__ == "__main__":
    main()
