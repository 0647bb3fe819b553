"""One name for one language, whichever way a data set writes it: ``English``, ``eng_Latn``, ``EN``.

The name is the language's tag as BCP 47 writes it: two letters, or three where there are no two,
then a script if it is not the usual one, then a region if one is given.
"""

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import NamedTuple

from congrad_cli.records.language_table import (
    LANGUAGES,
    REGIONS,
    SCRIPTS,
    WORDS_IN_FILE_NAMES,
)

DATA_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".gz", ".zst")
_SCRIPTS = frozenset(SCRIPTS.split())
_REGIONS = frozenset(REGIONS.split()) | {"UK"}
_WORDS = frozenset(WORDS_IN_FILE_NAMES.split())


class _Table(NamedTuple):
    """What a code or a name in lower case stands for, and the scripts a language needs not say."""

    codes: dict[str, str]
    names: dict[str, str]
    scripts: dict[str, frozenset[str]]


def canonical(label: str) -> str:
    """Return the one name of the language that ``label`` gives, or ``label`` itself, stripped.

    Codes of ISO 639, NLLB and FLORES codes, BCP 47 tags and English names are understood, in
    either case, with ``_`` or ``-``. A macrolanguage and the one member that data mostly means by
    it are one language, as in FLORES-200 (``zho`` and ``cmn``, ``no`` and ``nb``). A label that
    names no language of the table is a name of its own.
    """
    stripped = label.strip()
    return _find(stripped) or stripped


def base(label: str) -> str | None:
    """Return the language of ``label`` without script and region, or None if it names none."""
    tag = _find(label.strip())
    return tag and tag.split("-")[0]


def from_file_name(name: str) -> str | None:
    """Return the language that a file's name gives, or None: ``pairs.de.jsonl``, ``de.jsonl.gz``.

    Without the suffixes of data files the name must be a label of a language as a whole, or end
    in one after ``.``, ``-`` or ``_``; the longest such end counts (``train_deu_Latn``,
    ``pairs.pt-BR``). A code that is also a common word or abbreviation in names of data files
    (``min``, ``new``, ``run``, ``in``, ``rm``) gives no language, save one of two letters after a
    full stop: ``pairs_rm.jsonl`` is for a reward model, ``pairs.rm.jsonl`` is Romansh. Words that
    are no codes in the table (``dev``, ``val``, ``all``, ``raw``, ``dpo``) give none anyway.
    """
    stem = name.rsplit("/", 1)[-1]
    while stem.casefold().endswith(DATA_SUFFIXES):
        stem = stem.rpartition(".")[0]
    starts = [0, *(match.end() for match in re.finditer(r"[._-]", stem))]
    for start in starts:
        end = stem[start:]
        after_stop = len(end) == 2 and stem[:start].endswith(".")
        if end.casefold() in _WORDS and not after_stop:
            continue
        if language := _find(end):
            return language
    return None


def nearest(label: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``label`` may be meant for, or None.

    That is the same language, in another script or region if need be, or else a similar spelling
    of the label or of an English name of its language.
    """
    candidates = sorted(set(known))
    for same in (canonical, base):
        wanted = same(label)
        for candidate in candidates:
            if wanted is not None and same(candidate) == wanted:
                return candidate
    spellings: dict[str, str] = {}
    for candidate in candidates:
        names = [name for name, code in _table().names.items() if code == canonical(candidate)]
        for spelling in (candidate.casefold(), *names):
            spellings.setdefault(spelling, candidate)
    close = get_close_matches(label.strip().casefold(), spellings, n=1)
    return spellings[close[0]] if close else None


@lru_cache(maxsize=4096)
def _find(label: str) -> str | None:
    """The tag of the language that ``label`` gives, as a tag or as a name, or None."""
    table = _table()
    parts = label.casefold().replace("_", "-").split("-")
    region = script = ""
    if len(parts) > 1 and parts[-1].upper() in _REGIONS:
        region = parts.pop().upper()
    if len(parts) > 1 and parts[-1].title() in _SCRIPTS:
        script = parts.pop().title()
    language = table.codes.get("-".join(parts))
    if language is None:
        return table.names.get(_plain(label))
    if script in table.scripts.get(language, ()):
        script = ""
    # British labels say UK, which is reserved for them but is not the code
    region = "GB" if region == "UK" else region
    return "-".join(filter(None, (language, script, region)))


def _plain(name: str) -> str:
    """A name in lower case, without accents, its words divided by single spaces."""
    letters = (c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", "".join(letters).casefold()))


@cache
def _table() -> _Table:
    codes: dict[str, str] = {}
    names: dict[str, str] = {}
    scripts: dict[str, frozenset[str]] = {}
    for line in LANGUAGES.strip().splitlines():
        code_field, name_field, *script_field = line.split("|")
        language, *others = code_field.split()
        if "-" not in language:  # such a line only gives names
            codes.update(dict.fromkeys((language, *others), language))
        for name in name_field.split(","):
            names[_plain(name)] = language
        scripts[language] = frozenset(script_field[0].split() if script_field else ["Latn"])
    return _Table(codes, names, scripts)
