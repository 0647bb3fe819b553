"""Which pairs each training of ``downstream.py`` takes; no script.

All selections are made, and written down, before the first training.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from downstream_data import SCENARIOS
from finders import DrawnPairs, Sketches, find
from scenarios import Pool, Row

ALL, RANDOM, ORACLE = "all data", "random half", "right labels half"
RANKED = {
    "margin half": "margin",
    "plain mean half": "mean, raw",
    "congrad half": "pcgrad, raw",
    "congrad half, mean unit": "mean, unit",
    "margin per token half": "margin per token",
}
"""Selection -> the finder by whose numbers the best half is kept."""
SELECTIONS = (ALL, RANDOM, *RANKED, ORACLE)
DEFAULT = "congrad, score above 0"
ADDED_RANKED = {
    "congrad half, unit": "pcgrad, unit",
    "score and margin half": "pcgrad, unit + margin per token",
}
ADDED = (DEFAULT, *ADDED_RANKED)
"""Selections of the defaults and rules that ``docs/evidence.md`` led to. They were added when a
first seed of the others had been measured, so they have a plan of their own."""


@dataclass(frozen=True)
class Drawn:
    """One draw of a scenario: the pairs' names, which labels are turned round, which are bad, and
    the places of the pairs that each selection keeps."""

    ids: list[str]
    turned: list[bool]
    planted: list[bool]
    kept: dict[str, list[int]]

    def rows(self, pool: Pool, selection: str) -> list[Row]:
        """The pairs of a selection, labels as spoilt."""
        known = {row["id"]: row for row in pool.rows}
        found = []
        for place in self.kept[selection]:
            row = known[self.ids[place]]
            if self.turned[place]:
                row = row | {"chosen": row["rejected"], "rejected": row["chosen"]}
            found.append(row)
        return found

    def bad(self, selection: str) -> float:
        """The share of bad labels among what is kept."""
        return float(np.mean([self.planted[place] for place in self.kept[selection]]))


def best_half(value: np.ndarray) -> list[int]:
    """The places of the highest half of the numbers, in order."""
    best = np.argsort(-value, kind="stable")[: len(value) // 2]
    return sorted(best.tolist())


def make(
    pool: Pool, sketches: Sketches, scenario: str, seed: int, added: bool = False
) -> Drawn:
    """Draw, and select in every way of ``SELECTIONS``, or of ``ADDED``."""
    rng = random.Random(f"{scenario}/{seed}")
    draw = SCENARIOS[scenario](pool, rng).draw(rng)
    rows = [pool.rows[place] for place in draw.place]
    names = sorted({row["language"] for row in rows})
    label = np.array([names.index(row["language"]) for row in rows], np.int32)
    pairs, count = DrawnPairs(sketches, draw.place, draw.turned, label, names), len(rows)

    def numbers(finder: str) -> np.ndarray:
        return find(pairs, finder, np.arange(count), seed).value

    kept = {name: best_half(numbers(finder))
            for name, finder in (ADDED_RANKED if added else RANKED).items()}
    if added:
        kept[DEFAULT] = np.flatnonzero(numbers("pcgrad, unit") >= 0).tolist()
    else:
        right = [place for place in range(count) if not draw.planted[place]]
        kept |= {ALL: list(range(count)), RANDOM: sorted(rng.sample(range(count), count // 2)),
                 ORACLE: sorted(rng.sample(right, count // 2))}
    return Drawn([row["id"] for row in rows], draw.turned, draw.planted, kept)


def make_all(
    pool: Pool, sketches: Sketches, names: Iterable[str], seeds: int, added: bool = False
) -> dict[str, dict[str, Drawn]]:
    """Scenario -> seed -> draw."""
    return {name: {str(seed): make(pool, sketches, name, seed, added) for seed in range(seeds)}
            for name in names}


def merge(
    first: dict[str, dict[str, Drawn]], added: dict[str, dict[str, Drawn]]
) -> dict[str, dict[str, Drawn]]:
    """The same draws with the selections of both plans."""
    for scenario, draws in first.items():
        for seed, drawn in draws.items():
            other = added.get(scenario, {}).get(seed)
            if other is None or (other.ids, other.turned) != (drawn.ids, drawn.turned):
                raise SystemExit(f"the plans are of other draws: {scenario}, seed {seed}")
            drawn.kept.update(other.kept)
    return first


def write(path: Path, plan: dict[str, dict[str, Drawn]]) -> None:
    """As one JSON object."""
    path.write_text(json.dumps({name: {seed: asdict(drawn) for seed, drawn in draws.items()}
                                for name, draws in plan.items()}), encoding="utf-8")


def read(path: Path) -> dict[str, dict[str, Drawn]]:
    """What :func:`write` wrote."""
    return {name: {seed: Drawn(**drawn) for seed, drawn in draws.items()}
            for name, draws in json.loads(path.read_text(encoding="utf-8")).items()}
