"""The same pairs through congrad, bergson, a dense projection and plain autograd, side by side.

Prints two tables and writes all numbers as CSV (``--out``): what rows of gradients cost and how
well they stand for exact ones, method by method inside one process; and the shortest scripts that
get from pairs to filtered pairs (``peer_scripts/``): their lines, cost and result.

CPU-seconds of the process on one thread, not wall time. Methods take turns in portions of pairs, in
a new random order each time; rates and ratios are medians over portions with 95 % bootstrap
intervals. Small portions are unfair: tools that sort rows by length into batches then have few to
choose from. A round draws every projection anew. What a method does once, its first pair included,
is its start; the dense projection takes part in the first round alone and gets all pairs at a time.
bergson and TRAK's projector (``pip install bergson traker``) are left out where not installed.

    OMP_NUM_THREADS=1 python tests/benchmarks/peers.py --model sample_data/tiny-model \\
        --scripts congrad bergson dense autograd --out peers.csv
"""

import argparse
import csv
import gc
import math
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import View, agreement, view
from cost import median
from fidelity import read_pairs
from peer_methods import METHODS, Case, Method, Pairs, dense_seconds, lacking
from peer_script_runs import FOLDER, SCRIPTS, code_lines, run_script

from congrad_cli.checkpoint import load_tokenizer
from congrad_cli.model_source import find_model
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.model import load_model

EXACT, FIRST = "autograd", "congrad"
TOGETHER = ("dense",)
"""Its projection is drawn for each call, which is what it costs: one call, in one round."""
NONE = float("nan")


@dataclass(frozen=True)
class Value:
    """One number of the result; NaN where there is no interval."""

    model: str
    part: str
    method: str
    measure: str
    value: float
    low: float = NONE
    high: float = NONE


@dataclass
class Found:
    """What a method took, over all rounds, and by code what congrad sees of its rows."""

    start: list[float] = field(default_factory=list)
    portions: dict[tuple[int, int, int], float] = field(default_factory=dict)  # CPU-seconds a pair
    scoring: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    views: dict[str, list[View]] = field(default_factory=lambda: defaultdict(list))
    bytes: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of a pair: the median over portions."""
        return float(np.median(list(self.portions.values())))


def timed(work: Any, *arguments: Any) -> tuple[float, Any]:
    """CPU-seconds of a call, and what it gave."""
    gc.collect()
    begun = time.process_time()
    result = work(*arguments)
    return time.process_time() - begun, result


def one_round(
    case: Case, pairs: Pairs, groups: Sequence[str], portion: int, found: dict[str, Found],
    number: int,
) -> None:
    """All methods of ``found`` on all pairs, added to it; ``number`` is the seed."""
    methods = {name: _started(name, case, pairs, number, found[name]) for name in shuffled(found)}
    turns = [(name, 0, len(pairs)) for name in methods if name in TOGETHER]
    for first in range(0, len(pairs), portion):
        apart = shuffled(name for name in methods if name not in TOGETHER)
        turns += [(name, first, first + portion) for name in apart]
    for name, first, end in turns:
        part = pairs[first:end]
        taken, _ = timed(methods[name].take, part, first)
        found[name].portions[number, first, len(part)] = taken / len(part)
    for name, method in methods.items():
        made, rows = timed(method.rows)
        norms = np.linalg.norm(rows, axis=1)
        for row_name, code in method.codes.items():
            taken, seen = timed(view, rows, norms, groups, method.width, code)
            found[name].scoring[row_name].append(made + taken)
            found[name].views[row_name].append(seen)
            found[name].bytes[row_name] = method.bytes(code)


def _started(name: str, case: Case, pairs: Pairs, seed: int, found: Found) -> Method:
    def start() -> Method:
        method = METHODS[name](case, seed)
        if name not in TOGETHER:
            method.take(pairs[:1], 0)
        return method

    taken, method = timed(start)
    found.start.append(taken)
    return method


def shuffled(names: Iterable[str]) -> list[str]:
    """In a new random order."""
    result = list(names)
    random.shuffle(result)
    return result


def values_of(model: str, found: dict[str, Found], pairs: int) -> list[Value]:
    """The first table; fidelity where exact gradients are there to compare with."""
    truth = found[EXACT].views[EXACT][0] if EXACT in found else None
    base = found[FIRST].portions
    result = []
    for one in found.values():
        per_pair = np.array(list(one.portions.values()))
        rate = median(1 / per_pair) if len(per_pair) > 1 else (1 / one.seconds, NONE, NONE)
        both = sorted(one.portions.keys() & base.keys())
        ratio = (one.seconds / found[FIRST].seconds, NONE, NONE) if len(both) < 2 else median(
            np.array([one.portions[key] for key in both]), np.array([base[key] for key in both]))
        for row_name, views in one.views.items():
            start, scoring = float(np.median(one.start)), float(np.median(one.scoring[row_name]))
            whole = pairs / (start + scoring + pairs * one.seconds)
            result += [Value(model, "rows", row_name, *rest) for rest in (
                ("start, CPU s", start),
                ("pairs a CPU s", *rate),
                ("CPU time / congrad", *ratio),
                ("scoring all, CPU s", scoring),
                ("whole job, pairs a CPU s", whole),
                ("bytes a pair", one.bytes[row_name]),
                ("kept by rule", _mean(float((seen.score["mean"] >= 0).sum()) for seen in views)),
                *(() if truth is None else _fidelity(views, truth)),
            )]
    return result


def _fidelity(views: list[View], truth: View) -> list[tuple[str, float]]:
    found = [agreement(seen, truth) for seen in views]
    return [
        ("of these also by exact", _mean(_same(seen, truth) for seen in views)),
        ("cosine RMSE", _mean(one.rmse for one in found)),
        *((f"{what}, {method}", _mean(getattr(one, attribute)[method] for one in found))
          for method in ("pcgrad", "mean")
          for what, attribute in (("Spearman", "spearman"), ("kept half", "overlap"))),
    ]


def _same(seen: View, truth: View) -> float:
    """The share of those kept that exact gradients keep, too; 0 where none is kept."""
    ours, theirs = (one.score["mean"] >= 0 for one in (seen, truth))
    return float((ours & theirs).sum() / max(ours.sum(), 1))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def run_scripts(model: str, data: bytes, names: Sequence[str]) -> list[Value]:
    """The second table."""
    runs = {}
    for name in shuffled(names):
        with tempfile.TemporaryDirectory() as folder:
            runs[name] = run_script(name, data, Path(model), Path(folder))
    pairs, result = len(data.splitlines()), []
    for name in names:
        kept = runs[name].kept
        exact = runs[EXACT].kept if EXACT in runs else None
        result += [Value(model, "scripts", SCRIPTS[name], *rest) for rest in (
            ("lines of code", code_lines(FOLDER / SCRIPTS[name])),
            ("CPU s", runs[name].seconds),
            ("pairs a CPU s", pairs / runs[name].seconds),
            ("bytes of gradients a pair", runs[name].bytes / pairs),
            ("kept", len(kept)),
            *(() if exact is None else (("of these also by exact", len(kept & exact)),
                                        ("kept by exact alone", len(exact - kept)))),
        )]
    return result


def show(values: Sequence[Value], part: str) -> None:
    """One of the two tables, in Markdown."""
    mine = [value for value in values if value.part == part]
    measures = list(dict.fromkeys(value.measure for value in mine))
    print(f"\n| {part} | " + " | ".join(measures) + " |\n|" + "---|" * (len(measures) + 1))
    for method in dict.fromkeys(value.method for value in mine):
        cells = {value.measure: _cell(value) for value in mine if value.method == method}
        print(f"| {method} | " + " | ".join(cells.get(one, "-") for one in measures) + " |")


def _cell(value: Value) -> str:
    if value.value >= 1000 or value.value == round(value.value):
        return f"{value.value:,.0f}"
    text = f"{value.value:.3g}"
    return text if math.isnan(value.low) else f"{text} [{value.low:.3g}, {value.high:.3g}]"


def write(path: Path, values: Sequence[Value]) -> None:
    """All numbers as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([item.name for item in fields(Value)])
        table.writerows(astuple(value) for value in values)


def compare(args: argparse.Namespace) -> list[Value]:
    """Both tables, as far as wanted."""
    random.seed(args.seed)
    source = find_model(args.model)
    model = load_model(source, torch.device("cpu"), torch.float32)
    layers = choose_layers(all_layers(model), "blocks")
    tokenizer = load_tokenizer(source, None)
    pairs, groups = read_pairs(args.data, tokenizer, args.pairs, args.languages, args.longest)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(model, layers, len(pairs), Path(folder))
        print(f"{args.model}: {len(layers)} linears, {case.weights / 1e6:.1f} M weights; "
              f"{len(pairs)} pairs in {len(set(groups))} languages, "
              f"{sum(pair.length for pair in pairs):,} tokens")
        values = compare_methods(args, case, pairs, groups) if args.methods else []
    if args.scripts:
        values += run_scripts(args.model, b"".join(pair.record.raw for pair in pairs), args.scripts)
    return values


def compare_methods(
    args: argparse.Namespace, case: Case, pairs: Pairs, groups: Sequence[str]
) -> list[Value]:
    """The first table, from all rounds."""
    found = {name: Found() for name in args.methods}
    for number in range(args.rounds):
        now = {name: one for name, one in found.items() if not number or name not in TOGETHER}
        one_round(case, pairs, groups, args.portion, now, args.seed + number)
    values = values_of(args.model, found, len(pairs))
    if args.slice:
        seconds = found[EXACT].seconds + dense_seconds(case.weights, len(pairs)) / len(pairs)
        values.append(Value(args.model, "rows", "dense, computed", "pairs a CPU s", 1 / seconds))
    return values


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder: bergson reads no GGUF")
    parser.add_argument("--data", type=Path, default=Path("sample_data/preferences.jsonl"))
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--languages", type=int, default=8)
    parser.add_argument("--longest", type=int, default=128, help="tokens of a row")
    parser.add_argument("--portion", type=int, default=64, help="pairs of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--slice", action="store_true", help="compute dense from a slice")
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in [name for name in METHODS if lacking(name) and name in args.methods + args.scripts]:
        print(f"{name}: left out, {lacking(name)} is not installed")
    args.methods, args.scripts = ([name for name in names if not lacking(name)]
                                  for names in (args.methods, args.scripts))
    if args.methods and FIRST not in args.methods:
        parser.error(f"--methods needs {FIRST}: the others are compared with it")
    if args.slice and (lacking("dense") or EXACT not in args.methods):
        parser.error(f"--slice needs {lacking('dense') or EXACT}")
    values = compare(args)
    for part in dict.fromkeys(value.part for value in values):
        show(values, part)
    if args.out:
        write(args.out, values)


if __name__ == "__main__":
    main()
