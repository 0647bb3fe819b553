"""Every shape of preference data, on records as the public sets write them.

``tests/shapes/NAME.jsonl`` has the columns of the set that is named; what must come out stands
here, written by hand.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import parse_line, read_all

from congrad_cli.errors import InputError
from congrad_cli.records.dialogues import split_texts
from congrad_cli.records.reader import RecordFile
from congrad_cli.records.record import BadRecord, DataFile, Place, Record
from congrad_cli.records.shapes import NAMES
from congrad_cli.settings import RecordSettings

FIXTURES = Path(__file__).parent / "shapes"


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return [{"role": "assistant", "content": text}]


def system(text):
    return {"role": "system", "content": text}


SALT = [user("What is salt?"), *answer("Sodium chloride.")]

# the set's fixture: its shape, and of each record prompt, chosen, rejected, group; or its code
EXPECTED = {
    "standard": ("standard", [
        ("Der Himmel ist", " blau.", " ein Schrank.", "de"),
        ("The sky is", " blue.", " a cupboard.", "en")]),
    "openrlhf": ("standard", [
        ("<|user|>\nWie spät ist es?\n<|assistant|>\n", "Es ist drei.", "Ja.", "de"),
        ("<|user|>\nWhat is the time?\n<|assistant|>\n", "It is three.", "Yes.", "en")]),
    "icr": ("standard", [
        ("¿Cuál es la capital de Perú?", "Lima es la capital de Perú.", "No lo sé.", "es"),
        ("Quelle est la capitale du Pérou ?", "Lima.", "Paris.", "fr")]),
    "conversational": ("conversational", [
        ([user("Was ist Salz?")], answer("Natriumchlorid."), answer("Zucker."), "de"),
        ([system("Be brief."), user("What is salt?")], answer("Sodium chloride."),
         answer("Sugar."), "en")]),
    "implicit": ("implicit", [
        ("The sky is", " blue.", " green.", "en"),
        ("Der Himmel ist", " blau und weit.", " grün.", "de"),
        ("天空是", "蓝色的。", "绿色的。", "zh")]),
    "implicit-conversational": ("implicit-conversational", [
        ([user("Was ist Salz?")], answer("Natriumchlorid."), answer("Zucker."), "de"),
        ([user("Hi"), *answer("Hello!"), user("Salt?")], answer("NaCl."), answer("Sugar."), "en")]),
    "ultrafeedback": ("ultrafeedback", [
        ([user("What is salt?")], answer("Sodium chloride."), answer("Sugar."), "en"),
        ([system("Kurz."), user("Was ist Salz?")], answer("NaCl."), answer("Zucker."), "de")]),
    "tulu": ("ultrafeedback", [
        ([*SALT, user("And pepper?")], answer("A berry."), answer("Black salt."), "en"),
        ([user("Und Pfeffer?")], answer("Eine Beere."), answer("Salz."), "de")]),
    "hh-rlhf": ("hh-rlhf", [
        ([user("Say hello")], answer("Hello there"), answer("Hell no"), "en"),
        ([*SALT, user("And pepper?")], answer("A berry: Piper nigrum.\n\nIt is dried."),
         answer("Black salt."), "en")]),
    "orca": ("orca", [
        ([user("Wo liegt Jena?")], answer("In Thüringen."), answer("Am Meer."), "de"),
        ([system("You are terse."), user("Where is Jena?")], answer("In Thuringia."),
         answer("By the sea."), "en")]),
    "distilabel": ("instruction", [
        ([system("You are terse."), user("Where is Jena?")], answer("In Thuringia."),
         answer("By the sea."), "en"),
        "tie",
        ([user("Wo liegt Ulm?")], answer("An der Donau."), answer("Am Rhein."), "de")]),
    "alpaca": ("instruction", [
        ([user("Translate into German.\nThe sky is blue.")], answer("Der Himmel ist blau."),
         answer("The sky is blue."), "en"),
        ([user("Nenne eine Farbe.")], answer("Blau."), answer("Acht."), "de")]),
    "helpsteer3": ("helpsteer3", [
        ([user("What is salt?")], answer("Sodium chloride."), answer("Sugar."), "en"),
        ([user("Hallo"), *answer("Hallo!"), user("Was ist Salz?")], answer("NaCl."),
         answer("Zucker."), "de"),
        "tie"]),
    "shp": ("shp", [
        ([user("Why does bread rise?")], answer("Yeast makes gas."), answer("Magic."), "en"),
        ([user("Why salt in dough?")], answer("It slows the yeast."), answer("No idea."), "en")]),
    "safe-rlhf": ("safe-rlhf", [
        ([user("How do I open a jar?")], answer("Warm the lid."), answer("Break it."), "en"),
        ([user("How do I open a tin?")], answer("With an opener."), answer("Bite."), "en")]),
    "arena": ("arena", [
        ([user("Hi")], answer("Hello!"), answer("No."), "en"),
        "tie",
        ([user("Hallo")], [*answer("Hallo!"), user("Wie geht es?"), *answer("Gut.")],
         [*answer("Tag!"), user("Wie geht es?"), *answer("Nein.")], "de")]),
    "sharegpt": ("sharegpt", [
        ([system("Be kind."), user("Hi"), *answer("Hello!"), user("Salt?")], answer("NaCl."),
         answer("Sugar."), "en"),
        ([user("Pepper?")], answer("A berry."), answer("Salt."), "en")]),
}  # fmt: skip


def settings_for(name: str) -> RecordSettings:
    """English where the set has no language column."""
    lines = (FIXTURES / f"{name}.jsonl").read_text().splitlines()
    known = all("language" in json.loads(line) for line in lines)
    return RecordSettings(language=None if known else "en")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_public_set_is_read_as_it_is_meant(name):
    shape, expected = EXPECTED[name]
    path = FIXTURES / f"{name}.jsonl"
    data = RecordFile(DataFile(path.name, path), settings_for(name))
    assert data.shape.name == shape
    found = [
        (item.prompt, item.chosen, item.rejected, item.group) if isinstance(item, Record)
        else item.error.code
        for item in data.records(0)
    ]
    assert found == expected


def test_every_fixture_and_every_shape_is_tested():
    assert {path.stem for path in FIXTURES.glob("*.jsonl")} == set(EXPECTED)
    assert {shape for shape, _ in EXPECTED.values()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_manual_says_what_is_done_with_every_shape(name):
    manual = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    assert re.search(rf"^\| [^|]*\| `{name}` \|", manual, re.M), name


@pytest.mark.parametrize("name", ["implicit-conversational"])
def test_messages_are_split_as_trl_splits_them(name):
    """Where TRL reads a shape, it is the reference."""
    from trl.data_utils import extract_prompt

    path = FIXTURES / f"{name}.jsonl"
    for record, line in zip(read_all(path), path.read_text().splitlines(), strict=True):
        theirs = extract_prompt(json.loads(line))
        assert (record.prompt, record.chosen, record.rejected) == (
            theirs["prompt"], theirs["chosen"], theirs["rejected"])


words = st.lists(st.sampled_from(["sky", "blue", "Rot", "été", "и", "a"]), min_size=1, max_size=5)


@given(prompt=words, chosen=words, rejected=words)
def test_texts_are_split_as_trl_splits_them_where_it_cuts_between_words(prompt, chosen, rejected):
    """TRL's cut is by characters; where that falls between words the two agree."""
    from trl.data_utils import extract_prompt

    one, other = (" ".join([*prompt, *answers]) for answers in (chosen, rejected))
    if one.startswith(other) or other.startswith(one):
        return
    theirs = extract_prompt({"chosen": one, "rejected": other})
    ours = split_texts(one, other, Place("f", 1))
    assert ours[0] + ours[1] == one
    assert ours[0] + ours[2] == other
    assert theirs["prompt"].startswith(ours[0])
    cut = theirs["prompt"] + "|"
    if theirs["chosen"].startswith(" ") and theirs["rejected"].startswith(" "):
        assert cut == ours[0] + "|"


@given(st.text(max_size=12), st.text(max_size=8), st.text(max_size=8))
def test_texts_are_split_without_loss_or_refused(prompt, chosen, rejected):
    one, other = prompt + chosen, prompt + rejected
    if one == other or not one or not other:
        return
    try:
        start, first, second = split_texts(one, other, Place("f", 1))
    except BadRecord as error:
        assert error.code == "no-prompt"
        return
    assert (start + first, start + second) == (one, other)
    assert start.strip()
    assert first
    assert second


def test_a_text_is_never_cut_inside_a_word_or_a_character():
    """TRL makes the prompt "... Hel" of these two."""
    for chosen, rejected, prompt in (
        ("Say it: Hello there", "Say it: Hell no", "Say it:"),
        ("x: हिन्दी में", "x: हिन्दू में", "x:"),
        ("日本語はやさしい", "日本語はむずかしい", "日本語は"),
        ("답: 좋아요", "답: 좋습니다", "답: 좋"),
        ("The sky is", "The sky is blue", "The sky"),
    ):
        assert split_texts(chosen, rejected, Place("f", 1))[0] == prompt


TALK = {"language": "de", "prompt": [user("Frage?")], "chosen": answer("Ja."),
        "rejected": answer("Nein.")}


@pytest.mark.parametrize(("change", "code"), [
    ({"prompt": [user("a"), *answer("b")]}, "assistant-prompt"),
    ({"chosen": [*answer("b"), user("c")]}, "no-answer"),
    ({"prompt": "Frage?", "chosen": "Ja."}, "mixed-types"),
    ({"prompt": None, "chosen": answer("Ja.")}, "no-prompt"),
    ({"prompt": None, "chosen": [user("x"), *answer("a")], "rejected": [user("y"), *answer("b")]},
     "no-prompt"),
    ({"chosen": None}, "missing-field"),
    ({"chosen": answer("  ")}, "empty"),
    ({"chosen": [{"role": "assistant", "content": None}]}, "wrong-type"),
    ({"rejected": answer("Ja.")}, "same-answers"),
])
def test_a_conversation_that_cannot_be_answered_has_a_code(change, code):
    fields = {key: value for key, value in (TALK | change).items() if value is not None}
    with pytest.raises(BadRecord) as caught:
        parse_line(json.dumps(fields).encode())
    assert caught.value.code == code


def test_answers_that_repeat_the_prompt_are_cut():
    prompt = TALK["prompt"]
    repeated = TALK | {"chosen": prompt + answer("Ja."), "rejected": prompt + answer("Nein.")}
    record = parse_line(json.dumps(repeated).encode())
    assert record.digest() == parse_line(json.dumps(TALK).encode()).digest()


def test_dialogues_that_end_alike_but_for_one_being_longer_are_split_before_the_answer():
    """The prompt must not end with an answer: a chat template would close it and open another."""
    shared = [user("a"), *answer("b")]
    record = parse_line(json.dumps({
        "lang": "de", "chosen": [*shared, user("c"), *answer("d")],
        "rejected": [*shared, user("e"), *answer("f")]}).encode())
    assert record.prompt == [user("a")]
    assert record.chosen == [*answer("b"), user("c"), *answer("d")]


def test_messages_of_other_makers_become_roles_and_contents():
    record = parse_line(json.dumps({
        "lang": "de",
        "prompt": [{"from": "system", "value": ""},
                   {"from": "human", "value": "Hi", "weight": None}],
        "chosen": {"role": "assistant", "content": [{"type": "text", "text": "a"},
                                                    {"type": "text", "text": "b"}]},
        "rejected": "c"}).encode())
    assert record.prompt == [system(""), user("Hi")]
    assert record.chosen == answer("ab")
    assert record.rejected == answer("c")


def test_a_tool_call_needs_no_text():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    record = parse_line(json.dumps(TALK | {"chosen": [call]}).encode())
    assert record.chosen == [call | {"content": ""}]


def test_most_of_the_first_records_decide_for_a_file(tmp_path):
    """One record without its prompt at the top must not make the whole file something else."""
    good = {"lang": "de", "prompt": "a", "chosen": " b", "rejected": " c"}
    headless = {"lang": "de", "chosen": "a b", "rejected": "a c"}
    talk = {"lang": "de", **{key: TALK[key] for key in ("prompt", "chosen", "rejected")}}
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (headless, good, good, talk)))
    data = RecordFile(DataFile("d.jsonl", path), RecordSettings())
    assert data.shape.name == "standard"
    codes = [item.error.code if not isinstance(item, Record) else None for item in data.records(0)]
    assert codes == ["missing-field", None, None, "mixed-shapes"]


def test_a_shape_that_is_named_is_the_only_one(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"lang": "de", "prompt": "not used", "chosen": "a b",
                                "rejected": "a c"}) + "\n")
    assert read_all(path)[0].prompt == "not used"
    assert read_all(path, shape="implicit")[0].prompt == "a"


def test_columns_with_other_names_are_found_inside_objects_too():
    fields = {"lang": "de", "task": {"ask": "a"}, "yes": " b", "no.pe": " c"}
    record = parse_line(json.dumps(fields).encode(), prompt_field="task.ask", chosen_field="yes",
                        rejected_field="no.pe")
    assert (record.prompt, record.chosen, record.rejected) == ("a", " b", " c")


@pytest.mark.parametrize(("there", "hint"), [
    ("accepted", "if 'accepted' is it: --chosen-field accepted"),
    ("choosen", "if 'choosen' is it: --chosen-field choosen"),
    ("zzz", "name the right one with --chosen-field"),
])
def test_a_field_that_may_be_meant_is_suggested(there, hint):
    fields = {"lang": "de", "prompt": "a", there: " b", "rejected": " c"}
    with pytest.raises(InputError) as caught:
        parse_line(json.dumps(fields).encode())
    assert "no field 'chosen'" in caught.value.message
    assert any(hint in part for part in caught.value.hints)
