"""The file of ``--rejects``: what was left out, byte for byte, and why."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from congrad_cli.outputs import whole_file
from congrad_cli.records.containers import read_items
from congrad_cli.records.record import DataFile, Item


def write_rejects(
    path: Path, files: Iterable[DataFile], entries: Mapping[int, dict[str, Any]]
) -> None:
    """One JSON object for each row of ``entries``, in order, with the item's original bytes.

    They are under ``raw`` as text, or under ``raw_base64`` where they are no UTF-8. The file
    appears whole or not at all; a pipe or a device is written into.
    """
    lines = (_line(entries[row], item) for row, item in _items(files) if row in entries)
    with whole_file(path) as file:
        file.writelines(lines)


def _items(files: Iterable[DataFile]) -> Iterator[tuple[int, Item]]:
    return enumerate(item for file in files for item in read_items(file))


def _line(entry: dict[str, Any], item: Item) -> bytes:
    known = {name: entry[name] for name in ("source", "line", "row", "code", "message")
             if name in entry}
    try:
        raw = {"raw": item.raw.decode("utf-8")}
    except UnicodeDecodeError:
        raw = {"raw_base64": base64.b64encode(item.raw).decode()}
    # what a file's name has that is no UTF-8 becomes a JSON escape
    text = json.dumps(known | raw, ensure_ascii=False)
    return text.encode(errors="backslashreplace") + b"\n"
