"""The filter's files: kept and dropped records, and the score file, each there whole or not."""

import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import jsonlines

from congrad_cli.errors import StoreError, UsageError
from congrad_cli.filter.annotate import annotate
from congrad_cli.filter.verdicts import Verdicts, as_json
from congrad_cli.outputs import check_output, is_special, pour, whole_file
from congrad_cli.records.containers import container
from congrad_cli.records.files import find_files
from congrad_cli.records.lines import Writer, compressed, writer_for
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import DataFile
from congrad_cli.settings import FilterSettings
from congrad_cli.store import GradientStore


def write_outputs(
    store: GradientStore, settings: FilterSettings, verdicts: Verdicts, stdout: BinaryIO
) -> None:
    """Write every record where its verdict says, in the order of the data.

    Nothing is written before every record of the data has been found to be the one sketched.
    """
    files = data_files(store, settings)
    check_outputs(settings, [file.path for file in files])
    containers = {container(file) for file in files}
    with ExitStack() as stack:
        kept, dropped = (
            stack.enter_context(_records(path, target, containers))
            for path, target in ((settings.output, stdout), (settings.dropped, None))
        )
        scores = stack.enter_context(_output(settings.scores, None))
        entries = jsonlines.Writer(scores, dumps=as_json)
        count = 0
        for record in read_records(files, store.index.fields, grouped=False):
            entry = verdicts.entry(record)
            raw = annotate(record, entry) if settings.annotate else record.raw
            (kept if entry["keep"] else dropped).write(raw)
            entries.write(entry)
            count += 1
        if count != store.rows:
            raise StoreError(
                f"the data has {count:,} records, {store.path} was made from "
                f"{store.rows:,}.",
                "pass --data FILE with the data that was sketched",
            )


def data_files(store: GradientStore, settings: FilterSettings) -> list[DataFile]:
    """The data's files, which must be there."""
    if settings.data:
        return find_files(settings.data)
    files = [DataFile(item.name, store.path / item.path) for item in store.index.sources]
    for file in files:
        if not file.path.is_file():
            raise StoreError(
                f"{file.name}: the data that was sketched is not at {file.path} any more.",
                "pass --data FILE with its new place",
            )
    return files


def check_outputs(settings: FilterSettings, sources: Sequence[Path] = ()) -> None:
    """No output may be written over another one or over the data."""
    taken = {path.resolve(): "the data that was sketched" for path in sources}
    if settings.quotas is not None:
        taken[settings.quotas.resolve()] = "the file of quotas"
    for name in ("output", "dropped", "scores", "summary"):
        path: Path | None = getattr(settings, name)
        if path is None:
            continue
        check_output(f"--{name}", path)
        if is_special(path):
            continue
        if path.resolve() in taken:
            raise UsageError(f"--{name} {path} is {taken[path.resolve()]}.", "name another file")
        taken[path.resolve()] = f"--{name} as well"


@contextmanager
def _records(
    path: Path | None, stdout: BinaryIO | None, containers: Collection[str]
) -> Iterator[Writer]:
    """A writer of original records; compressed where the path's ending says so."""
    with _output(path, stdout) as file, compressed(path or Path(), file) as target:
        writer = writer_for(target, containers)
        yield writer
        writer.close()


@contextmanager
def _output(path: Path | None, stdout: BinaryIO | None) -> Iterator[BinaryIO]:
    """A file that appears at ``path`` (or on ``stdout``) whole, and only if nothing went wrong."""
    if path is not None:
        with whole_file(path) as file:
            yield file
    elif stdout is None:
        with Path(os.devnull).open("wb") as nothing:
            yield nothing
    else:
        with tempfile.TemporaryFile() as spool:
            yield spool
            pour(spool, stdout, close=False)
