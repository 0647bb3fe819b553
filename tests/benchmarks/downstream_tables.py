"""What ``downstream.py`` found, as Markdown and CSV.

Every number is a mean over seeds and held-out pairs (or texts). 95 % intervals are of a bootstrap
over paragraphs (all translations go together) and over seeds, or of Student's t over the seeds'
means where that is wider; differences to "all data" and "random half" are paired in both, and use
the seeds for which both are there. With one seed an interval is of the paragraphs alone, and says
nothing of how another draw or another training would end.

    python tests/benchmarks/downstream_tables.py down/cells.jsonl --out down/cells.csv
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from downstream_chats import MARK
from downstream_data import UNSEEN
from measures import resamples, seeds_interval

INITIAL = "initial model"
COMPARED = ("all data", "random half")
REWARD, LIKELIER, MARGIN, TAX = ("reward accuracy", "log-prob accuracy", "reward margin",
                                 "text loss change")
BETA, RESAMPLES = 0.1, 1000
CLEAN, POOLED = "clean", "mean of the scenarios with bad labels"
COLUMNS = (
    ("all", REWARD, ""), ("all", REWARD, "all data"), ("all", REWARD, "random half"),
    ("unseen", REWARD, "random half"), ("all", LIKELIER, "all data"), ("all", MARGIN, ""),
    ("all", TAX, "all data"),
    ("planted", REWARD, "all data"), ("planted", REWARD, "random half"),
    ("chats", REWARD, ""), ("chats", REWARD, "all data"), ("chats", REWARD, "random half"),
)
"""What a printed table has, of what was measured: languages, measure, and what it is less of."""

Line = dict[str, Any]
Floats = np.ndarray
Name = tuple[str, str]
Bad = defaultdict[Name, dict[int, float]]
"""Scenario and selection -> seed -> share of bad labels."""
Parts = defaultdict[Name, defaultdict[Name, dict[int, Floats]]]
"""Scenario and selection -> subset and measure -> seed -> resampled values [R]."""


@dataclass(frozen=True)
class Row:
    """A measure of a selection on some held-out languages; ``beyond`` is what it is less of."""

    scenario: str
    selection: str
    subset: str
    measure: str
    beyond: str
    seeds: int
    bad: float
    value: float
    low: float
    high: float


def read_lines(paths: Iterable[Path]) -> list[Line]:
    """All cells of these files; a line that was cut off is left out."""
    return [json.loads(line) for path in paths
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
            if line.endswith("\n")]


@dataclass(frozen=True)
class Weighed:
    """One measure's sums: value / weight are what is averaged, [n] each, with language and item."""

    value: Floats
    weight: Floats
    language: Floats
    item: Floats


def values(line: Line, initial: Line) -> dict[str, Weighed]:
    """All measures of one model. Ties count half; pairs of which nothing is weighed, as the prompt
    alone was too long, do not count."""
    after, before = np.array(line["pairs"]), np.array(initial["pairs"])
    tokens = np.array(initial["pair_tokens"])
    per_token = after / np.maximum(tokens, 1)
    reward = BETA * np.subtract(*(after - before).T)
    there = (tokens > 0).all(1).astype(np.float64)
    language, item = np.array(initial["languages"]), np.array(initial["items"])

    def of_pairs(found: Floats) -> Weighed:
        return Weighed(found * there, there, language, item)

    text_tokens = np.array(initial["text_tokens"], np.float64)
    lost = np.array(initial["texts"]) - np.array(line["texts"])
    return {
        REWARD: of_pairs((np.sign(reward) + 1) / 2),
        LIKELIER: of_pairs((np.sign(np.subtract(*per_token.T)) + 1) / 2),
        MARGIN: of_pairs(reward),
        TAX: Weighed(lost, text_tokens, np.array(initial["text_languages"]),
                     np.array(initial["text_items"])),
    }


def subsets(languages: Floats) -> Iterator[tuple[str, Floats]]:
    """All languages, those seen in training, the others, real chats, and each language."""
    unseen, chats = np.isin(languages, UNSEEN), np.char.startswith(languages, MARK)
    yield "all", np.ones(len(languages), bool)
    if unseen.any():
        yield "seen", ~unseen & ~chats
        yield "unseen", unseen
    if chats.any():
        yield "planted", ~chats
        yield "chats", chats
    for language in sorted(set(languages.tolist())):
        yield language, languages == language


def resampled(found: Weighed, some: Floats, drawn: Floats, code: Floats) -> Floats:
    """The mean over ``some`` rows, for each resample of items [R, items], [R]."""
    weight = drawn[:, code[some]]
    return weight @ found.value[some] / np.maximum(weight @ found.weight[some], 1e-12)


def measure(lines: Sequence[Line], count: int = RESAMPLES) -> list[Row]:
    """Every measure of all selections, and its differences."""
    initial = next(line for line in lines if line["scenario"] == INITIAL)
    bad: Bad = defaultdict(dict)
    parts: Parts = defaultdict(lambda: defaultdict(dict))
    once = {(line["scenario"], line["selection"], line["seed"]): line for line in lines}
    for line in once.values():
        name = line["scenario"], line["selection"]
        bad[name][line["seed"]] = line.get("bad", float("nan"))
        for key, mean in one_model(values(line, initial), count):
            parts[name][key][line["seed"]] = mean
    pool(parts, bad)
    rows = []
    for name, measures in parts.items():
        for key, found in measures.items():
            for beyond in ("", *COMPARED):
                other = parts.get((name[0], beyond), {}).get(key, {}) if beyond else {}
                both = [seed for seed in sorted(found) if not beyond or seed in other]
                if not both or beyond == name[1] != "":
                    continue
                each = [found[seed] - other[seed] if beyond else found[seed] for seed in both]
                drawn = resamples(len(both), count, np.random.default_rng(1))
                rows.append(Row(*name, *key, beyond, len(both),
                                float(np.mean([bad[name][seed] for seed in both])),
                                *seeds_interval(each, drawn)))
    return rows


def pool(parts: Parts, bad: Bad) -> None:
    """Add the mean over all scenarios with bad labels, of the selections and seeds that all have.

    Every seed of a scenario counts as one: draws and trainings of different scenarios have nothing
    in common but the held-out items, which are drawn for all together.
    """
    scenarios = dict.fromkeys(name[0] for name in parts if name[0] not in (INITIAL, CLEAN))
    for selection in dict.fromkeys(name[1] for name in parts):
        names = [(scenario, selection) for scenario in scenarios]
        if len(names) < 2 or any(name not in parts for name in names):
            continue
        shared = set.intersection(*(set(bad[name]) for name in names))
        pooled = POOLED, selection
        for number, name in enumerate(names):
            for seed in sorted(shared):
                one = seed * len(names) + number
                bad[pooled][one] = bad[name][seed]
                for key in parts[name]:
                    parts[pooled][key][one] = parts[name][key][seed]


def one_model(measures: Mapping[str, Weighed], count: int) -> Iterator[tuple[Name, Floats]]:
    """(subset, measure) -> its values over the resamples [R]; equal items for all models."""
    for name, found in measures.items():
        known, code = np.unique(found.item, return_inverse=True)
        drawn = resamples(len(known), count, np.random.default_rng(0))
        for subset, some in subsets(found.language):
            yield (subset, name), resampled(found, some, drawn, code)


def write(path: Path, rows: Iterable[Row]) -> None:
    """All rows, one a line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row.__annotations__)
        writer.writerows(vars(row).values() for row in rows)


def show(rows: Sequence[Row]) -> None:
    """Print a table for each scenario: selections down, measures across."""
    table = {(row.scenario, row.selection, row.subset, row.measure, row.beyond): row
             for row in rows}
    for scenario in dict.fromkeys(row.scenario for row in rows):
        if scenario == INITIAL:
            first = table[INITIAL, "", "all", LIKELIER, ""]
            print(f"initial model: {LIKELIER} {first.value:.3f}\n")
            continue
        known = {row.subset for row in rows if row.scenario == scenario}
        columns = [column for column in COLUMNS if column[0] in known]
        print(f"| {scenario} | seeds | bad labels | " + " | ".join(map(_title, columns)) + " |")
        print("|---" * (3 + len(columns)) + "|")
        for selection in dict.fromkeys(row.selection for row in rows if row.scenario == scenario):
            first = table[scenario, selection, "all", REWARD, ""]
            cells = [_cell(table.get((scenario, selection, *column)), column[2])
                     for column in columns]
            print(f"| {selection} | {first.seeds} | "
                  + ("-" if np.isnan(first.bad) else f"{first.bad:.0%}") + " | "
                  + " | ".join(cells) + " |")
        print()


def _title(column: tuple[str, str, str]) -> str:
    subset, measure, beyond = column
    return (measure + ("" if subset == "all" else f", {subset} languages")
            + (f", less {beyond}" if beyond else ""))


def _cell(row: Row | None, beyond: str) -> str:
    if row is None:
        return "-"
    return difference(row) if beyond else f"{row.value:.3f}"


def difference(row: Row) -> str:
    """What a selection is beyond another one, with its interval; bold where that is sure."""
    value = f"{row.value:+.3f}"
    sure = row.seeds > 1 and (row.low > 0 or row.high < 0)  # one seed says nothing of another
    value = f"**{value}**" if sure else value
    return f"{value} [{row.low:+.3f}, {row.high:+.3f}]"


def main() -> None:
    """Print the tables of these cells, and write all numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = read_lines(args.cells)
    if any(line["setup"] != lines[0]["setup"] for line in lines):
        parser.error("the cells are not of one setting")
    rows = measure(lines)
    if args.out:
        write(args.out, rows)
    show(rows)


if __name__ == "__main__":
    main()
