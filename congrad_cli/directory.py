"""The folder a store lives in: may it be used, may it be replaced, where does piped data go."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from congrad_cli.claims import temporary_name
from congrad_cli.errors import ResourceError, StoreError
from congrad_cli.store_index import read_index

_NAMES = {"shards", "skipped", "source", "consensus", "locks", "quarantine",
          "projection.safetensors", "index.safetensors"}  # fmt: skip
_FILES = (
    "projection.safetensors", "index.safetensors", ".*.safetensors.*.tmp", ".store.json.*.tmp",
    "shards/r*.safetensors", "shards/.r*.tmp", "skipped/*.jsonl",
    "skipped/.*.tmp", "source/stdin-*.jsonl", "source/.*.tmp", "consensus/*.safetensors",
    "quarantine/*",
)  # fmt: skip
_COPY_BYTES = 1 << 20


def check_directory(path: Path) -> None:
    """Raise :class:`StoreError` unless a store is at ``path``, or may be made there."""
    if any(parent.exists() and not parent.is_dir() for parent in path.parents):
        raise StoreError(f"{path} lies inside a file.", "pass --store DIR with another name")
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file.", "pass --store DIR with another name")
    if not path.exists() or (path / "store.json").exists():
        return
    if any(item.name not in _NAMES and not item.match(".*.tmp") for item in path.iterdir()):
        raise StoreError(f"{path} exists and is not a store.", "pass --store DIR with another name")


def remove_store(path: Path, keep: Sequence[Path] = ()) -> None:
    """Remove the store at ``path``, except files to ``keep``; only what stores are made of goes."""
    kept = {file.resolve() for file in keep}
    (path / "store.json").unlink(missing_ok=True)  # first: without it the rest is no store
    for pattern in _FILES:
        for file in path.glob(pattern):
            if file.resolve() not in kept:
                file.unlink()


@contextlib.contextmanager
def piped_data(path: Path, stream: BinaryIO) -> Iterator[Path]:
    """Keep piped data inside the store, so that ``filter`` can give its lines back.

    The file is named by its content: equal data is one file, other data leaves the store's own
    alone. At the end the files go that the store's index does not name.
    """
    folder = path / "source"
    folder.mkdir(parents=True, exist_ok=True)
    before = _spools(path)
    temporary = temporary_name(folder / "stdin")
    digest = hashlib.sha256()
    try:
        with temporary.open("xb") as target:
            while part := stream.read(_COPY_BYTES):
                digest.update(part)
                target.write(part)
            target.flush()
            os.fsync(target.fileno())
        file = folder / f"stdin-{digest.hexdigest()[:16]}.jsonl"
        ours = set() if file.exists() else {file.resolve()}  # else another run may be reading it
        temporary.replace(file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"no space left for the piped data, which is kept in {folder}.",
            "free space, or write the data to a file elsewhere and name that",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    try:
        yield file
    finally:
        for spool in (ours | before) - _spools(path):
            spool.unlink(missing_ok=True)
        for empty in (folder, path):
            with contextlib.suppress(OSError):  # something is in it
                empty.rmdir()


def _spools(path: Path) -> set[Path]:
    """The files of piped data that the store's index names."""
    try:
        places = {(path / source.path).resolve() for source in read_index(path).sources}
    except StoreError:
        return set()
    return {place for place in places if place.parent == (path / "source").resolve()}
