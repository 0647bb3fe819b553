"""Judged candidates -> preference pairs: the best answer of a prompt against its worst.

A candidate takes part if it was finished, is long enough, is in the right language and has a
score. Equal texts are one candidate, whose score is their mean. Of several best ones the shortest
is chosen, since judges like length too much; of several worst ones the one whose length is nearest
to the chosen one's, so that the pair teaches the difference that was judged. Among those left the
first candidate counts. Lengths are in characters.

A prompt without a pair has a reason; where candidates were taken out, it is what took out most.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from congrad_cli.errors import InputError
from congrad_cli.loop.language_check import LanguageCheck
from congrad_cli.loop.settings import PairsSection

UNFINISHED, TOO_SHORT = "unfinished", "too-short"
WRONG_LANGUAGE, UNJUDGED = "wrong-language", "unjudged"
FEW, IDENTICAL, NO_MARGIN = "fewer-than-two", "identical", "no-margin"
OUT = (UNFINISHED, TOO_SHORT, WRONG_LANGUAGE, UNJUDGED)
"""What takes a candidate out, in the order of looking; of equal numbers the first is named."""


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer that takes part; ``index`` is that of the first candidate with its text."""

    text: str
    score: float
    index: int


def make_pairs(
    candidates: Iterable[Mapping[str, Any]],
    judgements: Iterable[Mapping[str, Any]],
    section: PairsSection,
    languages: Iterable[str],
) -> Iterator[dict[str, Any]]:
    """One item for each prompt: ``{"key", "pair", "reason"}``, the pair null or the reason "".

    A pair has ``id``, ``language``, ``prompt``, ``chosen`` and ``rejected`` as message lists,
    ``chosen_score`` and ``rejected_score``.
    ``languages`` are those that answers may be taken for. Raises :class:`UsageError` where
    languages are to be checked and py3langid is missing, :class:`InputError` for judgements of
    other candidates.
    """
    check = LanguageCheck(languages, section.min_confidence) if section.check_language else None
    scores = {item["key"]: item["scores"] for item in judgements}
    for item in candidates:
        given = scores.get(item["key"]) or [None] * len(item["candidates"])
        if len(given) != len(item["candidates"]):
            raise InputError(f"the prompt {item['key']!r} has {len(item['candidates'])} candidates "
                             f"and {len(given)} scores.", "judge these candidates")
        valid, out = _sort_out(item, given, section, check)
        found = best_and_worst(valid, section.margin)
        if isinstance(found, str):
            reason = max(OUT, key=lambda one: out[one]) if found == FEW and out else found
            yield {"key": item["key"], "pair": None, "reason": reason}
        else:
            yield {"key": item["key"], "pair": _pair(item, *found), "reason": ""}


def best_and_worst(valid: Sequence[Scored], margin: float) -> tuple[Scored, Scored] | str:
    """The two answers of a pair, or why there is none; the order matters in ties alone."""
    if len(valid) < 2:
        return FEW
    distinct = _merge(valid)
    if len(distinct) < 2:
        return IDENTICAL
    top, bottom = (pick(one.score for one in distinct) for pick in (max, min))
    if not top - bottom > margin:
        return NO_MARGIN
    best = min((one for one in distinct if one.score == top),
               key=lambda one: (len(one.text), one.index))
    worst = min((one for one in distinct if one.score == bottom),
                key=lambda one: (abs(len(one.text) - len(best.text)), one.index))
    return best, worst


def count_reasons(items: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many prompts have which reason; those with a pair are under ""."""
    return Counter(item["reason"] for item in items)


def _sort_out(
    item: Mapping[str, Any],
    scores: Sequence[float | None],
    section: PairsSection,
    check: LanguageCheck | None,
) -> tuple[list[Scored], Counter[str]]:
    """The candidates that take part, and how many others were taken out for what."""
    valid: list[Scored] = []
    out: Counter[str] = Counter()
    for index, (candidate, score) in enumerate(zip(item["candidates"], scores, strict=True)):
        text = candidate["text"]
        if not candidate["finished"]:
            out[UNFINISHED] += 1
        elif len(text.strip()) < max(1, section.min_chars):
            out[TOO_SHORT] += 1
        elif check and not check.check(text, item["language"], item["messages"]).passed:
            out[WRONG_LANGUAGE] += 1
        elif score is None:
            out[UNJUDGED] += 1
        else:
            valid.append(Scored(text, score, index))
    return valid, out


def _merge(valid: Sequence[Scored]) -> list[Scored]:
    """Answers that differ in more than the white space around them, with their mean scores."""
    same: defaultdict[str, list[Scored]] = defaultdict(list)
    for one in valid:
        same[one.text.strip()].append(one)
    return [
        Scored(group[0].text, math.fsum(one.score for one in group) / len(group), group[0].index)
        for group in same.values()
    ]


def _pair(item: Mapping[str, Any], best: Scored, worst: Scored) -> dict[str, Any]:
    chosen, rejected = ([{"role": "assistant", "content": one.text}] for one in (best, worst))
    return {"id": item["key"], "language": item["language"], "prompt": list(item["messages"]),
            "chosen": chosen, "rejected": rejected,
            "chosen_score": best.score, "rejected_score": worst.score}
