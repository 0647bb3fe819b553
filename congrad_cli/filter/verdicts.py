"""What was decided about each record of the data, looked up by its row."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from congrad_cli.errors import StoreError
from congrad_cli.filter.policy import Decisions
from congrad_cli.filter.ranking import Ranking
from congrad_cli.filter.target import Target
from congrad_cli.records.record import Record, Rejected
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats

ZERO_WEIGHT = "zero-weight"


def number(value: float) -> float | None:
    """What JSON can say of a number that may be NaN."""
    return None if np.isnan(value) else float(value)


def as_json(entry: dict[str, Any]) -> str:
    """An entry as JSON; what a file's name has that is no UTF-8 becomes an escape."""
    text = json.dumps(entry, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Outcome:
    """What the store's pairs were ranked by, what was decided, and the rows without a sketch.

    ``cosines`` [N, L] are those with the group gradients, and ``conflicts`` counts the pairs of
    groups that conflict and all of them, where they were asked for.
    """

    ranking: Ranking
    decisions: Decisions
    skipped: dict[int, str]
    cosines: Floats | None = None
    conflicts: tuple[int, int] | None = None


class Verdicts:
    """Looks up what was decided about a record, and checks that it is the record sketched."""

    def __init__(
        self, store: GradientStore, target: Target, outcome: Outcome, rank_by: str
    ) -> None:
        self._store, self._outcome = store, outcome
        self._named = {} if rank_by == "score" else {"rank_by": rank_by}
        self._target = target
        self._place = np.full(store.rows, -1, np.int64)
        self._place[store.row] = np.arange(len(store))

    def entry(self, record: Record | Rejected) -> dict[str, Any]:
        """The record's line of the score file: where it stands, and the verdict."""
        about: dict[str, Any] = {"row": record.row, "source": record.source, "line": record.line}
        if isinstance(record, Record) and record.id is not None:
            about["id"] = record.id
        return about | self._verdict(record)

    def _verdict(self, record: Record | Rejected) -> dict[str, Any]:
        """What was decided about the record; a pair without a sketch has no score."""
        place = self._find(record)
        if place < 0:
            reason = self._outcome.skipped.get(record.row, "not-sketched")
            return {"score": None, "error": None, "keep": False, "reason": reason, **self._named}
        ranking, decisions = self._outcome.ranking, self._outcome.decisions
        flags = (decisions.flag[place], ZERO_WEIGHT if ranking.silent[place] else "")
        flag = ",".join(filter(None, flags))
        return {
            "group": self._target.names[self._target.label[place]],
            "score": number(ranking.scores.score[place]),
            "error": number(ranking.scores.error[place]),
            "keep": bool(decisions.keep[place]),
            "reason": decisions.reason[place],
            **self._named,
            **({"flag": flag} if flag else {}),
            **self._more(place),
        }

    def _more(self, place: int) -> dict[str, Any]:
        """Which pair's gradient it repeats, and the cosines with the groups."""
        twin, cosines = self._outcome.decisions.duplicate_of.get(place), self._outcome.cosines
        return {
            **({} if twin is None else {"duplicate_of": int(self._store.row[twin])}),
            **({} if cosines is None else {"cosines": {
                name: number(value)
                for name, value in zip(self._target.groups, cosines[place].tolist(), strict=True)
            }}),
        }  # fmt: skip

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
