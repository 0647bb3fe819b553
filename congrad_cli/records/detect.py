"""Which language a text is in, where nobody has said so (the package py3langid decides).

The answer rests on prose alone: code, addresses and links are taken out first, because they look
like some language (code like Nigerian Pidgin, links like English) whatever the text is in.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from congrad_cli.errors import UsageError
from congrad_cli.records.languages import base, canonical, nearest

READ, USED = 20_000, 1_000
"""So many characters of a text are looked at for prose, and so many of its prose are judged."""
LEAST_LETTERS = 20
FLOOR = 0.8
"""Of 2,160 sentences in 108 languages 94 % are above it when all languages are in question, all
rightly named; at 0.9 it is 91 %, at 0.5 1.3 % are wrong, most of them Indonesian taken for Malay.
"""
LEAST_SHARE = 0.05
"""The least probability, among all languages, that those in question have together. Without it
half of the sentences in other languages would get one of eighteen in question; with it 3 % do.
"""
NO_LANGUAGE = "zxx"  # py3langid's label of what is not written in any

TOO_SHORT = "too little text"
OTHER = "none of the languages in question"
UNSURE = "no language is likely enough"

_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)"  # a fenced code block; one that is never closed reaches to the end
    r"|^~~~.*?(?:^~~~|\Z)"
    r"|`[^`\n]+`"
    r"|\b(?:https?|ftp)://\S+|\bwww\.\S+"
    r"|(?<![\w.+-])[\w.+-]++@[\w-]+\.[\w.-]+",
    re.DOTALL | re.MULTILINE,
)
_DENSE = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]"  # CJK
)


@dataclass(frozen=True, slots=True)
class Detection:
    """What was found: ``language``, or None and the ``reason``, one of this module's three.

    ``likeliest`` and ``probability`` tell of the likeliest language, even if it was not likely
    enough, and of any language if it is none of those in question (None for no language at all).
    """

    language: str | None
    probability: float = 0.0
    likeliest: str | None = None
    reason: str | None = None


class Detector:
    """Tells which language a text is in; the same text gets the same answer every time."""

    def __init__(self, languages: Sequence[str] = (), floor: float = FLOOR) -> None:
        """Load py3langid's model (a second, the first time).

        ``languages`` are those in question, by any label; without them it is all that the model
        knows. The answer is one of them in its canonical form (``pt-BR``, where that was given).
        ``floor`` is the least probability of an answer, among the languages in question.

        Raises :class:`UsageError` if py3langid is not installed, if it does not know one of the
        languages, or if two of them are one to it (``zh`` and ``zh-Hant``).
        """
        self.floor = floor
        self._identifier = _load()
        self._canonical = {label: canonical(label) for label in self._identifier.labels}
        known = {name: name for name in self._canonical.values() if name != NO_LANGUAGE}
        self._answers = _in_question(languages, known) if languages else known

    def detect(self, text: str) -> Detection:
        """Return the language of the prose in ``text``, or why there is no answer.

        Too little text is fewer than 20 letters. A letter counts for two where one says much (Han,
        kana, Hangul) or no spaces are written (Thai, Lao, Tibetan, Burmese, Khmer).
        """
        prose = strip_code(text[:READ])[:USED]
        if count_letters(prose) < LEAST_LETTERS:
            return Detection(None, reason=TOO_SHORT)
        shares: dict[str, float] = defaultdict(float)
        for label, probability in self._identifier.rank(prose):
            shares[self._canonical[label]] += probability
        share = sum(shares[name] for name in self._answers)
        # among a few languages one is always likely, also for a text in none of them
        if share < LEAST_SHARE:
            first = max(shares, key=shares.__getitem__)
            likeliest = None if first == NO_LANGUAGE else first
            return Detection(None, shares[first], likeliest, OTHER)
        best = max(self._answers, key=shares.__getitem__)
        answer, probability = self._answers[best], shares[best] / share
        if probability < self.floor:
            return Detection(None, probability, answer, UNSURE)
        return Detection(answer, probability, answer)


def strip_code(text: str) -> str:
    """Return ``text`` without code (fenced or inline), links and e-mail addresses."""
    return _NO_PROSE.sub(" ", text)


def count_letters(text: str) -> int:
    """Count the letters of ``text``, twice those of scripts in which few letters say much."""
    dense = sum(map(str.isalpha, _DENSE.findall(text)))
    return sum(map(str.isalpha, text)) + dense


@cache
def _load() -> Any:
    """py3langid's identifier, giving probabilities; nobody changes it."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UsageError(
            "--detect-language needs the package py3langid.", "pip install 'congrad-cli[langid]'"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _in_question(languages: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """The model's name of each language that may be the answer, and what the answer then is."""
    answers: dict[str, str] = {}
    for label in languages:
        name = base(label)
        if name is None or name not in known:
            close = nearest(label, known)
            raise UsageError(
                f"--detect-language: py3langid does not know the language {label!r}.",
                *([f"did you mean {close!r}?"] if close else []),
                f"it knows: {', '.join(sorted(known))}",
            )
        answer = canonical(label)
        other = answers.setdefault(name, answer)
        if other != answer:
            raise UsageError(
                f"--detect-language: py3langid cannot tell {other!r} from {answer!r}.",
                "give one of them",
            )
    return answers
