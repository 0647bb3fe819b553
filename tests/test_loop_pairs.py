"""Pairs: the best answer against the worst, ties, what takes candidates out, and reasons."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import item, user

from congrad_cli.errors import InputError
from congrad_cli.loop.pairs import Scored, best_and_worst, count_reasons, make_pairs
from congrad_cli.loop.settings import PairsSection
from congrad_cli.records.files import find_files
from congrad_cli.records.reader import read_records
from congrad_cli.settings import RecordSettings

PLAIN = PairsSection(check_language=False)
GERMAN = "Eine Schleife geht alle Elemente der Liste durch und gibt sie der Reihe nach aus."
ENGLISH = "A loop goes through all elements of the list and prints them one after the other."


def pair_of(candidate_item, scores, section=PLAIN):
    judged = [{"key": candidate_item["key"], "scores": scores}]
    (found,) = make_pairs([candidate_item], judged, section, ["de", "en"])
    assert (found["pair"] is None) == bool(found["reason"])
    assert found["key"] == candidate_item["key"]
    return found


def chosen(found) -> tuple[str, str]:
    pair = found["pair"]
    return pair["chosen"][0]["content"], pair["rejected"][0]["content"]


def test_the_best_answer_is_chosen_and_the_worst_rejected():
    found = pair_of(item("a", "fair", "bad", "good", "so so"), [3.0, 1.0, 4.5, 2.0])
    assert found == {"key": "a", "reason": "", "pair": {
        "id": "a", "language": "en", "prompt": [user("Say something.")],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "chosen_score": 4.5, "rejected_score": 1.0}}


def test_judgements_of_other_candidates_are_refused():
    with pytest.raises(InputError, match="has 2 candidates and 3 scores"):
        pair_of(item("a", "x", "y"), [1.0, 2.0, 3.0])


def test_of_several_best_ones_the_shortest_is_chosen_then_the_first():
    assert chosen(pair_of(item("a", "xxxx", "yy", "zz", "w"), [4, 4, 4, 1]))[0] == "yy"


def test_of_several_worst_ones_the_nearest_in_length_is_rejected_then_the_first():
    texts = ("chosen", "x", "1234567", "12345", "a much longer one")
    assert chosen(pair_of(item("a", *texts), [4, 1, 1, 1, 1])) == ("chosen", "1234567")


@pytest.mark.parametrize(
    ("texts", "scores", "of_all", "reason"),
    [
        (("x",), [4.0], {}, "fewer-than-two"),
        ((), [], {}, "fewer-than-two"),
        (("x", "y"), [4.0, 4.0], {}, "no-margin"),
        (("x", "x "), [4.0, 1.0], {}, "identical"),
        (("x", "x", "x"), [4.0, 1.0, 0.0], {}, "identical"),
        (("x", "y"), [4.0, None], {}, "unjudged"),
        (("x", "y"), [None, None], {}, "unjudged"),
        (("x", "y"), [4.0, 1.0], {"finished": False}, "unfinished"),
        (("x", " "), [4.0, 1.0], {}, "too-short"),
        (("x", "", "  "), [None, None, None], {}, "too-short"),
    ],
)
def test_a_prompt_without_a_pair_has_a_reason(texts, scores, of_all, reason):
    assert pair_of(item("a", *texts, **of_all), scores)["reason"] == reason


def test_a_prompt_that_nobody_judged_is_unjudged():
    (found,) = make_pairs([item("a", "x", "y")], [{"key": "b", "scores": [1, 2]}], PLAIN, [])
    assert found == {"key": "a", "pair": None, "reason": "unjudged"}


def test_answers_in_the_wrong_language_are_in_no_pair():
    pytest.importorskip("py3langid")
    german = GERMAN.replace("Schleife", "Funktion")
    section = PairsSection()
    found = pair_of(item("a", ENGLISH, GERMAN, german, language="de"), [5.0, 4.0, 3.0], section)
    assert chosen(found) == (GERMAN, german)
    wrong = pair_of(item("a", ENGLISH, GERMAN, language="de"), [5.0, 1.0], section)
    assert wrong["reason"] == "wrong-language"
    asked = item("a", ENGLISH, GERMAN, language="de", prompt="Auf Englisch bitte!")
    assert chosen(pair_of(asked, [5.0, 1.0], section)) == (ENGLISH, GERMAN)
    unchecked = pair_of(item("a", ENGLISH, GERMAN, language="de"), [5.0, 1.0])
    assert chosen(unchecked) == (ENGLISH, GERMAN)


def test_the_reason_is_what_took_out_most():
    several = item("a", "x", "y", "", "", "z")
    several["candidates"][0]["finished"] = False
    assert pair_of(several, [1.0, None, 1.0, 1.0, 4.0])["reason"] == "too-short"


def test_the_margin_must_be_exceeded():
    section = PairsSection(margin=1.0, check_language=False)
    assert pair_of(item("a", "x", "y"), [2.0, 1.0], section)["reason"] == "no-margin"
    assert pair_of(item("a", "x", "y"), [2.25, 1.0], section)["reason"] == ""


def test_short_answers_are_taken_out_where_that_is_asked():
    section = PairsSection(min_chars=3, check_language=False)
    found = pair_of(item("a", " yy ", "xxx", "zzzz"), [5.0, 2.0, 1.0], section)
    assert chosen(found) == ("xxx", "zzzz")
    empty = PairsSection(min_chars=0, check_language=False)
    assert pair_of(item("a", "", "x"), [5.0, 1.0], empty)["reason"] == "too-short"


def test_equal_texts_are_one_candidate_with_the_mean_of_their_scores():
    found = pair_of(item("a", "x", "y", "x\n"), [5.0, 3.5, 1.0])
    assert chosen(found) == ("y", "x")
    assert found["pair"]["rejected_score"] == 3.0


def test_reasons_are_counted():
    items = [item(key, "x", "y") for key in "abc"]
    scores = {"a": [1, 2], "b": [1, 1], "c": [2, 2]}
    judged = [{"key": key, "scores": found} for key, found in scores.items()]
    assert count_reasons(make_pairs(items, judged, PLAIN, [])) == {"": 1, "no-margin": 2}


scored = st.lists(st.tuples(st.text("ab", min_size=1, max_size=3),
                            st.sampled_from([0.0, 1.0, 2.5, 1 / 3, 4.9])), max_size=7)


@given(found=scored, margin=st.sampled_from([0.0, 0.5, 2.0]), mixed=st.randoms())
def test_a_pair_does_not_hang_on_the_order_of_candidates(found, margin, mixed):
    """But for the last tie, where the first candidate counts: texts there are equally long."""
    def outcome(candidates):
        return best_and_worst(
            [Scored(text, score, index) for index, (text, score) in enumerate(candidates)], margin)

    first = outcome(found)
    assert outcome(found) == first
    shuffled = mixed.sample(found, len(found))
    second = outcome(shuffled)
    if isinstance(first, str):
        assert second == first
        return
    best, worst = zip(first, second, strict=True)
    assert len({one.score for one in best}) == len({len(one.text) for one in best}) == 1
    assert len({one.score for one in worst}) == 1
    assert len({abs(len(one.text) - len(best[0].text)) for one in worst}) == 1


@given(found=scored, margin=st.sampled_from([0.0, 0.5, 2.0]))
def test_a_pair_is_as_the_rule_says(found, margin):
    result = best_and_worst(
        [Scored(text, score, index) for index, (text, score) in enumerate(found)], margin)
    means = {text: math.fsum(scores := [s for t, s in found if t == text]) / len(scores)
             for text, _ in found}
    gap = max(means.values(), default=0) - min(means.values(), default=0)
    if isinstance(result, str):
        assert result == ("fewer-than-two" if len(found) < 2 else
                          "identical" if len(means) < 2 else "no-margin")
        assert len(means) < 2 or gap <= margin
        return
    best, worst = result
    assert gap > margin
    assert best.text != worst.text
    assert means[best.text] == best.score == max(means.values())
    assert means[worst.text] == worst.score == min(means.values())
    assert len(best.text) == min(len(t) for t in means if means[t] == best.score)


def test_pairs_are_records_that_the_sketch_reads(tmp_path):
    items = [item(key, "x", "yy", language=language) for key, language in
             (("a", "de"), ("b", "sw"))]
    judged = [{"key": key, "scores": [1.0, 2.0]} for key in "ab"]
    file = tmp_path / "pairs.jsonl"
    pairs = [found["pair"] for found in make_pairs(items, judged, PLAIN, [])]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    records = list(read_records(find_files([str(file)]), RecordSettings()))
    assert [(one.id, one.group, one.conversational) for one in records] == [
        ("a", "de", True), ("b", "sw", True)]
    assert records[0].prompt == [user("Say something.")]
    assert records[0].chosen == [{"role": "assistant", "content": "yy"}]
