"""Preference records: bytes -> :class:`Record` and back, byte for byte.

A file is read as bytes and split on ``\\n`` alone, so that the original line can be given back
unchanged. Each line is validated on the way; the first bad one stops the run with its place,
what was seen and the cure.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from congrad_cli.errors import InputError
from congrad_cli.settings import RecordSettings

Messages = list[dict[str, Any]]
Text = str | Messages

LANGUAGE_FIELDS = ("language", "lang")
REF_FIELDS = ("ref_chosen_logps", "ref_rejected_logps")
"""TRL's names for the log-probabilities of a reference model, summed over each answer."""
LEAST_LOGP = -1e30
"""Below it float32 ends."""
MAX_DEPTH = 64
"""Of a message; tool calls nest, but not like this."""


@dataclass(frozen=True, slots=True)
class Record:
    """One preference pair as it stands in its file.

    ``row`` counts records over all files from 0, ``line`` counts lines of ``source`` from 1.
    ``raw`` is the original line with its terminator.
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
        """16 bytes that name the record's content, wherever its line stands."""
        content: list[Any] = [self.prompt, self.chosen, self.rejected, self.group, self.id]
        if self.ref_logp is not None:
            content.append(self.ref_logp)
        if self.template:
            content.append(self.template)
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()[:16]


class _Place:
    """A line of a file, for error messages."""

    def __init__(self, source: str, line: int) -> None:
        self.source, self.line = source, line

    def fail(self, what: str, *hints: str) -> NoReturn:
        raise InputError(f"{self.source}:{self.line}: {what}", *hints)


def read_records(sources: Iterable[tuple[str, Path]], settings: RecordSettings) -> Iterator[Record]:
    """Yield every record of the files, in order; ``sources`` holds (name to show, path)."""
    row = 0
    for name, path in sources:
        try:
            file = path.open("rb")
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from error
        with file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    yield parse_record(raw, row, name, line, settings)
                    row += 1


def parse_record(raw: bytes, row: int, source: str, line: int, settings: RecordSettings) -> Record:
    """Turn one line into a record, or raise :class:`InputError` with the place and the cure."""
    place = _Place(source, line)
    fields = _parse_object(raw, place)
    names = (settings.prompt_field, settings.chosen_field, settings.rejected_field)
    prompt, chosen, rejected = (_text(fields, name, place) for name in names)
    if len({isinstance(part, str) for part in (prompt, chosen, rejected)}) > 1:
        shapes = ", ".join(
            f"{name} is {'text' if isinstance(part, str) else 'a message list'}"
            for name, part in zip(names, (prompt, chosen, rejected), strict=True)
        )
        place.fail("texts and message lists are mixed.", f"saw: {shapes}", "use one of the two")
    if chosen == rejected:
        place.fail(
            f"'{names[1]}' and '{names[2]}' are the same; such a pair has no gradient.",
            f"saw: {_excerpt(chosen)}",
            "remove the line, or give it two different answers",
        )
    identifier = fields.get(settings.id_field)
    if isinstance(identifier, str):
        _check_surrogates(identifier, settings.id_field, place)
    return Record(
        row=row,
        source=source,
        line=line,
        raw=raw,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        group=_language(fields, settings, place),
        id=identifier if isinstance(identifier, str | int) else None,
        ref_logp=_ref_logp(fields, place),
        template={} if isinstance(prompt, str) else _template_arguments(fields, place),
    )


class _BadConstant(ValueError):
    pass


class _DuplicateKey(ValueError):
    pass


def _reject_constant(name: str) -> NoReturn:
    raise _BadConstant(name)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)
    return result


def _parse_object(raw: bytes, place: _Place) -> dict[str, Any]:
    if place.line == 1 and raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]  # a byte-order mark
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if raw.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1")):
            place.fail("a compressed or binary file.", "unpack it first: congrad reads JSONL")
        place.fail(
            f"not UTF-8 (byte 0x{raw[error.start]:02x} at byte {error.start} of the line).",
            f"convert the file first: iconv -f LATIN1 -t UTF-8 {place.source}",
        )
    try:
        value = json.loads(
            text, parse_constant=_reject_constant, object_pairs_hook=_unique_keys
        )
    except _BadConstant as error:
        place.fail(f"{error} is not JSON.", "write null or a number in its place")
    except _DuplicateKey as error:
        place.fail(f"the key '{error}' stands twice in one object.", "keep one of the two")
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - 30) : error.pos + 30].strip()
        place.fail(
            f"not valid JSON (column {error.pos + 1}: {error.msg}).",
            f"saw: ...{around}..." if around else "saw: nothing there",
            "each line must be one whole JSON object",
        )
    except ValueError:  # Python's guard against numbers that take forever to read
        place.fail("a number with thousands of digits.", "write it as a string, in quotes")
    except RecursionError:
        _fail_depth(place)
    if not isinstance(value, dict):
        place.fail(f"a JSON {_kind(value)}, not an object.", 'write {"prompt": ..., ...}')
    return value


def _text(fields: dict[str, Any], name: str, place: _Place) -> Text:
    """A non-empty text or message list of the record."""
    if name not in fields:
        place.fail(
            f"no field '{name}'.",
            f"fields here: {', '.join(map(repr, fields)) or 'none'}",
            f"name the right one with --{_option(name)}-field, or add the field",
        )
    value = fields[name]
    if isinstance(value, str):
        if not value.strip():
            place.fail(f"'{name}' is empty.", f"saw: {value!r}", "give it text or remove the line")
        _check_surrogates(value, name, place)
        return value
    if isinstance(value, list):
        return _messages(value, name, place)
    return place.fail(
        f"'{name}' is a JSON {_kind(value)}, not text and not a message list.",
        f"saw: {_excerpt(value)}",
        'write "..." or [{"role": "user", "content": "..."}]',
    )


def _messages(value: list[Any], name: str, place: _Place) -> Messages:
    if not value:
        place.fail(f"'{name}' is empty.", "saw: []", "give it a message or remove the line")
    for index, message in enumerate(value):
        where = f"'{name}', message {index + 1}"
        if not isinstance(message, dict):
            place.fail(f"{where}: a JSON {_kind(message)}, not an object.",
                       'write {"role": "user", "content": "..."}')
        for key in ("role", "content"):
            part = message.get(key)
            if not isinstance(part, str):
                saw = _excerpt(part) if key in message else f"keys {', '.join(message) or 'none'}"
                place.fail(f"{where}: no text in '{key}'.", f"saw: {saw}",
                           'write {"role": "user", "content": "..."}')
            if not part.strip():
                place.fail(f"{where}: '{key}' is empty.", "give it text or remove the line")
        _check_parts(message, name, place, 0)
    return value


def _check_parts(value: Any, name: str, place: _Place, depth: int) -> None:
    """Refuse what a template or the digest could not write down again, however deep it lies."""
    if depth > MAX_DEPTH:
        _fail_depth(place)
    if isinstance(value, str):
        _check_surrogates(value, name, place)
    elif isinstance(value, dict | list):
        for part in value:
            _check_parts(part, name, place, depth + 1)
        if isinstance(value, dict):
            _check_parts(list(value.values()), name, place, depth)


def _fail_depth(place: _Place) -> NoReturn:
    place.fail("JSON nested too deeply.", "a pair needs at most a list of messages")


def _language(fields: dict[str, Any], settings: RecordSettings, place: _Place) -> str:
    if settings.language is not None:
        return settings.language
    names = (settings.language_field,) if settings.language_field else LANGUAGE_FIELDS
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and value.strip():
            _check_surrogates(value, name, place)
            return value.strip()
        if name in fields:
            place.fail(f"'{name}' holds no language.", f"saw: {_excerpt(value)}",
                       'write a code such as "de"')
    return place.fail(
        f"no language: no field {' or '.join(map(repr, names))}.",
        f"fields here: {', '.join(map(repr, fields))}",
        "name it with --language-field FIELD, or pass --language de for the whole file",
    )


def _template_arguments(fields: dict[str, Any], place: _Place) -> dict[str, Any]:
    """``tools`` (a list, or JSON text of one) and ``chat_template_kwargs``, as TRL reads them."""
    arguments = fields.get("chat_template_kwargs")
    if not isinstance(arguments, dict | None):
        place.fail("'chat_template_kwargs' is no object.", f"saw: {_excerpt(arguments)}",
                   'write {"enable_thinking": false} or the like, or leave it out')
    tools = fields.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            place.fail("'tools' is text, and not JSON.", f"saw: {_excerpt(tools)}",
                       "write a list of tools, or leave it out")
    if not isinstance(tools, list | None):
        place.fail("'tools' is no list.", f"saw: {_excerpt(tools)}",
                   "write a list of tools, or leave it out")
    result = {**({"tools": tools} if tools else {}), **(arguments or {})}
    _check_parts(result, "tools", place, 0)
    return result


def _ref_logp(fields: dict[str, Any], place: _Place) -> tuple[float, float] | None:
    given: list[Any] = [fields.get(name) for name in REF_FIELDS]
    if given == [None, None]:
        return None
    for name, value in zip(REF_FIELDS, given, strict=True):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and LEAST_LOGP <= value <= 0):
            place.fail(f"'{name}' is no log-probability.", f"saw: {_excerpt(value)}",
                       f"give {' and '.join(REF_FIELDS)} as numbers, or neither")
    chosen, rejected = given
    return float(chosen), float(rejected)


def _check_surrogates(text: str, name: str, place: _Place) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        place.fail(
            f"'{name}' holds a lone surrogate (\\u{ord(text[error.start]):04x}), "
            "half of a character.",
            f"saw: {text[max(0, error.start - 20) : error.start]!a} before it",
            "write the whole character, or remove it",
        )


def _option(name: str) -> str:
    return name if name in ("prompt", "chosen", "rejected") else "prompt/--chosen/--rejected"


def _kind(value: Any) -> str:
    kinds = {"NoneType": "null", "bool": "boolean", "int": "number", "float": "number",
             "str": "string", "list": "list"}
    return kinds.get(type(value).__name__, "object")


def _excerpt(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= limit else text[:limit] + "..."


class LineWriter:
    """Writes original lines; adds a newline only where a line without one is followed by more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._open_line = False

    def write(self, raw: bytes) -> None:
        """Append one original line."""
        if self._open_line:
            self._file.write(b"\n")
        self._file.write(raw)
        self._open_line = not raw.endswith(b"\n")
