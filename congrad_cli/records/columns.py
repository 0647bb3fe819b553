"""The columns of one record under the names that congrad uses for them."""

import difflib
from typing import Any

from congrad_cli.records.objects import excerpt, names
from congrad_cli.records.record import Place
from congrad_cli.settings import RecordSettings

Fields = dict[str, Any]

ALIASES = {"rejected": ("reject",)}
"""Names that are as good as congrad's own."""
SUSPECTS = {
    "chosen": ("accepted", "preferred", "winner", "good", "positive", "better", "response_chosen"),
    "rejected": ("dispreferred", "loser", "bad", "negative", "worse", "response_rejected"),
    "prompt": ("query", "instruction", "question", "input", "context", "messages"),
}
"""Names that may mean a column; congrad asks before it takes one of them."""


def look_up(fields: Fields, name: str) -> Any:
    """The value under ``name``, None where there is none; dots may lead into objects."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


class Columns:
    """Looks values up; null counts as absent, which is what tables write for it."""

    def __init__(self, fields: Fields, settings: RecordSettings) -> None:
        self.fields = fields
        self._values = {name: value for name, value in fields.items() if value is not None}
        self._names: dict[str, str] = {}  # of columns that are called otherwise
        named = (("prompt", settings.prompt_field), ("chosen", settings.chosen_field),
                 ("rejected", settings.rejected_field))  # fmt: skip
        for column, name in named:
            if name is not None:
                self._rename(column, name)
            elif column not in self._values:
                for alias in ALIASES.get(column, ()):
                    if alias in self._values:
                        self._rename(column, alias)

    def _rename(self, column: str, name: str) -> None:
        self._names[column] = name
        value = look_up(self.fields, name)
        if value is None:
            self._values.pop(column, None)
        else:
            self._values[column] = value

    def name(self, column: str) -> str:
        """What the record calls a column."""
        return self._names.get(column, column)

    def get(self, column: str) -> Any:
        """The column's value; None where it is absent or null."""
        return self._values.get(column)

    def has(self, *columns: str) -> bool:
        """Whether all these columns hold something."""
        return all(column in self._values for column in columns)

    def is_text(self, *columns: str) -> bool:
        """Whether all these columns hold texts."""
        return all(isinstance(self.get(column), str) for column in columns)

    def is_messages(self, *columns: str) -> bool:
        """Whether all these columns hold a message or a list."""
        return all(isinstance(self.get(column), dict | list) for column in columns)

    def require(self, column: str, place: Place) -> Any:
        """The column's value, or :class:`BadRecord` that says which field could be meant."""
        value = self.get(column)
        if value is not None:
            return value
        name = self.name(column)
        option = f"--{column}-field" if column in SUSPECTS else None
        meant = self._suspect(column)
        if name in self.fields:
            what, saw = f"'{name}' is null.", f"saw: {excerpt(self.fields)}"
        else:
            what, saw = f"no field '{name}'.", f"fields here: {names(self.fields)}"
        if option and meant:
            cure = f"if '{meant}' is it: {option} {meant}"
        elif option:
            cure = f"name the right one with {option}, or add the field"
        else:
            cure = "add the field, or leave the line out"
        return place.fail("missing-field", what, saw, cure)

    def _suspect(self, column: str) -> str | None:
        """A field that may be the column under another name."""
        used = ("prompt", "chosen", "rejected")
        unused = [key for key in self.fields if key not in used and key.isidentifier()]
        for key in SUSPECTS.get(column, ()):
            if key in unused:
                return key
        near = difflib.get_close_matches(self.name(column), unused, 1, cutoff=0.7)
        return near[0] if near else None
