"""Who finds bad labels? The score in its variants against simpler numbers, over all scenarios.

Sketches the pool of ``conflicts.py`` with a model (what a store has already is not done again),
draws the scenarios of ``scenarios.py``, and measures how well each finder's numbers tell bad labels
from good ones. 95 % intervals are of a bootstrap over items (all translations of a paragraph go
together) and over the draws' seeds; all finders share the resamples, so differences are paired.
They cover which paragraphs and which labels were drawn, not the choice of model or kind of text.

    python tests/benchmarks/detection.py --pool pool.jsonl --model sample_data/tiny-model \\
        --store tiny.congrad --out tiny.csv
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detection_tables import BEYOND, BEYOND_MEAN, SHOWN, Cell, show, write_cells
from finders import (
    FINDERS,
    REFERENCE,
    DrawnPairs,
    Found,
    Sketches,
    read_sketches,
    try_find,
)
from measures import auroc, interval, over_seeds, precision, resamples, within
from scenarios import (
    FLAWS,
    SCENARIOS,
    Draw,
    Infeasible,
    Pool,
    Scenarios,
    draw,
    read_rows,
)

DIM, CODE = 32768, "float16"
RESAMPLES = 300
CLASSES = {"5 to 10 pairs": (1, 10), "20 to 40 pairs": (11, 40), "100 pairs and more": (41, 10**9)}

Parts = Mapping[str, Sequence[str]]
ALONE: Parts = {flaw: (flaw,) for flaw in FLAWS}
Measured = dict[str, np.ndarray]
"""Measure -> its values over the resamples, [R]."""


def of_level(pool: Path, level: int, path: Path) -> Path:
    """A file of the pool's rows up to this level; ``path`` where they are not all."""
    if level == 3:
        return pool
    lines = pool.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line, row in zip(lines, read_rows(pool), strict=True)
                            if row["level"] <= level), encoding="utf-8", newline="\n")
    return path


def sketch(data: Sequence[Path], model: str, path: Path) -> None:
    """Make the store, or what it lacks."""
    from congrad_cli.display.progress import TerminalProgress
    from congrad_cli.records.record import DataFile
    from congrad_cli.settings import RecordSettings, SketchSettings
    from congrad_cli.sketch.index import index_data
    from congrad_cli.sketch.run import run

    settings = SketchSettings(model=model, device="cpu", threads=1, dim=DIM, store_dtype=CODE)
    index = index_data([DataFile(file.name, file) for file in data], RecordSettings())
    run(index, path, settings, TerminalProgress(quiet=False))


@dataclass(frozen=True)
class Bench:
    """A sketched pool, and how often each of its items is drawn in each resample [R, items].

    ``parts``: name -> flaws; their pairs are measured alone, too.
    """

    pool: Pool
    sketches: Sketches
    item: np.ndarray
    weight: np.ndarray
    scenarios: Scenarios
    parts: Parts

    @staticmethod
    def of(
        pool: Pool, sketches: Sketches, count: int,
        scenarios: Scenarios = SCENARIOS, parts: Parts = ALONE,
    ) -> "Bench":  # fmt: skip
        """With its resamples."""
        names = [row["item"] for row in pool.rows]
        known = {name: number for number, name in enumerate(dict.fromkeys(names))}
        weight = resamples(len(known), count, np.random.default_rng(0))
        item = np.array([known[name] for name in names])
        return Bench(pool, sketches, item, weight, scenarios, parts)

    def scenario(self, name: str, finders: Sequence[str], seeds: int) -> list[Cell]:
        """All measures of all finders; raises :class:`Infeasible`."""
        parts: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
        for seed in range(seeds):
            for finder, found in self.one_draw(name, finders, seed):
                for measure, values in found.items():
                    parts[finder, measure].append(values)
        drawn = resamples(seeds, len(self.weight) - 1, np.random.default_rng(1))
        means = {key: over_seeds(values, drawn) for key, values in parts.items()}
        for finder, measure in list(means):
            other = {BEYOND: REFERENCE, BEYOND_MEAN: f"mean, {finder.split(', ')[-1]}"}
            for beyond, reference in other.items():
                if measure in ("auroc", "precision") and (reference, measure) in means:
                    means[finder, f"{measure} {beyond}"] = (
                        means[finder, measure] - means[reference, measure])
        return [Cell(name, *key, *interval(values)) for key, values in sorted(means.items())]

    def one_draw(
        self, name: str, finders: Sequence[str], seed: int
    ) -> Iterable[tuple[str, Measured]]:
        """Every finder's measures on one draw."""
        drawn = draw(self.pool, name, seed, self.scenarios)
        languages = [self.pool.rows[place]["language"] for place in drawn.place]
        names = sorted(set(languages))
        label = np.array([names.index(one) for one in languages], np.int32)
        pairs = DrawnPairs(self.sketches, drawn.place, drawn.turned, label, names)
        item = self.item[drawn.place]
        truth = _true_gradients(pairs, drawn)
        for finder in finders:
            found = try_find(pairs, finder, item, seed)
            # without a direction nothing is told: chance
            yield finder, self._measure(found or Found(np.zeros(len(pairs))), pairs, drawn) | (
                _gains(found, truth, len(self.weight)))

    def _measure(self, found: Found, pairs: DrawnPairs, drawn: Draw) -> Measured:
        rows = np.flatnonzero(drawn.judged)
        value, bad = np.nan_to_num(found.value[rows]), np.array(drawn.planted)[rows]
        weight = self.weight[:, self.item[np.array(drawn.place)[rows]]]
        label = pairs.label[rows]
        result = {"auroc": auroc(value, bad, weight), "precision": precision(value, bad, weight),
                  "within": within(value, bad, weight, label)}
        flaw = np.array([self.pool.rows[drawn.place[row]]["flaw"] for row in rows])
        for name, flaws in self.parts.items():
            some = np.isin(flaw, flaws)
            for measure in (auroc, precision):
                result[f"{measure.__name__}, {name} alone"] = measure(
                    value[some], bad[some], weight[:, some])
        sizes = np.bincount(pairs.label)[label]
        if len(set(sizes.tolist())) > 3:
            for name, (least, most) in CLASSES.items():
                some = (least <= sizes) & (sizes <= most)
                result[f"auroc, groups of {name}"] = auroc(value[some], bad[some], weight[:, some])
        return result


def _true_gradients(pairs: DrawnPairs, drawn: Draw) -> np.ndarray:
    """Every language's gradient with right labels, of the judged pairs, unit length, [L, n]."""
    right = np.where(drawn.planted, -1.0, 1.0) * np.array(drawn.judged)
    rows = (right * pairs.column("norm"))[:, None] * pairs.coordinates
    sums = np.stack([rows[pairs.label == one].sum(0) for one in range(len(pairs.names))])
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def _gains(found: Found | None, truth: np.ndarray, count: int) -> Measured:
    """What a step along d does for the languages: as their labels are, and as they should be."""
    if found is None:
        return {"no direction": np.ones(count)}
    if found.direction is None:
        return {}
    cosine = truth @ found.direction / np.linalg.norm(found.direction)
    return {"no direction": np.zeros(count),
            "groups hurt": np.full(count, found.hurt),
            "languages hurt in truth": np.full(count, (cosine < 0).mean()),
            "least true cosine": np.full(count, cosine.min()),
            "mean true cosine": np.full(count, cosine.mean())}


def main() -> None:
    """Sketch what is missing, measure everything, write a table of all cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--level", type=int, choices=(1, 2, 3), default=3)
    parser.add_argument("--model", help="without it the store has to be complete")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scenarios", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--finders", nargs="*", choices=FINDERS, default=list(FINDERS))
    parser.add_argument("--fold", type=int, default=1, help="sketches so many times smaller")
    parser.add_argument("--code", choices=("float16", "int8", "int4", "1bit"), default="float16")
    args = parser.parse_args()
    if args.model:
        data = of_level(args.pool, args.level, args.store.with_suffix(".jsonl"))
        sketch([data], args.model, args.store)
    from congrad_cli.store import GradientStore

    store, pool = GradientStore.open(args.store), Pool(read_rows(args.pool), args.level)
    if len(store) != len(pool.rows):
        parser.error(f"the store has {len(store)} of {len(pool.rows)} pairs; pass --model")
    bench = Bench.of(pool, read_sketches(store, args.fold, args.code), RESAMPLES)
    cells: list[Cell] = []
    for name in args.scenarios:
        try:
            cells += bench.scenario(name, args.finders, args.seeds)
        except Infeasible as why:
            print(f"{name}: {why}")
            continue
        write_cells(args.out, cells)
    for measure in ("auroc", "precision", "languages hurt in truth"):
        show(cells, measure, SHOWN)


if __name__ == "__main__":
    main()
