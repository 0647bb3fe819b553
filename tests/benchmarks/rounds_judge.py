"""The judge of ``rounds.py``: a server on loopback that compares an answer with the true one.

An answer's rating is its character n-gram F-score (chrF) with the second half of the paragraph that
the prompt is the first half of, from 0 to 5 as the loop reads it; equal answers get equal ratings.
``fair`` says so. ``spoilt-N`` turns all ratings of some prompts round (5 less the rating): those of
one language, drawn by N, and a fifth of those of the other languages, by a hash of N and the
prompt. The candidates' order is reversed then, so that the pair of such a prompt is the wrong way
round. No script.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from chat_stub import Handler, Stub

TEMPLATE = '{{ {"prompt": prompt, "response": response} | tojson }}'
"""What the judge is asked with, in place of the rubric."""
MOST, ORDERS, BETA = 5.0, 6, 2.0
FAIR, SPOILT = "fair", "spoilt"
ONE_IN = 5


def grams(text: str, order: int) -> Counter[str]:
    """How often each n-gram of characters stands in a text, white space apart."""
    plain = "".join(text.split())
    return Counter(plain[at : at + order] for at in range(len(plain) - order + 1))


def chrf(answer: str, truth: str) -> float:
    """chrF2 of one answer, 0 to 1: mean precision and mean recall over n = 1 to 6, as F2.

    Orders that the truth is too short for are left out. One that only the answer is too short for
    counts as 0, so that a very short answer gains nothing.
    """
    precision, recall, orders = 0.0, 0.0, 0
    for order in range(1, ORDERS + 1):
        said, meant = grams(answer, order), grams(truth, order)
        if not meant:
            break
        both = (said & meant).total()
        precision += both / max(said.total(), 1)
        recall += both / meant.total()
        orders += 1
    weighted = BETA**2 * precision + recall
    return (1 + BETA**2) * precision * recall / weighted / orders if weighted else 0.0


@dataclass(frozen=True)
class Truth:
    """How a prompt really goes on."""

    language: str
    rest: str


@dataclass(frozen=True)
class Judge:
    """Knows the truth of all prompts, each by its whole text; ``asked`` are the languages that the
    loop has prompts in."""

    truths: Mapping[str, Truth]
    asked: frozenset[str]

    def quality(self, prompt: str, answer: str) -> float:
        """What a fair judge thinks of an answer, 0 to 1."""
        return chrf(answer, self.truths[prompt].rest)

    def turns(self, name: str, prompt: str) -> bool:
        """Whether the judge of this name turns the ratings of this prompt's answers round."""
        if name == FAIR:
            return False
        drawn = sha256(f"{name}\0{prompt}".encode()).digest()
        return (self.truths[prompt].language == self.opponent(name)
                or int.from_bytes(drawn[:4]) % ONE_IN == 0)

    def opponent(self, name: str) -> str:
        """The language in which a spoilt judge turns everything round: of all languages, drawn
        again until it is one of those that are asked."""
        languages, rng = sorted({truth.language for truth in self.truths.values()}), Random(name)
        while (drawn := rng.choice(languages)) not in self.asked:
            pass
        return drawn

    def rating(self, name: str, prompt: str, answer: str) -> float:
        """What the judge of this name says, 0 to 5."""
        fair = MOST * self.quality(prompt, answer)
        return MOST - fair if self.turns(name, prompt) else fair

    def is_wrong(self, pair: Mapping[str, Any]) -> bool:
        """Whether the answer that a pair of the loop prefers is the worse one."""
        prompt, chosen, rejected = (pair[side][-1]["content"]
                                    for side in ("prompt", "chosen", "rejected"))
        return self.quality(prompt, chosen) < self.quality(prompt, rejected)

    def answer(self, handler: Handler, payload: dict[str, Any], number: int) -> None:
        """Rate what was asked with :data:`TEMPLATE`; the served model's name is the judge's."""
        asked = json.loads(payload["messages"][-1]["content"])
        rating = self.rating(payload["model"], asked["prompt"], asked["response"])
        handler.say(*[f"Score: {rating:.5f}"] * payload.get("n", 1))


@contextmanager
def served(judge: Judge) -> Iterator[str]:
    """The address of the judge, while it listens."""
    with Stub(judge.answer) as stub:
        yield stub.url
