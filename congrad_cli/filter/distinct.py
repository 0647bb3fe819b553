"""The rules with ``--dedup``: the best pairs are taken one by one, and none that repeats another.

Pairs are looked at in the order of their rank. One that the rule would keep is kept unless its
gradient repeats that of a pair kept before; then the next one has its place. So ``--keep 1000``
keeps 1,000 distinct pairs, if there are so many.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from congrad_cli.filter.items import Places
from congrad_cli.filter.policy import (
    AT_LEAST,
    KEPT,
    NEAR_DUPLICATE,
    NO_DIRECTION,
    UNCERTAIN,
    Decisions,
    best_first,
    by_score,
    dropped_because,
    least_scores,
    parts,
)
from congrad_cli.settings import FilterSettings
from congrad_cli.weights import Floats

BATCH = 1024
"""So many pairs are looked at together."""


class Kept(Protocol):
    """The rows kept so far; see :class:`congrad_cli.filter.duplicates.NearDuplicates`."""

    def compare(self, places: Places) -> tuple[Places, NDArray[np.bool_]]:
        """Which of these rows repeat kept ones, and which one another."""

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Add some of the rows last compared."""


def decide_distinct(
    score: Floats,
    group: NDArray[np.int32],
    settings: FilterSettings,
    error: Floats | None,
    quotas: NDArray[np.int64] | None,
    rows: Kept,
) -> Decisions:
    """As :func:`congrad_cli.filter.policy.decide`, but no pair is kept beside its like."""
    rule = _Places(score, group, settings, error, quotas)
    defined = ~np.isnan(score)
    why = dropped_because(settings)
    keep = np.zeros(len(score), bool)
    reason = [why if known else NO_DIRECTION for known in defined.tolist()]
    flag = [""] * len(score)
    twins: dict[int, int] = {}
    order = best_first(score, defined)
    for begin in range(0, len(order), BATCH):
        batch = order[begin : begin + BATCH]
        wanted = np.array([rule.wants(place) for place in batch.tolist()])
        rule.pass_by(batch[~wanted])
        batch = batch[wanted]
        if not len(batch):
            continue
        earlier, among = rows.compare(batch)
        for at, place in enumerate(batch.tolist()):
            if not rule.wants(place):
                rule.pass_by(batch[at : at + 1])
                continue
            before = batch[:at][among[at, :at] & keep[batch[:at]]]
            twin = int(earlier[at]) if earlier[at] >= 0 else int(before[0]) if len(before) else -1
            if twin >= 0:
                reason[place], twins[place] = NEAR_DUPLICATE, twin
            else:
                flag[place] = rule.keep(place)
                reason[place], keep[place] = KEPT, True
        rows.keep(keep[batch])
    return Decisions(keep, reason, rule.threshold(), flag, twins)


class _Places:
    """How much room the rule has left, for pairs that come in the order of their rank."""

    def __init__(
        self,
        score: Floats,
        group: NDArray[np.int32],
        settings: FilterSettings,
        error: Floats | None,
        quotas: NDArray[np.int64] | None,
    ) -> None:
        self._score, self._group = score, group
        self._plain_least = settings.min_score or 0.0
        self._least = least_scores(len(score), settings, error) if by_score(settings) else None
        self._part = np.zeros(len(score), np.int64)  # which part of the pairs shares its room
        self._room: list[int] = []
        for inside, most in () if by_score(settings) else parts(group, settings, quotas):
            self._part[inside] = len(self._room)
            self._room.append(most)
        self._lacking = [settings.keep_at_least or 0] * (int(group.max(initial=-1)) + 1)
        self._last = np.full(len(self._room), np.nan)  # the score that had a part's last place
        self._first = np.full(len(self._room), np.nan)  # the best one that came too late

    def wants(self, place: int) -> bool:
        """Whether a pair would be kept, as things stand."""
        return self._by_rule(place) or self._lacking[self._group[place]] > 0

    def keep(self, place: int) -> str:
        """Give a pair its place. Returns its flag."""
        by_rule = self._by_rule(place)
        self._lacking[self._group[place]] -= 1
        if not by_rule:
            self.pass_by(np.array([place]))
            return AT_LEAST
        if self._least is not None:
            return UNCERTAIN if self._score[place] < self._plain_least else ""
        self._room[self._part[place]] -= 1
        self._last[self._part[place]] = self._score[place]
        return ""

    def pass_by(self, places: Places) -> None:
        """Pairs that the rule has no room for."""
        if self._least is None:
            np.fmax.at(self._first, self._part[places], self._score[places])

    def threshold(self) -> Floats:
        """The score that decided about every pair, [N]."""
        if self._least is not None:
            return self._least
        return np.asarray(((self._last + self._first) / 2)[self._part], np.float64)

    def _by_rule(self, place: int) -> bool:
        """Whether the rule wants it, ``--keep-at-least`` aside."""
        if self._least is not None:
            return bool(self._score[place] >= self._least[place])
        return self._room[int(self._part[place])] > 0
