"""What a sketch would meet, found out without weights: token lengths, skips, the store's size."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.header import StoreHeader, shard_columns
from congrad_cli.progress import Progress
from congrad_cli.records.record import Record
from congrad_cli.settings import SketchSettings
from congrad_cli.sketch.tokens import Skip, TokenizedPair, tokenize_all, windows
from congrad_cli.sketch.width import possible_widths

QUANTILES = {
    "min": 0.0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99,
    "max": 1.0,
}  # fmt: skip

EXAMPLES = 5
"""Skipped pairs that the report names, per code."""

PROMPT, CHOSEN, REJECTED, ROW = range(4)

Lengths = dict[str, int]
"""Token lengths by the names of ``QUANTILES``, each that of some pair; empty without pairs."""


@dataclass(frozen=True, slots=True)
class GroupTokens:
    """The pairs of one group, or of all.

    ``prompt``, ``chosen`` and ``rejected`` are lengths before truncation, ``row`` is the shared
    row as it is sketched, prompt + chosen + rejected. All are of the ``pairs`` that get a sketch.
    """

    name: str
    pairs: int
    truncated: int
    tokens: int  # of all rows
    skipped: dict[str, int]  # by code
    prompt: Lengths
    chosen: Lengths
    rejected: Lengths
    row: Lengths


@dataclass(frozen=True, slots=True)
class TokenReport:
    """What tokenising all pairs showed.

    ``examples`` are the first few skips of each code, as "FILE:LINE: why". ``stop`` is what a
    sketch with these settings would end with, None where it would not.
    """

    overall: GroupTokens
    groups: list[GroupTokens]
    longest: int  # tokens of the longest prompt + answer that is sketched, before truncation
    examples: dict[str, list[str]]
    stop: str | None
    entries: list[dict[str, Any]]  # row, source, line, code, message of every skip

    @property
    def skipped(self) -> Counter[str]:
        """How many pairs would get no sketch, by code."""
        return Counter(self.overall.skipped)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for a JSON object."""
        return {name: value for name, value in asdict(self).items() if name != "entries"}


def measure(
    records: Iterator[Record],
    groups: list[str],
    group: NDArray[np.int32],
    tokenizer: Any,
    settings: SketchSettings,
    progress: Progress,
) -> TokenReport:
    """Tokenise all records, ``group`` [N] being each row's index into ``groups``.

    Nothing stops it but what reading the records raises: the report says what would. Memory holds
    a window, and 17 bytes a record.
    """
    tally = _Tally(settings, len(group))
    progress.start("tokenise", len(group))
    try:
        for window in windows(records):
            found = tokenize_all(window, tokenizer, settings.max_length, settings.overlong)
            for item in found:
                if isinstance(item, Skip):
                    tally.skip(item, int(group[item.record.row]))
                else:
                    tally.add(item)
            progress.advance(len(window))
    finally:
        progress.finish()
    return tally.report(groups, group)


@dataclass
class _Tally:
    """Counts, and the lengths of every pair."""

    settings: SketchSettings
    rows: int
    longest: int = 0
    stop: str | None = None
    skipped: Counter[tuple[int, str]] = field(default_factory=Counter)  # by group and code
    examples: dict[str, list[str]] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lengths = np.zeros((self.rows, 4), np.int32)  # a row of zeros has no sketch
        self._truncated = np.zeros(self.rows, bool)

    def add(self, pair: TokenizedPair) -> None:
        row, prompt = pair.record.row, len(pair.prompt)
        chosen, rejected = pair.whole_lengths
        self._lengths[row] = prompt, chosen - prompt, rejected - prompt, pair.length
        self._truncated[row] = pair.truncated
        self.longest = max(self.longest, chosen, rejected)

    def skip(self, skip: Skip, group: int) -> None:
        self.skipped[group, skip.code] += 1
        record = skip.record
        self.entries.append({"row": record.row, "source": record.source, "line": record.line,
                             "code": skip.code, "message": skip.message})
        examples = self.examples.setdefault(skip.code, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{skip.record.source}:{skip.record.line}: {skip.message}")
        if self.stop is None and skip.error is not None and skip.stops(self.settings.bad_records):
            self.stop = skip.error.message

    def report(self, groups: Sequence[str], group: NDArray[np.int32]) -> TokenReport:
        everywhere: Counter[str] = Counter()
        each: dict[int, Counter[str]] = {number: Counter() for number in range(len(groups))}
        for (number, code), count in self.skipped.items():
            everywhere[code] += count
            each[number][code] += count
        return TokenReport(
            overall=self._summary("all", slice(None), everywhere),
            groups=[
                self._summary(name, group == number, each[number])
                for number, name in enumerate(groups)
            ],
            longest=self.longest,
            examples=self.examples,
            stop=self.stop,
            entries=self.entries,
        )

    def _summary(
        self, name: str, where: NDArray[np.bool_] | slice, skipped: Counter[str]
    ) -> GroupTokens:
        lengths = self._lengths[where]
        lengths = lengths[lengths[:, ROW] > 0]
        return GroupTokens(
            name=name,
            pairs=len(lengths),
            truncated=int(self._truncated[where].sum()),
            tokens=int(lengths[:, ROW].sum(dtype=np.int64)),
            skipped=dict(skipped),
            prompt=quantiles(lengths[:, PROMPT]),
            chosen=quantiles(lengths[:, CHOSEN]),
            rejected=quantiles(lengths[:, REJECTED]),
            row=quantiles(lengths[:, ROW]),
        )


def quantiles(lengths: NDArray[np.int32]) -> Lengths:
    """The smallest length [n] that a share of all does not exceed, for each of ``QUANTILES``."""
    if not len(lengths):
        return {}
    found = np.quantile(lengths, list(QUANTILES.values()), method="inverted_cdf")
    return dict(zip(QUANTILES, found.astype(int).tolist(), strict=True))


def store_bytes(settings: SketchSettings, rows: int, optional: Sequence[str] = ()) -> int:
    """The bytes of ``rows`` pairs in a store with these ``optional`` columns.

    Without a ``width``, which the model decides, it is an upper bound: int4 and 1bit keep a scale
    of two bytes for each of the row's blocks, at most 64 of them. The leading
    directions of the layers (``projection.safetensors``) come on top: they depend on the model.
    """
    header = StoreHeader(
        model=settings.model,
        dim=settings.dim,
        width=settings.width or possible_widths(settings.dim)[-1],
        fingerprint={"settings": {"store_dtype": settings.store_dtype}},
        optional=list(optional),
    )
    return rows * sum(
        np.dtype(kind).itemsize * int(np.prod(tail, dtype=np.int64))
        for kind, tail in shard_columns(header).values()
    )
