"""Whether an answer is in the language of its prompt.

The benefit of the doubt is the answer's: it is wrong only where another language is likely enough.
Texts of too few letters are not judged, code and links apart; nor are answers to prompts that ask
for another language themselves. Such a prompt, so the rule,

- has a word for translating, in one of the common languages (``TRANSLATE``), or
- names another language than its own as ``ASK`` has it: "in French", "auf Englisch", "en inglés",
  "英语", "tiếng Anh" and the like.

The rule rather leaves an answer unjudged than calls a right one wrong.
"""

# ruff: noqa: RUF001

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from congrad_cli.errors import UsageError
from congrad_cli.loop.language_names import english_name, english_names
from congrad_cli.loop.model_access import Message
from congrad_cli.records.detect import NO_LANGUAGE, OTHER, TOO_SHORT, Detector, strip_code
from congrad_cli.records.languages import base, canonical

RIGHT, WRONG, UNSURE = "right", "wrong", "unsure"
SHORT, ASKED, UNKNOWN = "too-short", "other-language-asked", "unknown-language"
"""What a check finds; with the last three the answer was not judged."""
PROMPT_READ = 4_000
"""So many characters of a prompt, from its start and to its end, are searched for a wish."""

TRANSLATE = re.compile(
    r"\b(?:translat|traduc|traduz|tradui|tradur|übersetz|uebersetz|vertaal|vertaling|перев[её]д|"
    r"перевод|перевест|перекла|tłumacz|przetłumacz|přelož|översätt|oversett|oversæt|käännä|"
    r"tafsiri|terjemah|çevir|tercüme|dịch\b|fordít)"
    r"|翻译|翻譯|翻訳|和訳|英訳|번역|ترجم|अनुवाद|অনুবাদ|แปล|μετάφρασ|μεταφράσ|תרגם|תרגום",
    re.IGNORECASE,
)
ASK = re.compile(
    r"\b(?:auf\s+(?:\w+isch|deutsch)|in\s+het\s+\w+s"
    r"|e[nm]\s+(?:ingl[éeê]s|anglais|franc[eéê]s|français|allemand|alem[aáã][no]o?|espa[gñn]n?h?ol"
    r"|chino|chin[oê][is]s?|japon[eéê]s|japonais|italiano?|italien|portugu[eéê]s|portugais|ruso"
    r"|russ[eo]|[aá]rabe|coreano|coréen|hindi|swahili|turco|turc)"
    r"|in\s+(?:inglese|francese|tedesco|spagnolo|cinese|giapponese|portoghese|russo|arabo|italiano)"
    r"|на\s+\w+ском|по-\w+ски|bahasa\s+\w+|tiếng\s+\w+|kwa\s+ki\w+"
    r"|(?:ingilizce|i̇ngilizce|fransızca|almanca|ispanyolca|rusça|çince|japonca|arapça|türkçe))\b"
    r"|(?:英|法|德|日|韩|韓|中|汉|漢|俄|西班牙|葡萄牙|阿拉伯|意大利)(?:语|文)|(?:英|日本|中国|韓国|フランス|"
    r"ドイツ|スペイン|イタリア|ロシア|アラビア|ポルトガル)語"
    r"|(?:영어|프랑스어|독일어|스페인어|중국어|일본어|러시아어|아랍어|한국어)로"
    r"|بال(?:إنجليزية|انجليزية|فرنسية|ألمانية|إسبانية|صينية|روسية|يابانية|عربية)"
    r"|(?:अंग्रेज़ी|अंग्रेजी|फ़्रेंच|फ्रेंच|जर्मन|स्पेनिश|चीनी|हिन्दी|हिंदी) में"
    r"|(?:ইংরেজি|ফরাসি|জার্মান|স্প্যানিশ|চীনা)তে|বাংলায়"
    r"|ภาษา(?:อังกฤษ|ฝรั่งเศส|เยอรมัน|สเปน|จีน|ญี่ปุ่น|รัสเซีย|อาหรับ|เกาหลี|ไทย)",
    re.IGNORECASE,
)
OWN = {
    "ar": "عربية", "bn": "বাংলা", "de": "deutsch", "es": "espa", "fr": "fran", "hi": "हिन्दी|हिंदी",
    "id": "indonesia", "it": "italian", "ja": "日本|日文|日语", "ko": "한국", "nl": "nederlands",
    "pt": "portugu", "ru": "русск", "sw": "kiswahili", "th": "ไทย", "tr": "türkçe", "vi": "việt",
    "zh": "[中汉漢]",
}  # fmt: skip
"""What a language calls itself: a wish for it, in a prompt in it, is no wish for another."""


@dataclass(frozen=True, slots=True)
class Finding:
    """``outcome`` is one of this module's; ``found`` is the likeliest language, if there is one."""

    outcome: str
    found: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the answer."""
        return self.outcome != WRONG


class LanguageCheck:
    """Checks answers in a set of languages; what py3langid does not know of them passes."""

    def __init__(self, languages: Iterable[str], floor: float) -> None:
        """Load py3langid. ``languages`` are those that answers should be in, by any label.

        Another one of them counts where its probability among them is ``floor`` or more, and one
        that is none of them where all of them together are most unlikely. Scripts and regions are
        not told apart. Raises :class:`UsageError` if py3langid is missing.
        """
        require_package()
        labels = sorted({canonical(label) for label in languages})
        self._base = {label: base(label) or label for label in labels if _known(label)}
        self.unknown = tuple(label for label in labels if label not in self._base)
        self._detector = Detector(sorted(set(self._base.values())), floor)

    def check(self, text: str, language: str, messages: Sequence[Message] = ()) -> Finding:
        """What the language of ``text`` is to an answer in ``language`` after ``messages``."""
        wanted = self._base.get(language)
        if wanted is None:
            return Finding(UNKNOWN)
        if messages and asks_for_another(messages, language):
            return Finding(ASKED)
        found = self._detector.detect(text)
        if found.reason == TOO_SHORT:
            return Finding(SHORT)
        if found.likeliest == wanted:
            return Finding(RIGHT if found.language else UNSURE, wanted)
        sure = found.reason == OTHER or found.language is not None
        return Finding(WRONG if sure else UNSURE, found.likeliest or NO_LANGUAGE)


def require_package() -> None:
    """Raise :class:`UsageError` if py3langid is missing."""
    try:
        Detector()
    except UsageError as error:
        raise UsageError(
            "checking the language of answers needs the package py3langid.", *error.hints,
            "pairs.check_language = false leaves it out of pairs",
        ) from error


def _known(label: str) -> bool:
    """Whether py3langid knows the language, in whatever script or region."""
    try:
        Detector([base(label) or label])
    except UsageError:
        return False
    return True


def asks_for_another(messages: Sequence[Message], language: str) -> bool:
    """Whether the last of the messages asks for an answer in another language than its own.

    The rule is this module's. A wish for the prompt's own language does not count.
    """
    text = messages[-1]["content"]
    if len(text) > 2 * PROMPT_READ:
        text = f"{text[:PROMPT_READ]} {text[-PROMPT_READ:]}"
    text = strip_code(text)
    if TRANSLATE.search(text):
        return True
    own = base(language) or language
    name = re.compile(f"{re.escape(english_name(own))}|{OWN.get(own, '(?!)')}", re.IGNORECASE)
    return any(not name.search(match[0])
               for pattern in (ASK, _in_english()) for match in pattern.finditer(text))


@cache
def _in_english() -> re.Pattern[str]:
    """"in French", "into Swahili": a preposition and the English name of a language."""
    spelt = "|".join(map(re.escape, sorted(english_names(), key=len, reverse=True)))
    return re.compile(rf"\b(?:in|into|to|using)\s+({spelt})\b")


def pass_rates(
    items: Iterable[Mapping[str, Any]], check: LanguageCheck
) -> dict[str, dict[str, float | int | None]]:
    """For each language of candidate items: answers, those judged, those right, and the share.

    ``{"de": {"answers": 400, "judged": 380, "right": 361, "rate": 0.95}}``; an answer that was not
    told surely counts as right. The rate is None where no answer was judged.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        for candidate in item["candidates"]:
            outcome = check.check(candidate["text"], item["language"], item["messages"]).outcome
            found[item["language"]][outcome] += 1
    return {language: _rate(counts) for language, counts in sorted(found.items())}


def _rate(counts: Counter[str]) -> dict[str, float | int | None]:
    right = counts[RIGHT] + counts[UNSURE]
    judged = right + counts[WRONG]
    return {"answers": counts.total(), "judged": judged, "right": right,
            "rate": right / judged if judged else None}
