"""What ``rounds.py`` found, as Markdown and CSV.

Numbers and intervals are made as in ``downstream_tables.py``: 95 %, of a bootstrap over paragraphs
(all translations go together) and over seeds, or of Student's t over seeds where that is wider;
differences are paired in both.

    python tests/benchmarks/rounds_tables.py rounds/cells.jsonl --out rounds/cells.csv
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import downstream_tables as tables
import numpy as np
from downstream_tables import INITIAL, LIKELIER, MARGIN, REWARD, TAX, Line, Row, Weighed
from measures import interval, resamples, seeds_interval

FRESH = "answers' chrF"
MEASURES = (FRESH, REWARD, LIKELIER, MARGIN, TAX)
NO_FILTER, FILTER, RANDOM = "no filter", "congrad filter", "random filter"
ARMS = (NO_FILTER, FILTER, RANDOM)
COMPARED = (NO_FILTER, RANDOM, INITIAL)
COUNTS = {"pairs": "made", "trained on": "kept", "wrong verdicts": "wrong",
          "wrong, trained on": "bad", "candidates' chrF": "own"}
"""Column -> field, of the table about rounds."""


def values(line: Line, initial: Line) -> dict[str, Weighed]:
    """All measures of one model; those of ``downstream_tables.py``, and of its own answers."""
    found = np.array(line["fresh"])
    return {FRESH: Weighed(found, np.ones(len(found)), np.array(initial["languages"]),
                           np.array(initial["items"]))} | tables.values(line, initial)


def measure(lines: Sequence[Line], count: int = tables.RESAMPLES) -> list[Row]:
    """Every measure of all arms and rounds, and what it is less of other arms."""
    initial = next(line for line in lines if line["scenario"] == INITIAL)
    before = dict(tables.one_model(values(initial, initial), count))
    once = {(line["scenario"], line["selection"], line["seed"]): line for line in lines
            if line["scenario"] != INITIAL}
    found = {name: dict(tables.one_model(values(line, initial), count))
             for name, line in once.items()}
    seeds = sorted({seed for _, _, seed in once})
    rows = [Row(INITIAL, "", *key, "", 1, float("nan"), *interval(mean))
            for key, mean in before.items()]
    for scenario, arm in dict.fromkeys((one, arm) for one, arm, _ in once):
        for beyond in ("", *COMPARED):
            both = [seed for seed in seeds if (scenario, arm, seed) in found
                    and (beyond in ("", INITIAL) or (scenario, beyond, seed) in found)]
            if not both or beyond == arm:
                continue
            bad = float(np.mean([once[scenario, arm, seed]["bad"] for seed in both]))
            for key in before:
                each = [found[scenario, arm, seed][key] for seed in both]
                if beyond:
                    each = [mean - (before[key] if beyond == INITIAL
                                    else found[scenario, beyond, seed][key])
                            for mean, seed in zip(each, both, strict=True)]
                drawn = resamples(len(both), count, np.random.default_rng(1))
                rows.append(
                    Row(scenario, arm, *key, beyond, len(both), bad, *seeds_interval(each, drawn)))
    return rows


def show(rows: Sequence[Row], subset: str = "all") -> None:
    """Print each measure: judges, rounds and arms down; the value, and differences across."""
    table = {(row.scenario, row.selection, row.measure, row.beyond): row for row in rows
             if row.subset == subset}
    arms = list(dict.fromkeys((row.scenario, row.selection) for row in rows))
    for name in MEASURES:
        others = [other for other in COMPARED if other != INITIAL or name in (FRESH, LIKELIER)]
        print(f"| {name}, {subset} | arm | seeds | value | "
              + " | ".join(f"less {other}" for other in others) + " |")
        print("|---" * (4 + len(others)) + "|")
        for scenario, arm in sorted(arms, key=lambda one: one[0] != INITIAL):
            row = table.get((scenario, arm, name, ""))
            if row is None or (scenario == INITIAL and name not in (FRESH, LIKELIER)):
                continue
            cells = [_difference(table.get((scenario, arm, name, other))) for other in others]
            print(f"| {scenario} | {arm} | {row.seeds if arm else ''} | {row.value:.3f} | "
                  + " | ".join(cells) + " |")
        print()


def show_counts(lines: Sequence[Line]) -> None:
    """Print how many pairs each round had and how many verdicts were wrong, means over seeds."""
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        if line["scenario"] != INITIAL:
            groups[line["scenario"], line["selection"]].append(line)
    forms: dict[str, Callable[[float], str]] = {
        "made": "{:.0f}".format, "kept": "{:.0f}".format, "wrong": "{:.0%}".format,
        "bad": "{:.0%}".format, "own": "{:.3f}".format}
    print("| judge, round | arm | seeds | " + " | ".join(COUNTS) + " |")
    print("|---" * (3 + len(COUNTS)) + "|")
    for (scenario, arm), group in groups.items():
        numbers = [forms[field](np.mean([line[field] for line in group]))
                   for field in COUNTS.values()]
        print(f"| {scenario} | {arm} | {len(group)} | " + " | ".join(numbers) + " |")
    print()


def _difference(row: Row | None) -> str:
    return "-" if row is None else tables.difference(row)


def main() -> None:
    """Print the tables of these cells, and write all numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--subsets", nargs="+", default=["all", "seen", "unseen"])
    args = parser.parse_args()
    lines = tables.read_lines(args.cells)
    if any(line["setup"] != lines[0]["setup"] for line in lines):
        parser.error("the cells are not of one setting")
    rows = measure(lines)
    if args.out:
        tables.write(args.out, rows)
    show_counts(lines)
    for subset in args.subsets:
        show(rows, subset)


if __name__ == "__main__":
    main()
