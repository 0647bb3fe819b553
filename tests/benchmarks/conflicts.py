"""Preference pairs with known flaws in 13 languages: the pool from which scenarios are drawn.

A pair asks for the second half of a real paragraph; ``chosen`` is always the better answer here.
Labels are spoilt later, by ``scenarios.py``: to swap a pair's labels is to turn its gradient round,
so that each pair has to be sketched only once, whatever is done to its label.

No worse answer is the true answer of a pair, and every worse answer is spoilt in a way that all
languages share: other texts would push and pull equally often and cancel. No text from another
paragraph is used for two paragraphs, so that no flaw is told by a text that came before.

Every row has a ``level``: rows up to 1 or 2 are smaller pools, for slower models.

    python tests/benchmarks/conflicts.py --text parallel.jsonl --out pool.jsonl

The text is made by ``sample_data/extract_text.py``. The output depends on it and on the seed only;
the digest printed is the one in docs/evidence.md.
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "sample_data"))
import build_preferences as text

SEED = 2026
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja", "ko", "tr", "vi", "id")
LENDERS = ("nl", "pl")
FLAWS = text.FLAWS  # other-language, shuffled, repeated, cut-off, off-topic
CORE = 40
"""Paragraphs that have pairs in all languages."""
EXTRA = {"en": 460, "de": 160, "fr": 60}
"""Paragraphs that have a pair in one language only, for groups of unequal size."""
LEVELS = (20, 30, CORE)
"""Core paragraphs of the pools of levels 1, 2 and 3."""
EXTRA_LEVELS = (76, 114, 460)
BIASED = ("de", "ru")
"""Languages whose answers also come decorated; both have capital letters."""
DECORATIONS = ("shout", "tag")
LONGEST = 200
"""Characters of the English paragraph: keeps sketches cheap."""

Key = text.Key
Table = dict[Key, text.Translations]


@dataclass(frozen=True, slots=True)
class Row:
    """One pair of the pool, labelled rightly.

    ``kind``: ``content`` (the true rest against a flawed one), ``length`` (the whole rest against
    its first part), ``style`` (plain against tagged), ``right-SHOUT`` (the true rest decorated,
    against a plain flawed one) and ``wrong-SHOUT`` (the true rest against a decorated flawed one),
    with the decoration's name. ``longer``: the worse answer has more characters than the better.
    """

    id: str
    language: str
    prompt: str
    chosen: str
    rejected: str
    item: str
    kind: str
    flaw: str
    longer: bool
    place: int
    level: int


def sound(table: Table, needed: tuple[str, ...]) -> list[Key]:
    """Help paragraphs that are short English prose, soundly translated into ``needed``."""
    complete = {key: texts for key, texts in table.items()
                if key[0] == "help" and all(language in texts for language in ("en", *needed))}
    english = sum(len(texts["en"]) for texts in complete.values())
    ratio = {language: sum(len(texts[language]) for texts in complete.values()) / english
             for language in needed}
    return [
        key for key, texts in complete.items()
        if len(texts["en"]) <= LONGEST and text.is_english_prose(texts["en"]) and all(
            text.is_sound_translation(texts[language], language, ratio[language] * len(texts["en"]))
            for language in needed
        )
    ]


def draw_paragraphs(table: Table, rng: random.Random) -> tuple[list[Key], list[Key], list[Key]]:
    """Core paragraphs, a donor for each, and paragraphs for one language; none twice.

    Of a page only one paragraph is core or donor; no two paragraphs end alike in any language.
    """
    languages, seen = (*LANGUAGES, *LENDERS), set[str]()
    complete = sound(table, languages)
    rng.shuffle(complete)
    complete = unlike_ends(text.unlike(complete, table), table, languages, seen)[: 2 * CORE]
    pages = {key[1].split("#")[0] for key in complete}
    languages = (*EXTRA, *LENDERS)
    single = [key for key in sound(table, languages) if key[1].split("#")[0] not in pages]
    rng.shuffle(single)
    return complete[:CORE], complete[CORE:], unlike_ends(single, table, languages, seen)


def unlike_ends(
    keys: list[Key], table: Table, languages: tuple[str, ...], seen: set[str]
) -> list[Key]:
    """The paragraphs whose second half is new in all languages; ``seen`` takes those."""
    kept = []
    for key in keys:
        ends = {text.halves_of(table[key][one], one).rest.strip() for one in languages}
        if not ends & seen:
            kept.append(key)
            seen |= ends
    return kept


def level_of(place: int, steps: tuple[int, ...] = LEVELS) -> int:
    """The smallest pool that holds the paragraph at this place."""
    return 1 + sum(place >= step for step in steps[:-1])


def shortened(rest: str, language: str) -> str:
    """The first part of the rest, ended like a sentence."""
    halves = text.split_paragraph(rest.rstrip(".。"), language)
    first = halves[0] if halves else rest.rstrip(".。")[: len(rest) * 3 // 5]
    return first.rstrip(" ,;:，、") + ("。" if language in ("zh", "ja") else ".")  # noqa: RUF001


def decorated(rest: str, decoration: str) -> str:
    """The answer in capitals with exclamation marks, or with a mark before it."""
    if decoration == "tag":
        return " >>>" + rest if rest.startswith(" ") else " >>> " + rest
    return rest.rstrip(".。").upper() + "!!!"


@dataclass(frozen=True)
class Maker:
    """Makes the pairs of one paragraph in one language; random choices follow from their names."""

    table: Table
    key: Key
    donor: Key
    language: str
    place: int

    def flawed(self, flaw: str) -> str:
        """The rest, spoilt."""
        rng = random.Random(f"{SEED}/{self.key[1]}/{self.language}/{flaw}")
        texts, rest = self.table[self.key], self.rest
        if flaw == "other-language":  # the lenders take turns, so that no text serves too often
            lender = LENDERS[(self.place + self._turn()) % len(LENDERS)]
            return text.halves_of(texts[lender], lender).rest
        donor = self.table[self.donor][self.language]
        return text.spoil(flaw, rest, self.language, texts, donor, rng)

    @property
    def halves(self) -> text.Halves:
        """The paragraph, cut in two."""
        return text.halves_of(self.table[self.key][self.language], self.language)

    @property
    def rest(self) -> str:
        """The true answer."""
        return self.halves.rest

    def own_flaw(self) -> str:
        """The one flaw of smaller pools; it varies over languages and over paragraphs."""
        return FLAWS[(self.place + self._turn()) % len(FLAWS)]

    def row(self, kind: str, flaw: str, better: str, worse: str, level: int) -> Row:
        """A pair."""
        name = f"{self.place:04d}-{self.language}-{kind}" + (f"-{flaw}" if flaw else "")
        return Row(name, self.language, self.halves.first, better, worse, "/".join(self.key), kind,
                   flaw, len(worse) > len(better), self.place, level)

    def _turn(self) -> int:
        return LANGUAGES.index(self.language)


def core_rows(maker: Maker) -> Iterator[Row]:
    """All pairs of a core paragraph in one language."""
    level, rest, own = level_of(maker.place), maker.rest, maker.own_flaw()
    for flaw in FLAWS:
        yield maker.row("content", flaw, rest, maker.flawed(flaw), level if flaw == own else 3)
    odd = level if maker.place % 2 else 3
    yield maker.row("length", "", rest, shortened(rest, maker.language), odd)
    yield maker.row("style", "", rest, decorated(rest, "tag"), 3)
    if maker.language not in BIASED:
        return
    for decoration in DECORATIONS:
        small = decoration == "shout" and maker.language == BIASED[0]
        worse = maker.flawed(own)
        yield maker.row(f"right-{decoration}", own, decorated(rest, decoration), worse,
                        level if small else 3)
        yield maker.row(f"wrong-{decoration}", own, rest, decorated(worse, decoration),
                        level if small else 3)


def build(table: Table) -> list[Row]:
    """The whole pool."""
    rng = random.Random(SEED)
    core, donors, single = draw_paragraphs(table, rng)
    rows = [row for place, key in enumerate(core) for language in LANGUAGES
            for row in core_rows(Maker(table, key, donors[place], language, place))]
    place, left = 1000, iter(single)
    for language, count in EXTRA.items():
        for number in range(count):
            key = next(left)
            off_topic = FLAWS[(place + LANGUAGES.index(language)) % len(FLAWS)] == "off-topic"
            maker = Maker(table, key, next(left) if off_topic else key, language, place)
            flaw, place = maker.own_flaw(), place + 1
            level = level_of(number, EXTRA_LEVELS) if language == "en" else 3
            rows.append(maker.row("content", flaw, maker.rest, maker.flawed(flaw), level))
    return rows


def check(rows: list[Row]) -> None:
    """Refuse a pool that breaks a promise; no scenario has both ``style`` and ``right-`` pairs."""
    true = {row.chosen.strip() for row in rows if not row.kind.startswith("right")}
    names = [row.id for row in rows]
    assert len(set(names)) == len(names), "two pairs of one name"
    for row in rows:
        assert row.prompt.strip() and row.chosen.strip() and row.rejected.strip(), row
        assert row.chosen != row.rejected, row
        assert row.rejected.strip() not in true, row


def pool_lines(rows: list[Row]) -> bytes:
    """JSON lines."""
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode()


def main() -> None:
    """Write the pool and print its digest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = build(text.read_translations(args.text))
    check(rows)
    data = pool_lines(rows)
    args.out.write_bytes(data)
    sizes = [sum(row.level <= level for row in rows) for level in (1, 2, 3)]
    print(f"{len(rows)} pairs (up to level 1, 2, 3: {sizes}), "
          f"SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
