"""Files of one JSON object a line, each with a ``key``: read lazily, and appended to."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, overload

from congrad_cli.claims import temporary_name
from congrad_cli.errors import InputError

Item = dict[str, Any]
"""A result of a stage; ``key`` names it."""

SYNC_SECONDS = 1.0


def line_of(item: Item) -> bytes:
    """One line of JSON. Text that is no Unicode (half a surrogate pair) is escaped."""
    try:
        return json.dumps(item, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(item, allow_nan=False).encode() + b"\n"


def parse_item(line: bytes) -> Item | None:
    """The item of a whole line, or None where that holds none."""
    try:
        item = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) and isinstance(item.get("key"), str) else None


@contextmanager
def durable(path: Path) -> Iterator[Callable[[bytes], object]]:
    """Writes a file that appears at ``path`` whole and durable, or not at all."""
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Items(Sequence[Item]):
    """The items of a finished file, in order. Only their keys and places are held in memory.

    Raises :class:`InputError` where the file cannot be read, or a line is no item.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[str] = []
        self._begins: list[int] = []
        begin = 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    item = parse_item(line)
                    if item is None:
                        raise InputError(f"{path}:{number}: no JSON object with a key.",
                                         f"saw: {line[:60]!r}")
                    self.keys.append(item["key"])
                    self._begins.append(begin)
                    begin += len(line)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}.") from error

    def __len__(self) -> int:
        return len(self._begins)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        with self.path.open("rb") as file:
            if isinstance(index, slice):
                return [_read(file, begin) for begin in self._begins[index]]
            return _read(file, self._begins[index])

    def __iter__(self) -> Iterator[Item]:
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)


def _read(file: BinaryIO, begin: int) -> Item:
    file.seek(begin)
    item: Item = json.loads(file.readline())
    return item


class ItemLog:
    """Items appended to a file as they are done; what was there before is kept.

    A context manager. Half a last line, as a killed process or a full disk leaves it, is dropped,
    and so is all that follows a line that is no item. ``check`` is called before bytes are made
    durable, at most once a second and at the end; it may raise where the file is no longer ours.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.dropped = 0
        """Bytes at the file's end that were no whole items."""
        self._check = check
        self._places: dict[str, int] = {}
        self._file: FileIO | None = None
        self._end, self._synced = 0, time.monotonic()

    def __enter__(self) -> "ItemLog":
        # unbuffered: each line is the system's at once, and outlives a killed process
        self._file = self.path.open("ab", buffering=0)
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            if self._end:
                self._sync()
        finally:
            self._opened().close()

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def append(self, item: Item) -> None:
        """Add an item whose key is new."""
        line, file = line_of(item), self._opened()
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) or 0 :]
        self._places[item["key"]] = self._end
        self._end += len(line)
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def lines(self, keys: Sequence[str]) -> Iterator[bytes]:
        """The lines of these items, in this order."""
        with self.path.open("rb") as file:
            for key in keys:
                file.seek(self._places[key])
                yield file.readline()

    def __iter__(self) -> Iterator[Item]:
        """The items in the order of the file."""
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)

    def _sync(self) -> None:
        self._check()
        os.fsync(self._opened().fileno())
        self._synced = time.monotonic()

    def _read(self) -> None:
        with self.path.open("rb") as file:
            for line in file:
                item = parse_item(line)
                if item is None:
                    break
                self._places.setdefault(item["key"], self._end)
                self._end += len(line)
        self.dropped = self.path.stat().st_size - self._end
        if self.dropped:
            os.truncate(self._opened().fileno(), self._end)

    def _opened(self) -> FileIO:
        if self._file is None:
            raise ValueError("the log is not open")
        return self._file
