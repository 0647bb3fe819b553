"""Whether a safetensors file of a store still has the bytes that it was written with.

Such a file holds a SHA-256 of every tensor and one of its metadata. What is left, the order and
spelling of its header, is determined by the rest: the header is spelt again and compared. So no
byte of the file can change unnoticed.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from congrad_cli.errors import StoreError
from congrad_cli.tensors import Arrays, digest_of, map_arrays

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor lies behind the header, and the digest that its bytes should have."""

    begin: int
    end: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file whose header is in order: its tensors as memory maps, and our metadata."""

    path: Path
    arrays: Arrays
    metadata: dict[str, Any]
    base: int  # where the tensors begin
    extents: dict[str, Extent]


def check_header(path: Path) -> CheckedFile:
    """Open a file and check all of it but its tensors' bytes, or raise :class:`StoreError`."""
    arrays, metadata = map_arrays(path)
    try:
        base, extents = _read_extents(path, metadata)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: damaged or not of a store ({error}).") from error
    return CheckedFile(path, arrays, metadata, base, extents)


def check_tensors(file: CheckedFile) -> None:
    """Raise :class:`StoreError` naming the first tensor whose bytes are not those written."""
    with file.path.open("rb") as stream:
        for name, extent in file.extents.items():
            digest, left = hashlib.sha256(), extent.end - extent.begin
            stream.seek(file.base + extent.begin)
            while left and (part := stream.read(min(left, _READ_BYTES))):
                digest.update(part)
                left -= len(part)
            if digest.hexdigest() != extent.sha256:
                raise StoreError(f"{file.path}: tensor '{name}' is not as it was written.")


def _read_extents(path: Path, metadata: dict[str, Any]) -> tuple[int, dict[str, Extent]]:
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")  # map_arrays has checked it
        raw = stream.read(size)
    header = json.loads(raw)
    spelt = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if raw != spelt + b" " * (-len(spelt) % 8):
        raise ValueError("its header is not as it was written")
    about = header.pop("__metadata__")
    if about != {"congrad": json.dumps(metadata, sort_keys=True)}:
        raise ValueError("its metadata is not as it was written")
    rest = {name: value for name, value in metadata.items() if name != "digest"}
    if metadata["digest"] != digest_of(rest):
        raise ValueError("its metadata is not as it was written")
    digests = metadata["sha256"]
    if digests.keys() != header.keys():
        raise ValueError("its digests are those of other tensors")
    extents = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        extents[name] = Extent(begin, end, digests[name])
    end = 0
    for extent in sorted(extents.values(), key=lambda item: (item.begin, item.end)):
        if extent.begin != end:
            raise ValueError(f"a gap or an overlap at {end}")
        end = extent.end
    if 8 + size + end != path.stat().st_size:
        raise ValueError("bytes behind its last tensor")
    return 8 + size, extents
