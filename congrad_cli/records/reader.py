"""Data files -> records, in order, and with them what is no usable pair and why."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from congrad_cli.records.columns import Columns, Fields, look_up
from congrad_cli.records.containers import read_items
from congrad_cli.records.content import check_conversation
from congrad_cli.records.detect import Detector
from congrad_cli.records.groups import Grouping
from congrad_cli.records.objects import check_parts, check_text, excerpt, parse_object
from congrad_cli.records.record import BadRecord, DataFile, Item, Place, Record, Rejected, Text
from congrad_cli.records.shapes import Shape, detect, read_parts, shape_named
from congrad_cli.settings import RecordSettings

REF_FIELDS = ("ref_chosen_logps", "ref_rejected_logps")
"""TRL's names for the log-probabilities of a reference model, summed over each answer."""
LEAST_LOGP = -1e30
"""Below it float32 ends."""
HEAD_ITEMS, HEAD_BYTES = 100, 1 << 20
"""So much of a file is looked at to tell its shape."""


class RecordFile:
    """The records of one file. Its shape is told by most of the first ones that have one."""

    def __init__(
        self,
        file: DataFile,
        settings: RecordSettings,
        detector: Detector | None = None,
        grouped: bool = True,
    ) -> None:
        self.file, self._settings = file, settings
        self.grouping = Grouping(settings, file, detector) if grouped else None
        self._items = read_items(file)
        self._head = _take_head(self._items)
        self.shape = shape_named(settings.shape) if settings.shape else self._majority()

    def records(self, first_row: int) -> Iterator[Record | Rejected]:
        """Every item as a record, or as rejected; rows count from ``first_row``."""
        for row, item in enumerate(chain(self._head, self._items), start=first_row):
            try:
                if item.damage is not None:
                    raise item.damage
                yield parse_item(
                    item, row, self.file.name, self._settings, self.shape, self.grouping
                )
            except BadRecord as error:
                yield Rejected(row, item.raw, error)

    def describe(self, records: int) -> str:
        """What was found out about the file, in one line; ``records`` are all of its items."""
        found = "no shape that is known" if self.shape is None else (
            f"{self.shape.name} ({self.shape.about})")
        languages = self.grouping.found if self.grouping else {}
        ways = ", ".join(
            way if count == records else f"{way} {count:,}" for way, count in languages.items())
        return f"{self.file.name}: {records:,} records, {found}" + (
            f"; language: {ways}" if ways else "")

    def _majority(self) -> Shape | None:
        """The shape of most of the head's records; among equals the first one's."""
        counts: dict[str, int] = {}
        for item in self._head:
            if item.damage is None:
                try:
                    fields = parse_object(item.raw, Place(self.file.name, item.line))
                except BadRecord:
                    continue
                shape = detect(Columns(fields, self._settings))
                if shape is not None:
                    counts[shape.name] = counts.get(shape.name, 0) + 1
        return shape_named(max(counts, key=lambda name: counts[name])) if counts else None


def read_records(
    files: Iterable[DataFile], settings: RecordSettings, grouped: bool = True
) -> Iterator[Record | Rejected]:
    """Every record of the files, in order; not ``grouped``: records have no group."""
    row = 0
    detector = language_detector(settings) if grouped else None
    for file in files:
        for record in RecordFile(file, settings, detector, grouped).records(row):
            row = record.row + 1
            yield record


def language_detector(settings: RecordSettings) -> Detector | None:
    """What tells languages from texts, where the settings ask for it."""
    if not settings.detect_language:
        return None
    return Detector(settings.languages, settings.min_confidence)


def parse_item(
    item: Item,
    row: int,
    source: str,
    settings: RecordSettings,
    shape: Shape | None,
    grouping: Grouping | None,
) -> Record:
    """The record of an item, or :class:`BadRecord` with the place and the cure.

    ``shape`` is its file's; without ``grouping`` the record has no group.
    """
    place = Place(source, item.line)
    fields = parse_object(item.raw, place)
    columns = Columns(fields, settings)
    forced = settings.shape is not None
    prompt, chosen, rejected = read_parts(columns, shape, forced, place)
    _check_answers(columns, chosen, rejected, place)
    check_conversation(prompt, chosen, rejected, place)
    return Record(
        row=row,
        source=source,
        line=item.line,
        raw=item.raw,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        group=grouping.group(fields, prompt, chosen, place) if grouping else "",
        id=_identifier(fields, settings, place),
        ref_logp=_ref_logp(fields, place),
        template={} if isinstance(prompt, str) else _template_arguments(fields, place),
    )


def _take_head(items: Iterator[Item]) -> list[Item]:
    head: list[Item] = []
    size = 0
    for item in items:
        head.append(item)
        size += len(item.raw)
        if len(head) == HEAD_ITEMS or size > HEAD_BYTES:
            break
    return head


def _check_answers(columns: Columns, chosen: Text, rejected: Text, place: Place) -> None:
    if chosen == rejected:
        names = " and ".join(f"'{columns.name(name)}'" for name in ("chosen", "rejected"))
        place.fail(
            "same-answers",
            f"{names} are the same; such a pair has no gradient.",
            f"saw: {excerpt(chosen)}",
            "remove the line, or give it two different answers",
        )


def _identifier(fields: Fields, settings: RecordSettings, place: Place) -> str | int | None:
    identifier = look_up(fields, settings.id_field)
    if isinstance(identifier, str):
        check_text(identifier, settings.id_field, place)
    return identifier if isinstance(identifier, str | int) else None


def _template_arguments(fields: Fields, place: Place) -> dict[str, Any]:
    """``tools`` (a list, or JSON text of one) and ``chat_template_kwargs``, as TRL reads them."""
    arguments = fields.get("chat_template_kwargs")
    if not isinstance(arguments, dict | None):
        place.fail("bad-template", "'chat_template_kwargs' is no object.",
                   f"saw: {excerpt(arguments)}",
                   'write {"enable_thinking": false} or the like, or leave it out')
    tools = fields.get("tools")
    if isinstance(tools, str) and tools:
        tools = _json_tools(tools, place)
    if not isinstance(tools, list | None) and tools != "":
        place.fail("bad-template", "'tools' is no list.", f"saw: {excerpt(tools)}",
                   "write a list of tools, or leave it out")
    result = {**({"tools": tools} if tools else {}), **(arguments or {})}
    check_parts(result, "tools", place)
    return result


def _json_tools(tools: str, place: Place) -> Any:
    check_text(tools, "tools", place)
    try:
        return parse_object(b'{"tools": ' + tools.encode() + b"}", place)["tools"]
    except BadRecord as error:
        return place.fail("bad-template", f"'tools' is text, and not JSON: {error.what}",
                          f"saw: {excerpt(tools)}", "write a list of tools, or leave it out")


def _ref_logp(fields: Fields, place: Place) -> tuple[float, float] | None:
    given: list[Any] = [fields.get(name) for name in REF_FIELDS]
    if given == [None, None]:
        return None
    for name, value in zip(REF_FIELDS, given, strict=True):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and LEAST_LOGP <= value <= 0):
            place.fail("bad-reference", f"'{name}' is no log-probability.",
                       f"saw: {excerpt(value)}",
                       f"give {' and '.join(REF_FIELDS)} as numbers, or neither")
    chosen, rejected = given
    return float(chosen), float(rejected)
