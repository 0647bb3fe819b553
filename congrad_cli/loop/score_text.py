"""The score that a judge wrote, read strictly: a keyword, a colon or ``=``, a number from 0 to 5.

The last such place of the text counts. What stands there must be one whole number: ``45``, ``6``,
``-1``, ``10``, ``3-4``, ``80%`` and ``4/10`` are no scores, and nothing before them is taken
instead. Markdown, quotes and brackets may be around every part, ``/5`` behind it, digits may be of
any script, and the keyword may be translated. Words that mean something else in other languages
("note") count only where no other keyword has a number.
"""

# ruff: noqa: RUF001

import re
import unicodedata
from collections import deque

LEAST, MOST = 0.0, 5.0

KEYWORDS = """
score rating
Bewertung Punktzahl Gesamtpunktzahl Wertung
puntuación puntuacion puntaje calificación calificacion
punteggio valutazione
pontuação pontuacao classificação avaliação
оценка балл баллы рейтинг бал
wynik ocena hodnocení skóre skor puan
điểm skor nilai peringkat alama
beoordeling poäng betyg pistemäärä βαθμολογία βαθμός pontszám scor punctaj
النتيجة الدرجة التقييم امتیاز نمره ציון ניקוד
स्कोर अंक रेटिंग স্কোর নম্বর রেটিং คะแนน
得分 评分 分数 总分 評分 分數 總分 スコア 点数 得点 評点 評価 점수 평점
"""
AMBIGUOUS = """
note nota voto punti points point punkte total
"""
"""Each is a word of English or another language that may stand before a number by chance."""

_MARKS = r"[^\S\n]*+(?:[*_`~\"'“”„‘’«»「」『』()\[\]【】<>][^\S\n]*+){0,8}"
_NUMBER = (
    r"(?P<sign>[-+−–—±]?)[^\S\n]*(?P<number>\d{1,9}(?:[.٫]\d{1,9}|,\d{1,2})?)"
    r"(?P<more>[.,٫]?\d|[A-Za-z%‰^]"  # no whole number: 4.5.1, 1,000, 4th, 80%
    r"|[^\S\n]?(?:[-–—~]|\.\.|to\b|bis\b|or\b)[^\S\n]?\d|[^\S\n]\d)?"  # a range: 3-4, 3 to 4
    rf"(?:{_MARKS}(?:[/⁄]|out[^\S\n]of|von|sur|de|su|из|中)[^\S\n]?{_MARKS}(?P<most>\d{{1,9}}))?"
)


def _pattern(words: str) -> re.Pattern[str]:
    spelt = map(re.escape, sorted(set(_plain(words).split()), key=len, reverse=True))
    return re.compile(
        # no letter before a Latin keyword: "underscore: 4" is no score
        rf"(?:(?<![^\W\d_])|(?<=[^\x00-\u02ff]))(?:{'|'.join(spelt)}){_MARKS}"
        rf"(?:\([^()\n]{{0,30}}\){_MARKS})?[:=]{_MARKS}{_NUMBER}",
        re.IGNORECASE,
    )


def _plain(text: str) -> str:
    """``text`` with the usual forms of characters that East Asian keyboards write wide."""
    return unicodedata.normalize("NFKC", text)


_PATTERNS = (_pattern(KEYWORDS), _pattern(AMBIGUOUS))


def parse_score(text: str) -> float | None:
    """The score in ``text``, from 0 to 5, or None where there is none."""
    plain = _plain(text)
    for pattern in _PATTERNS:
        matches = deque(pattern.finditer(plain), maxlen=1)
        if matches:
            return _score(matches[0])
    return None


def _score(match: re.Match[str]) -> float | None:
    if match["sign"] not in ("", "+") or match["more"]:
        return None
    if match["most"] is not None and int(match["most"]) != MOST:
        return None
    value = float(re.sub("[,٫]", ".", match["number"]))
    return value if LEAST <= value <= MOST else None
