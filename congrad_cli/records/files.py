"""What the command line names -> files: names, patterns, ``{lang}``, folders of ``datasets``."""

import glob
import json
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import translate
from pathlib import Path
from typing import Any

from congrad_cli.errors import InputError, UsageError
from congrad_cli.records.compression import SUFFIXES, cannot_read
from congrad_cli.records.record import DataFile

LANG = "{lang}"


def find_files(arguments: Sequence[str]) -> list[DataFile]:
    """The files that the arguments name, in their order; those of a pattern sorted.

    An argument is a file, a pattern (unless a file has just that name), a pattern in which
    ``{lang}`` stands for the language, or a folder that ``datasets`` wrote. Names are shown as
    they were written. What matched ``{lang}`` becomes ``language``, unchanged.

    Raises :class:`InputError` where there is no such file or it cannot be read more than once,
    :class:`UsageError` where a file is named twice.
    """
    files = [file for argument in arguments for file in _named(argument)]
    seen: dict[Path, str] = {}
    for file in files:
        real = file.path.resolve()
        if real in seen:
            other = "" if seen[real] == file.name else f" (as {seen[real]})"
            raise UsageError(f"{file.name} is named twice{other}.", "name each file once")
        seen[real] = file.name
    return files


def store_name(arguments: Sequence[str]) -> Path | None:
    """Where the store of these arguments goes when nobody says: beside the one file or folder of
    ``datasets`` that they name; None where they name several, a pattern, or no place of files."""
    if len(arguments) != 1 or arguments[0] == "-":
        return None
    path = Path(arguments[0])
    if path.is_dir():
        whole = path.resolve() if path.name in ("", "..") else path
        return whole.parent / f"{whole.name}.congrad"
    if not path.exists() or path.is_relative_to("/dev") or path.is_relative_to("/proc"):
        return None
    if path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    return path.with_suffix(".congrad")


def _named(argument: str) -> Iterator[DataFile]:
    path = Path(argument)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if LANG not in argument and not glob.has_magic(argument):
            raise cannot_read(argument, error) from error
        yield from _matched(argument)
        return
    if stat.S_ISDIR(mode):
        yield from _folder(argument, path, None)
    elif stat.S_ISREG(mode):
        yield DataFile(argument, path)
    else:
        raise InputError(f"{argument}: no regular file; it could be read once only.",
                         "pipe it in: '-' reads stdin")  # fmt: skip


def _matched(pattern: str) -> Iterator[DataFile]:
    pattern = re.sub("/+", "/", pattern)
    if re.search(r"\{lang\}(\*|\{lang\})|\*\{lang\}", pattern):
        raise UsageError(f"'{pattern}': where {LANG} begins or ends cannot be told.",
                         f"put something that is always there between {LANG} and its neighbour")
    language = re.compile(_expression(pattern))
    found = False
    names = glob.glob(pattern.replace(LANG, "*"), recursive=True)  # noqa: PTH207  (absolute too)
    for name in sorted(names):
        given = None
        if LANG in pattern:
            match = language.fullmatch(name)
            if match is None:  # {lang} stands there twice, and for two different things
                continue
            given = match["lang"]
        path = Path(name)
        if path.is_file():
            found = True
            yield DataFile(name, path, given)
        elif _is_dataset(path):
            found = True
            yield from _folder(name, path, given)
    if not found:
        raise InputError(f"{pattern}: no file matches.", "check the folder and the spelling")


def _expression(pattern: str) -> str:
    """The regular expression of a glob pattern, with a group for ``{lang}``."""
    parts = []
    named = False
    for token in re.split(r"(\{lang\}|\*\*/|\*+|\?|\[[^/]*?[^/]\])", pattern):
        if token == LANG:
            parts.append("(?P=lang)" if named else "(?P<lang>[^/]+?)")
            named = True
        elif token == "**/":
            parts.append("(?:.*/)?")
        elif token.startswith("*"):
            parts.append(".*" if token == "**" else "[^/]*")
        elif token == "?":
            parts.append("[^/]")
        else:
            is_set = token.startswith("[") and token.endswith("]")
            parts.append(translate(token)[:-2] if is_set else re.escape(token))  # without its \Z
    return "(?s)" + "".join(parts)


def _is_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _folder(name: str, path: Path, language: str | None) -> Iterator[DataFile]:
    """The arrow files of a folder that ``save_to_disk`` wrote."""
    name = name.rstrip("/") or "/"
    if (path / "dataset_dict.json").is_file():
        splits = _texts(name, path / "dataset_dict.json", "splits")
        if len(splits) != 1:
            raise InputError(
                f"{name}: a folder of {len(splits)} splits: {', '.join(splits) or 'none'}.",
                f"pass {name}/{splits[0] if splits else 'train'}",
            )
        name, path = f"{name}/{splits[0]}", path / splits[0]
    if not (path / "state.json").is_file():
        raise InputError(f"{name}: a folder, not a file.", f"pass '{name}/*.jsonl'")
    for file in _texts(name, path / "state.json", "_data_files"):
        yield DataFile(f"{name}/{file}", path / file, language)


def _texts(name: str, path: Path, key: str) -> list[str]:
    """The texts that a JSON file of ``datasets`` lists at ``key``, there bare or as file names."""
    try:
        value: Any = json.loads(path.read_bytes())
        entries = [entry["filename"] if isinstance(entry, dict) else entry for entry in value[key]]
    except OSError as error:
        raise cannot_read(f"{name}/{path.name}", error) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{name}/{path.name}: not as datasets writes it ({error!r}).",
                         "save the dataset again with save_to_disk") from error
    if not all(isinstance(entry, str) for entry in entries):
        raise InputError(f"{name}/{path.name}: not as datasets writes it ('{key}').",
                         "save the dataset again with save_to_disk")
    return entries
