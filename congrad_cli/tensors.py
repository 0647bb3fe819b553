"""Tensors in files: deterministic safetensors bytes, durable commits, checked memory maps."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from congrad_cli.claims import NO_LINKS, NO_RESOURCES, temporary_name
from congrad_cli.errors import StoreError

Arrays = dict[str, NDArray[Any]]

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32,
    "I8": np.int8, "U8": np.uint8,
}  # fmt: skip
_MAX_HEADER = 1 << 24

_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def commit_file(path: Path, data: bytes) -> None:
    """Make ``data`` appear at ``path`` whole, durable and with the umask's mode, or not at all.

    Raises :class:`FileExistsError` where ``path`` exists already. On a file system without hard
    links a rename follows a look: of two writers of one name at one moment the later would win
    unnoticed there. A rank's lock keeps its shards from that.
    """
    with _written(path, data) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            temporary.rename(path)


def replace_file(path: Path, data: bytes) -> None:
    """As :func:`commit_file`, but an older file at ``path`` gives way."""
    with _written(path, data) as temporary:
        temporary.replace(path)


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """A durable temporary file beside ``path``; its new name is made durable at the end."""
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some network file systems sync names by themselves
            raise
    finally:
        os.close(directory)


def pack_arrays(arrays: Arrays, metadata: Mapping[str, Any]) -> bytes:
    """safetensors bytes of ``arrays``, the same bytes for the same content.

    safetensors writes several metadata keys in random order; one key of sorted JSON is stable.
    The metadata also receives a SHA-256 per tensor, and one of itself.
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    digests = {name: _sum(array) for name, array in arrays.items()}
    about = {**metadata, "sha256": digests}
    content = json.dumps({**about, "digest": digest_of(about)}, sort_keys=True)
    return save(arrays, metadata={"congrad": content})


def digest_of(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of metadata, its own digest not among it."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def map_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Memory-map every tensor of a safetensors file; returns (arrays, our metadata).

    Raises :class:`StoreError` on a damaged or foreign file. Nothing is allocated from a size
    that the file only claims: every extent is checked against the file's length first.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise StoreError(f"{path}: no regular file.")
        # The file is opened once: another may have its name a moment later.
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            size = int.from_bytes(file.read(8), "little")
            if length < 8 or size > min(_MAX_HEADER, length - 8):
                raise StoreError(f"{path}: header of {size} bytes in a file of {length}.")
            header = _json_object(file.read(size))
            metadata = _json_object(header.pop("__metadata__")["congrad"])
            arrays = {
                name: _map_tensor(file, entry, 8 + size, length) for name, entry in header.items()
            }
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in NO_RESOURCES:
            raise
        raise StoreError(f"{path}: damaged or not of a store ({error}).") from error
    return arrays, metadata


def check_sums(path: Path, arrays: Arrays, metadata: Mapping[str, Any], cure: str) -> None:
    """Raise :class:`StoreError` unless these tensors of a file are what was written."""
    sums = metadata.get("sha256")
    for name, array in arrays.items():
        if not isinstance(sums, dict) or sums.get(name) != _sum(array):
            raise StoreError(f"{path}: damaged: '{name}' is not what was written.", cure)


def _sum(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _json_object(text: str | bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("no JSON object")
    return value


def _map_tensor(
    file: BinaryIO, entry: dict[str, Any], base: int, length: int
) -> NDArray[Any]:
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    shape = tuple(int(extent) for extent in entry["shape"])
    begin, end = entry["data_offsets"]
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if not 0 <= begin <= end <= length - base or count * dtype.itemsize != end - begin:
        raise ValueError(f"a tensor of shape {shape} at {begin}..{end}")
    if count == 0:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", offset=base + begin, shape=shape)
