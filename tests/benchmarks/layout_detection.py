"""Do other layouts of a sketch find bad labels as well?

Forms the gradient of every pair of the pool, lays it out as two-sided 16 x 16 blocks for each layer
(the layout of public tools) and as a count sketch of the whole, and with ``--exact`` keeps it as
it is; then draws the scenarios of ``detection.py`` and scores them by each of these, and by the
store's rows. Differences to the store's are paired over draws and paragraphs.

    python tests/benchmarks/layout_detection.py --pool pool.jsonl --level 1 --store tiny.congrad \\
        --model sample_data/tiny-model --exact --out layouts.csv

Exact gradients are kept in float16 in a temporary folder (``TMPDIR``): 2 bytes a weight and pair.
"""

import argparse
import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection import RESAMPLES, Bench
from fidelity import ExactRows
from finders import Sketches, read_sketches
from layouts import CountSketch, TwoSided
from measures import interval, over_seeds, resamples
from scenarios import SCENARIOS, Infeasible, Pool, read_rows

from congrad_cli.checkpoint import load_tokenizer
from congrad_cli.model_source import find_model
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import DataFile
from congrad_cli.settings import RecordSettings
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.exact import exact_gradient
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.model import load_model
from congrad_cli.sketch.tokens import TokenizedPair, tokenize
from congrad_cli.store import GradientStore

STORE, FINDERS = "store", ("pcgrad, unit", "pcgrad, raw", "mean, unit")
SIDE, COUNT_DIM = 16, 8192


def unit_cosines(rows: np.ndarray) -> np.ndarray:
    """Of all pairs of rows, [n, n]."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = (rows @ rows.T).astype(np.float64)
    np.fill_diagonal(cosine, 1)
    return cosine


def laid_out(
    source: str, data: Path, wanted: Mapping[str, int], like: Sketches, exact: bool
) -> dict[str, Sketches]:
    """Layout -> the pool's sketches in it; ``wanted`` has the place of each pair's name."""
    torch.set_num_threads(1)
    found = find_model(source)
    model = load_model(found, torch.device("cpu"), torch.float32)
    use_shared_rows(model)
    layers = choose_layers(all_layers(model), "blocks")
    shapes = {name: (layer.outputs, layer.inputs) for name, layer in layers.items()}
    makers: dict[str, Any] = {f"{SIDE} x {SIDE} blocks": TwoSided(shapes, SIDE, 0),
                              "count sketch, 8,192": CountSketch(shapes, COUNT_DIM, 0)}
    rows = {name: np.zeros((len(wanted), maker.numbers), np.float32)
            for name, maker in makers.items()}
    tokenizer = load_tokenizer(found, None)
    with tempfile.TemporaryDirectory() as folder:
        weights = sum(layer.size for layer in layers.values())
        kept = ExactRows(folder, len(wanted), weights) if exact else None
        for record in read_records([DataFile(data.name, data)], RecordSettings()):
            pair = tokenize(record, tokenizer, 1024)
            if record.id not in wanted or not isinstance(pair, TokenizedPair):
                continue
            gradient = exact_gradient(model, layers, pair).layers
            for name, maker in makers.items():
                rows[name][wanted[record.id]] = maker(gradient)
            if kept is not None:
                kept.put(wanted[record.id], gradient)
        cosines = {name: unit_cosines(one) for name, one in rows.items()}
        if kept is not None:
            cosines["exact gradients"] = unit_cosines(kept.isometric())
    return {name: replace(like, cosine=cosine) for name, cosine in cosines.items()}


def compare(
    pool: Pool, layouts: Mapping[str, Sketches], finder: str, scenario: str, seeds: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layout -> AUROC, and what it is beyond the store's, both resampled [R]."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in layouts}
    for name, sketches in layouts.items():
        bench = Bench.of(pool, sketches, RESAMPLES)
        for seed in range(seeds):
            ((_, measured),) = bench.one_draw(scenario, (finder,), seed)
            parts[name].append(measured["auroc"])
    drawn = resamples(seeds, RESAMPLES, np.random.default_rng(1))
    means = {name: over_seeds(found, drawn) for name, found in parts.items()}
    return {name: (mean, mean - means[STORE]) for name, mean in means.items()}


def table(
    pool: Pool, layouts: Mapping[str, Sketches], finders: Sequence[str], names: Sequence[str],
    seeds: int, out: Path,
) -> None:
    """Print AUROC and differences, and write them; scenarios that the pool is too small for are
    left out."""
    head = " | ".join(f"{name} | less the store's" if name != STORE else name for name in layouts)
    print(f"| AUROC | | {head} |\n" + "|---" * (1 + 2 * len(layouts)) + "|")
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("scenario", "finder", "layout", "measure", "value", "low", "high"))
        for scenario in names:
            for finder in finders:
                try:
                    found = compare(pool, layouts, finder, scenario, seeds)
                except Infeasible:
                    break
                cells = []
                for name, (mean, beyond) in found.items():
                    cells.append(f"{mean[0]:.3f}")
                    writer.writerow((scenario, finder, name, "auroc", *interval(mean)))
                    if name != STORE:
                        value, low, high = interval(beyond)
                        cells.append(f"{value:+.3f} [{low:+.3f}, {high:+.3f}]")
                        writer.writerow((scenario, finder, name, "beyond", value, low, high))
                print(f"| {scenario} | {finder} | " + " | ".join(cells) + " |", flush=True)


def main(words: list[str] | None = None) -> None:
    """Form, lay out, draw and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--level", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scenarios", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--finders", nargs="*", choices=FINDERS, default=list(FINDERS))
    args = parser.parse_args(words)
    rows = read_rows(args.pool)
    place = {row["id"]: number for number, row in enumerate(rows)}
    pool = Pool(rows, args.level)
    stored = read_sketches(GradientStore.open(args.store))
    at = np.arange(len(stored.norm))
    if len(at) == len(rows):  # the store of the whole pool
        at = np.array([place[row["id"]] for row in pool.rows])
    elif len(at) != len(pool.rows):
        parser.error(f"the store has {len(at)} pairs; the level has {len(pool.rows)}, "
                     f"the pool {len(rows)}")
    own = stored.some(at)
    wanted = {row["id"]: number for number, row in enumerate(pool.rows)}
    layouts = {STORE: own, **laid_out(args.model, args.pool, wanted, own, args.exact)}
    table(pool, layouts, args.finders, args.scenarios, args.seeds, args.out)


if __name__ == "__main__":
    main()
