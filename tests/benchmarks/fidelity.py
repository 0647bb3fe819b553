"""How well cosines between sketches follow cosines between exact gradients.

Materialises the gradient of every pair once (block linears, float32), sketches it with several
numbers k of leading and r of random input directions and several seeds, and prints the root mean
square error of the cosines of all pairs of rows, beside 1/sqrt(D), the error of an ideal count
sketch of the same size.

    python tests/benchmarks/fidelity.py --model sample_data/tiny-model --pairs 36
"""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from congrad_cli.records import read_records
from congrad_cli.settings import RecordSettings
from congrad_cli.sketch.calibration import leading_directions
from congrad_cli.sketch.exact import exact_gradient
from congrad_cli.sketch.model import block_linears, load_model, load_tokenizer
from congrad_cli.sketch.pairs import TokenizedPair, tokenize
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.source import find_model


def cosines(rows: list[np.ndarray]) -> np.ndarray:
    """Cosines of all pairs of rows as one vector; rows stay where they are, they may be large."""
    norms = [np.linalg.norm(row) for row in rows]
    return np.array([
        rows[i] @ rows[j] / (norms[i] * norms[j]) for i in range(len(rows)) for j in range(i)
    ])


def sketch_of(gradient: dict[str, Tensor], projection: Projection) -> Tensor:
    """The definition: s = sum over layers of fold(G R)."""
    total = torch.zeros(projection.dim)
    for name, matrix in gradient.items():
        outputs, inputs = matrix.shape
        layer = projection.layer(name, inputs, outputs, torch.device("cpu"), torch.float32)
        total += layer.fold(layer.project_inputs(matrix).T[None])[0]
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, default=Path("sample_data/preferences.jsonl"))
    parser.add_argument("--pairs", type=int, default=36)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--leading", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = find_model(args.model)
    tokenizer = load_tokenizer(source, None)
    model = load_model(source, torch.device("cpu"), torch.float32)
    layers = block_linears(model)
    records = read_records([(args.data.name, args.data)], RecordSettings())
    directions = {count: leading_directions(model, layers, count) for count in args.leading}
    schemes = {
        (count, width, seed): Projection(args.dim, width, seed, directions[count])
        for count in args.leading for width in args.widths for seed in range(args.seeds)
    }
    exact, sketches = [], {key: [] for key in schemes}
    for record in islice(records, args.pairs):
        pair = tokenize(record, tokenizer, 1024)
        assert isinstance(pair, TokenizedPair)
        gradient = exact_gradient(model, layers, pair).layers
        exact.append(torch.cat([part.flatten() for part in gradient.values()]).numpy())
        for key, scheme in schemes.items():
            sketches[key].append(sketch_of(gradient, scheme).numpy())
    size = sum(layer.weight.numel() for layer in layers.values())
    truth = cosines(exact)
    print(f"{args.model}: {len(layers)} linears, {size / 1e6:.1f} M weights, {len(exact)} pairs, "
          f"D = {args.dim}, 1/sqrt(D) = {args.dim**-0.5:.4f}, "
          f"spread of the exact cosines {truth.std():.4f}")
    for count in args.leading:
        for width in args.widths:
            errors = [
                np.sqrt(np.mean((cosines(sketches[count, width, seed]) - truth) ** 2))
                for seed in range(args.seeds)
            ]
            print(f"k = {count:2d}, r = {width:3d}: RMSE {np.mean(errors):.4f} "
                  f"({min(errors):.4f} to {max(errors):.4f} over {len(errors)} seeds), "
                  f"{np.mean(errors) * args.dim**0.5:.2f} / sqrt(D)")


if __name__ == "__main__":
    main()
