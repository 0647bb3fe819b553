"""Do the scores tell pairs with swapped answers from the others?

Sketches the bundled pairs with a model (or uses the store of an earlier run), then prints the
AUROC of the scores, for each solver and pair norm, with and without leave-one-out. 0.5 is chance,
1.0 is perfect. The ``planted`` field of the data is read here and nowhere in congrad.

    python tests/benchmarks/planted.py --model sample_data/tiny-model --store planted.congrad
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from congrad_cli.consensus import run as consensus
from congrad_cli.demo import auroc
from congrad_cli.direction import read_consensus
from congrad_cli.display.progress import TerminalProgress
from congrad_cli.filter.scores import pair_scores
from congrad_cli.records.record import DataFile
from congrad_cli.settings import (
    ROW_SIZES,
    ConsensusSettings,
    RecordSettings,
    SketchSettings,
)
from congrad_cli.sketch.index import index_data
from congrad_cli.store import GradientStore


def main() -> None:
    """Sketch once, then score in every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--row-size", choices=ROW_SIZES, default="16k")
    parser.add_argument("--data", type=Path, default=Path("sample_data/preferences.jsonl"))
    args = parser.parse_args()
    from congrad_cli.sketch.run import run as sketch

    progress = TerminalProgress(quiet=False)
    dim, code = ROW_SIZES[args.row_size]
    settings = SketchSettings(model=args.model, device="cpu", threads=1, dim=dim, store_dtype=code)
    index = index_data([DataFile(args.data.name, args.data)], RecordSettings())
    sketch(index, args.store, settings, progress)
    store_path = args.store
    store = GradientStore.open(store_path)
    records = [json.loads(line) for line in args.data.open("rb")]
    planted = np.array([records[row]["planted"] for row in store.row])
    logp = store.column("logp")
    print(f"{args.model}: {len(store)} pairs, {planted.sum()} planted; ranking by the margin "
          f"logp(chosen) - logp(rejected): {split(logp[:, 0] - logp[:, 1], planted):.3f}")
    print(f"{'solver':8} {'pairs':6} {'leave-one-out':>14} {'with itself':>12}")
    for method in ("mean", "pcgrad"):
        for norm in ("raw", "unit"):
            wanted = replace(ConsensusSettings(), method=method, pair_norm=norm, name="planted")
            consensus.run(store_path, wanted, TerminalProgress(quiet=True))
            found = read_consensus(store_path, "planted", store)
            values = [split(
                pair_scores(store, found.consensus, found.members, out).score, planted
            ) for out in (True, False)]
            print(f"{method:8} {norm:6} {values[0]:14.3f} {values[1]:12.3f}")


def split(score: np.ndarray, planted: np.ndarray) -> float:
    """AUROC of clean against planted pairs."""
    return auroc(score[~planted].tolist(), score[planted].tolist())


if __name__ == "__main__":
    main()
