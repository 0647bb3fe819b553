"""The filter command: store and consensus -> decisions -> the original lines."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import jsonlines
import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import read_consensus
from congrad_cli.errors import StoreError, UsageError
from congrad_cli.filter.policy import Decisions, borderline, check_rule, decide
from congrad_cli.filter.scores import PairScores, pair_scores, turn_scores
from congrad_cli.outputs import check_output, is_special, pour, whole_file
from congrad_cli.progress import Progress
from congrad_cli.records.containers import container
from congrad_cli.records.files import find_files
from congrad_cli.records.lines import Writer, compressed, writer_for
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import DataFile, Record, Rejected
from congrad_cli.settings import ConsensusSettings, FilterSettings
from congrad_cli.store import GradientStore, require_complete
from congrad_cli.weights import Floats, pair_terms


@dataclass(frozen=True)
class FilterSummary:
    """What the command shows, per group and in all."""

    names: list[str]
    pairs: list[int]
    kept: list[int]
    median: list[float]  # of the group's scores
    reasons: dict[str, int]  # of what was dropped
    borderline: int | None  # pairs within one error of the threshold; None without errors


def run(
    path: Path, settings: FilterSettings, stdout: BinaryIO, progress: Progress
) -> FilterSummary:
    """Write the kept lines, byte for byte and in input order, to ``settings.output`` or stdout.

    Kept and dropped lines together are the input. Nothing is written before every line of the
    source has been found to be the one that was sketched.
    """
    check_rule(settings)
    store = GradientStore.open(path)
    require_complete(store, settings.allow_partial, progress)
    consensus, made = read_consensus(path, settings.consensus, store)
    progress.step(f"scoring {len(store):,} pairs")
    group = store.column("group")
    terms = pair_terms(store, made)
    scores = pair_scores(store, consensus, terms.scale, terms.share, settings.leave_one_out)
    weight = pair_terms(store, _own_loss(made, settings)).weight
    scores = turn_scores(scores, terms.weight, weight)
    score = scores.score
    decisions = decide(score, group, settings)
    skipped = store.skipped()
    waiting = store.rows - len(store) - len(skipped)  # with --allow-partial
    _write(store, settings, Verdicts(store, scores, decisions, skipped, weight == 0), stdout)
    count = len(store.groups)
    return FilterSummary(
        names=store.groups,
        pairs=np.bincount(group, minlength=count).tolist(),
        kept=np.bincount(group[decisions.keep], minlength=count).tolist(),
        median=[_median(score[group == label]) for label in range(count)],
        reasons=dict(Counter([
            *skipped.values(),
            *waiting * ["not-sketched"],
            *(reason for reason in decisions.reason if reason != "kept"),
        ])),
        borderline=None if np.isnan(scores.error).all() else borderline(scores, decisions),
    )


def _own_loss(made: ConsensusSettings, settings: FilterSettings) -> ConsensusSettings:
    """The consensus' settings with the loss that the pairs are scored by."""
    names = ("loss", "beta", "length_penalty", "label_smoothing")
    given = {name: getattr(settings, name) for name in names}
    return replace(made, **{name: value for name, value in given.items() if value is not None})


def _median(score: Floats) -> float:
    """The median of the scores there are; nan where there are none."""
    defined = score[~np.isnan(score)]
    return float(np.median(defined)) if len(defined) else float("nan")


def _number(value: float) -> float | None:
    """What JSON can say of a number that may be NaN."""
    return None if np.isnan(value) else float(value)


def _json(entry: dict[str, Any]) -> str:
    """An entry as JSON; what a file's name has that is no UTF-8 becomes an escape."""
    text = json.dumps(entry, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


class Verdicts:
    """Looks up what was decided about a record, and checks that it is the record sketched."""

    def __init__(
        self,
        store: GradientStore,
        scores: PairScores,
        decisions: Decisions,
        skipped: dict[int, str],
        silent: NDArray[np.bool_],
    ) -> None:
        self._store, self._scores, self._skipped = store, scores, skipped
        self._decisions = decisions
        self._silent = silent  # [N]: pairs of weight 0, whose score is that of their sketch
        self._group = store.column("group")
        self._place = np.full(store.rows, -1, np.int64)
        self._place[store.row] = np.arange(len(store))

    def keep(self, record: Record | Rejected) -> bool:
        """Whether the record's line goes to the output."""
        place = self._find(record)
        return place >= 0 and bool(self._decisions.keep[place])

    def entry(self, record: Record | Rejected) -> dict[str, Any]:
        """The record's line of the score file; a pair without a sketch has no score."""
        place = self._find(record)
        about: dict[str, Any] = {"row": record.row, "source": record.source, "line": record.line}
        if isinstance(record, Record) and record.id is not None:
            about["id"] = record.id
        if place < 0:
            return about | {"score": None, "error": None, "keep": False,
                            "reason": self._skipped.get(record.row, "not-sketched")}
        return about | {
            "group": self._store.groups[self._group[place]],
            "score": _number(self._scores.score[place]),
            "error": _number(self._scores.error[place]),
            "keep": bool(self._decisions.keep[place]),
            "reason": self._decisions.reason[place],
            **({"flag": "zero-weight"} if self._silent[place] else {}),
        }

    def _find(self, record: Record | Rejected) -> int:
        """The place of the record's row in the store, or -1 where it has none."""
        index = self._store.index
        if record.row < index.rows and index.knows(record):
            return int(self._place[record.row])
        raise StoreError(
            f"{record.source}:{record.line}: not the record that was sketched into "
            f"{self._store.path}.",
            "pass --data FILE with the data that was sketched, or sketch this data",
        )


def _write(
    store: GradientStore, settings: FilterSettings, verdicts: Verdicts, stdout: BinaryIO
) -> None:
    files = _files(store, settings)
    _check_outputs(settings, [file.path for file in files])
    containers = {container(file) for file in files}
    with ExitStack() as stack:
        kept, dropped = (
            stack.enter_context(_records(path, target, containers))
            for path, target in ((settings.output, stdout), (settings.dropped, None))
        )
        scores = stack.enter_context(_output(settings.scores, None))
        entries = jsonlines.Writer(scores, dumps=_json)
        count = 0
        for record in read_records(files, store.index.fields, grouped=False):
            (kept if verdicts.keep(record) else dropped).write(record.raw)
            entries.write(verdicts.entry(record))
            count += 1
        if count != store.rows:
            raise StoreError(
                f"the data has {count:,} records, {store.path} was made from "
                f"{store.rows:,}.",
                "pass --data FILE with the data that was sketched",
            )


def _files(store: GradientStore, settings: FilterSettings) -> list[DataFile]:
    """The data's files, which must be there."""
    if settings.data:
        return find_files(settings.data)
    files = [DataFile(item.name, store.path / item.path) for item in store.index.sources]
    for file in files:
        if not file.path.is_file():
            raise StoreError(
                f"{file.name}: the data that was sketched is not at {file.path} any more.",
                "pass --data FILE with its new place",
            )
    return files


def _check_outputs(settings: FilterSettings, sources: list[Path]) -> None:
    """No output may be written over another one or over the data."""
    taken = {path.resolve(): "the data that was sketched" for path in sources}
    for name in ("output", "dropped", "scores"):
        path: Path | None = getattr(settings, name)
        if path is None or is_special(path):
            continue
        check_output(f"--{name}", path)
        if path.resolve() in taken:
            raise UsageError(f"--{name} {path} is {taken[path.resolve()]}.", "name another file")
        taken[path.resolve()] = f"--{name} as well"


@contextmanager
def _records(
    path: Path | None, stdout: BinaryIO | None, containers: Collection[str]
) -> Iterator[Writer]:
    """A writer of original records; compressed where the path's ending says so."""
    with _output(path, stdout) as file, compressed(path or Path(), file) as target:
        writer = writer_for(target, containers)
        yield writer
        writer.close()


@contextmanager
def _output(path: Path | None, stdout: BinaryIO | None) -> Iterator[BinaryIO]:
    """A file that appears at ``path`` (or on ``stdout``) whole, and only if nothing went wrong."""
    if path is not None:
        with whole_file(path) as file:
            yield file
    elif stdout is None:
        with Path(os.devnull).open("wb") as nothing:
            yield nothing
    else:
        with tempfile.TemporaryFile() as spool:
            yield spool
            pour(spool, stdout, close=False)
