"""What congrad costs as things grow: time, memory and bytes, with fitted exponents.

Every part measures a few sizes, by turns (one size after the other, then all again), each point in
a process of its own. What is given are CPU seconds, user and system, children included: other work
may keep the cores busy. A line a measurement goes to ``--out``; printed are medians over the turns
as Markdown, and exponents by least squares on the logarithms of all runs, with their 95 % interval.
CPU seconds of whole commands hold a fixed start (imports, checks of the model); their exponent is
that of the growth from the least size on, in the same turn.

    sketch-n          congrad sketch, from start to end, against pairs
    sketch-model      a pair's sketch against parameters, random Llamas, rows of 300 tokens
    sketch-dim        against the numbers of a row, and for every --row-size
    sketch-length     against the tokens of a row
    padding           tokens of batches for one of the rows', lengths of three spreads
    store             bytes a pair
    consensus-n, consensus-dim, consensus-groups
                      consensus (mean, pcgrad) and the scores of filter
    ranks             congrad sketch in one process and in two

    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py --folder FOLDER --out scaling.csv
"""

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from expected import SIZES
from scaling_parts import PARTS, Plan, Point
from scaling_tables import calculators, table

SMOKE = Plan(
    folder=Path(), turns=1, pairs=(4, 8, 12), ranked=12, start=4,
    options=("--dim", "512", "--width", "8", "--store-dtype", "float16"), models=("1M",),
    dim_model="1M", dims=(256,), row_sizes=("4k",), length_model="1M", lengths=(30,),
    rows=(64, 128, 256), few_rows=128, store_dim=256, store_dims=(256, 512), groups=(2, 4),
    group_dim=256, different=64, codes=("int4", "1bit"), extra={"pairs": 2, "repeat": 1},
)  # fmt: skip
"""Small sizes that prove nothing but that all parts work."""


def write_points(path: Path, points: Iterable[Point]) -> None:
    """One line a number, as they come."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["part", "variant", "size", "turn", "measure", "value"])
        for point in points:
            for measure, value in point.measures.items():
                writer.writerow([point.part, point.variant, f"{point.size:.12g}", point.turn,
                                 measure, f"{value:.6g}"])
            file.flush()


def read_points(path: Path) -> list[Point]:
    """What :func:`write_points` wrote."""
    found: dict[tuple[str, str, float, int], dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            key = line["part"], line["variant"], float(line["size"]), int(line["turn"])
            found.setdefault(key, {})[line["measure"]] = float(line["value"])
    return [Point(*key, measures) for key, measures in found.items()]


def main(arguments: list[str] | None = None) -> None:
    """Measure, or read what was measured, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="for data and stores, which are removed")
    parser.add_argument("--out", type=Path, help="CSV of all points")
    parser.add_argument("--turns", type=int)
    parser.add_argument("--models", nargs="+", choices=SIZES, help="of sketch-model alone")
    parser.add_argument("--smoke", action="store_true", help="sizes that prove nothing")
    parser.add_argument("--read", nargs="+", type=Path, help="print the tables of these CSVs")
    parser.add_argument("--calculator", action="store_true", help="print the README's tables")
    args = parser.parse_args(arguments)
    if args.calculator:
        print(calculators())
        return
    if args.read:
        points = [point for path in args.read for point in read_points(path)]
    else:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            plan = replace(SMOKE if args.smoke else Plan(Path()), folder=Path(folder))
            plan = replace(plan, turns=args.turns or plan.turns, models=args.models or plan.models)
            out = args.out or plan.folder / "points.csv"
            write_points(out, (point for part in args.parts for point in told(PARTS[part](plan))))
            points = read_points(out)
    for part in dict.fromkeys(point.part for point in points):
        print(f"\n{part}\n\n{table(part, points)}", flush=True)


def told(points: Iterable[Point]) -> Iterable[Point]:
    """The points, each named on stderr when it is there."""
    began = time.monotonic()
    for point in points:
        print(f"{time.monotonic() - began:7.0f} s  {point}", file=sys.stderr, flush=True)
        yield point


if __name__ == "__main__":
    main()
