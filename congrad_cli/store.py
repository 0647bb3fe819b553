"""The gradient store: a directory of immutable shard files, each one commit.

::

    pairs.congrad/
      store.json                      written once: what was sketched, and how
      shards/r000-00000.safetensors   rank - sequence number
      projection.safetensors          the layers' leading input directions
      skipped/r000.jsonl              pairs without a sketch: row, line, code, message
      source/stdin-DIGEST.jsonl       only where the data came from a pipe
      consensus/NAME.safetensors      what ``congrad consensus`` found

A shard becomes visible whole or not at all: its bytes are built in memory, written to an
exclusive temporary file, fsynced, linked to the final name, and the directory is fsynced.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.codec import Codec
from congrad_cli.errors import StoreError
from congrad_cli.settings import FORMAT, STORE_DTYPES, RecordSettings
from congrad_cli.tensors import Arrays, commit_file, map_arrays, pack_arrays

SHARD_ROWS, SHARD_BYTES = 8192, 1 << 25
SHARD_SECONDS = 60.0
OPEN_FILES, BLOCK_NUMBERS = 4, 1 << 25
OTHER_STORE = "pass --store OTHER, or --overwrite to replace it"



OPTIONAL_COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    "ref_logp": (np.float32, (2,)),
    "weighted_logp": (np.float32, (2,)),
}
"""Log-probabilities of chosen and rejected with the sketch's token weighting: the reference's,
and the policy's where the weighting is not a plain sum."""


def shard_columns(header: "StoreHeader") -> dict[str, tuple[type, tuple[int, ...]]]:
    """Each tensor of a shard: its type, and its shape behind the leading n rows.

    ``direction`` (and ``scale``, unless it is float16) is the sketch divided by its norm, as the
    store codes it, ``norm`` the norm of the unnormalised sketch, ``logp`` the log-probabilities of
    chosen and rejected summed over the response, ``tokens`` the lengths of prompt, chosen and
    rejected after truncation, ``group`` an index into ``store.json``'s list.
    """
    return {
        "row": (np.int64, ()),
        **header.codec.columns(),
        "norm": (np.float32, ()),
        "logp": (np.float32, (2,)),
        "tokens": (np.int32, (3,)),
        "group": (np.int32, ()),
        "digest": (np.uint8, (16,)),
        **{name: OPTIONAL_COLUMNS[name] for name in header.optional},
    }


@dataclass(frozen=True, slots=True)
class Source:
    """A data file of the store: the name to show, where it lies, how many records it holds."""

    name: str
    path: str
    records: int


@dataclass(frozen=True)
class StoreHeader:
    """``store.json``: what was sketched and how. Written before the first shard, never changed."""

    model: str  # as the user named it; the fingerprint decides
    dim: int
    width: int
    rows: int
    groups: list[str]
    sources: list[Source]
    record_settings: dict[str, Any]
    fingerprint: dict[str, Any]  # data, model, settings: kept apart to name the culprit
    token_weighting: str = "sum"
    optional: list[str] = field(default_factory=list)  # which of OPTIONAL_COLUMNS there are
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def store_dtype(self) -> str:
        """How rows are coded. It is kept with the settings that the fingerprint holds.

        Stores from before there was a choice do not have it: their rows are float16.
        """
        settings = self.fingerprint.get("settings")
        known = settings if isinstance(settings, dict) else {}
        return known.get("store_dtype", "float16")  # type: ignore[no-any-return]

    @property
    def codec(self) -> Codec:
        """What encodes and decodes the rows."""
        return Codec(self.store_dtype, self.dim, self.width)

    def to_json(self) -> bytes:
        """The file's bytes: sorted keys, so that equal headers are equal files."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False).encode()

    @staticmethod
    def from_json(data: bytes, place: Path) -> "StoreHeader":
        """Read the file back, or raise :class:`StoreError`."""
        try:
            fields = json.loads(data)
            if fields.get("format") != FORMAT:
                raise StoreError(
                    f"{place}: store format {fields.get('format')}, this congrad reads {FORMAT}."
                )
            fields["sources"] = [Source(**source) for source in fields["sources"]]
            header = StoreHeader(**fields)
            _check_kinds(header)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreError(f"{place}: not a store header ({error}).") from error
        sizes = f"dim {header.dim}, width {header.width}, rows {header.rows}"
        if not 0 < header.dim <= 1 << 24 or header.rows < 0:
            raise StoreError(f"{place}: impossible sizes ({sizes}).")
        if not 0 < header.width <= header.dim or header.dim % header.width:
            raise StoreError(f"{place}: impossible sizes ({sizes}).")
        return header


def _check_kinds(header: StoreHeader) -> None:
    """Raise :class:`TypeError` unless every field that is used is of its kind."""
    kinds: list[tuple[str, Any, type | tuple[type, ...]]] = [
        *((name, getattr(header, name), int) for name in ("dim", "width", "rows")),
        *((name, getattr(header, name), dict) for name in ("fingerprint", "record_settings")),
        ("groups", header.groups, list),
        ("optional", header.optional, list),
        *(("groups", group, str) for group in header.groups),
        *(("sources", part, str) for item in header.sources for part in (item.name, item.path)),
        *((name, value, (str, type(None))) for name, value in header.record_settings.items()),
    ]
    for name, value, kind in kinds:
        if not isinstance(value, kind):
            raise TypeError(f"{name} is a {type(value).__name__}")
    RecordSettings(**header.record_settings)
    if not set(header.optional) <= set(OPTIONAL_COLUMNS):
        raise TypeError(f"optional columns {header.optional}")
    if header.store_dtype not in STORE_DTYPES:
        raise TypeError(f"store_dtype {header.store_dtype!r}")


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

    def skipped(self) -> list[dict[str, Any]]:
        """The pairs without a sketch: ``row``, ``line``, ``code``, ``message``.

        Lines that say no such thing are passed over: a killed run leaves half a line, and a row
        that is named by none of the others counts as missing and is sketched again.
        """
        entries: dict[int, dict[str, Any]] = {}
        for file in sorted((self.path / "skipped").glob("*.jsonl")):
            for line in file.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                    entry = json.loads(line)
                    if entry["row"] in range(self.header.rows) and isinstance(entry["code"], str):
                        entries[entry["row"]] = entry
        rows = np.setdiff1d(np.array(list(entries), np.int64), self.row)
        return [entries[row] for row in rows.tolist()]

    def require_complete(self) -> None:
        """Raise :class:`StoreError` while rows are missing."""
        done = len(self) + len(self.skipped())
        if done < self.header.rows:
            raise StoreError(
                f"{self.path} is incomplete: {done:,} of {self.header.rows:,} pairs.",
                "run the same sketch command again; it continues where it stopped",
            )


def read_header(path: Path) -> StoreHeader:
    """``store.json`` of the store at ``path``."""
    file = path / "store.json"
    try:
        return StoreHeader.from_json(file.read_bytes(), file)
    except (OSError, ValueError) as error:  # ValueError: what came from the pipe is no path
        raise StoreError(
            f"{path} is not a store: no store.json in it.",
            "make one: congrad sketch DATA --model MODEL --store DIR",
        ) from error


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


class ShardWriter:
    """Collects sketched rows and commits them as shards; also keeps the list of skipped pairs."""

    def __init__(self, path: Path, header: StoreHeader, rank: int = 0) -> None:
        self.path, self.header, self._rank = path, header, rank
        self._parts: list[Arrays] = []
        self._count = self._bytes = 0
        self._skipped: list[dict[str, Any]] = []
        prefix = f"r{rank:03d}-"
        numbers = [int(file.stem[5:]) for file in shard_files(path) if file.name.startswith(prefix)]
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
        self._count += len(arrays["row"])
        self._bytes += sum(array.nbytes for array in arrays.values())

    def skip(self, row: int, source: str, line: int, code: str, message: str) -> None:
        """Note a pair that gets no sketch."""
        self._skipped.append(
            {"row": row, "source": source, "line": line, "code": code, "message": message}
        )

    def commit(self) -> None:
        """Write what was collected as one shard."""
        if self._skipped:
            self._append_skipped()
        if not self._count:
            return
        arrays = {
            name: np.concatenate([part[name] for part in self._parts])
            for name in shard_columns(self.header)
        }
        metadata = {"fingerprint": self.header.fingerprint, "format": FORMAT, "rows": self._count}
        name = f"r{self._rank:03d}-{self._sequence:05d}.safetensors"
        commit_file(self.path / "shards" / name, pack_arrays(arrays, metadata))
        self._parts, self._count, self._bytes = [], 0, 0
        self._sequence += 1

    def _append_skipped(self) -> None:
        place = self.path / "skipped" / f"r{self._rank:03d}.jsonl"
        torn = place.exists() and not place.read_bytes().endswith(b"\n")
        with place.open("ab") as file:
            file.write(b"\n" if torn and file.tell() else b"")  # of a run that was killed
            for entry in self._skipped:
                file.write(json.dumps(entry, ensure_ascii=False, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._skipped = []


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


def check_same(path: Path, stored: StoreHeader, wanted: StoreHeader) -> None:
    """Raise :class:`StoreError` naming which part of the fingerprint differs."""
    for part, what in (("model", "another model"), ("settings", "other settings"),
                       ("data", "other data")):
        before, now = stored.fingerprint.get(part), wanted.fingerprint.get(part)
        if before != now:
            raise StoreError(
                f"{path} was made with {what}.",
                f"store: {_difference(before, now)}",
                f"now:   {_difference(now, before)}",
                OTHER_STORE,
            )


def _difference(value: Any, other: Any) -> str:
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if other.get(k) != v) or "-"
    return str(value)
