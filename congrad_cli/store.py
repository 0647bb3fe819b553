"""The gradient store: a directory of immutable shard files, each one commit.

::

    pairs.congrad/
      store.json                      written once: the model, the settings, what a row is
      projection.safetensors          written once: the layers' leading input directions
      shards/r000-00000.safetensors   rank - sequence number; sketched pairs by their digests
      skipped/r000.jsonl              pairs without a sketch: digest, line, code, message
      index.safetensors               the data as it is now: its records' digests and groups
      skipped/input.jsonl             records of it that are no usable pairs: row, code, message
      source/stdin-DIGEST.jsonl       only where the data came from a pipe
      consensus/NAME.safetensors      what ``congrad consensus`` found
      quarantine/                     damaged files that ``congrad verify --repair`` set aside

A shard becomes visible whole or not at all: its bytes are built in memory, written to an
exclusive temporary file, fsynced, linked to the final name, and the directory is fsynced.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import StoreError
from congrad_cli.header import StoreHeader, read_header, shard_columns
from congrad_cli.progress import Progress
from congrad_cli.store_index import NO_GROUP, StoreIndex, find_digests, first_of_each, read_index
from congrad_cli.tensors import Arrays, check_sums, map_arrays

OPEN_FILES = 4
BLOCK, BLOCK_ROWS = 1 << 22, 1024
"""A block has at most so many numbers and rows, unless it is asked for by rows."""
LONGEST_ENTRY = 1 << 20
"""So many bytes of a line of ``skipped/`` are read at a time; what is longer is no entry."""
REPAIR = "congrad verify STORE --repair sets it aside; sketch then makes its rows again"


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of the store: n rows, D numbers each."""

    place: NDArray[np.int64]  # [n] which of the store's pairs, counted in row order
    row: NDArray[np.int64]  # [n]
    direction: NDArray[np.float32]  # [n, D]
    norm: NDArray[np.float32]  # [n]


class GradientStore:
    """Reads a store: the sketched pairs of the data as its index has it, in the data's order.

    The rows themselves stay on the disk: memory holds their other columns only. ``shards`` are
    the columns of every shard, without the coded rows where ``files`` are given. Files are opened
    when rows of theirs are read, and few at a time: a store may have more of them than a process
    may have open.
    """

    def __init__(
        self,
        path: Path,
        header: StoreHeader,
        index: StoreIndex,
        shards: list[Arrays],
        files: Sequence[Path] = (),
    ) -> None:
        self.path, self.header, self.index = path, header, index
        self._shards, self._files = shards, files
        self._mapped = lru_cache(OPEN_FILES)(map_arrays)
        counts = [len(shard["norm"]) for shard in shards]
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._offset = np.arange(starts[-1]) - starts[self._shard_of]
        # [N]: where a row's pair is among all stored ones; a pair stored twice counts once
        at = find_digests(index.digest, stored_digests(shards))
        at[index.group == NO_GROUP] = -1
        self.row = np.flatnonzero(at >= 0)
        self._at = at[self.row]

    @staticmethod
    def open(path: Path) -> "GradientStore":
        """Open a store and check that its shards are what its header says."""
        header = read_header(path)
        files = shard_files(path)
        shards = [open_shard(file, header) for file in files]
        return GradientStore(path, header, read_index(path), shards, files)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def rows(self) -> int:
        """How many items the data has, N; those without a sketch included."""
        return self.index.rows

    @property
    def groups(self) -> list[str]:
        """The names of the data's groups."""
        return self.index.groups

    def has(self, name: str) -> bool:
        """Whether the store has this optional column."""
        return name in self.header.optional

    def column(self, name: str) -> NDArray[Any]:
        """One column of all rows, in row order; ``group`` is an index into ``groups``."""
        if name in ("group", "digest"):
            found: NDArray[Any] = getattr(self.index, name)[self.row]
            return found
        return self._gather(name, self._at)

    def blocks(
        self,
        rows: int | None = None,
        label: NDArray[np.int32] | None = None,
        places: NDArray[np.int64] | None = None,
    ) -> Iterator[Block]:
        """The store's rows in row order, decoded, ``rows`` at a time; only those at ``places``.

        With a ``label`` [N] of every pair, the rows of each block are in the order of their
        labels, those of one label still in row order: sums by label are then sums of runs.
        """
        rows = rows or min(max(BLOCK // self.header.dim, 1), BLOCK_ROWS)
        places = np.arange(len(self)) if places is None else places
        for begin in range(0, len(places), rows):
            place = places[begin : begin + rows]
            if label is not None:
                place = place[np.argsort(label[place], kind="stable")]
            yield Block(
                place=place,
                row=self.row[place],
                direction=self.directions(place),
                norm=self._gather("norm", self._at[place]),
            )

    def directions(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """The decoded rows of some of the pairs, which ``places`` [n] counts in row order."""
        codec, at = self.header.codec, self._at[places]
        arrays = {name: self._gather(name, at) for name in codec.columns()}
        scale = arrays.get("scale", np.zeros(0))
        if not (np.isfinite(scale) & (scale >= 0)).all():
            raise StoreError(f"{self.path}: damaged: the scale of a row is no length.")
        rows = codec.decode(arrays)
        # one pass where asking each number takes three: what is not finite stays so in squares
        numbers = rows.reshape(-1)
        if not (np.isfinite(numbers @ numbers) or np.isfinite(rows).all()):
            raise StoreError(f"{self.path}: damaged: a row is not finite.", REPAIR)
        return rows

    def _gather(self, name: str, at: NDArray[np.int64]) -> NDArray[Any]:
        """Rows of a column, which ``at`` [n] counts over all shards."""
        kind, tail = shard_columns(self.header)[name]
        result: NDArray[Any] = np.empty((len(at), *tail), kind)
        shard_of, offset = self._shard_of[at], self._offset[at]
        for shard in np.unique(shard_of):
            columns = self._shards[shard]
            if name not in columns:
                columns = self._mapped(self._files[shard])[0]
            here = shard_of == shard
            if here.all():
                np.take(columns[name], offset, axis=0, out=result, mode="clip")
            else:
                result[here] = columns[name][offset[here]]
        return result

    def skipped(self) -> dict[int, str]:
        """Row -> code of the data's items without a sketch, those that are no pairs among them."""
        return {row: entry["code"] for row, entry in self.skipped_entries().items()}

    def skipped_entries(self) -> dict[int, dict[str, Any]]:
        """Row -> what is known of the item: ``source``, ``line``, ``code``, ``message``.

        Lines that say no such thing are passed over: a killed run leaves half a line, and a pair
        that is named by none of the others counts as missing and is sketched again.
        """
        by_digest: dict[str, dict[str, Any]] = {}
        by_row: dict[int, dict[str, Any]] = {}
        for entry in read_entries(self.path / "skipped"):
            if isinstance(entry.get("digest"), str):
                by_digest[entry["digest"]] = entry
            elif isinstance(entry.get("row"), int):
                by_row[entry["row"]] = entry
        missing = np.ones(self.rows, bool)
        missing[self.row] = False
        rejected = self.index.group == NO_GROUP
        found: dict[int, dict[str, Any]] = {}
        for row in np.flatnonzero(missing).tolist():
            known = (by_row.get(row) if rejected[row]
                     else by_digest.get(self.index.digest[row].tobytes().hex()))
            if known is not None:
                found[row] = known | {"row": row}
        return found


def require_complete(store: GradientStore, allow_partial: bool, progress: Progress) -> None:
    """Raise :class:`StoreError` while pairs are missing; only say so where that is allowed."""
    done = len(store) + len(store.skipped())
    if done == store.rows:
        return
    what = f"{store.path} is incomplete: {done:,} of {store.rows:,} pairs."
    if not allow_partial:
        raise StoreError(
            what,
            "run the same sketch command again, it continues where it stopped; "
            "or pass --allow-partial",
        )
    progress.warn(what)


def stored_digests(shards: Sequence[Arrays]) -> NDArray[np.uint8]:
    """The digests of all pairs of the shards, [M, 16]."""
    parts = [shard["digest"] for shard in shards]
    return np.concatenate(parts) if parts else np.zeros((0, 16), np.uint8)


def read_entries(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of the lists in ``skipped/`` that are entries."""
    for file in sorted(folder.glob("*.jsonl")):
        if file.is_file():
            with file.open("rb") as lines:
                while line := lines.readline(LONGEST_ENTRY):
                    entry = parse_entry(line)
                    if entry is not None:
                        yield entry


def parse_entry(line: bytes) -> dict[str, Any] | None:
    """A line of such a list; None where it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        entry = json.loads(line)
        if isinstance(entry, dict) and isinstance(entry.get("code"), str):
            return entry | {"code": sys.intern(entry["code"])}
    return None


def shard_files(path: Path) -> list[Path]:
    """The committed shard files of the store, in the order of their names."""
    return sorted((path / "shards").glob("r*.safetensors"))


def open_shard(path: Path, header: StoreHeader) -> Arrays:
    """A shard's columns without its rows, checked against the header and for sense."""
    try:
        arrays, metadata = map_arrays(path)
    except StoreError as error:
        raise StoreError(error.message, REPAIR) from error
    if metadata.get("fingerprint") != header.fingerprint:
        raise StoreError(f"{path} belongs to another store.", "move it away, then sketch again")
    columns = shard_columns(header)
    count = arrays["norm"].shape[0] if "norm" in arrays and arrays["norm"].ndim else -1
    for name, (kind, tail) in columns.items():
        if name not in arrays or arrays[name].dtype != kind or arrays[name].shape != (count, *tail):
            raise StoreError(f"{path}: tensor '{name}' is missing or has another shape.", REPAIR)
    coded = header.codec.columns()
    small = {name: np.array(arrays[name]) for name in columns if name not in coded}
    check_sums(path, small, metadata, REPAIR)
    for name in ("norm", "logp", *header.optional):
        if not np.isfinite(small[name]).all():
            raise StoreError(f"{path}: '{name}' holds a number that is not finite.", REPAIR)
    if not ((small["norm"] > 0).all() and (small["tokens"] >= 0).all()):
        raise StoreError(f"{path}: a norm or a length that cannot be.", REPAIR)
    if not first_of_each(small["digest"]).all():
        raise StoreError(f"{path}: a pair is stored twice.", REPAIR)
    return small
