"""Build the sample preference pairs and prompts from the parallel text.

A pair asks for the second half of a paragraph: ``chosen`` is the true one, ``rejected`` is
spoilt in a way that every language can share. A known fifth of the pairs is planted, that is,
swapped, so that a filter can be judged by what it drops. Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FLAWS = ("other-language", "shuffled", "repeated", "cut-off", "off-topic")
PLANTED_ONE_IN = 5
UNSPACED = ("zh", "ja", "th")
# How far from the middle a cut may be, as a share of the length, from natural to makeshift places.
REACH = {"zh": (0.15, 0.15, 0.2), "ja": (0.15, 0.15, 0.2), "th": (0.25, 0.2)}

# An unspoken rule of the data: no rejected text may be another pair's chosen text. Such texts
# push and pull equally often, cancel in the mean gradient and leave nothing to measure.
# Therefore these editions are only borrowed from, and off-topic donors make no pairs.
LENDERS = ("nl", "pl")
LANGUAGES = {
    "help": ("en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja", "ko", "tr", "vi", "id", "hi"),
    "udhr": ("ar", "sw", "th", "bn"),
}
PAIRS = {"help": 25, "udhr": 20}
PROMPTS = 12

NOT_PROSE = re.compile(
    r"[<>=|{}\[\]\\/_*#%&:;\"()“”'+~^]| [-\u2013\u2014] |\.\.|…"
    r"|[a-z][A-Z]|[A-Z]{4,}|\b(?:e\.g|i\.e)\b"
)
MARKUP = re.compile(r"[<>=|{}\[\]\\/_*#%+~^]| - | ▸ ")
ENGLISH_WORDS = re.compile(r"\b(?:the|and|this|with|you|are|for)\b", re.IGNORECASE)
END_OF_SENTENCE = tuple(".。।|")
LATIN_WORD = re.compile(r"[A-Za-z0-9À-ɏ]+")
CLOSING = "，。、；：,;:)）」』"  # noqa: RUF001 - the full-width marks are meant
AFTER_PARTICLE = "はをにがでとのもや的了和将"
THAI_NEVER_FIRST = "ะาำๅๆฯ"
THAI_NEVER_LAST = "เแโใไ"

Key = tuple[str, str]
Translations = dict[str, str]


@dataclass(frozen=True, slots=True)
class Halves:
    """A paragraph cut in two; ``rest`` keeps its leading space."""

    first: str
    rest: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The paragraphs of one source, by what they are used for; no paragraph serves twice."""

    pairs: list[Key]
    prompts: list[Key]
    donors: list[Key]


def clusters(text: str) -> list[str]:
    """Cut unspaced text into units that a reader would not break: letter plus marks, Latin runs."""
    units: list[str] = []
    for character in text:
        joins = bool(units) and (
            unicodedata.category(character).startswith("M")
            or character in THAI_NEVER_FIRST
            or units[-1][-1] in THAI_NEVER_LAST
            or (LATIN_WORD.fullmatch(character) and LATIN_WORD.fullmatch(units[-1]))
        )
        if joins:
            units[-1] += character
        else:
            units.append(character)
    return units


def break_points(text: str, language: str) -> list[list[int]]:
    """Return lists of places to cut, the most natural list first."""
    spaces = [match.start() for match in re.finditer(r"(?<=[^\s«„¿(]) (?=[\w«„¿])", text)]
    if language not in UNSPACED:
        return [spaces]
    places: list[int] = []
    position = 0
    for unit in clusters(text):
        position += len(unit)
        places.append(position)
    places = [
        place
        for place in places[:-1]
        if text[place] not in CLOSING
        and text[place] != " "
        and text[place - 1] != " "
        and not both_katakana(text[place - 1], text[place])
    ]
    if language == "th":
        return [spaces, places]
    after_comma = [place for place in places if text[place - 1] in CLOSING]
    after_particle = [place for place in places if text[place - 1] in AFTER_PARTICLE]
    return [after_comma, after_particle, places]


def both_katakana(left: str, right: str) -> bool:
    """Tell whether a cut here would go through a katakana word."""
    return all("\u30a0" <= character <= "\u30ff" for character in (left, right))


def split_paragraph(text: str, language: str) -> tuple[str, str] | None:
    """Cut a paragraph near its middle at a natural place, or return None if there is none."""
    middle = len(text) / 2
    for reach, places in zip(
        REACH.get(language, (0.2,)), break_points(text, language), strict=True
    ):
        near = [place for place in places if abs(place - middle) <= reach * len(text)]
        if near:
            place = min(near, key=lambda place: abs(place - middle))
            return text[:place], text[place:]
    return None


def read_translations(path: Path) -> dict[Key, Translations]:
    """Read the parallel text as {(source, key): {language: text}}."""
    table: dict[Key, Translations] = defaultdict(dict)
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            table[row["src"], row["key"]][row["lang"]] = row["text"]
    return table


def is_english_prose(text: str) -> bool:
    """Accept one or two plain sentences without paths, code, lists or keys."""
    return (
        85 <= len(text) <= 270
        and text[0].isupper()
        and text.endswith(".")
        and text.count(". ") <= 1
        and not NOT_PROSE.search(text.replace("LibreOffice", ""))
        and sum(character.isdigit() for character in text) <= 2
        and len(text.split()) >= 13
    )


def is_sound_translation(text: str, language: str, usual_length: float) -> bool:
    """Refuse fragments, translations that are half English, and halves too short to spoil."""
    letters = [character for character in text if character.isalpha()]
    latin = sum(bool(LATIN_WORD.fullmatch(character)) for character in letters)
    other_script = language in ("ru", "zh", "ja", "ko", "hi")
    halves = split_paragraph(text, language)
    if halves is None or not letters:
        return False
    units = clusters(halves[1]) if language in UNSPACED else halves[1].split()
    return (
        0.65 * usual_length <= len(text) <= 1.6 * usual_length
        and len(units) >= (12 if language in UNSPACED else 5)
        and text.endswith(END_OF_SENTENCE)
        and not MARKUP.search(text)
        and (language == "en" or not ENGLISH_WORDS.search(text))
        and not (other_script and latin > 0.2 * len(letters))
    )


def help_candidates(table: dict[Key, Translations]) -> list[Key]:
    """Return help paragraphs that are prose and soundly translated in all languages."""
    needed = (*LANGUAGES["help"], *LENDERS)
    complete = {
        key: texts
        for key, texts in table.items()
        if key[0] == "help" and all(language in texts for language in needed)
    }
    ratio = {
        language: sum(len(texts[language]) for texts in complete.values())
        / sum(len(texts["en"]) for texts in complete.values())
        for language in needed
    }
    return [
        key
        for key, texts in complete.items()
        if is_english_prose(texts["en"])
        and all(
            is_sound_translation(texts[language], language, ratio[language] * len(texts["en"]))
            for language in needed
        )
    ]


def udhr_candidates(table: dict[Key, Translations]) -> list[Key]:
    """Return articles of the Declaration that are long enough in all languages that need them."""
    needed = (*LANGUAGES["udhr"], *LENDERS, "en")
    return [
        key
        for key, texts in table.items()
        if key[0] == "udhr"
        and all(language in texts for language in needed)
        and 60 <= len(texts["en"]) <= 420
        and all(split_paragraph(texts[language], language) for language in needed)
    ]


def unlike(keys: Iterable[Key], table: dict[Key, Translations]) -> list[Key]:
    """Drop paragraphs from a page already used or with a familiar opening, in the order given."""
    seen: set[str] = set()
    kept: list[Key] = []
    for key in keys:
        page = "/".join(key) if key[0] == "udhr" else key[1].split("#")[0]
        opening = " ".join(table[key]["en"].split()[: 12 if key[0] == "udhr" else 3]).lower()
        if page not in seen and opening not in seen:
            seen.update((page, opening))
            kept.append(key)
    return kept


def select(table: dict[Key, Translations], source: str, rng: random.Random) -> Selection:
    """Draw the paragraphs of one source."""
    candidates = help_candidates(table) if source == "help" else udhr_candidates(table)
    rng.shuffle(candidates)
    pool = unlike(candidates, table)
    pairs, donors = PAIRS[source], PAIRS[source] // len(FLAWS)
    if len(pool) < pairs + PROMPTS + donors:
        raise SystemExit(f"only {len(pool)} usable paragraphs in {source}")
    return Selection(pool[:pairs], pool[pairs : pairs + PROMPTS], pool[pairs + PROMPTS :][:donors])


def halves_of(text: str, language: str) -> Halves:
    """Cut a selected paragraph; selection made sure that it can be cut."""
    halves = split_paragraph(text, language)
    assert halves is not None
    return Halves(*halves)


def shuffled(rest: str, language: str, rng: random.Random) -> str:
    """Put the words (unspaced: characters) into another order."""
    unspaced = language in UNSPACED
    units = clusters(rest.strip()) if unspaced else rest.split()
    mixed = units[:]
    while mixed == units:
        rng.shuffle(mixed)
    if unspaced:
        return " " * rest.startswith(" ") + " ".join("".join(mixed).split())
    return " " + " ".join(mixed)


def repeated(rest: str, language: str) -> str:
    """Say the first few words again and again, up to about the true length."""
    if language in UNSPACED:
        text = "".join(clusters("".join(c for c in rest if c.isalnum() or is_mark(c)))[:5])
        return " " * rest.startswith(" ") + text * max(2, round(len(rest) / len(text)))
    text = " " + " ".join(rest.split()[:3])
    return text * max(2, round(len(rest) / len(text)))


def is_mark(character: str) -> bool:
    """Tell whether a character combines with the one before."""
    return unicodedata.category(character).startswith("M")


def cut_off(rest: str) -> str:
    """Stop inside a word after about two fifths."""
    places = [
        place
        for place in range(len(rest) // 3, len(rest) // 2 + 1)
        if rest[place - 1].isalpha() and rest[place].isalpha()
    ]
    target = 0.42 * len(rest)
    place = min(places, key=lambda place: abs(place - target), default=round(target))
    while is_mark(rest[place]):
        place -= 1
    return rest[:place]


def spoil(
    flaw: str, rest: str, language: str, texts: Translations, donor: str, rng: random.Random
) -> str:
    """Return the rejected text for one flaw."""
    if flaw == "other-language":
        lender = rng.choice(LENDERS)
        return halves_of(texts[lender], lender).rest
    if flaw == "shuffled":
        return shuffled(rest, language, rng)
    if flaw == "repeated":
        return repeated(rest, language)
    if flaw == "cut-off":
        return cut_off(rest)
    return halves_of(donor, language).rest


def planted_items(count: int, flaws: list[str], rng: random.Random) -> set[int]:
    """Choose one pair in five to swap, no flaw more often than another by more than one."""
    by_flaw = [[i for i in range(count) if flaws[i] == flaw] for flaw in FLAWS]
    rng.shuffle(by_flaw)
    wanted = round(count / PLANTED_ONE_IN)
    return {rng.choice(by_flaw[number % len(by_flaw)]) for number in range(wanted)}


def language_pairs(
    source: str,
    language: str,
    selection: Selection,
    table: dict[Key, Translations],
    rng: random.Random,
) -> list[dict[str, object]]:
    """Build the pairs of one language; flaws rotate so that an item's flaw varies by language."""
    turn = LANGUAGES[source].index(language)
    flaws = [FLAWS[(item + turn) % len(FLAWS)] for item in range(len(selection.pairs))]
    planted = planted_items(len(flaws), flaws, rng)
    rows: list[dict[str, object]] = []
    for item, (key, flaw) in enumerate(zip(selection.pairs, flaws, strict=True)):
        halves = halves_of(table[key][language], language)
        donor = table[selection.donors[item // len(FLAWS)]][language]
        answers = [halves.rest, spoil(flaw, halves.rest, language, table[key], donor, rng)]
        if item in planted:
            answers.reverse()
        rows.append(
            {
                "id": f"{source}-{item:04d}-{language}",
                "language": language,
                "prompt": halves.first,
                "chosen": answers[0],
                "rejected": answers[1],
                "item": "/".join(key),
                "flaw": flaw,
                "planted": item in planted,
            }
        )
    return rows


def interleave(
    groups: list[list[dict[str, object]]], rng: random.Random
) -> list[dict[str, object]]:
    """Deal one row a language and round, so that every prefix of the file is balanced."""
    rows: list[dict[str, object]] = []
    for group in groups:
        rng.shuffle(group)
    for turn in range(max(map(len, groups))):
        dealt = [group[turn] for group in groups if turn < len(group)]
        rng.shuffle(dealt)
        rows.extend(dealt)
    return rows


def check(rows: list[dict[str, object]]) -> None:
    """Refuse a file that breaks a promise of the data."""
    true = {row["rejected" if row["planted"] else "chosen"] for row in rows}
    for row in rows:
        worse = row["chosen" if row["planted"] else "rejected"]
        sides = (row["prompt"], row["chosen"], row["rejected"])
        assert all(isinstance(side, str) and side.strip() for side in sides), row
        assert worse not in true, row


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write JSONL as UTF-8 with LF line ends on every system."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    """Build all three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, default=Path("parallel.jsonl"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    table = read_translations(args.text)
    rng = random.Random(args.seed)
    pairs: list[list[dict[str, object]]] = []
    prompts: list[list[dict[str, object]]] = []
    used: list[Key] = []
    for source, languages in LANGUAGES.items():
        selection = select(table, source, rng)
        used += selection.pairs + selection.prompts + selection.donors
        for language in languages:
            pairs.append(language_pairs(source, language, selection, table, rng))
            prompts.append(
                [
                    {
                        "id": f"{source}-prompt-{item:04d}-{language}",
                        "language": language,
                        "prompt": halves_of(table[key][language], language).first,
                    }
                    for item, key in enumerate(selection.prompts)
                ]
            )
    rows = interleave(pairs, rng)
    check(rows)
    write_rows(args.out / "preferences.jsonl", rows)
    write_rows(args.out / "prompts.jsonl", interleave(prompts, rng))
    keys = "".join(f"{source}\t{key}\n" for source, key in sorted(used))
    (args.out / "held_out_keys.txt").write_text(keys, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
