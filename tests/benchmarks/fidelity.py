"""How well sketches stand in for exact gradients: cosines, scores, and what is kept.

Materialises the gradient of every pair once (block linears, float32) and compares with it, over
several seeds: congrad's sketch for several D, k (leading) and r (random input directions);
two-sided 16 x 16 blocks per layer laid end to end, the layout of public tools; and a count sketch
of the whole flat gradient, the ideal for its size. Prints numbers and bytes a pair, the root mean
square error of the cosines of all pairs of rows, the rank correlation of the leave-one-out
consensus score with the exact one, the share of the kept half that is the same, and the shares of
scores that lie within one and two of their jackknife errors: the mean over seeds, and of the first
three in brackets the worst and the best.

Exact gradients are kept in float16 in a temporary folder (``TMPDIR``): 2 bytes a weight and pair.

    python tests/benchmarks/fidelity.py --model sample_data/tiny-model --pairs 64
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import METHODS, Agreement, View, agreement, view
from layouts import CountSketch, TwoSided
from torch import Tensor

from congrad_cli.checkpoint import load_tokenizer
from congrad_cli.codec import Codec
from congrad_cli.model_source import find_model
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import DataFile
from congrad_cli.settings import STORE_DTYPES, RecordSettings
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.calibration import leading_directions
from congrad_cli.sketch.exact import exact_gradient
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.model import load_model
from congrad_cli.sketch.pairs import batch_pairs
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.tokens import TokenizedPair, tokenize
from congrad_cli.sketch.width import choose_width

BLOCK = 1 << 18
"""Columns of the exact gradients that are multiplied at a time."""

Sketch = Callable[[TokenizedPair, Mapping[str, Tensor]], np.ndarray]


def read_pairs(
    data: Path, tokenizer: Any, count: int, languages: int, longest: int
) -> tuple[list[TokenizedPair], list[str]]:
    """``count`` pairs of ``languages`` languages in turn, and their languages.

    Of the languages that have most pairs with rows of at most ``longest`` tokens.
    """
    found: dict[str, list[TokenizedPair]] = {}
    for record in read_records([DataFile(data.name, data)], RecordSettings()):
        pair = tokenize(record, tokenizer, 1024)
        if isinstance(pair, TokenizedPair) and pair.length <= longest:
            found.setdefault(record.group, []).append(pair)
    names = sorted(found, key=lambda name: -len(found[name]))[:languages]
    depth = max(len(found[name]) for name in names)
    turns = [(found[name][at], name) for at in range(depth) for name in names
             if at < len(found[name])][:count]
    return [pair for pair, _ in turns], [name for _, name in turns]


class ExactRows:
    """Unit gradients on disk, scaled to entries around 1: float16 has few small numbers."""

    def __init__(self, folder: str, pairs: int, weights: int) -> None:
        self._rows = np.memmap(Path(folder) / "exact", np.float16, "w+", shape=(pairs, weights))
        self.norms = np.zeros(pairs)

    def put(self, index: int, gradient: Mapping[str, Tensor]) -> None:
        """Keep one pair's gradient."""
        norm = math.sqrt(sum(float(part.double().square().sum()) for part in gradient.values()))
        begin, factor = 0, math.sqrt(self._rows.shape[1]) / norm
        for part in gradient.values():
            end = begin + part.numel()
            self._rows[index, begin:end] = (part.flatten() * factor).half().numpy()
            begin = end
        self.norms[index] = norm

    def isometric(self) -> np.ndarray:
        """Rows of n numbers with the inner products of the unit gradients, [n, n]."""
        gram = np.zeros((len(self._rows),) * 2)
        for begin in range(0, self._rows.shape[1], BLOCK):
            block = self._rows[:, begin : begin + BLOCK].astype(np.float32)
            gram += block @ block.T
        scale = np.sqrt(np.diagonal(gram))
        values, vectors = np.linalg.eigh(gram / np.outer(scale, scale))
        return vectors * np.sqrt(np.maximum(values, 0))


def schemes(
    args: argparse.Namespace, model: Any, layers: Mapping[str, Any], stack: ExitStack
) -> dict[str, list[Sketch]]:
    """The sketches to compare, one per seed, by the name to print."""
    shapes = {name: (layer.outputs, layer.inputs) for name, layer in layers.items()}
    seeds = range(args.seeds)
    result: dict[str, list[Sketch]] = {}
    for leading in args.leading:
        directions = leading_directions(model, layers, leading)
        for dim in args.dims:
            for wanted in args.widths:
                width = wanted or choose_width(model, layers, directions, dim)
                made = [PairSketcher(model, layers, Projection(dim, width, seed, directions))
                        for seed in seeds]
                result[f"congrad D {dim}, k {leading}, r {width}"] = [
                    _ours(stack.enter_context(one)) for one in made
                ]
    result["two-sided 16 x 16 blocks"] = [_theirs(TwoSided(shapes, 16, seed)) for seed in seeds]
    result[f"count sketch, D {args.ideal}"] = [
        _theirs(CountSketch(shapes, args.ideal, seed)) for seed in seeds
    ]
    return result


def _ours(sketcher: PairSketcher) -> Sketch:
    return lambda pair, _: sketcher.sketch(batch_pairs([pair], 0, shared=True)).sketch[0].numpy()


def _theirs(layout: Callable[[Mapping[str, Tensor]], np.ndarray]) -> Sketch:
    return lambda _, gradient: layout(gradient)


def line(name: str, numbers: int, size: int, found: list[Agreement]) -> str:
    """One row of the table."""
    cells = [_spread([one.rmse for one in found], 4)]
    for method in METHODS:
        cells += [_spread([one.spearman[method] for one in found], 3),
                  _spread([one.overlap[method] for one in found], 2)]
        within = np.mean([one.within[method] for one in found], axis=0)
        cells.append(f"{within[0]:.0%}, {within[1]:.0%}")
    return f"{name:38} {numbers:8,} {size:9,} " + " ".join(f"{cell:>22}" for cell in cells)


def _spread(values: list[float], digits: int) -> str:
    return (f"{np.mean(values):.{digits}f} "
            f"[{min(values):.{digits}f}, {max(values):.{digits}f}]")


def report(
    rows: dict[str, list[np.ndarray]], exact: View, groups: list[str], codes: list[str]
) -> None:
    """The table; ``rows`` holds by name and seed the rows of all pairs."""
    heads = ["cosine RMSE"] + [f"{method}: {what}" for method in METHODS
                               for what in ("Spearman", "kept half", "1, 2 errors")]
    print(f"{'':38} {'numbers':>8} {'bytes':>9} " + " ".join(f"{head:>22}" for head in heads))
    for name, seeds in rows.items():
        ours = name.startswith("congrad")
        numbers, width = seeds[0].shape[1], int(name.split()[-1]) if ours else 1
        for code in codes if ours else ["float16"]:
            views = [
                view(one, np.linalg.norm(one, axis=1), groups, width, code) for one in seeds
            ]
            size = sum(math.prod(tail) * np.dtype(kind).itemsize
                       for kind, tail in Codec(code, numbers, width).columns().values())
            print(line(f"{name} {code}", numbers, size, [agreement(one, exact) for one in views]),
                  flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, default=Path("sample_data/preferences.jsonl"))
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--languages", type=int, default=8)
    parser.add_argument("--longest", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--dims", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--ideal", type=int, default=8192, help="D of the count sketch")
    parser.add_argument("--widths", type=int, nargs="+", default=[0])
    parser.add_argument("--leading", type=int, nargs="+", default=[8])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--codes", nargs="+", default=list(STORE_DTYPES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = find_model(args.model)
    model = load_model(source, torch.device("cpu"), torch.float32)
    use_shared_rows(model)
    layers = choose_layers(all_layers(model), "blocks")
    weights = sum(layer.size for layer in layers.values())
    tokenizer = load_tokenizer(source, None)
    pairs, groups = read_pairs(args.data, tokenizer, args.pairs, args.languages, args.longest)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        compared = schemes(args, model, layers, stack)
        exact = ExactRows(folder, len(pairs), weights)
        rows: dict[str, list[list[np.ndarray]]] = {
            name: [[] for _ in seeds] for name, seeds in compared.items()
        }
        ready = time.process_time()
        for index, pair in enumerate(pairs):
            gradient = exact_gradient(model, layers, pair).layers
            exact.put(index, gradient)
            for name, seeds in compared.items():
                for seed, sketch in enumerate(seeds):
                    rows[name][seed].append(sketch(pair, gradient))
        done = time.process_time()
        truth = view(exact.isometric(), exact.norms, groups)
    apart = truth.cosine[np.tril_indices(len(pairs), -1)]
    print(f"{args.model}: {len(layers)} linears, {weights / 1e6:.1f} M weights; {len(pairs)} pairs "
          f"in {len(set(groups))} languages; spread of the exact cosines {apart.std():.4f}; "
          f"{len(compared)} sketches x {args.seeds} seeds; CPU-seconds: {ready - began:.0f} to "
          f"draw, {(done - ready) / len(pairs):.1f} a pair")
    report({name: [np.stack(one) for one in seeds] for name, seeds in rows.items()}, truth, groups,
           args.codes)


if __name__ == "__main__":
    main()
