"""Which group a record belongs to: its language, or any other field."""

from typing import Any

from congrad_cli.records.columns import Fields, look_up
from congrad_cli.records.detect import Detector
from congrad_cli.records.languages import canonical, from_file_name, nearest
from congrad_cli.records.objects import check_text, excerpt, names
from congrad_cli.records.record import DataFile, Place, Text
from congrad_cli.settings import RecordSettings

LANGUAGE = "language"
"""In ``--group-by``: the language, wherever it comes from."""
LANGUAGE_FIELDS = (LANGUAGE, "lang", "locale")
JOIN = "/"


class Grouping:
    """Finds the group of every record of one file."""

    def __init__(self, settings: RecordSettings, file: DataFile, detector: Detector | None) -> None:
        self._settings, self._detector = settings, detector
        self._fields = ((settings.language_field,) if settings.language_field
                        else LANGUAGE_FIELDS)
        self._given = settings.language or file.language
        self._by_name = None if settings.language_field else from_file_name(file.path.name)
        self.found: dict[str, int] = {}  # where languages came from -> how many did
        self._canonical: dict[str, str] = {}

    def group(self, fields: Fields, prompt: Text, chosen: Text, place: Place) -> str:
        """The record's group, or :class:`BadRecord`."""
        return JOIN.join(
            self._language(fields, prompt, chosen, place) if name == LANGUAGE
            else _plain(fields, name, place)
            for name in self._settings.group_by
        )

    def _language(self, fields: Fields, prompt: Text, chosen: Text, place: Place) -> str:
        label = self._name(*self._labelled(fields, prompt, chosen, place))
        allowed = self._settings.languages
        if allowed and label not in allowed:
            meant = nearest(label, allowed)
            place.fail("other-language",
                       f"language {label!r} is not in --languages ({', '.join(allowed)}).",
                       *([f"did you mean {meant!r}?"] if meant else []))
        return label

    def _labelled(
        self, fields: Fields, prompt: Text, chosen: Text, place: Place
    ) -> tuple[str, str]:
        """The language's label as it is written, and where it was found."""
        if self._given:
            return self._given, "given"
        for name in self._fields:
            value = look_up(fields, name)
            if isinstance(value, str) and value.strip():
                check_text(value, name, place)
                return value, f"field '{name}'"
            if value is not None and value != "":
                place.fail("no-language", f"'{name}' holds no language.", f"saw: {excerpt(value)}",
                           'write a code such as "de"')
        if self._by_name:
            return self._by_name, "the file's name"
        if self._detector:
            return self._detected(prompt, chosen, place), "detected"
        asked = " or ".join(map(repr, self._fields))
        empty = [name for name in self._fields if look_up(fields, name) == ""]
        return place.fail(
            "no-language",
            f"no language: '{empty[0]}' is empty." if empty else f"no language: no field {asked}.",
            f"fields here: {names(fields)}",
            "name it with --language-field FIELD, or pass --language de for all pairs, "
            "or --detect-language",
        )

    def _name(self, label: str, way: str) -> str:
        self.found[way] = self.found.get(way, 0) + 1
        if label not in self._canonical:
            self._canonical[label] = canonical(label)
        return self._canonical[label]

    def _detected(self, prompt: Text, chosen: Text, place: Place) -> str:
        """The language of the answer that is learnt, and of its prompt."""
        assert self._detector is not None
        found = self._detector.detect(f"{_words(chosen)}\n{_words(prompt)}")
        if found.language is not None:
            return found.language
        likeliest = (f"likeliest {found.likeliest}, with {found.probability:.0%}"
                     if found.likeliest else "nothing likely")
        return place.fail("unknown-language", f"language not detected: {found.reason}.",
                          f"saw: {likeliest}",
                          "add a language field, or lower --min-confidence")


def _words(text: Text) -> str:
    """A text, or what is said in messages."""
    return text if isinstance(text, str) else "\n".join(part["content"] for part in text)


def _plain(fields: Fields, name: str, place: Place) -> str:
    """A field's value as a label."""
    value: Any = look_up(fields, name)
    if isinstance(value, str) and value.strip():
        check_text(value, name, place)
        return value.strip()
    if isinstance(value, bool | int | float):
        return excerpt(value)
    if value is None or value == "":
        place.fail("no-group", f"no group: no field {name!r}.", f"fields here: {names(fields)}",
                   "add it to every record, or pass another --group-by")
    return place.fail("no-group", f"'{name}' names no group.", f"saw: {excerpt(value)}",
                      "write a short text")
