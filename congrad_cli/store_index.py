"""``index.safetensors``: the data as it is now, and by their digests its pairs in the store.

The shards hold pairs, not rows of a file. The index says which records the data has, in which
order, and in which group each is, so that data may grow, shrink, move or change its order and
grouping without a pair being sketched twice. Every run of ``sketch`` writes it anew.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import StoreError
from congrad_cli.records.record import Record, Rejected
from congrad_cli.settings import FORMAT, RecordSettings
from congrad_cli.tensors import check_sums, map_arrays, pack_arrays, replace_file

FILE = "index.safetensors"
NO_GROUP = -1
"""The group of an item that is no usable pair."""
_AGAIN = "run the same sketch command again; it writes it anew"


@dataclass(frozen=True, slots=True)
class Source:
    """A data file: the name to show, where it lies, how many records it holds, and their shape."""

    name: str
    path: str
    records: int
    shape: str = ""
    language: str | None = None  # that its name was said to give


@dataclass(frozen=True)
class StoreIndex:
    """The data's N items, rejected ones included."""

    sources: list[Source]
    fields: RecordSettings
    groups: list[str]
    group: NDArray[np.int32]  # [N] index into groups, or NO_GROUP
    digest: NDArray[np.uint8]  # [N, 16]

    @property
    def rows(self) -> int:
        """N."""
        return len(self.group)

    def knows(self, record: Record | Rejected) -> bool:
        """Whether this is the item that stood in its row when the index was made."""
        usable = self.group[record.row] != NO_GROUP
        if usable and isinstance(record, Rejected):
            return False
        content = record.digest() if usable and isinstance(record, Record) else raw_digest(
            record.raw)
        return bool(content == self.digest[record.row].tobytes())


def raw_digest(raw: bytes) -> bytes:
    """16 bytes that name an item that is no usable pair: its bytes, but for space around them."""
    return hashlib.sha256(raw.strip()).digest()[:16]


def write_index(path: Path, index: StoreIndex) -> None:
    """Write the index of the store at ``path``; equal indexes are equal bytes."""
    metadata = {
        "format": FORMAT,
        "sources": [asdict(source) for source in index.sources],
        "fields": asdict(index.fields),
        "groups": index.groups,
    }
    data = pack_arrays({"group": index.group, "digest": index.digest}, metadata)
    place = path / FILE
    if not (place.exists() and place.read_bytes() == data):
        replace_file(place, data)


def read_index(path: Path) -> StoreIndex:
    """Read it back, or raise :class:`StoreError`."""
    place = path / FILE
    if not place.exists():
        raise StoreError(f"{path} has no {FILE}: nobody knows which data it was made from.",
                         _AGAIN)
    arrays, about = map_arrays(place)
    try:
        index = StoreIndex(
            sources=[_source(entry) for entry in about["sources"]],
            fields=_fields(about["fields"]),
            groups=[_text("groups", name) for name in about["groups"]],
            group=np.array(arrays["group"]),
            digest=np.array(arrays["digest"]),
        )
        _check_arrays(index)
        check_sums(place, {"group": index.group, "digest": index.digest}, about, _AGAIN)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{place}: damaged or not of a store ({error}).",
                         _AGAIN) from error
    return index


def _check_arrays(index: StoreIndex) -> None:
    group, digest = index.group, index.digest
    if group.dtype != np.int32 or group.ndim != 1:
        raise ValueError("group is no list of numbers")
    if digest.dtype != np.uint8 or digest.shape != (len(group), 16):
        raise ValueError("digest has another shape")
    if len(group) and not NO_GROUP <= group.min() <= group.max() < len(index.groups):
        raise ValueError("group numbers out of range")


def _source(entry: dict[str, Any]) -> Source:
    source = Source(**entry)
    _text("name", source.name)
    path = Path(_text("path", source.path))
    if not path.is_absolute() and ".." in path.parts:
        raise ValueError(f"path {source.path!r} leads out of the store")
    if not isinstance(source.records, int) or not isinstance(source.language, str | NoneType):
        raise TypeError(f"source {source.name!r}")
    return source


def _fields(entry: dict[str, Any]) -> RecordSettings:
    """How the records were read. Raises :class:`TypeError` where that is nonsense."""
    kinds: dict[str, tuple[type, ...]] = {
        "detect_language": (bool,), "min_confidence": (int, float), "id_field": (str,)}
    fields: dict[str, Any] = {}
    for name, value in entry.items():
        many = name in ("group_by", "languages") and isinstance(value, list)
        for part in value if many else [value]:
            if not isinstance(part, kinds.get(name, (str, NoneType))):
                raise TypeError(f"{name} is {value!r}")
        fields[name] = tuple(value) if many else value
    return RecordSettings(**fields)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}")
    return value


def find_digests(wanted: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each of ``wanted`` [n, 16] its first place in ``known`` [m, 16], or -1; [n]."""
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    keys = _keys(known)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    looked_up = _keys(wanted)
    place = np.searchsorted(ordered, looked_up)
    place[place == len(ordered)] = 0
    result = order[place]
    result[ordered[place] != looked_up] = -1
    return np.asarray(result, np.int64)


def first_of_each(digest: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the digests [n, 16] has none like it before it, [n]."""
    return np.asarray(find_digests(digest, digest) == np.arange(len(digest)))


def _keys(digest: NDArray[np.uint8]) -> NDArray[Any]:
    """The digests as 16-byte strings, which numpy sorts and compares as a whole.

    It takes zeros at the end of a string for padding; among strings of one length none is lost.
    """
    return np.ascontiguousarray(digest).view("S16").reshape(-1)
