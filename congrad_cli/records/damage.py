"""How much damage a run puts up with, and what it says about it."""

from collections import Counter

from congrad_cli.errors import InputError
from congrad_cli.records.record import BadRecord

NO_PAIRS = ("tie",)
"""Codes of records that are in order and yet no pair: always left out, never an error."""
BROKEN = ("template", "not-finite", "zero-gradient")
"""Codes of pairs that turn out damaged when they are worked on; others are too long or alike."""
SKIP_HINT = "or pass --bad-records skip to leave such records out and count them"


class DamageLimit:
    """Counts bad records by code. ``stop``: the first one is an error.

    Otherwise more than ``most`` are: a share of all records where it is below 1, else a number.
    """

    def __init__(self, stop: bool = True, most: float | None = None) -> None:
        self._stop, self._most = stop, most
        self.codes: Counter[str] = Counter()

    @property
    def bad(self) -> int:
        """How many records were bad; those that are no pairs do not count."""
        return sum(count for code, count in self.codes.items() if code not in NO_PAIRS)

    def count(self, error: BadRecord) -> None:
        """Count a bad record, or raise what is wrong with it."""
        if self._stop and error.code not in NO_PAIRS:
            *others, cure = error.hints or ("mend the record",)
            error.hints = (*others, f"{cure}; {SKIP_HINT}")
            raise error
        self.codes[error.code] += 1
        if self._most is not None and self._most >= 1:
            self.check(0)

    def check(self, total: int) -> None:
        """Raise :class:`InputError` where too many of ``total`` records were bad."""
        if self._most is None:
            return
        allowed = self._most if self._most >= 1 else self._most * total
        if self.bad > allowed:
            limit = f"{self._most:,.0f}" if self._most >= 1 else f"{self._most:.3%}"
            of = f" of {total:,}" if total else ""
            raise InputError(f"{self.bad:,}{of} records are bad, more than --max-bad {limit}.",
                             self.summary())

    def summary(self) -> str:
        """How many of which code, most frequent first."""
        return ", ".join(f"{code} {count:,}" for code, count in self.codes.most_common())
