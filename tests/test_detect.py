"""Detecting the language of a text: on the sample pairs, with code around it, and refusals."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from congrad_cli.errors import UsageError
from congrad_cli.records.detect import (
    LEAST_LETTERS,
    OTHER,
    TOO_SHORT,
    UNSURE,
    Detection,
    Detector,
    _load,
    count_letters,
    strip_code,
)
from congrad_cli.records.languages import canonical

pytest.importorskip("py3langid")

CODE = "def f(x):\n    for i in range(10):\n        print(x[i])\n    return x.sum(axis=0)\n"
GERMAN = "Wie schreibe ich eine Schleife, die alle Elemente einer Liste ausgibt?"
CHINESE = "我今天想去北京看朋友"
MALAY = "Semua manusia dilahirkan bebas dan samarata dari segi kemuliaan dan hak-hak."


@pytest.fixture(scope="module")
def every() -> Detector:
    """All languages are in question."""
    return Detector()


@pytest.fixture(scope="module")
def pairs(sample_data) -> list[dict]:
    """The sample pairs whose answers are in the language of their prompt."""
    lines = (sample_data / "preferences.jsonl").read_text("utf-8").splitlines()
    return [pair for pair in map(json.loads, lines) if not pair["planted"]]


@pytest.fixture(scope="module")
def eighteen(pairs) -> Detector:
    """The languages of the sample pairs are in question."""
    return Detector(sorted({pair["language"] for pair in pairs}))


def text(pair) -> str:
    return pair["prompt"] + pair["chosen"]


def test_among_their_languages_the_sample_pairs_are_all_recognised(pairs, eighteen):
    found = [eighteen.detect(text(pair)).language for pair in pairs]
    assert len(pairs) > 300
    assert found == [pair["language"] for pair in pairs]


def test_among_all_languages_an_answer_above_the_floor_is_right(pairs, every):
    found = [(every.detect(text(pair)), pair["language"]) for pair in pairs]
    answers = [(one.language, language) for one, language in found if one.language]
    assert len(answers) > 0.9 * len(pairs)
    assert all(one == language for one, language in answers)


def test_a_text_in_none_of_the_languages_in_question_gets_none_of_them(pairs):
    german = [text(pair) for pair in pairs if pair["language"] == "de"]
    detector = Detector(["tr", "sw", "fr", "it", "en"])
    found = [detector.detect(one) for one in german]
    assert german
    assert {(one.language, one.likeliest, one.reason) for one in found} == {(None, "de", OTHER)}


def test_code_alone_is_taken_for_a_language_and_is_not_counted_as_text(every):
    assert every.detect(CODE).likeliest == "pcm"  # the reason for taking it out
    fenced = f"```python\n{CODE}```"
    assert every.detect(fenced) == Detection(None, reason=TOO_SHORT)


@pytest.mark.parametrize(
    "around",
    [
        f"{{}}\n\n```python\n{CODE * 9}```\n",
        f"```\n{CODE * 9}```\n{{}}",
        f"~~~\n{CODE * 9}~~~\n{{}}",
        f"{{}}\n```python\n{CODE * 9}",  # never closed
        f"`{'for x in range(10): print(x)' * 20}` {{}}",
        f"{{}} https://example.org/{'how-to-print-the-list/' * 20}?q=the+best",
        f"{{}} {'someone.else@the-other-example.org ' * 20}",
    ],
    ids=["code-after", "before", "tildes", "unclosed", "inline", "link", "mail"],
)
def test_code_and_links_do_not_change_the_answer(every, around):
    plain = every.detect(GERMAN)
    found = every.detect(around.replace("{}", GERMAN, 1))
    assert plain.language == found.language == "de"
    assert found.probability == pytest.approx(plain.probability, abs=0.01)


def test_prose_outside_code_stays_as_it_is():
    kept = "Das ist~~~ schön, oder? 3 < 4 a@b it's 5` hoch: 'x'"
    assert strip_code(kept) == kept


def test_nineteen_letters_are_too_few_and_digits_do_not_count(every):
    letters = "Guten Morgen an alle Leute"
    assert count_letters(letters) == 22
    short = letters[:-3]
    assert count_letters(short) == LEAST_LETTERS - 1
    assert every.detect(short + " 123 456, 789!") == Detection(None, reason=TOO_SHORT)
    assert every.detect(letters).reason != TOO_SHORT


@pytest.mark.parametrize(
    ("said", "language"),
    [
        (CHINESE, "zh"),
        ("今日はとても天気がいいです", "ja"),
        ("ฉันอยากไปเที่ยวทะเล", "th"),
        ("오늘 날씨가 정말 좋네요", "ko"),
    ],
)
def test_ten_letters_are_enough_where_a_letter_says_much(said, language):
    assert len(said) < LEAST_LETTERS
    assert Detector(["zh", "ja", "th", "ko", "en"]).detect(said).language == language


def test_only_the_first_thousand_characters_matter(every):
    head = (GERMAN + " ") * 20
    assert len(head) > 1000
    assert every.detect(head) == every.detect(head[:1000] + "This is written in English. " * 500)


def test_below_the_floor_the_likeliest_language_is_still_told():
    sure = Detector(["id", "ms"], floor=0.5).detect(MALAY)
    unsure = Detector(["id", "ms"], floor=0.999).detect(MALAY)
    assert sure.language in ("id", "ms")  # Malay and Indonesian are hard to tell apart
    assert sure == Detection(sure.language, sure.probability, sure.language)
    assert unsure == Detection(None, sure.probability, sure.language, UNSURE)


def test_languages_are_given_by_any_label_and_answered_in_canonical_form():
    norwegian = "Jeg vil gjerne lære et nytt programmeringsspråk, men vet ikke hvilket."
    portuguese = "Você quer aprender uma nova linguagem de programação conosco?"
    for label in ("no", "nob_Latn", "Norwegian"):
        assert Detector([label, "en"]).detect(norwegian).language == "nb"
    assert Detector(["por_br", "English"]).detect(portuguese).language == "pt-BR"
    tagalog = Detector(["tl", "English"]).detect("Gusto kong matuto ng bagong wika ngayong taon.")
    assert tagalog.language == "fil"


def test_every_language_of_the_model_can_be_asked_for(every):
    labels = [label for label in every._identifier.labels if label != "zxx"]
    names = {canonical(label) for label in labels}
    assert len(names) == len(labels) > 100
    Detector(sorted(names))


@pytest.mark.parametrize(
    ("languages", "said"),
    [
        (["de", "klingon"], ["'klingon'", "it knows: ace, af, "]),
        (["de", "germn"], ["'germn'", "did you mean 'de'?"]),
        (["de", "en-hard"], ["'en-hard'", "it knows: "]),
        (["de", "zxx"], ["'zxx'", "it knows: "]),
        (["zh", "zh_Hant", "en"], ["cannot tell 'zh' from 'zh-Hant'", "give one"]),
    ],
)
def test_a_language_that_cannot_be_told_is_refused(languages, said):
    with pytest.raises(UsageError) as caught:
        Detector(languages)
    whole = "\n".join((caught.value.message, *caught.value.hints))
    assert all(part in whole for part in said)
    assert "zxx" not in whole.partition("it knows")[2]


def test_without_the_package_the_cure_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    _load.cache_clear()
    with pytest.raises(UsageError, match="needs the package py3langid") as caught:
        Detector()
    assert caught.value.hints == ("pip install 'congrad-cli[langid]'",)


@given(
    st.text(
        alphabet=st.characters(categories=["L", "N", "P", "Z", "Cs"]) | st.sampled_from("`~@/:. \n")
    )
)
def test_any_text_gets_the_same_answer_twice(every, anything):
    found = every.detect(anything)
    assert found == every.detect(anything)
    assert (found.language is None) == (found.reason is not None)
    assert 0 <= found.probability <= 1 + 1e-5


@pytest.mark.parametrize(
    "piece", ["x", "a.b-", "`", "```", "a@", "http://", "~~~\n", "a" * 99 + " "]
)
def test_long_texts_of_one_piece_take_no_time_to_strip(piece):
    # with a pattern that backtracks this would take minutes, and the test's own limit ends it
    strip_code(piece * (400_000 // len(piece)))
