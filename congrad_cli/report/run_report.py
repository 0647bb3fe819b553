"""What a run of rounds came to, read from its ``metrics.jsonl``: curves and a table."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from congrad_cli.errors import InputError
from congrad_cli.report.content import Curve

METRICS = "metrics.jsonl"
Point = tuple[int, float]


def is_run(path: Path) -> bool:
    """Whether the folder is one that ``congrad loop`` writes."""
    return (path / "config.toml").is_file() and not (path / "store.json").exists()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of the run's metrics; raises :class:`InputError` for what is none."""
    file = path / METRICS
    if not file.is_file():
        raise InputError(f"{path}: no round is complete yet.", "congrad loop continues the run")
    rounds = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            entry = json.loads(line)
            entry["round"], entry["stages"], entry["evaluation"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}:{number}: no metrics of a round ({error!r}).",
                             "congrad loop writes the file anew") from error
        rounds.append(entry)
    return rounds


def curves(rounds: list[dict[str, Any]]) -> list[Curve]:
    """A curve for each measure, a line for each language."""
    lines: dict[str, dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    unseen: set[str] = set()
    for entry in rounds:
        for row in entry["evaluation"]:
            if row["value"] is not None:
                point = (int(entry["round"]), float(row["value"]))
                lines[row["measure"]][row["language"]].append(point)
            if row.get("seen") is False:
                unseen.add(row["language"])
    return [Curve(measure.replace("_", " "), dict(found), frozenset(unseen))
            for measure, found in lines.items()]


def rounds_table(rounds: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row of each round: what its stages counted, in all languages together."""
    rows = []
    for entry in rounds:
        row = {"round": str(entry["round"])}
        for stage, counts in entry["stages"].items():
            for name, value in counts.items():
                if isinstance(value, int) and not isinstance(value, bool):
                    row[name if name == stage else f"{stage}: {name}"] = f"{value:,}"
        rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, "") for name in columns} for row in rows]


def last_store(path: Path) -> Path | None:
    """The store of the last round that has a consensus."""
    stores = [store for store in path.glob("round-*/*-sketch/store")
              if any(store.glob("consensus/*.safetensors"))]
    return max(stores, key=lambda store: int(store.parent.parent.name.rpartition("-")[2]),
               default=None)


def rule_of(store: Path) -> Path | None:
    """The summary of the filter that worked on a round's store."""
    found = sorted(store.parent.parent.glob("*-filter/summary.json"))
    return found[0] if found else None
