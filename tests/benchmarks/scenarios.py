"""Labels of the pool's pairs, spoilt in known ways: what a filter has to find.

A draw takes some of the pairs that ``conflicts.py`` makes and turns some of their labels round. It
says which labels are bad (``planted``) and which pairs count when finders are compared
(``judged``): where languages prefer short or long answers, neither is bad, so those are not judged.
Everything follows from the scenario's name, the seed and the pool.

    python tests/benchmarks/scenarios.py --pool pool.jsonl
    python tests/benchmarks/scenarios.py --pool pool.jsonl --write swapped-20 --seed 0 --out p.jsonl

The first prints the digest of all draws; the second writes one of them as data for congrad.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FLAWS = ("other-language", "shuffled", "repeated", "cut-off", "off-topic")
SEEDS = 10
"""Seeds that the digest covers."""
SIZES = {"en": 500, "de": 200, "fr": 100}
SMALL_SIZES = (40, 40, 20, 20, 20, 10, 10, 10, 5, 5)
DOMINANT = "en"


class Infeasible(Exception):
    """The pool does not have the pairs that a scenario needs."""


@dataclass(frozen=True)
class Draw:
    """Of n pairs: their places in the pool, whether their labels are turned round, whether the
    labels are bad, and whether they are judged."""

    place: list[int]
    turned: list[bool]
    planted: list[bool]
    judged: list[bool]


class Pool:
    """The rows of a pool up to a level."""

    def __init__(self, rows: Sequence[Row], level: int = 3) -> None:
        self.rows = [row for row in rows if row["level"] <= level]
        self.languages = list(dict.fromkeys(row["language"] for row in self.rows))

    def content(self, language: str, extra: bool = False) -> dict[int, list[int]]:
        """Paragraph -> its content pairs in this language; of the core, or all."""
        found: dict[int, list[int]] = {}
        for place, row in enumerate(self.rows):
            if (row["language"] == language and row["kind"] == "content"
                    and (extra or row["place"] < 1000)):
                found.setdefault(row["place"], []).append(place)
        return found

    def of_kind(self, language: str, kind: str) -> dict[int, int]:
        """Paragraph -> its pair of this kind."""
        return {row["place"]: place for place, row in enumerate(self.rows)
                if row["language"] == language and row["kind"] == kind}


class Sheet:
    """A draw in the making."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, bool, bool, bool]] = []

    def add(self, place: int, turned: bool = False, judged: bool = True) -> None:
        """A content pair: its label is bad if it is turned round."""
        self._entries.append((place, turned, turned, judged))

    def prefer(self, place: int, turned: bool) -> None:
        """A pair on which people may differ."""
        self._entries.append((place, turned, False, False))

    def draw(self, rng: random.Random) -> Draw:
        """In random order, as data comes."""
        rng.shuffle(self._entries)
        return Draw(*(list(column) for column in zip(*self._entries, strict=True)))


def swap_share(sheet: Sheet, places: Sequence[int], rate: float, rng: random.Random) -> None:
    """Add pairs, a share of them with swapped labels."""
    bad = set(rng.sample(list(places), round(rate * len(places))))
    for place in places:
        sheet.add(place, place in bad)


def one_each(pairs: dict[int, list[int]], rng: random.Random) -> list[int]:
    """One pair of each paragraph."""
    return [rng.choice(places) for places in pairs.values()]


def swapped(pool: Pool, rng: random.Random, rate: float) -> Sheet:
    """In every language the same share of labels is swapped."""
    sheet = Sheet()
    for language in pool.languages:
        swap_share(sheet, one_each(pool.content(language), rng), rate, rng)
    return sheet


def marked_better(pool: Pool, rng: random.Random, flaw: str, rate: float, seen: bool) -> Sheet:
    """In every language a share of pairs has an answer with this flaw marked better.

    ``seen``: the same flaw is also marked worse, as it should be, in other pairs; else it is found
    nowhere else.
    """
    sheet = Sheet()
    for language in pool.languages:
        pairs = pool.content(language)
        of_flaw = {item: place for item, places in pairs.items() for place in places
                   if pool.rows[place]["flaw"] == flaw}
        wanted = round(rate * len(pairs))
        if wanted > len(of_flaw):
            raise Infeasible(f"{language} has {len(of_flaw)} of {wanted} pairs with {flaw}")
        bad = set(rng.sample(sorted(of_flaw), wanted))
        for item, places in pairs.items():
            clean = [place for place in places if seen or pool.rows[place]["flaw"] != flaw]
            if item in bad:
                sheet.add(of_flaw[item], True)
            elif clean:
                sheet.add(rng.choice(clean))
    return sheet


def decorated(pool: Pool, rng: random.Random, decoration: str) -> Sheet:
    """One language's annotators prefer decorated answers, whatever they say; others are right."""
    sheet = Sheet()
    right, wrong = (pool.of_kind("de", f"{side}-{decoration}") for side in ("right", "wrong"))
    if not right:
        raise Infeasible(f"no answers decorated with {decoration}")
    for language in pool.languages:
        pairs = pool.content(language)
        if language == "de":
            bad = set(rng.sample(sorted(right), len(right) // 2))
            for item in right:
                sheet.add(wrong[item] if item in bad else right[item], item in bad)
        else:
            swap_share(sheet, one_each(pairs, rng), 0, rng)
    return sheet


def by_length(pool: Pool, rng: random.Random, languages: int) -> Sheet:
    """Some languages' annotators take the longer answer, whatever it says; others are right."""
    sheet, biased = Sheet(), rng.sample(pool.languages, languages)
    for language in pool.languages:
        for place in one_each(pool.content(language), rng):
            sheet.add(place, language in biased and pool.rows[place]["longer"])
    return sheet


def adversarial(pool: Pool, rng: random.Random, languages: int) -> Sheet:
    """All labels of some languages are swapped."""
    return all_swapped(pool, rng, rng.sample(pool.languages, languages))


def all_swapped(pool: Pool, rng: random.Random, bad: Sequence[str]) -> Sheet:
    """All labels of these languages are swapped."""
    sheet = Sheet()
    for language in pool.languages:
        for place in one_each(pool.content(language), rng):
            sheet.add(place, language in bad)
    return sheet


def opposed(pool: Pool, rng: random.Random, kind: str, minority: int) -> Sheet:
    """A fifth of the content labels is swapped; beside them, as many pairs on which some
    languages prefer the opposite of what the others prefer."""
    sheet, turned = Sheet(), rng.sample(pool.languages, minority)
    for language in pool.languages:
        odd = {item: place for item, place in pool.of_kind(language, kind).items() if item % 2}
        if len(odd) < 5:
            raise Infeasible(f"no pairs about {kind}")
        content = {item: places for item, places in pool.content(language).items() if not item % 2}
        swap_share(sheet, one_each(content, rng), 0.2, rng)
        for place in odd.values():
            sheet.prefer(place, language in turned)
    return sheet


def dominant(pool: Pool, rng: random.Random, bias: str) -> Sheet:
    """Four fifths of the data are of one language, whose labels are biased: the longer answer is
    marked better, or two fifths are swapped. In the others a fifth is swapped."""
    sheet = Sheet()
    pairs = pool.content(DOMINANT, extra=True)
    small = len(pairs) // (4 * (len(pool.languages) - 1))
    if small < 2:
        raise Infeasible(f"only {len(pairs)} pairs of the dominant language")
    for language in pool.languages:
        places = one_each(pool.content(language, extra=language == DOMINANT), rng)
        if language != DOMINANT:
            swap_share(sheet, rng.sample(places, small), 0.2 if small >= 5 else 0.5, rng)
            continue
        places = rng.sample(places, 4 * small * (len(pool.languages) - 1))
        if bias == "length":
            for place in places:
                sheet.add(place, pool.rows[place]["longer"])
        else:
            swap_share(sheet, places, 0.4, rng)
    return sheet


def unequal(pool: Pool, rng: random.Random, rate: float) -> Sheet:
    """Groups of 5 to 500 pairs, or as many as there are; in all the same share is swapped."""
    sheet = Sheet()
    sizes = dict(SIZES)
    others = [language for language in pool.languages if language not in sizes]
    if len(others) != len(SMALL_SIZES):
        raise Infeasible(f"{len(others)} languages besides {', '.join(SIZES)}")
    sizes |= dict(zip(others, rng.sample(SMALL_SIZES, len(SMALL_SIZES)), strict=True))
    for language in pool.languages:
        places = one_each(pool.content(language, extra=True), rng)
        swap_share(sheet, rng.sample(places, min(sizes[language], len(places))), rate, rng)
    return sheet


Scenarios = Mapping[str, Callable[[Pool, random.Random], Sheet]]

SCENARIOS: Scenarios = {
    **{f"swapped-{rate}": partial(swapped, rate=rate / 100) for rate in (5, 10, 20, 40)},
    **{f"{flaw}-{rate}": partial(marked_better, flaw=flaw, rate=rate / 100, seen=True)
       for flaw in ("other-language", "off-topic", "cut-off") for rate in (5, 10, 20, 40)},
    **{f"{flaw}-{rate}-unseen": partial(marked_better, flaw=flaw, rate=rate / 100, seen=False)
       for flaw in ("other-language", "off-topic", "cut-off") for rate in (5, 20)},
    **{f"bias-{name}": partial(decorated, decoration=name) for name in ("shout", "tag")},
    **{f"bias-length-{count}": partial(by_length, languages=count) for count in (1, 4)},
    **{f"adversarial-{count}": partial(adversarial, languages=count) for count in (1, 3, 6)},
    **{f"opposed-{kind}-{minority}": partial(opposed, kind=kind, minority=minority)
       for kind in ("length", "style") for minority in (0, 3, 6)},
    **{f"dominant-{bias}": partial(dominant, bias=bias) for bias in ("length", "swapped")},
    **{f"unequal-{rate}": partial(unequal, rate=rate / 100) for rate in (20, 40)},
}  # fmt: skip


def draw(pool: Pool, name: str, seed: int, scenarios: Scenarios = SCENARIOS) -> Draw:
    """One draw of a scenario; raises :class:`Infeasible`."""
    rng = random.Random(f"{name}/{seed}")
    return scenarios[name](pool, rng).draw(rng)


def as_data(pool: Pool, found: Draw) -> Iterable[Row]:
    """The draw as records, labels as spoilt."""
    for place, turned, planted, judged in zip(
        found.place, found.turned, found.planted, found.judged, strict=True
    ):
        row = pool.rows[place]
        if turned:
            row = row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        yield row | {"planted": planted, "judged": judged}


def digest(pool: Pool, scenarios: Scenarios = SCENARIOS) -> str:
    """Of all draws of the first seeds."""
    content = hashlib.sha256()
    for name in scenarios:
        for seed in range(SEEDS):
            try:
                found = draw(pool, name, seed, scenarios)
            except Infeasible:
                content.update(f"{name} infeasible\n".encode())
                continue
            ids = [pool.rows[place]["id"] for place in found.place]
            content.update(json.dumps([name, seed, ids, *vars(found).values()]).encode())
    return content.hexdigest()


def read_rows(path: Path) -> list[Row]:
    """The rows of a pool."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    """Print what there is, or write one draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--write", choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = read_rows(args.pool)
    if args.write:
        pool = Pool(rows, args.level)
        lines = (json.dumps(row, ensure_ascii=False) + "\n"
                 for row in as_data(pool, draw(pool, args.write, args.seed)))
        args.out.write_text("".join(lines), encoding="utf-8", newline="\n")
        return
    for level in (1, 2, 3):
        print(f"level {level}: SHA-256 of all draws {digest(Pool(rows, level))}")


if __name__ == "__main__":
    main()
