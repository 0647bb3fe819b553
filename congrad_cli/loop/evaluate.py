"""What a round is worth on held-out data: items of its stages -> a number per language and measure.

Everything here is a pure function of items: answers (:func:`congrad_cli.loop.generate.answers`),
verdicts (:mod:`congrad_cli.loop.verdicts`), weighed pairs and texts
(:mod:`congrad_cli.loop.weighing`). Items of two rounds are matched by their keys; what one of them
lacks is left out.

| measure | value of a language |
|---|---|
| preference-accuracy | share of pairs whose chosen answer has the higher implicit reward |
| preference-margin | mean difference of the implicit rewards, against the initial model |
| log-prob-accuracy | share of pairs whose chosen answer has the higher log-probability a token |
| win-rate | share of prompts answered better than by the round before; a tie counts half |
| ties, no-verdict | share of prompts with a tie, and with no verdict |
| language-consistency | share of answers that are in the prompt's language, of those judged |
| finished | share of answers that came to their end |
| characters, tokens | mean length of an answer |
| characters-to-first, -to-previous | mean length over that of the initial model or round before |
| perplexity | of the texts, over all their tokens |
| perplexity-to-initial | the same over the initial model's: what the training costs |
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from congrad_cli.loop.language_check import RIGHT, UNSURE, WRONG, LanguageCheck
from congrad_cli.loop.verdicts import BEFORE, NOW, TIE

Item = Mapping[str, Any]
ByLanguage = dict[str, tuple[float, int]]
"""A measure of each language, and of how many items it is."""
ALL, ALL_SEEN, ALL_UNSEEN = "all", "all seen", "all unseen"
WORTH = {NOW: 1.0, TIE: 0.5, BEFORE: 0.0}
LENGTHS = ("characters", "tokens")


@dataclass(frozen=True, slots=True)
class RoundItems:
    """Everything that was written and weighed for one round; what is empty is not measured."""

    answers: Sequence[Item] = ()
    verdicts: Sequence[Item] = ()
    pairs: Sequence[Item] = ()
    texts: Sequence[Item] = ()


def measure_round(
    now: RoundItems,
    before: RoundItems | None,
    initial: RoundItems | None,
    beta: float,
    check: LanguageCheck | None = None,
) -> dict[str, ByLanguage]:
    """Every measure that the items allow, by its name.

    ``before`` is the round before, ``initial`` the initial model; both are None for the initial
    model itself. ``beta`` is that of the loss.
    """
    measures = of_pairs(now.pairs, initial.pairs if initial else (), beta)
    measures |= of_verdicts(now.verdicts) | of_answers(now.answers, check)
    measures |= length_ratios(now.answers, initial.answers if initial else (), "first")
    measures |= length_ratios(now.answers, before.answers if before else (), "previous")
    measures |= of_texts(now.texts, initial.texts if initial else ())
    return {name: values for name, values in measures.items() if values}


def of_pairs(now: Sequence[Item], initial: Sequence[Item], beta: float) -> dict[str, ByLanguage]:
    """Accuracies and the margin from weighed pairs; those of the reward need the initial ones.

    Pairs whose prompt left no room for an answer say nothing and are left out.
    """
    first = {item["key"]: item for item in initial}
    weighed = [item for item in now if item["chosen"]["tokens"] and item["rejected"]["tokens"]]
    margins = [
        (item["language"], beta * (_gap(item) - _gap(first[item["key"]])))
        for item in weighed if item["key"] in first
    ]
    return {
        "log-prob-accuracy": mean_by_language(
            (item["language"], _sign(_mean(item["chosen"]) - _mean(item["rejected"])))
            for item in weighed),
        "preference-accuracy": mean_by_language(
            (language, _sign(margin)) for language, margin in margins),
        "preference-margin": mean_by_language(margins),
    }


def of_verdicts(verdicts: Sequence[Item]) -> dict[str, ByLanguage]:
    """The win rate, and what it leaves open."""
    said = [(item["language"], item["winner"]) for item in verdicts]
    return {
        "win-rate": mean_by_language(
            (language, WORTH[winner]) for language, winner in said if winner is not None),
        "ties": mean_by_language((language, float(winner == TIE)) for language, winner in said
                                 if winner is not None),
        "no-verdict": mean_by_language(
            (language, float(winner is None)) for language, winner in said),
    }


def of_answers(answers: Sequence[Item], check: LanguageCheck | None) -> dict[str, ByLanguage]:
    """Lengths, how many answers came to their end, and how many are in the right language."""
    languages = [] if check is None else [
        (item["language"],
         check.check(item["candidates"][0]["text"], item["language"], item["messages"]).outcome)
        for item in answers
    ]
    return {
        "finished": mean_by_language(
            (item["language"], float(item["candidates"][0]["finished"])) for item in answers),
        "language-consistency": mean_by_language(
            (language, float(outcome != WRONG)) for language, outcome in languages
            if outcome in (RIGHT, UNSURE, WRONG)),
        **{unit: mean_by_language(
            (item["language"], length) for item in answers
            if (length := _length(item, unit)) is not None) for unit in LENGTHS},
    }


def length_ratios(
    now: Sequence[Item], other: Sequence[Item], name: str
) -> dict[str, ByLanguage]:
    """Mean lengths of answers over those of the ``other`` ones to the same prompts."""
    others = {item["key"]: item for item in other}
    ratios: dict[str, ByLanguage] = {}
    for unit in LENGTHS:
        both = [
            (item["language"], length, before) for item in now if item["key"] in others
            and (length := _length(item, unit)) is not None
            and (before := _length(others[item["key"]], unit)) is not None
        ]
        ours = mean_by_language((language, length) for language, length, _ in both)
        theirs = mean_by_language((language, before) for language, _, before in both)
        ratios[f"{unit}-to-{name}"] = {
            language: (mean / theirs[language][0], count)
            for language, (mean, count) in ours.items() if theirs[language][0]
        }
    return ratios


def of_texts(now: Sequence[Item], initial: Sequence[Item]) -> dict[str, ByLanguage]:
    """The perplexity of weighed texts, and its ratio to the initial model's on the same texts."""
    first = {item["key"]: item for item in initial}
    shared = [item for item in now if item["key"] in first]
    ours, theirs = perplexity(shared), perplexity([first[item["key"]] for item in shared])
    return {
        "perplexity": perplexity(now),
        "perplexity-to-initial": {
            language: (value / theirs[language][0], count)
            for language, (value, count) in ours.items()
        },
    }


def perplexity(texts: Iterable[Item]) -> ByLanguage:
    """exp of the mean negative log-probability of a token, over each language's texts."""
    logps: defaultdict[str, list[float]] = defaultdict(list)
    tokens: defaultdict[str, int] = defaultdict(int)
    for item in texts:
        if item["tokens"]:
            logps[item["language"]].append(item["logp"])
            tokens[item["language"]] += item["tokens"]
    return {
        # above 700 nats a token the number would be infinite, which JSON does not have
        language: (math.exp(min(-math.fsum(found) / tokens[language], 700.0)), len(found))
        for language, found in logps.items()
    }


def mean_by_language(values: Iterable[tuple[str, float]]) -> ByLanguage:
    """The mean of the values of each language, and their number."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for language, value in values:
        found[language].append(value)
    return {language: (math.fsum(one) / len(one), len(one)) for language, one in found.items()}


def rows(
    number: int, measures: Mapping[str, ByLanguage], seen: Collection[str]
) -> list[dict[str, Any]]:
    """``{"round", "language", "seen", "measure", "value", "n"}`` of each measure and language.

    ``seen`` are the languages that are trained on. Means over languages come first, each language
    counting alike: of ``all``, and where there are both kinds of ``all seen`` and ``all unseen``.
    Ratios and perplexities are averaged as their logarithms. n is the number of items.
    """
    result = []
    for measure, values in sorted(measures.items()):
        parts = {ALL: values}
        known = {language: one for language, one in values.items() if language in seen}
        if known and len(known) < len(values):
            new = {language: one for language, one in values.items() if language not in seen}
            parts |= {ALL_SEEN: known, ALL_UNSEEN: new}
        found: dict[str, tuple[float, int, bool | None]] = {
            name: (*_over_languages(measure, part), {ALL_SEEN: True, ALL_UNSEEN: False}.get(name))
            for name, part in parts.items()
        }
        found |= {language: (*one, language in seen) for language, one in sorted(values.items())}
        result += [
            {"round": number, "language": language, "seen": trained, "measure": measure,
             "value": value, "n": count}
            for language, (value, count, trained) in found.items()
        ]
    return result


def table(found: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Rows of one round as ``{language: {measure: value}}``: means, then seen languages, unseen."""
    order = {ALL: 0, ALL_SEEN: 1, ALL_UNSEEN: 2}
    lines: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
    for row in found:
        place = order.get(row["language"], 3 if row["seen"] else 4)
        lines[place, row["language"]][row["measure"]] = row["value"]
    return {language: dict(sorted(lines[place, language].items()))
            for place, language in sorted(lines)}


def _over_languages(measure: str, values: ByLanguage) -> tuple[float, int]:
    numbers = [value for value, _ in values.values()]
    count = sum(one for _, one in values.values())
    if "-to-" not in measure and measure != "perplexity":
        return math.fsum(numbers) / len(numbers), count
    if min(numbers) <= 0:
        return 0.0, count
    return math.exp(math.fsum(map(math.log, numbers)) / len(numbers)), count


def _gap(item: Item) -> float:
    return float(item["chosen"]["logp"] - item["rejected"]["logp"])


def _mean(weighed: Item) -> float:
    return float(weighed["logp"] / weighed["tokens"])


def _sign(difference: float) -> float:
    """1 where the first is higher, 0 where it is lower, a half where they are equal."""
    return 0.5 if difference == 0 else float(difference > 0)


def _length(item: Item, unit: str) -> float | None:
    candidate = item["candidates"][0]
    if unit == "characters":
        return float(len(candidate["text"]))
    return None if candidate["tokens"] is None else float(candidate["tokens"])
