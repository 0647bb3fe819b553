"""Records back into a file, in the form that their source had."""

import gzip
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from congrad_cli.records.compression import SUFFIXES, import_zstandard
from congrad_cli.records.objects import BOM


class Writer(Protocol):
    """What takes the original bytes of records, one after the other."""

    def write(self, raw: bytes) -> None:
        """Append one record."""

    def close(self) -> None:
        """Write what must stand at the end. The file stays open."""


class LineWriter:
    """Writes original lines; adds a newline only where a line without one is followed by more.

    A byte-order mark stays only where it begins the output. With ``mixed``, elements of arrays
    come among the lines, and are brought into one line each.
    """

    def __init__(self, file: BinaryIO, mixed: bool = False) -> None:
        self._file, self._mixed = file, mixed
        self._begun = self._open_line = False

    def write(self, raw: bytes) -> None:
        """Append one original line; nothing, where damage left nothing of it."""
        if not raw:
            return
        if self._mixed and raw.find(b"\n") != len(raw) - 1:  # no line of a file, or its last
            raw = line_form(raw)
        if self._open_line:
            self._file.write(b"\n")
        self._file.write(raw.removeprefix(BOM) if self._begun else raw)
        self._begun, self._open_line = True, not raw.endswith(b"\n")

    def close(self) -> None:
        """Nothing: lines need no end."""


class ArrayWriter:
    """Writes the elements of a JSON array, with the white space that they had around them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next = b"["

    def write(self, raw: bytes) -> None:
        """Append one element; nothing, where damage left nothing of it."""
        if not raw:
            return
        self._file.write(self._next + raw)
        self._next = b","

    def close(self) -> None:
        """Close the array."""
        self._file.write(b"[]\n" if self._next == b"[" else b"]\n")


def line_form(raw: bytes) -> bytes:
    """An array's element as a line. Newlines stand only between its parts: JSON has none in
    strings."""
    return raw.strip(b" \t\r\n").replace(b"\n", b" ") + b"\n"


def writer_for(file: BinaryIO, containers: Collection[str]) -> Writer:
    """The writer that gives back records of sources in these containers: one array if all were
    arrays, else lines."""
    if containers and all(container == "array" for container in containers):
        return ArrayWriter(file)
    return LineWriter(file, mixed="array" in containers)


@contextmanager
def compressed(path: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """``file``, packed as the name ``path`` promises; the same bytes in give the same bytes out.

    Raises :class:`InputError` where zstandard is missing. ``file`` stays open.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if kind == "gzip":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as out:
            yield cast(BinaryIO, out)
    elif kind == "zstd":
        zstandard = import_zstandard(path.name)
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as out:
            yield cast(BinaryIO, out)
    else:
        yield file
