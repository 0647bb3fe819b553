"""Files that commands write for the user: there whole or not at all, and over nothing else."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from congrad_cli.claims import NO_RESOURCES, temporary_name
from congrad_cli.errors import UsageError
from congrad_cli.leftovers import store_of

TABLES = (".parquet", ".arrow", ".feather", ".csv", ".tsv", ".xlsx")


STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
"""Names of standard output; behind the last three is stderr once the real one is set aside."""


def is_special(path: Path) -> bool:
    """A pipe or a device: written into, never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_output(option: str, path: Path) -> None:
    """Raise :class:`UsageError` where nothing can be written, or not what the name promises."""
    if str(path) in STDOUT:
        raise UsageError(f"{option} {path}: stdout is for kept lines alone.", "name a file")
    if is_special(path):
        return
    if path.suffix.lower() in TABLES:
        raise UsageError(f"{option} {path}: records come back as JSON, not as a table.",
                         f"name it {path.with_suffix('.jsonl').name}")
    whole = path.resolve()
    if whole.is_dir() or not whole.parent.is_dir():
        raise UsageError(f"{option} {path}: cannot be written; is it a folder, or in one that is "
                         "missing?")
    check_not_of_store(option, path)


def check_not_of_store(option: str, path: Path) -> None:
    """Raise :class:`UsageError` where the output would replace what a store is made of."""
    if (store := store_of(path.resolve())) is not None:
        raise UsageError(f"{option} {path}: this is a file of the store {store}.",
                         "name another file; nothing may be written over a store")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at ``path`` whole, and only if nothing went wrong.

    Through a symbolic link the file it names is replaced, not the link. Raises
    :class:`UsageError` where the system does not let us write there.
    """
    if is_special(path):
        with tempfile.TemporaryFile() as spool:
            yield spool
            pour(spool, path.open("wb"))
        return
    path = path.resolve()
    temporary = temporary_name(path)
    try:
        with _opened(temporary, path) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def pour(spool: BinaryIO, target: BinaryIO, close: bool = True) -> None:
    """Copy what was collected to where it goes."""
    spool.seek(0)
    with target if close else nullcontext(target):
        shutil.copyfileobj(spool, target)
        target.flush()


def _opened(temporary: Path, path: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb")
    except OSError as error:
        if error.errno in NO_RESOURCES:
            raise
        raise UsageError(f"{path}: cannot be written ({error.strerror}).") from error
