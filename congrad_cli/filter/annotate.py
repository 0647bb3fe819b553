"""``--annotate``: the verdict inside the record, as its last key; no other byte changes."""

import json
import re
from typing import Any

from congrad_cli.errors import InputError
from congrad_cli.records.objects import parse_object
from congrad_cli.records.record import BadRecord, Place, Record, Rejected

KEY = "congrad"
BLANK = b" \t\r\n"
VERDICT = ("score", "error", "keep", "reason", "group", "flag", "rank_by", "duplicate_of")
"""What of a score file's entry goes into the record."""

_OURS = re.compile(rb'(?:,[ \t\r\n]*)?(?<!\\)"congrad"[ \t\r\n]*:')


def annotate(record: Record | Rejected, entry: dict[str, Any]) -> bytes:
    """The record's bytes with what ``entry`` says of it under the key ``congrad``.

    What is no JSON object comes back as it was. A verdict of an earlier run, which stands last,
    is replaced. Raises :class:`InputError` where the record's own data has that name.
    """
    raw = record.raw
    if isinstance(record, Record) and b'"congrad"' not in raw and b"\\u" not in raw:
        empty = False
    else:
        fields = _fields(record)
        if fields is None:
            return raw
        if KEY in fields:
            raw = _without_ours(raw, fields, Place(record.source, record.line))
            del fields[KEY]
        empty = not fields
    note = json.dumps({key: entry[key] for key in VERDICT if key in entry}, ensure_ascii=False)
    head, tail = _split(raw)
    text = f'{"" if empty else ", "}"{KEY}": {note}'
    return head + text.encode(errors="backslashreplace") + tail


def _fields(record: Record | Rejected) -> dict[str, Any] | None:
    """The object that the record's bytes are; None where readers would not all see one."""
    if isinstance(record, Rejected) and record.error.code == "too-long":
        return None
    try:
        return parse_object(record.raw, Place(record.source, record.line))
    except BadRecord:
        return None


def _split(raw: bytes) -> tuple[bytes, bytes]:
    """An object's bytes before and after the place of a new last key."""
    brace = raw.rindex(b"}")
    head = raw[:brace].rstrip(BLANK)
    return head, raw[len(head) :]


def _without_ours(raw: bytes, fields: dict[str, Any], place: Place) -> bytes:
    """The object without the verdict at its end, or :class:`InputError` if it has none there."""
    value, others = fields[KEY], {name: part for name, part in fields.items() if name != KEY}
    found = list(_OURS.finditer(raw))
    if found and isinstance(value, dict) and {"score", "keep", "reason"} <= value.keys():
        at, tail = found[-1].start(), _split(raw)[1]
        try:
            if parse_object(raw[:at] + tail, place) == others:
                return raw[:at] + tail
        except BadRecord:
            pass
    raise InputError(
        f"{place.source}:{place.line}: the record has a field '{KEY}' that --annotate did not "
        "write.", "rename the field, or use --scores FILE instead of --annotate",
    )
