"""Which files in a store's folder are the store's, and which are not: temporary ones, others."""

import os
import re
import socket
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

FOLDERS = ("shards", "skipped", "consensus", "source", "locks", "quarantine")
KNOWN = (
    "store.json", "projection.safetensors", "index.safetensors", "shards/r*.safetensors",
    "skipped/*.jsonl", "consensus/*.safetensors", "source/stdin-*.jsonl", "locks/*",
    "locks/.*", "quarantine/*",
)  # fmt: skip
OLD_SECONDS = 120.0
"""A temporary file that may be another machine's and was not touched for so long is nobody's."""

_TEMPORARY = re.compile(
    r"\.(?:.+\.[0-9a-f]{8}\.(?P<host>[A-Za-z0-9-]+)|[^.]+)\.(?P<pid>\d{1,9})\.tmp")
"""``.NAME.TOKEN.HOST.PID.tmp``, and piped data that is being read: ``.stdin.PID.tmp``."""


def leftovers(path: Path) -> Iterator[Path]:
    """The temporary files in the store at ``path`` whose processes are gone."""
    for place in _files(path):
        match = _TEMPORARY.fullmatch(place.name)
        if match and "locks" not in place.parts[len(path.parts):] and _is_abandoned(place, match):
            yield place


def foreign_files(path: Path) -> Iterator[Path]:
    """Files and folders that no store has; what is inside such folders is not looked at."""
    for place in _files(path):
        name = place.relative_to(path).as_posix()
        known = any(fnmatchcase(name, pattern) for pattern in KNOWN)
        if not known and not _TEMPORARY.fullmatch(place.name):
            yield place


def store_of(place: Path) -> Path | None:
    """The store that a file of this name is a part of, if it is of one."""
    for path in place.parents[:2]:
        name = place.relative_to(path).as_posix()
        if (path / "store.json").is_file() and any(fnmatchcase(name, one) for one in KNOWN):
            return path
    return None


def _files(path: Path) -> Iterator[Path]:
    """What lies in the store's own folders, sorted."""
    for folder in (path, *(path / name for name in FOLDERS)):
        if folder.is_dir() and not (folder != path and folder.is_symlink()):
            for place in sorted(folder.iterdir()):
                if folder != path or place.name not in FOLDERS:
                    yield place


def _is_abandoned(place: Path, match: re.Match[str]) -> bool:
    here = match["host"] == re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:24]
    if (here or match["host"] is None) and _runs(int(match["pid"])):
        return False
    try:
        return here or time.time() - place.lstat().st_mtime > OLD_SECONDS
    except FileNotFoundError:  # it was somebody's
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
