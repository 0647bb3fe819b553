"""Candidate answers -> scores: what a judge is, and the two that ask a model's probabilities.

A judgement is one item for each prompt: ``{"key", "scores", "judged", "samples"}``, each a list
over the prompt's candidates. Answers that were cut off or say nothing are not judged: they can be
in no pair. A score is null there, and where the judge gave none.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from congrad_cli.errors import ModelError
from congrad_cli.loop.model_access import Message, Scorer, Weighed
from congrad_cli.records.objects import excerpt


class Judge(Protocol):
    """Scores candidates; higher is better."""

    def judge(self, items: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The judgement of each item of :func:`congrad_cli.loop.generate.candidates`."""


class ImplicitRewardJudge:
    """Scores by ``beta (log pi(y|x) - log pi_ref(y|x))``, summed over the answer's tokens."""

    def __init__(self, policy: Scorer, reference: Scorer, beta: float) -> None:
        self._policy, self._reference, self._beta = policy, reference, beta

    def judge(self, items: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """One judgement for each item; an answer that train.max_length leaves no token of has no
        score. Raises :class:`ModelError` where all rewards are zero: policy and reference are the
        same weights then, and nothing is better than anything."""
        held: list[dict[str, Any]] = []
        told = False
        for item in items:
            texts = _texts(item)
            pairs = zip(self._policy.weigh(texts), self._reference.weigh(texts), strict=True)
            held.append(_judgement(item, [
                self._beta * (ours.logp - theirs.logp) if ours.tokens else math.nan
                for ours, theirs in pairs
            ]))
            told = told or any(held[-1]["scores"])
            if told:
                yield from held
                held = []
        if sum(item["scores"].count(0.0) for item in held) > 1:
            raise ModelError(
                "implicit rewards: every one is 0, so the policy is the reference.",
                "set judge.reference to the model before any DPO, which is not model.path",
                'or use judge.kind = "self", "endpoint" or "log-prob"',
            )
        yield from held


class LogProbJudge:
    """Scores by the mean log-probability of an answer's tokens."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def judge(self, items: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """One judgement for each item."""
        for item in items:
            yield _judgement(item, list(map(mean_logp, self._scorer.weigh(_texts(item)))))


def mean_logp(weighed: Weighed) -> float:
    """The mean log-probability of a token; NaN of no token."""
    return weighed.logp / weighed.tokens if weighed.tokens else math.nan


def judgeable(candidate: Mapping[str, Any]) -> bool:
    """Whether an answer came to its end and says something."""
    return bool(candidate["finished"] and candidate["text"].strip())


def require_valid(items: Sequence[Mapping[str, Any]], max_invalid: float) -> None:
    """Raise :class:`ModelError` where a share above ``max_invalid`` of judgements holds no score.

    Of a rubric every sample counts, retries apart.
    """
    if not items:
        return
    valid = [one for item in items for one in _outcomes(item)]
    if not valid:
        count = sum(len(item["judged"]) for item in items)
        raise ModelError(
            f"judge: none of {count:,} answers can be judged: each is cut off or empty.",
            "raise generate.max_tokens, or use a model that ends its answers",
        )
    missing = valid.count(False)
    if missing > max_invalid * len(valid):
        raise ModelError(
            f"judge: {missing:,} of {len(valid):,} judgements ({missing / len(valid):.0%}) hold no "
            f"score; at most {max_invalid:.0%} may (judge.max_invalid).",
            *_seen(items),
            "a model without instruction tuning cannot judge: use an instruction-tuned model",
            'or judge.kind = "endpoint" (a server judges), "initial" (the first model does), '
            '"implicit-reward" or "log-prob" (probabilities do)',
        )


def _outcomes(item: Mapping[str, Any]) -> Iterator[bool]:
    """For every judgement of an item whether it holds a score."""
    for score, judged, samples in zip(
        item["scores"], item["judged"], item["samples"], strict=True
    ):
        if samples:
            yield from (sample["score"] is not None for sample in samples)
        elif judged:
            yield score is not None


def _seen(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The end of a judgement that holds no score, as a hint."""
    for item in items:
        for samples in item["samples"]:
            for sample in samples:
                if sample["score"] is None:
                    last = sample["attempts"][-1]
                    how = "ends in" if last["finished"] else "was cut off at"
                    return [f"saw: one that {how} {excerpt(last['text'][-60:])}"]
    return []


def _texts(item: Mapping[str, Any]) -> list[tuple[tuple[Message, ...], str]]:
    messages = tuple(item["messages"])
    return [(messages, one["text"]) for one in item["candidates"] if judgeable(one)]


def _judgement(item: Mapping[str, Any], scores: Sequence[float]) -> dict[str, Any]:
    """The item's judgement from the scores of those candidates that are judged."""
    judged = [judgeable(candidate) for candidate in item["candidates"]]
    rest = iter(scores)
    given = [next(rest) if one else None for one in judged]
    finite = [None if score is None or not math.isfinite(score) else score for score in given]
    return {"key": item["key"], "scores": finite, "judged": judged,
            "samples": [[] for _ in judged]}
