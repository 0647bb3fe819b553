"""The pairs as the trainer reads them: three columns of one form, whatever else the lines hold.

The trainer judges a file by its first row and derives a type for every column; a field that is a
number here and a text there, or a text among message lists, would stop it in its middle.
"""

import filecmp
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from congrad_cli.errors import InputError

SIDES = ("prompt", "chosen", "rejected")


def write_training_pairs(pairs: Path, target: Path) -> int:
    """Copy prompt, chosen and rejected of every line of ``pairs``; returns how many there are.

    All three are message lists, or all three texts, and so in every line: else an
    :class:`InputError` says which line is not so. A file that holds the same is left alone: what
    was computed from it is found again by its time.
    """
    temporary = target.with_suffix(".tmp")
    count = _write(pairs, temporary)
    if target.exists() and filecmp.cmp(temporary, target, shallow=False):
        temporary.unlink()
    else:
        temporary.replace(target)
    return count


def _write(pairs: Path, target: Path) -> int:
    form: str | None = None
    count = 0
    with target.open("w", encoding="utf-8") as file:
        for place, record in _records(pairs):
            row = {side: _plain(record, side, place) for side in SIDES}
            found = {"texts" if isinstance(value, str) else "messages" for value in row.values()}
            form = form or found.pop()
            if found - {form}:
                raise InputError(
                    f"{place}: texts and message lists are mixed.",
                    f"the pairs before are {form}" if count else "one pair, one form",
                    "the trainer needs the same form in every pair",
                )
            try:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            except UnicodeEncodeError as error:
                raise InputError(f"{place}: text with half of a character ({error.reason}).",
                                 "write the whole character, or remove it") from error
            count += 1
    if count == 0:
        raise InputError(
            f"{pairs} holds no pairs: there is nothing to train on.",
            "let the filter keep more (filter.min_score, filter.keep_at_least), or add prompts",
        )
    return count


def _records(pairs: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with pairs.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{pairs}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: not JSON ({error}).") from error
            if not isinstance(record, dict):
                raise InputError(f"{place}: not a JSON object.")
            yield place, record


def _plain(record: dict[str, Any], side: str, place: str) -> str | list[dict[str, str]]:
    """The text, or the messages with nothing but role and content."""
    value = record.get(side)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return [{"role": turn["role"], "content": turn["content"]} for turn in value]
    raise InputError(
        f"{place}: no usable {side!r}.",
        f"what is there: {json.dumps(value, ensure_ascii=False)[:100]}",
        "it must be a text, or a list of messages with role and content",
    )


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and all(
        isinstance(turn.get(name), str) for name in ("role", "content")
    )
