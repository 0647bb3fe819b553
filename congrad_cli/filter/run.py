"""The filter command: store and consensus -> decisions -> the original lines."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jsonlines
import numpy as np

from congrad_cli.direction import read_consensus
from congrad_cli.errors import StoreError, UsageError
from congrad_cli.filter.policy import Decisions, check_rule, decide
from congrad_cli.filter.scores import pair_scores
from congrad_cli.progress import Progress
from congrad_cli.records import LineWriter, Record, read_records
from congrad_cli.settings import FilterSettings, RecordSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, average_coefficients, dpo_weights, pair_scales


@dataclass(frozen=True)
class FilterSummary:
    """What the command shows, per group and in all."""

    names: list[str]
    pairs: list[int]
    kept: list[int]
    median: list[float]  # of the group's scores
    reasons: dict[str, int]  # of what was dropped


def run(
    path: Path, settings: FilterSettings, stdout: BinaryIO, progress: Progress
) -> FilterSummary:
    """Write the kept lines, byte for byte and in input order, to ``settings.output`` or stdout.

    Kept and dropped lines together are the input. Nothing is written before every line of the
    source has been found to be the one that was sketched.
    """
    check_rule(settings)
    store = GradientStore.open(path)
    store.require_complete()
    consensus, made = read_consensus(path, settings.consensus, store)
    progress.step(f"scoring {len(store):,} pairs")
    group = store.column("group")
    weight = dpo_weights(np.zeros(len(store)), made.beta)
    scale = pair_scales(weight, store.column("norm").astype(np.float64), made.pair_norm)
    share = average_coefficients(group, len(store.header.groups), made)
    score = pair_scores(store, consensus, scale, share, settings.leave_one_out)
    decisions = decide(score, group, settings)
    skipped = {entry["row"]: entry["code"] for entry in store.skipped()}
    _write(store, settings, Verdicts(store, score, decisions, skipped), stdout)
    count = len(store.header.groups)
    return FilterSummary(
        names=store.header.groups,
        pairs=np.bincount(group, minlength=count).tolist(),
        kept=np.bincount(group[decisions.keep], minlength=count).tolist(),
        median=[_median(score[group == label]) for label in range(count)],
        reasons=dict(
            Counter([*skipped.values(), *(r for r in decisions.reason if r != "kept")])
        ),
    )


def _median(score: Floats) -> float:
    """The median of the scores there are; nan where there are none."""
    defined = score[~np.isnan(score)]
    return float(np.median(defined)) if len(defined) else float("nan")


class Verdicts:
    """Looks up what was decided about a record, and checks that it is the record sketched."""

    def __init__(
        self, store: GradientStore, score: Floats, decisions: Decisions, skipped: dict[int, str]
    ) -> None:
        self._store, self._score, self._decisions, self._skipped = store, score, decisions, skipped
        self._digest = store.column("digest")
        self._place = np.full(store.header.rows, -1, np.int64)
        self._place[store.row] = np.arange(len(store))

    def keep(self, record: Record) -> bool:
        """Whether the record's line goes to the output."""
        place = self._find(record)
        return place >= 0 and bool(self._decisions.keep[place])

    def entry(self, record: Record) -> dict[str, Any] | None:
        """The record's line of the score file; None for a pair without a sketch."""
        place = self._find(record)
        if place < 0:
            return None
        score = float(self._score[place])
        return {
            "row": record.row,
            "line": record.line,
            **({} if record.id is None else {"id": record.id}),
            "group": record.group,
            "score": None if np.isnan(score) else score,
            "keep": bool(self._decisions.keep[place]),
            "reason": self._decisions.reason[place],
        }

    def _find(self, record: Record) -> int:
        place = int(self._place[record.row]) if record.row < len(self._place) else -1
        if place >= 0 and self._digest[place].tobytes() == record.digest():
            return place
        if place < 0 and record.row in self._skipped:
            return -1
        raise StoreError(
            f"{record.source}:{record.line}: not the record that was sketched into "
            f"{self._store.path}.",
            "pass --data FILE with the data that was sketched, or sketch this data",
        )


def _write(
    store: GradientStore, settings: FilterSettings, verdicts: Verdicts, stdout: BinaryIO
) -> None:
    with ExitStack() as stack:
        kept = stack.enter_context(_output(settings.output, stdout))
        dropped = stack.enter_context(_output(settings.dropped, None))
        scores = stack.enter_context(_output(settings.scores, None))
        kept_lines, dropped_lines = LineWriter(kept), LineWriter(dropped)
        entries = jsonlines.Writer(scores)
        count = 0
        for record in _source_records(store, settings):
            (kept_lines if verdicts.keep(record) else dropped_lines).write(record.raw)
            entry = verdicts.entry(record)
            if entry is not None:
                entries.write(entry)
            count += 1
        if count != store.header.rows:
            raise StoreError(
                f"the data has {count:,} records, {store.path} was made from "
                f"{store.header.rows:,}.",
                "pass --data FILE with the data that was sketched",
            )


def _source_records(store: GradientStore, settings: FilterSettings) -> Iterator[Record]:
    fields = RecordSettings(**store.header.record_settings)
    if settings.data:
        sources = [(str(path), path) for path in settings.data]
    else:
        sources = [(item.name, store.path / item.path) for item in store.header.sources]
    for name, path in sources:
        if not path.is_file():
            raise StoreError(
                f"{name}: the data that was sketched is not at {path} any more.",
                "pass --data FILE with its new place",
            )
    return read_records(sources, fields)


@contextmanager
def _output(path: Path | None, stdout: BinaryIO | None) -> Iterator[BinaryIO]:
    """A file that appears at ``path`` (or on ``stdout``) whole, and only if nothing went wrong."""
    if path is None and stdout is None:
        with Path(os.devnull).open("wb") as nothing:
            yield nothing
        return
    if path is None:
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            assert stdout is not None
            shutil.copyfileobj(spool, stdout)
            stdout.flush()
        return
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path}: cannot be written; is it a folder, or in one that is missing?")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
