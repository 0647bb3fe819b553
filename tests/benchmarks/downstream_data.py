"""What ``downstream.py`` trains on and measures by; no script.

Training pairs are draws of the pool of ``conflicts.py``. Held-out pairs are made in the same way,
rightly labelled, of paragraphs on pages that the pool has nothing from; held-out texts and the
pairs of the learning-rate sweep are of further paragraphs. Nothing stands in two of these parts,
but that the sweep measures the held-out texts of help pages, too.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import scenarios
from conflicts import LANGUAGES, LENDERS, Key, Maker, Table, sound, text, unlike_ends
from sample_pool import BUNDLED
from scenarios import Pool, Row, Sheet

SEED = "downstream"
UNSEEN = ("pt", "ko", "tr")
"""Languages that no training has pairs of."""
SEEN = tuple(language for language in LANGUAGES if language not in UNSEEN)
SWEEP_TRAIN, SWEEP_HELD_OUT = 40, 24
"""Paragraphs of the learning-rate sweep."""
BETWEEN = SWEEP_TRAIN + SWEEP_HELD_OUT


def half_opposed(pool: Pool, rng: random.Random) -> Sheet:
    """Half of the languages prefer long answers, half short ones; see ``scenarios.opposed``."""
    return scenarios.opposed(pool, rng, "length", len(pool.languages) // 2)


SCENARIOS: dict[str, Callable[[Pool, random.Random], Sheet]] = {
    "swapped-20": partial(scenarios.swapped, rate=0.2),
    "adversarial-1": partial(scenarios.adversarial, languages=1),
    "opposed-length": half_opposed,
    "dominant-length": partial(scenarios.dominant, bias="length"),
    "clean": partial(scenarios.swapped, rate=0.0),
}


@dataclass(frozen=True)
class HeldOut:
    """Pairs with right labels, and texts with ``language``, ``item`` and ``text``."""

    pairs: list[Row]
    texts: list[Row]

    def digest(self) -> str:
        """Of everything that is weighed."""
        return hashlib.sha256(json.dumps([self.pairs, self.texts]).encode()).hexdigest()


@dataclass(frozen=True)
class Parts:
    """All data of the benchmark: the pool's rows in seen languages, what models are measured by,
    and the sweep's own pairs."""

    pool: Pool
    held_out: HeldOut
    sweep_pairs: list[Row]
    sweep_held_out: HeldOut


def page_of(item: str) -> str:
    """The help page of a paragraph."""
    return item.split("#")[0]


def free_paragraphs(table: Table, rows: list[Row]) -> list[Key]:
    """Paragraphs fit for pairs in all languages, of which no half stands in the pool."""
    languages = (*LANGUAGES, *LENDERS)
    items = {row["item"] for row in rows}
    known = {row[side].strip() for row in rows for side in ("chosen", "rejected")}

    def is_free(key: Key) -> bool:
        ends = {text.halves_of(table[key][one], one).rest.strip() for one in languages}
        return "/".join(key) not in items and not ends & known

    free = [key for key in sound(table, languages) if is_free(key)]
    random.Random(SEED).shuffle(free)
    return unlike_ends(free, table, languages, set())


def lenders_of(keys: list[Key]) -> list[Key]:
    """For each paragraph another one, from the other end, that lends it an off-topic answer."""
    lenders, middle = keys[::-1], len(keys) // 2
    if len(keys) % 2:  # the middle one would lend to itself
        lenders[middle : middle + 2] = lenders[middle : middle + 2][::-1]
    return lenders


def pairs_of(
    table: Table, keys: list[Key], donors: list[Key], languages: tuple[str, ...], first: int
) -> Iterator[Row]:
    """A pair of each paragraph in each language; flaws take turns over both."""
    for number, key in enumerate(keys):
        for language in languages:
            maker = Maker(table, key, donors[number], language, first + number)
            flaw = maker.own_flaw()
            yield asdict(maker.row("content", flaw, maker.rest, maker.flawed(flaw), 1))


def texts_of(table: Table, keys: list[Key]) -> list[Row]:
    """Whole paragraphs in all languages."""
    return [{"language": language, "item": "/".join(key), "text": table[key][language]}
            for key in keys for language in LANGUAGES]


def parts_of_text(path: Path, rows: list[Row], pairs: int, texts: int) -> Parts:
    """From the parallel text: ``pairs`` held-out pairs and ``texts`` texts of each language, half
    of the texts of help pages and half of the Declaration. What is held out when fewer are asked
    for is held out when more are."""
    table = text.read_translations(path)
    free, pages = free_paragraphs(table, rows), {page_of(row["item"]) for row in rows}
    away = [key for key in free if page_of("/".join(key)) not in pages]
    near = [key for key in free if page_of("/".join(key)) in pages]
    articles = [key for key in table if key[0] == "udhr"
                and all(language in table[key] for language in LANGUAGES)
                and 60 <= len(table[key]["en"]) <= 420]
    most = 2 * min(len(articles), len(near) - 2 * BETWEEN)
    if pairs > len(away) or texts > most:
        raise SystemExit(f"there are {len(away)} held-out pairs and {most} texts of each language")
    random.Random(SEED).shuffle(articles)
    help_texts = near[BETWEEN : BETWEEN + texts - texts // 2]
    donors = near[::-1]  # from the other end
    return Parts(
        Pool([row for row in rows if row["language"] in SEEN]),
        HeldOut(list(pairs_of(table, away[:pairs], lenders_of(away), LANGUAGES, 5000)),
                texts_of(table, [*help_texts, *articles[: texts // 2]])),
        list(pairs_of(table, near[:SWEEP_TRAIN], donors, SEEN, 6000)),
        HeldOut(list(pairs_of(table, near[SWEEP_TRAIN:BETWEEN], donors[SWEEP_TRAIN:], SEEN, 7000)),
                texts_of(table, help_texts)))


def parts_of_bundled(languages: tuple[str, ...], train: int, held_out: int) -> Parts:
    """A very small set from the bundled pairs, for trying out: no text from elsewhere is needed,
    and the last of the languages is not trained on."""
    rows = []
    places: dict[str, int] = {}
    for line in BUNDLED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["language"] not in languages:
            continue
        answers = [row["chosen"], row["rejected"]]
        better, worse = reversed(answers) if row.pop("planted") else answers
        place = places.setdefault(row["item"], len(places))
        rows.append(row | {"chosen": better, "rejected": worse, "kind": "content", "level": 1,
                           "place": place, "longer": len(worse) > len(better)})
    measured = [row for row in rows if train <= row["place"] < train + held_out]
    held = HeldOut(measured, [{"language": row["language"], "item": row["item"],
                               "text": row["prompt"] + row["chosen"]} for row in measured])
    pool = [row for row in rows if row["place"] < train and row["language"] != languages[-1]]
    return Parts(Pool(pool), held, pool, held)

