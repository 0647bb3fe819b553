"""Is a store what it was when it was written? Every file of it is looked at, and each row.

What is wrong is a *problem*: a file that does not hold what was written, or does not belong here.
What somebody may want to know, and may be as it should, is a *note*. Nothing here changes a store;
see the module ``repair``.
"""

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from congrad_cli.codec import Codec
from congrad_cli.digests import CheckedFile, check_header, check_tensors
from congrad_cli.direction import consensus_files, pairs_digest, read_consensus
from congrad_cli.errors import CongradError, StoreError
from congrad_cli.header import StoreHeader, read_header, shard_columns
from congrad_cli.leftovers import foreign_files, leftovers
from congrad_cli.locks import live_ranks
from congrad_cli.progress import Progress
from congrad_cli.records.containers import read_items
from congrad_cli.records.record import DataFile
from congrad_cli.release import ConsensusPlace, is_release, read_released
from congrad_cli.settings import FORMAT
from congrad_cli.store import (
    LONGEST_ENTRY,
    GradientStore,
    open_shard,
    parse_entry,
    shard_files,
)
from congrad_cli.store_index import StoreIndex, first_of_each, read_index
from congrad_cli.tensors import Arrays

Result = TypeVar("Result")
Found = Generator["Finding", None, Result | None]
"""Yields findings; returns what was looked for, where that is in order."""

BLOCK_NUMBERS = 1 << 20
"""So many numbers of rows are decoded at a time."""
LENGTH_TOLERANCE = 1e-2
MAX_STORE_JSON, MAX_ROWS = 1 << 24, 1 << 20

SKETCH_AGAIN = "--repair sets it aside; the same sketch command then makes its rows again"
UNKNOWN_MAY_BE = ("conflict_unbiased", "conflict_range", "after")
"""Tensors of a consensus that hold NaN where the data cannot tell."""
CONSENSUS_AGAIN = "--repair sets it aside; congrad consensus then makes it again"
COPY_AGAIN = "copy it again from where it was made"
INDEX_AGAIN = "the same sketch command writes it anew"
FROM_A_COPY = "restore it from a copy, or sketch again with --overwrite"

Cure = Literal["none", "set aside", "remove", "run"]
"""What --repair does about it: nothing, quarantine the file, remove it, or say what to run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one file of the store, named from there; notes have no ``hint``."""

    file: str
    what: str
    hint: str = ""
    problem: bool = True
    cure: Cure = "none"
    kind: str = ""  # of notes: of each kind the first few are shown


class StoreCheck:
    """Looks at everything in the store at ``path``; ``quick`` leaves out what reads all of it.

    ``alone``: the caller has the lock of the store, and so nobody else writes to it.
    Raises :class:`StoreError` where there is no store.
    """

    def __init__(
        self, path: Path, quick: bool, progress: Progress, alone: bool = False
    ) -> None:
        if not (path / "store.json").is_file():
            read_header(path)  # says so
        self.path, self._quick, self._progress, self._alone = path, quick, progress, alone
        self._released = is_release(path)
        self.shards: dict[Path, Arrays] = {}  # those that are in order, without their rows

    @property
    def pairs(self) -> int:
        """How many pairs the shards that are in order hold."""
        return sum(len(shard["norm"]) for shard in self.shards.values())

    def findings(self) -> Iterator[Finding]:
        """Everything that was found, file by file."""
        try:
            size = (self.path / "store.json").stat().st_size
            if size > MAX_STORE_JSON:
                raise StoreError(f"{self.path / 'store.json'}: {size:,} bytes long.")
            header = read_header(self.path)
        except StoreError as error:
            yield self._finding(self.path / "store.json", error, FROM_A_COPY)
            return
        index = yield from self._index()
        yield from self._projection_and_shards(header)
        store = None if index is None else GradientStore(
            self.path, header, index, list(self.shards.values()), list(self.shards))
        if store is not None:
            yield from self._completeness(store)
        for name, file in consensus_files(self.path).items():
            yield from self._consensus(name, file, header, store)
        yield from self._skipped()
        if index is not None:
            yield from self._sources(index)
        yield from self._others(index)

    def _index(self) -> Found[StoreIndex]:
        place = self.path / "index.safetensors"
        if not place.exists():
            if self._released:
                yield note("consensus", "a direction to compare with, without its pairs", "release")
            else:
                yield Finding(place.name, "it is missing", INDEX_AGAIN, cure="run")
            return None
        try:
            self._check_file(place)
            return read_index(self.path)
        except StoreError as error:
            hint = f"--repair sets it aside; {INDEX_AGAIN}"
            yield self._finding(place, error, hint, "set aside")
        return None

    def _check_file(self, place: Path) -> CheckedFile:
        file = check_header(place)
        if not self._quick:
            check_tensors(file)
        return file

    def _projection(self, pairs: bool) -> Found[dict[str, Any]]:
        """The metadata of the projection. Without it rows cannot be added to those there are: a
        new one may be another, on another device or with another torch."""
        place = self.path / "projection.safetensors"
        if not place.exists():
            if self._released:
                yield Finding(place.name, "it is missing; nothing can be compared without it",
                              COPY_AGAIN)
            elif pairs:
                yield Finding(place.name, "it is missing; no row can be added without it",
                              f"consensus and filter work; to go on sketching, {FROM_A_COPY}")
            return None
        try:
            return self._check_file(place).metadata
        except StoreError as error:
            hint = f"consensus and filter work; to go on sketching, {FROM_A_COPY}"
            yield self._finding(place, error, hint)
        return None

    def _projection_and_shards(self, header: StoreHeader) -> Iterator[Finding]:
        files = shard_files(self.path)
        start = yield from self._projection(bool(files))
        rows: dict[Path, int] = {}  # of files whose header is in order; none is kept open
        ours = 0
        for place in files:
            try:
                file = _check_shard_header(place)
            except StoreError as error:
                yield self._finding(place, error, SKETCH_AGAIN, "set aside")
                continue
            rows[place] = file.arrays["norm"].shape[0]
            ours += file.metadata.get("fingerprint") == header.fingerprint
        if start and start.get("fingerprint", header.fingerprint) != header.fingerprint:
            yield Finding("projection.safetensors", "it belongs to another store", FROM_A_COPY)
        if rows and not ours and (start or {}).get("fingerprint") != header.fingerprint:
            yield Finding("store.json", f"its fingerprint is that of none of the {len(rows)} "
                          "shards", f"the shards are left alone; {FROM_A_COPY}")
            return
        self._progress.start("verify", sum(rows.values()))
        try:
            for place in rows:
                yield from self._shard(place, header)
        finally:
            self._progress.finish()
        yield from self._twice()

    def _shard(self, place: Path, header: StoreHeader) -> Iterator[Finding]:
        try:
            file = check_header(place)
            small = open_shard(place, header)
            _check_metadata(file, header, len(small["norm"]))
            if not self._quick:
                check_tensors(file)
                check_rows(file, header.codec)
        except StoreError as error:
            yield self._finding(place, error, SKETCH_AGAIN, "set aside")
        else:
            self.shards[place] = small
            self._progress.advance(len(small["norm"]))

    def _twice(self) -> Iterator[Finding]:
        digests = [shard["digest"] for shard in self.shards.values()]
        again = int((~first_of_each(np.concatenate(digests))).sum()) if digests else 0
        if again:
            yield note("shards", f"{again:,} pairs are stored twice; the first ones count", "twice")

    def _completeness(self, store: GradientStore) -> Iterator[Finding]:
        done = len(store) + len(store.skipped())
        if done < store.rows:
            yield note("shards", f"incomplete: {done:,} of {store.rows:,} pairs; the same sketch "
                       "command makes the others", "incomplete")

    def _consensus(
        self, name: str, place: Path, header: StoreHeader, store: GradientStore | None
    ) -> Iterator[Finding]:
        try:
            file = self._check_file(place)
            if file.metadata.get("fingerprint") != header.fingerprint:
                raise StoreError(f"{place} belongs to another store.")
            numbers = [array for key, array in file.arrays.items() if key not in UNKNOWN_MAY_BE]
            if not all(map(_is_finite, numbers)):
                raise StoreError(f"{place}: it holds a number that is not finite.")
            if store is None:
                if self._released:
                    read_released(ConsensusPlace(self.path, name))
                return
            if file.metadata.get("pairs") != pairs_digest(store):
                yield note(self._name(place), "it was made when the store held other pairs; run "
                           "congrad consensus again", "consensus")
                return
            read_consensus(self.path, name, store)
        except CongradError as error:
            if self._released:
                yield self._finding(place, error, COPY_AGAIN)
            else:
                yield self._finding(place, error, CONSENSUS_AGAIN, "set aside")

    def _skipped(self) -> Iterator[Finding]:
        for place in sorted((self.path / "skipped").glob("*.jsonl")):
            bad = _unreadable_lines(place) if place.is_file() else 1
            if bad:
                yield note(self._name(place), f"{bad:,} lines cannot be read; pairs that they may "
                           "name count as missing", "skipped")

    def _sources(self, index: StoreIndex) -> Iterator[Finding]:
        for source in index.sources:
            place = self.path / source.path
            if not place.is_file():
                yield note(source.name, f"the data is not at {place} any more; filter needs --data",
                           "data")
                continue
            try:
                count = source.records if self._quick else sum(
                    1 for _ in read_items(DataFile(source.name, place)))
            except CongradError as error:
                yield note(source.name, f"the data cannot be read: {error.message}", "data")
                continue
            if count != source.records:
                yield note(source.name, f"the data has {count:,} records now, and had "
                           f"{source.records:,}; sketch it again", "data")

    def _others(self, index: StoreIndex | None) -> Iterator[Finding]:
        live = {} if self._alone else live_ranks(self.path)
        for rank, info in live.items():
            yield note("locks", f"rank {rank} is writing (PID {info.pid} on {info.host})", "locks")
        for place in [] if live else leftovers(self.path):
            yield Finding(self._name(place), "a killed run left it; --repair removes it",
                          problem=False, cure="remove", kind="temporary")
        named = {source.path for source in index.sources} if index else set()
        for place in foreign_files(self.path):
            yield note(self._name(place), "no file of a store", "foreign")
        for place in sorted((self.path / "source").glob("stdin-*.jsonl")) if index else []:
            if self._name(place) not in named:
                yield note(self._name(place), "piped data that the store does not use", "foreign")

    def _name(self, place: Path) -> str:
        return place.relative_to(self.path).as_posix()

    def _finding(
        self, place: Path, error: CongradError, hint: str, cure: Cure = "none"
    ) -> Finding:
        what = error.message.removeprefix(str(place)).lstrip(": ").rstrip(".")
        return Finding(self._name(place), what, hint, cure=cure)


def note(file: str, what: str, kind: str) -> Finding:
    """Something to know that may be as it should."""
    return Finding(file, what, problem=False, kind=kind)


def check_rows(file: CheckedFile, codec: Codec) -> None:
    """Raise :class:`StoreError` where a coded row is not finite, or has an impossible length.

    A row was a unit vector. float16 keeps its length; int8 moves every number by half a step at
    most; int4 and 1bit add something orthogonal, which makes it longer, by a factor of sqrt(W) at
    most in a block of W numbers (q and |z| are in the same order, so their cosine is 1 / sqrt(W)
    or more).
    """
    count, step = len(file.arrays["norm"]), max(1, BLOCK_NUMBERS // codec.dim)
    for begin in range(0, count, step):
        arrays = {name: np.array(file.arrays[name][begin : begin + step])
                  for name in codec.columns()}
        scale = arrays.get("scale", np.zeros(0)).astype(np.float64)
        if not (np.isfinite(scale) & (scale >= 0)).all():
            raise StoreError(f"{file.path}: the scale of a row is no length.")
        if codec.exact and not np.isfinite(arrays["direction"]).all():
            raise StoreError(f"{file.path}: a row is not finite.")
        length = np.sqrt(codec.squares(arrays))  # [n]
        low, high = 1 - LENGTH_TOLERANCE, np.full(len(length), 1 + LENGTH_TOLERANCE)
        if codec.name == "int8":
            slack = scale / 2 * np.sqrt(codec.dim)
            low, high = low - slack, high + slack
        elif not codec.exact:
            high *= np.sqrt(codec.dim // codec.width)
        wrong = np.flatnonzero(~((length >= low) & (length <= high)))
        if len(wrong):
            raise StoreError(f"{file.path}: row {begin + wrong[0]} has length "
                             f"{length[wrong[0]]:.3g}, and had 1.")


def _check_shard_header(place: Path) -> CheckedFile:
    """Whether it is called like a shard, is a file of the store, and has rows, not too many."""
    if not re.fullmatch(r"r\d{3,9}-\d{5,}\.safetensors", place.name):
        raise StoreError(f"{place}: no name of a shard.")
    file = check_header(place)
    norm = file.arrays.get("norm")
    if norm is None or norm.ndim != 1 or len(norm) > MAX_ROWS:
        raise StoreError(f"{place}: no norms, or more than a shard may have.")
    return file


def _check_metadata(file: CheckedFile, header: StoreHeader, count: int) -> None:
    """Raise :class:`StoreError` where a shard says of itself what it is not."""
    if file.metadata.get("format") != FORMAT or file.metadata.get("rows") != count:
        raise StoreError(f"{file.path}: it says another format or number of rows.")
    if file.arrays.keys() != shard_columns(header).keys():
        extra = ", ".join(sorted(file.arrays.keys() - shard_columns(header).keys()))
        raise StoreError(f"{file.path}: no shard of this store has {extra}.")


def _is_finite(array: NDArray[Any]) -> bool:
    """Whether all numbers are, a block of them at a time."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[begin : begin + BLOCK_NUMBERS]).all())
               for begin in range(0, len(flat), BLOCK_NUMBERS))


def _unreadable_lines(place: Path) -> int:
    """How many lines of a list in ``skipped/`` are no entries; long ones are not held."""
    bad, begin = 0, True
    with place.open("rb") as file:
        while line := file.readline(LONGEST_ENTRY):
            bad += begin and parse_entry(line) is None
            begin = line.endswith(b"\n")
    return bad
