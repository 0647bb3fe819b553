"""What a language is called in English, for instructions that name it."""

from functools import cache

from congrad_cli.records.language_table import LANGUAGES
from congrad_cli.records.languages import base, canonical


def english_name(label: str) -> str:
    """The English name of the language that ``label`` gives: ``German`` for ``de``.

    A tag whose script or region has no name of its own is added to the language's name:
    ``Serbian (sr-Latn)``. A label that names no language is its own name.
    """
    names = _names()
    tag = canonical(label)
    if tag in names:
        return names[tag]
    language = base(tag)
    return tag if language is None else f"{names[language]} ({tag})"


def english_names() -> list[str]:
    """The first English name of every language, one word or several."""
    return list(_names().values())


@cache
def _names() -> dict[str, str]:
    """The first name of each line of the table, by the language's tag."""
    names = {}
    for line in LANGUAGES.strip().splitlines():
        codes, spelt, *_ = line.split("|")
        names[codes.split()[0]] = spelt.split(",")[0].strip()
    return names
