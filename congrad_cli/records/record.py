"""What everything about preference data speaks of: records, and what is wrong with bad ones."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from congrad_cli.errors import InputError

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))

Messages = list[dict[str, Any]]
Text = str | Messages


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of records: the name to show, where it lies, and the language its name gives."""

    name: str
    path: Path
    language: str | None = None


class BadRecord(InputError):
    """Something that is no preference pair: where it stands, which kind of damage, and the cure."""

    def __init__(self, source: str, line: int, code: str, what: str, *hints: str) -> None:
        super().__init__(f"{source}:{line}: {what}", *hints)
        self.source, self.line, self.code, self.what = source, line, code, what


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands: a file, and in it a line (a row, in a table), from 1."""

    source: str
    line: int

    def fail(self, code: str, what: str, *hints: str) -> NoReturn:
        """Raise :class:`BadRecord` for this place."""
        raise BadRecord(self.source, self.line, code, what, *hints)


@dataclass(frozen=True, slots=True)
class Item:
    """One record as it stands in its file, not looked into yet.

    ``raw`` is its original bytes: the line with its terminator, the element of a JSON array with
    the white space around it, the row of a table as a line of JSON. ``damage`` says why what lies
    here cannot be a record.
    """

    line: int
    raw: bytes
    damage: BadRecord | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """An item that is no usable pair. ``row`` is its place among the items of all files."""

    row: int
    raw: bytes
    error: BadRecord

    @property
    def source(self) -> str:
        """The file it stands in."""
        return self.error.source

    @property
    def line(self) -> int:
        """Its line there."""
        return self.error.line


@dataclass(frozen=True, slots=True)
class Record:
    """One preference pair, whatever its shape was.

    ``row`` counts the items of all files from 0, rejected ones included, ``line`` the lines of
    ``source`` from 1. Prompt and answers are texts, or all message lists.
    """

    row: int
    source: str
    line: int
    raw: bytes
    prompt: Text
    chosen: Text
    rejected: Text
    group: str
    id: str | int | None
    ref_logp: tuple[float, float] | None = None  # a reference's, of chosen and rejected
    template: dict[str, Any] = field(default_factory=dict)  # what the chat template gets besides

    @property
    def conversational(self) -> bool:
        """Whether prompt and answers are message lists."""
        return not isinstance(self.prompt, str)

    def digest(self) -> bytes:
        """16 bytes that name the pair, whatever its line looks like and whatever its group is."""
        content: list[Any] = [self.prompt, self.chosen, self.rejected, self.id]
        if self.ref_logp is not None:
            content.append(self.ref_logp)
        if self.template:
            content.append(self.template)
        return hashlib.sha256(_CANONICAL.encode(content).encode()).digest()[:16]
