"""One record's bytes -> a JSON object, read strictly: what two readers could take differently
(NaN, keys that stand twice, halves of characters) is refused, not guessed."""

import json
from typing import Any, NoReturn

from congrad_cli.records.record import Place

BOM = b"\xef\xbb\xbf"
BINARY = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"PK\x03\x04", b"ARROW1")
MAX_DEPTH = 64
"""Of a message; tool calls nest, but not like this."""


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


_DECODER = json.JSONDecoder(parse_constant=_reject_constant, object_pairs_hook=_unique_keys)


def parse_object(raw: bytes, place: Place) -> dict[str, Any]:
    """The object that ``raw`` spells, or :class:`BadRecord`."""
    text = _decode(raw, place)
    try:
        value = _DECODER.decode(text)
    except _BadConstant as error:
        place.fail("bad-number", f"{error} is not JSON.", "write null or a number in its place")
    except _DuplicateKey as error:
        place.fail("duplicate-key", f"the key {_shown(str(error))} stands twice in one object.",
                   "keep one of the two")
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - 30) : error.pos + 30].strip()
        place.fail(
            "not-json",
            f"not valid JSON (column {error.pos + 1}: {error.msg}).",
            f"saw: ...{_shown(around)[1:-1]}..." if around else "saw: nothing there",
            "one object over several lines? each line must be a whole one, or the file an array"
            if text.strip() == "{" else "each line must be one whole JSON object",
        )
    except ValueError:  # Python's guard against numbers that take forever to read
        place.fail("bad-number", "a number with thousands of digits.",
                   "write it as a string, in quotes")
    except RecursionError:
        fail_depth(place)
    if not isinstance(value, dict):
        place.fail("not-object", f"a JSON {kind(value)}, not an object.",
                   'write {"prompt": ..., ...}')
    return value


def _decode(raw: bytes, place: Place) -> str:
    if place.line == 1:
        raw = raw.removeprefix(BOM)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if raw.startswith(BINARY):
            place.fail("not-utf8", "a compressed or binary file.",
                       "unpack it first: congrad reads JSON, gzip, zstd and parquet")
        return place.fail(
            "not-utf8",
            f"not UTF-8 (byte 0x{raw[error.start]:02x} at byte {error.start} of the line).",
            f"convert the file first: iconv -f LATIN1 -t UTF-8 {place.source}",
        )


def check_text(text: str, name: str, place: Place) -> None:
    """Refuse half a character: no tokenizer and no UTF-8 file can take it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        place.fail(
            "surrogate",
            f"'{name}' holds a lone surrogate (\\u{ord(text[error.start]):04x}), "
            "half of a character.",
            f"saw: {text[max(0, error.start - 20) : error.start]!a} before it",
            "write the whole character, or remove it",
        )


def check_parts(value: Any, name: str, place: Place, depth: int = 0) -> None:
    """Refuse what a template or the digest could not write down again, however deep it lies."""
    if depth > MAX_DEPTH:
        fail_depth(place)
    if isinstance(value, str):
        check_text(value, name, place)
    elif isinstance(value, dict):
        for key, part in value.items():
            check_text(key, name, place)
            check_parts(part, name, place, depth + 1)
    elif isinstance(value, list):
        for part in value:
            check_parts(part, name, place, depth + 1)


def fail_depth(place: Place) -> NoReturn:
    """Refuse a record that nests too deeply."""
    place.fail("too-deep", "JSON nested too deeply.", "a pair needs at most a list of messages")


def kind(value: Any) -> str:
    """What JSON calls a value."""
    kinds = {"NoneType": "null", "bool": "boolean", "int": "number", "float": "number",
             "str": "string", "list": "list"}
    return kinds.get(type(value).__name__, "object")


def excerpt(value: Any, limit: int = 60) -> str:
    """The beginning of a value, as JSON on one line."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except RecursionError:  # it could be read only just
        return f"a {kind(value)}, nested deeply"
    return text if len(text) <= limit else text[:limit] + "..."


def names(fields: dict[str, Any], limit: int = 12) -> str:
    """The keys of a record, for a message on one line."""
    shown = [_shown(key) for key in list(fields)[:limit]]
    more = [f"and {len(fields) - limit} more"] if len(fields) > limit else []
    return ", ".join(shown + more) or "none"


def _shown(text: str, limit: int = 60) -> str:
    """Untrusted text in quotes, on one line and short; letters of any script stay readable."""
    return repr(text if len(text) <= limit else text[:limit] + "...")
