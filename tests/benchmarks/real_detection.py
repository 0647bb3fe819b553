"""Who finds swapped labels of real, fluent pairs? As ``detection.py``, for ``real_pairs.py``.

With ``--planted`` the pairs of ``conflicts.py`` (level 1) are data, too; real and planted ones are
then also measured alone. What the store has already is not sketched again, so that a copy of the
store of ``detection.py`` saves their sketches.

    python tests/benchmarks/real_detection.py chat --pool chat.jsonl \\
        --model SmolLM2-135M-Instruct.Q4_1.gguf --store chat.congrad --out chat.csv
    python tests/benchmarks/real_detection.py chat --pool chat.jsonl --planted pool.jsonl \\
        --model SmolLM2-135M-Instruct.Q4_1.gguf --store both.congrad --out both.csv
"""

import argparse
from pathlib import Path

from detection import RESAMPLES, Bench, of_level, sketch
from detection_tables import Cell, show, write_cells
from finders import read_sketches
from real_pairs import CHAT_LANGUAGES, PLANTED_LEVEL, SCENARIOS
from scenarios import FLAWS, SEEDS, Pool, read_rows

FINDERS = ("pcgrad, raw", "pcgrad, unit", "mean, raw", "mean, unit", "no groups, raw",
           "no groups, unit", "own language, unit", "mean, unit, language left out",
           "mean, unit, item left out", "margin", "margin per token",
           "pcgrad, unit + margin per token", "length", "random")
CHATS = tuple(f"chat-{language}" for language in CHAT_LANGUAGES)
PARTS = {"chat": {"chat": CHATS, **{name: (name,) for name in CHATS}, "planted": FLAWS},
         "options": {}}


def main() -> None:
    """Sketch what is missing, measure everything, write a table of all cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=PARTS)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--planted", type=Path, help="the pool of conflicts.py")
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    data = [args.pool]
    if args.planted:
        small = args.store.with_suffix(".planted.jsonl")
        data.append(of_level(args.planted, PLANTED_LEVEL, small))
    sketch(data, args.model, args.store)
    from congrad_cli.store import GradientStore

    store = GradientStore.open(args.store)
    pool = Pool([row for file in data for row in read_rows(file)])
    if len(store) != len(pool.rows):
        parser.error(f"the store has {len(store)} of {len(pool.rows)} pairs")
    scenarios = SCENARIOS[args.kind]
    bench = Bench.of(pool, read_sketches(store), RESAMPLES, scenarios, PARTS[args.kind])
    cells: list[Cell] = []
    for name in scenarios:
        cells += bench.scenario(name, FINDERS, args.seeds)
        write_cells(args.out, cells)
    for measure in ("auroc", "precision", "auroc, chat alone", "auroc, planted alone"):
        show(cells, measure, FINDERS)


if __name__ == "__main__":
    main()
