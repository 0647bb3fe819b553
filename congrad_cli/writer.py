"""Writes a store: its directories, its shards one commit each, and the list of skipped pairs."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from congrad_cli.errors import StoreError
from congrad_cli.header import StoreHeader, check_same, read_header, shard_columns
from congrad_cli.settings import FORMAT
from congrad_cli.store import shard_files
from congrad_cli.tensors import Arrays, commit_file, pack_arrays, replace_file

SHARD_ROWS, SHARD_BYTES = 8192, 1 << 25
SHARD_SECONDS = 60.0


class ShardWriter:
    """Collects sketched rows and commits them as shards; also keeps the list of skipped pairs."""

    def __init__(
        self,
        path: Path,
        header: StoreHeader,
        rank: int = 0,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.header, self._rank = path, header, rank
        self._before_commit = before_commit  # raises where this process may not write any more
        self._parts: list[Arrays] = []
        self._count = self._bytes = 0
        self._skipped: list[dict[str, Any]] = []
        prefix = f"r{rank:03d}-"
        numbers = [int(file.stem.partition("-")[2]) for file in shard_files(path)
                   if file.name.startswith(prefix)]
        self._sequence = max(numbers, default=-1) + 1
        for leftover in (path / "shards").glob(f".{prefix}*.tmp"):
            leftover.unlink()  # of a run that was killed

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether a shard's worth has been collected: by rows, or by bytes, which memory holds."""
        return self._count >= SHARD_ROWS or self._bytes >= SHARD_BYTES

    def append(self, arrays: Arrays) -> None:
        """Add sketched rows; they are durable after the next :meth:`commit`."""
        self._parts.append(arrays)
        self._count += len(arrays["norm"])
        self._bytes += sum(array.nbytes for array in arrays.values())

    def skip(self, digest: bytes, source: str, line: int, code: str, message: str) -> None:
        """Note a pair that gets no sketch."""
        self._skipped.append({"digest": digest.hex(), "source": source, "line": line,
                              "code": code, "message": message})

    def commit(self) -> None:
        """Write what was collected as one shard.

        After an error or a signal in the middle it may be called again: no row comes twice.
        """
        if not self._skipped and not self._count:
            return
        self._before_commit()
        if self._skipped:
            self._append_skipped()
        if not self._count:
            return
        arrays = {
            name: np.concatenate([part[name] for part in self._parts])
            for name in shard_columns(self.header)
        }
        metadata = {"fingerprint": self.header.fingerprint, "format": FORMAT, "rows": self._count}
        place = self.path / "shards" / f"r{self._rank:03d}-{self._sequence:05d}.safetensors"
        data = pack_arrays(arrays, metadata)
        try:
            commit_file(place, data)
        except FileExistsError:
            if place.read_bytes() != data:  # else it was done when the signal came
                raise
        self._parts, self._count, self._bytes = [], 0, 0
        self._sequence += 1

    def _append_skipped(self) -> None:
        place = self.path / "skipped" / f"r{self._rank:03d}.jsonl"
        torn = place.exists() and not place.read_bytes().endswith(b"\n")
        with place.open("ab") as file:
            file.write(b"\n" if torn and file.tell() else b"")  # of a run that was killed
            for entry in self._skipped:
                file.write(_entry_line(entry))
            file.flush()
            os.fsync(file.fileno())
        self._skipped = []


def write_rejected(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Note which of the data's items are no usable pairs; the list replaces the one before it."""
    content = b"".join(map(_entry_line, entries))
    place = path / "skipped" / "input.jsonl"
    if content or place.exists():
        place.parent.mkdir(exist_ok=True)
        replace_file(place, content)


def _entry_line(entry: dict[str, Any]) -> bytes:
    # what a file's name has that is no UTF-8 becomes a JSON escape
    text = json.dumps(entry, ensure_ascii=False, sort_keys=True)
    return text.encode(errors="backslashreplace") + b"\n"


def create_store(path: Path, header: StoreHeader) -> None:
    """Make the directories and ``store.json``; an existing store must be the same one."""
    try:
        for name in ("shards", "skipped", "consensus"):
            (path / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(f"{path} cannot be made: {error.strerror}.") from error
    with contextlib.suppress(FileExistsError):
        commit_file(path / "store.json", header.to_json())
    check_same(path, read_header(path), header)


