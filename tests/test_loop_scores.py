"""Scores and verdicts out of what judges write: every accepted spelling, and what is no score."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from congrad_cli.loop.score_text import AMBIGUOUS, KEYWORDS, parse_score
from congrad_cli.loop.verdicts import parse_verdict, winner

# ruff: noqa: RUF001


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 4", 4),
        ("score : 0", 0),
        ("SCORE = 5", 5),
        ("Score: 3.5", 3.5),
        ("Score: 3,5", 3.5),
        ("Score: 4.", 4),
        ("Score: 4. It is good.", 4),
        ("Score: +4", 4),
        ("Score: 4/5", 4),
        ("Score: 4 / 5 points", 4),
        ("Score: 4 out of 5", 4),
        ("Score: 5.0", 5),
        ("Score: 04", 4),
        ("**Score:** 4", 4),
        ("**Score**: **4**/5", 4),
        ("__Score: 4__", 4),
        ("# Score: `4`", 4),
        ("* Score: *4* / *5*", 4),
        ('"Score": "4"', 4),
        ("{'score': 4}", 4),
        ("Score: “4”", 4),
        ("Score: «4»", 4),
        ("Score: <4>", 4),
        ("Score: [[4]]", 4),
        ("Score (0-5): 4", 4),
        ("Final score (out of 5): 4", 4),
        ("Total rating: 2", 2),
        ("Score：4", 4),
        ("Score：４／５", 4),
        ("得分：3", 3),
        ("总得分：3分", 3),
        ("評価：３点", 3),
        ("점수: 4점", 4),
        ("النتيجة: ٤", 4),
        ("النتيجة: ٣٫٥", 3.5),
        ("स्कोर: ३", 3),
        ("কোনো কথা। স্কোর: ৪", 4),
        ("คะแนน: ๔", 4),
        ("Điểm: 4", 4),
        ("Puan: 4", 4),
        ("Puntuación: 4,5", 4.5),
        ("Pontuação: 4", 4),
        ("Punteggio: 4", 4),
        ("Bewertung: 4 von 5", 4),
        ("Оценка: 4 из 5", 4),
        ("Alama: 4", 4),
        ("Nilai: 4", 4),
        ("Note : 4/5", 4),
        ("Voto: 4", 4),
        ("Score: 2\nNote: 1 point was held back.", 2),  # a word of English here
        ("It deserves Score: 1 at first.\nScore: 4", 4),
        ("The answer says 'Score: 5'. It is poor.\nScore: 1", 1),
        ("Score: 3\nScore: <total>", 3),
    ],
)
def test_a_score_is_read(text, score):
    assert parse_score(text) == score


@pytest.mark.parametrize(
    "text",
    [
        "", "4", "Score 4", "Score is 4", "Score:", "Score: <total>", "Score: four", "Score: N/A",
        "Score: 45", "Score: 6", "Score: -1", "Score: −1", "Score: - 1", "Score: 10", "Score: 5.1",
        "Score: 4/10", "Score: 4 out of 10", "Score: 4/50", "Score: ±4",
        "Score: 3-4", "Score: 3 to 4", "Score: 3–4", "Score: 3 or 4", "Score: 4 5", "Score: 80%",
        "Score: 4th", "Score: 4e0", "Score: 4.5.1", "Score: 4½", "Score: 4²", "Score: 1,000",
        "Score: nan", "Score: inf", "Score: 0x4", "Underscore: 4", "Scores: 4", "Score\n: 4",
        "Score:\n1. It is on the subject.", "Score: 4" + "0" * 400,
        "Score: 3\nScore: 45", "Score: 3\n**Score: -2**", "得分：6", "النتيجة: ٩",
    ],
)  # fmt: skip
def test_what_is_no_whole_number_from_0_to_5_is_no_score(text):
    assert parse_score(text) is None


around = st.text(st.characters(exclude_characters=":=：︰﹕", codec="utf-8"), max_size=9)
"""Text in which nothing can be a score, as it has no separator."""


@given(before=around, after=around.filter(lambda text: not text[:1].isalnum()),
       word=st.sampled_from((KEYWORDS + AMBIGUOUS).split()), tenths=st.integers(0, 50),
       marks=st.sampled_from(["", "*", "**", '"', " ", "`", "[["]))
def test_any_keyword_gives_its_number_whatever_is_around(before, after, word, tenths, marks):
    number = f"{tenths / 10:.1f}"
    text = f"{before}\n{marks}{word}:{marks} {marks}{number}{marks}\n{after}"
    assert parse_score(text) == tenths / 10


@given(number=st.integers() | st.floats(), word=st.sampled_from(KEYWORDS.split()))
def test_a_number_is_taken_whole_or_not_at_all(number, word):
    found = parse_score(f"{word}: {number}")
    spelt = str(number)
    plain = spelt.replace(".", "", 1).isdigit() and len(spelt) < 10
    assert found == (float(number) if plain and 0 <= number <= 5 else None)


@given(st.text() | st.text(st.sampled_from("Score: 45/.,-*（）：\n\t得分")))
def test_any_text_gives_a_score_in_range_or_none(text):
    found = parse_score(text)
    assert found is None or 0 <= found <= 5
    assert parse_verdict(text) in ("a", "b", "tie", None)


@pytest.mark.parametrize(
    "piece",
    ["Score: ", "score" + " " * 999, "9", "score(", "*", "score*", "x", "score********(aaaaaaaa",
     "Better: ", "better" + "*" * 9],
)  # fmt: skip
def test_huge_texts_take_no_time(piece):
    # with a pattern that backtracks this would take minutes, and the test's own limit ends it
    text = piece * (100_000 // len(piece))
    assert parse_score(text) is None
    assert parse_verdict(text) is None
    assert parse_score(text + "\nScore: 4") == 4
    assert parse_verdict(text + "\nBetter: tie") == "tie"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Better: A", "a"), ("better: b", "b"), ("**Better:** tie", "tie"), ("Better: [[B]]", "b"),
        ("Better: Answer A", "a"), ("Verdict = <B>", "b"), ("Better: A\nBetter: B.", "b"),
        ("Winner： tie", "tie"), ("", None), ("A", None), ("Better: both", None),
        ("Better: <A, B or tie>", None), ("Better: A or B", None), ("Better: A and B", None),
        ("Better: A/B", None), ("Better: An answer", None), ("Better: Beta", None),
        ("Which is better? A", None), ("not better: A, B", None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_strictly(text, verdict):
    assert parse_verdict(text) == verdict


def test_two_orders_give_one_winner_or_a_tie():
    assert winner(["now", "now"]) == "now"
    assert winner(["before", "before"]) == "before"
    assert winner(["now", "before"]) == winner(["tie", "now"]) == winner(["tie", "tie"]) == "tie"
    assert winner([None, "now"]) is winner(["now", None]) is winner([None, None]) is None
