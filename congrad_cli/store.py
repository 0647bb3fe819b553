"""The gradient store: a directory of immutable shard files, each one commit.

::

    pairs.congrad/
      store.json                      written once: what was sketched, and how
      shards/r000-00000.safetensors   rank - sequence number
      projection.safetensors          the layers' leading input directions
      skipped/r000.jsonl              pairs without a sketch: row, line, code, message
      skipped/input.jsonl             those of them that were no usable records
      source/stdin-DIGEST.jsonl       only where the data came from a pipe
      consensus/NAME.safetensors      what ``congrad consensus`` found

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
from congrad_cli.tensors import Arrays, map_arrays

OPEN_FILES = 4


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of the store, in row order: n rows, D numbers each."""

    row: NDArray[np.int64]  # [n]
    direction: NDArray[np.float32]  # [n, D]
    norm: NDArray[np.float32]  # [n]
    group: NDArray[np.int32]  # [n]


class GradientStore:
    """Reads a store. The rows themselves stay on the disk: memory holds their other columns only.

    ``shards`` are the columns of every shard, without the coded rows where ``files`` are given.
    Files are opened when rows of theirs are read, and few at a time: a store may have more of
    them than a process may have open.
    """

    def __init__(
        self, path: Path, header: StoreHeader, shards: list[Arrays], files: Sequence[Path] = ()
    ) -> None:
        self.path, self.header, self._shards, self._files = path, header, shards, files
        self._mapped = lru_cache(OPEN_FILES)(map_arrays)
        rows = [shard["row"] for shard in shards]
        self.row = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        self._order = np.argsort(self.row, kind="stable")
        self._shard_of = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
        starts = np.concatenate([[0], np.cumsum([len(part) for part in rows])])
        self._offset = np.arange(len(self.row)) - starts[self._shard_of]
        self.row = self.row[self._order]

    @staticmethod
    def open(path: Path) -> "GradientStore":
        """Open a store and check that its shards are what its header says."""
        header = read_header(path)
        files = shard_files(path)
        store = GradientStore(path, header, [_open_shard(file, header) for file in files], files)
        if len(store.row) and (
            store.row[0] < 0 or store.row[-1] >= header.rows or (np.diff(store.row) == 0).any()
        ):
            raise StoreError(f"{path}: rows out of range or stored twice.")
        return store

    def __len__(self) -> int:
        return len(self.row)

    def has(self, name: str) -> bool:
        """Whether the store has this optional column."""
        return name in self.header.optional

    def column(self, name: str) -> NDArray[Any]:
        """One column of all rows, in row order."""
        return self._gather(name, self._order)

    def blocks(self, rows: int = 1024) -> Iterator[Block]:
        """The store's rows in row order, decoded, ``rows`` at a time."""
        for begin in range(0, len(self), rows):
            index = self._order[begin : begin + rows]
            yield Block(
                row=self.row[begin : begin + rows],
                direction=self._decode(index),
                norm=self._gather("norm", index),
                group=self._gather("group", index),
            )

    def _decode(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        codec = self.header.codec
        arrays = {name: self._gather(name, index) for name in codec.columns()}
        scale = arrays.get("scale", np.zeros(0))
        if not (np.isfinite(scale) & (scale >= 0)).all():
            raise StoreError(f"{self.path}: damaged: the scale of a row is no length.")
        return codec.decode(arrays)

    def _gather(self, name: str, index: NDArray[np.int64]) -> NDArray[Any]:
        kind, tail = shard_columns(self.header)[name]
        result: NDArray[Any] = np.empty((len(index), *tail), kind)
        shard_of = self._shard_of[index]
        for shard in np.unique(shard_of):
            here = shard_of == shard
            columns = self._shards[shard]
            if name not in columns:
                columns = self._mapped(self._files[shard])[0]
            result[here] = columns[name][self._offset[index[here]]]
        return result

    def skipped(self) -> dict[int, str]:
        """Row -> code of the pairs without a sketch, those that could not be read among them."""
        codes: dict[int, str] = {}
        for entry in self.skipped_entries():
            codes.setdefault(entry["row"], sys.intern(entry["code"]))
        for row in self.row[np.isin(self.row, np.fromiter(codes, np.int64, len(codes)))].tolist():
            del codes[row]
        return codes

    def skipped_entries(self) -> Iterator[dict[str, Any]]:
        """What is known of pairs without a sketch: ``row``, ``line``, ``code``, ``message``.

        Lines that say no such thing are passed over: a killed run leaves half a line, and a row
        that is named by none of the others counts as missing and is sketched again.
        """
        for file in sorted((self.path / "skipped").glob("*.jsonl")):
            with file.open("rb") as lines:
                for line in lines:
                    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                        entry = json.loads(line)
                        fine = isinstance(entry["code"], str) and isinstance(entry["row"], int)
                        if fine and 0 <= entry["row"] < self.header.rows:
                            yield entry

    def require_complete(self) -> None:
        """Raise :class:`StoreError` while rows are missing."""
        done = len(self) + len(self.skipped())
        if done < self.header.rows:
            raise StoreError(
                f"{self.path} is incomplete: {done:,} of {self.header.rows:,} pairs.",
                "run the same sketch command again; it continues where it stopped",
            )


def shard_files(path: Path) -> list[Path]:
    """The committed shard files of the store, in the order of their names."""
    return sorted((path / "shards").glob("r*.safetensors"))


def _open_shard(path: Path, header: StoreHeader) -> Arrays:
    arrays, metadata = map_arrays(path)
    if metadata.get("fingerprint") != header.fingerprint:
        raise StoreError(f"{path} belongs to another store.", "move it away, then sketch again")
    columns = shard_columns(header)
    count = len(arrays["row"]) if "row" in arrays else -1
    for name, (kind, tail) in columns.items():
        if name not in arrays or arrays[name].dtype != kind or arrays[name].shape != (count, *tail):
            raise StoreError(f"{path}: tensor '{name}' is missing or has another shape.")
    groups = arrays["group"]
    if count and (groups.min() < 0 or groups.max() >= len(header.groups)):
        raise StoreError(f"{path}: group numbers out of range.")
    coded = header.codec.columns()
    return {name: np.array(arrays[name]) for name in columns if name not in coded}
