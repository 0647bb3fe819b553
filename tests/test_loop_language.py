"""The language of answers: right ones pass, others do not, and what is not judged says why."""

import json

import pytest
from scripted import item, user

from congrad_cli.errors import UsageError
from congrad_cli.loop.language_check import (
    ASKED,
    RIGHT,
    SHORT,
    UNKNOWN,
    UNSURE,
    WRONG,
    Finding,
    LanguageCheck,
    asks_for_another,
    pass_rates,
)
from congrad_cli.records.detect import OTHER, Detection, Detector

pytest.importorskip("py3langid")

GERMAN = "Eine Schleife geht alle Elemente der Liste durch und gibt sie der Reihe nach aus."
ENGLISH = "A loop goes through all elements of the list and prints them one after the other."
CODE = "```python\nfor element in elements:\n    print(element)\n    total = total + element\n```"


@pytest.fixture(scope="module")
def texts(sample_data):
    """A true text of every sample pair: prompt and answer, by language."""
    found = {}
    for line in (sample_data / "preferences.jsonl").read_text("utf-8").splitlines():
        pair = json.loads(line)
        if not pair["planted"]:
            found.setdefault(pair["language"], []).append(pair["prompt"] + pair["chosen"])
    return found


@pytest.fixture(scope="module")
def eighteen(texts):
    return LanguageCheck(texts, 0.8)


def test_true_texts_of_eighteen_languages_pass(texts, eighteen):
    assert len(texts) == 18
    for language, found in texts.items():
        assert all(eighteen.check(text, language) == Finding(RIGHT, language) for text in found)


def test_texts_of_other_languages_do_not_pass(texts, eighteen):
    for language, found in texts.items():
        for wanted in set(texts) - {language}:
            assert eighteen.check(found[0], wanted) == Finding(WRONG, language)


def test_a_language_that_nobody_asked_for_does_not_pass_either(texts):
    check = LanguageCheck(["de"], 0.8)  # among one language it is certainly that one
    assert check.check(GERMAN, "de").outcome == RIGHT
    wrong = [check.check(text, "de") for language in ("en", "zh", "ru", "ar", "fr")
             for text in texts[language][:5]]
    assert {one.outcome for one in wrong} == {WRONG}


def test_code_links_and_short_texts_say_nothing_about_the_language(eighteen):
    assert eighteen.check(f"{GERMAN}\n{CODE}\nhttps://example.org/the-list", "de").outcome == RIGHT
    assert eighteen.check(f"{ENGLISH}\n{CODE}", "de").outcome == WRONG
    for text in (CODE, "42", "Yes, of course.", "", "https://example.org/an-answer-in-english"):
        assert eighteen.check(text, "de") == Finding(SHORT)
        assert eighteen.check(text, "de").passed


def test_a_doubt_is_the_answers_benefit(monkeypatch):
    check = LanguageCheck(["de", "nl"], 0.9)
    told = {"likely": Detection("nl", 0.95, "nl"), "doubt": Detection(None, 0.85, "nl", "unsure"),
            "weak": Detection(None, 0.6, "de", "unsure"),
            "other": Detection(None, 0.5, "pl", OTHER), "none": Detection(None, 0.5, None, OTHER),
            "spread": Detection(None, 0.04, "de", OTHER)}
    monkeypatch.setattr(Detector, "detect", lambda self, text: told[text])
    found = {text: check.check(text, "de") for text in told}
    assert found == {
        "likely": Finding(WRONG, "nl"), "doubt": Finding(UNSURE, "nl"),
        "weak": Finding(UNSURE, "de"), "other": Finding(WRONG, "pl"), "none": Finding(WRONG, "zxx"),
        "spread": Finding(UNSURE, "de")}
    assert [one.passed for one in found.values()] == [False, True, True, False, False, True]


def test_regions_scripts_and_labels_of_one_language_go_together():
    check = LanguageCheck(["pt", "pt-BR", "zho_Hans", "zh-Hant", "German"], 0.8)
    portuguese = "Você quer aprender uma nova linguagem de programação conosco?"
    assert check.check(portuguese, "pt-BR").outcome == RIGHT
    assert check.check(portuguese, "pt").outcome == RIGHT
    assert check.check("我今天想去北京看我的好朋友", "zh-Hant").outcome == RIGHT
    assert check.check(portuguese, "de").outcome == WRONG


def test_a_language_that_is_not_known_passes_and_is_named():
    check = LanguageCheck(["de", "tum_Latn", "klingon"], 0.8)
    assert check.unknown == ("klingon", "tum")
    assert check.check(ENGLISH, "tum") == check.check(ENGLISH, "fr") == Finding(UNKNOWN)
    assert check.check(ENGLISH, "de").outcome == WRONG


@pytest.mark.parametrize(
    ("language", "prompt"),
    [
        ("de", "Übersetze diesen Satz: Guten Morgen"),
        ("de", "Schreib mir ein Gedicht auf Englisch."),
        ("en", "Translate the following text."),
        ("en", "Say hello in French, please."),
        ("fr", "Écris une lettre en anglais à mon voisin."),
        ("es", "Responde en inglés: ¿qué hora es?"),
        ("it", "Scrivi una frase in tedesco."),
        ("pt", "Traduza para o inglês o texto abaixo."),
        ("ru", "Напиши письмо на английском языке."),
        ("zh", "请用英文写一封信。"),
        ("ja", "英語で答えてください。"),
        ("ko", "영어로 대답해 주세요."),
        ("ar", "ترجم الجملة التالية"),
        ("hi", "इसे अंग्रेज़ी में लिखो"),
        ("bn", "এটি ইংরেজিতে লেখো"),
        ("th", "เขียนเป็นภาษาอังกฤษ"),
        ("vi", "Hãy viết bằng tiếng Anh."),
        ("id", "Tulis dalam bahasa Inggris."),
        ("sw", "Andika kwa Kiingereza."),
        ("tr", "Bunu İngilizce yaz."),
        ("de", "Answer in Swahili: Wie geht es dir?"),
    ],
)
def test_a_prompt_that_asks_for_another_language_is_heard(language, prompt):
    assert asks_for_another([user(prompt)], language)


@pytest.mark.parametrize(
    ("language", "prompt"),
    [
        ("de", "Antworte bitte auf Deutsch: Was ist ein Baum?"),
        ("en", "Explain in English what a tree is."),
        ("es", "Responde en español: ¿qué es un árbol?"),
        ("fr", "Réponds en français."),
        ("id", "Jawab dalam bahasa Indonesia."),
        ("vi", "Trả lời bằng tiếng Việt."),
        ("zh", "请用中文回答。"),
        ("ja", "日本語で答えてください。"),
        ("th", "ตอบเป็นภาษาไทย"),
        ("sw", "Jibu kwa Kiswahili."),
        ("en", "What is in the French fries?"),
        ("de", "Was ist in Frankreich los? `translate(x)` gibt einen Fehler."),
    ],
)
def test_a_wish_for_the_prompts_own_language_is_none_for_another(language, prompt):
    assert not asks_for_another([user(prompt)], language)


def test_no_sample_prompt_is_taken_for_such_a_wish(sample_data):
    lines = (sample_data / "prompts.jsonl").read_text("utf-8").splitlines()
    prompts = [json.loads(line) for line in lines]
    heard = [one["id"] for one in prompts
             if asks_for_another([user(one["prompt"])], one["language"])]
    assert len(prompts) == 216
    assert not heard


def test_an_answer_in_the_language_that_was_asked_for_is_not_judged(eighteen):
    wish = [user("Sag das auf Englisch.")]
    assert eighteen.check(ENGLISH, "de", wish) == Finding(ASKED)
    assert eighteen.check(ENGLISH, "de", [*wish, user("Und jetzt?")]).outcome == WRONG


def test_a_long_prompt_is_searched_at_both_ends(eighteen):
    filler = "Ein langer Text über dies und das. " * 1000
    for prompt in (f"Auf Englisch bitte: {filler}", f"{filler} Auf Englisch bitte."):
        assert asks_for_another([user(prompt)], "de")
    assert not asks_for_another([user(filler)], "de")


def test_pass_rates_are_shares_of_what_was_judged(eighteen):
    items = [item("a", GERMAN, ENGLISH, "Ja.", language="de"), item("b", GERMAN, language="de"),
             item("c", "42", language="sw")]
    assert pass_rates(items, eighteen) == {
        "de": {"answers": 4, "judged": 3, "right": 2, "rate": 2 / 3},
        "sw": {"answers": 1, "judged": 0, "right": 0, "rate": None}}


def test_without_the_package_the_cure_is_told(monkeypatch):
    def missing(self, *given):
        raise UsageError("--detect-language needs the package py3langid.", "pip install it")

    monkeypatch.setattr(Detector, "__init__", missing)
    with pytest.raises(UsageError, match="language of answers needs the package") as error:
        LanguageCheck(["de"], 0.8)
    assert error.value.hints[0] == "pip install it"
    assert "pairs.check_language = false" in error.value.hints[1]
