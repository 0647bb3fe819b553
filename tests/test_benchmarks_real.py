"""The benchmark on real pairs: what it makes of other packages' files, and what it measures."""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_benchmarks_detection import sketches_of

from congrad_cli.records.record import DataFile
from congrad_cli.settings import RecordSettings
from congrad_cli.sketch.index import index_data

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import detection
import real_detection
from detection import Bench, of_level
from detection_tables import read_cells
from finders import Sketches
from real_growth import draw_pairs, growth, likeness
from real_pairs import (
    CHAT_LANGUAGES,
    OPTION_LANGUAGES,
    SCENARIOS,
    chat_rows,
    option_rows,
    real_scenarios,
)
from scenarios import Pool, as_data, draw, read_rows

PLANTED = {"prompt": "Click the", "chosen": " button.", "rejected": " button button.",
           "kind": "content", "flaw": "repeated", "longer": True}
TINY = Path(__file__).parents[1] / "sample_data" / "tiny-model"


def chat(number, turns=1, length=10):
    asked = [{"from": "human", "value": f"Question {number}?"}]
    return {"conversations": ([{"from": "system", "value": "Be brief."}, *asked])[-turns:],
            "chosen": {"from": "gpt", "value": f"Right {number}. " + "x" * length},
            "rejected": {"from": "gpt", "value": f"Wrong {number}."}}


def write_chats(folder, records):
    for language in CHAT_LANGUAGES:
        text = json.dumps(records, ensure_ascii=False)
        (folder / f"dpo_{language}_demo.json").write_text(text, encoding="utf-8")
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_options(folder, options):
    """Two subjects of one question each; ``options``: language -> those of the first."""
    for language in OPTION_LANGUAGES:
        there = folder / f"mmlu_{language}"
        there.mkdir()
        for subject, length in (("law", 1), ("tennis", 9)):
            given = options.get(language, {"A": 1, "B": 2, "C": 3, "D": 4})
            lines = "\n".join(f"      {letter}: {text}" for letter, text in given.items())
            (there / f"mmlu_{language}_{subject}.yaml").write_text(
                "process_docs: !function utils.process\n"
                "fewshot_config:\n  sampler: first_n\n  samples:\n"
                f"  - input_choice_list:\n{lines}\n    input_correct_responses:\n    - B\n"
                f"    input_question: What&#39;s {'so ' * length}{language}?\n", encoding="utf-8")
        (there / f"_mmlu_{language}.yaml").write_text("group: all\n", encoding="utf-8")
    return folder


def test_of_chats_the_shortest_are_taken_one_for_each_prompt(tmp_path):
    records = [chat(0, length=90), chat(1, turns=2), chat(2), chat(2, length=1), chat(3, length=50)]
    records[3]["chosen"]["value"] = "Another answer to question 2."
    rows = chat_rows(write_chats(tmp_path, records), 3)
    assert Counter(row["language"] for row in rows) == dict.fromkeys(CHAT_LANGUAGES, 3)
    taken = [records[number] for number in (1, 2, 4)]
    assert [{key: row[key] for key in records[0]} for row in rows] == taken * 2
    assert len({(row["language"], row["place"]) for row in rows}) == len(rows)


def test_a_long_script_counts_as_long(tmp_path):
    records = [chat(0, length=60), chat(1)]
    records[1]["chosen"]["value"] = "答" * 30
    assert chat_rows(write_chats(tmp_path, records), 1)[0]["id"] == "chat-en-000"


def test_congrad_reads_the_chats_as_they_are(tmp_path):
    rows = chat_rows(write_chats(tmp_path, [chat(0), chat(1, turns=2)]))
    path = write_rows(tmp_path / "chat.jsonl", rows)
    index = index_data([DataFile(path.name, path)], RecordSettings())
    assert [index.groups[group] for group in index.group] == ["en", "en", "zh", "zh"]
    records = list(index.records())
    assert [turn["role"] for turn in records[1].prompt] == ["system", "user"]
    assert records[1].chosen[0]["content"].startswith("Right 1.")


def test_the_same_option_is_wrong_in_all_languages(tmp_path):
    rows = option_rows(write_options(tmp_path, {"th": {"A": 5, "B": 6, "C": 7, "D": 8}}))
    assert [row["item"] for row in rows] == ["law/0"] * 7 + ["tennis/0"] * 7
    assert [row["language"] for row in rows] == list(OPTION_LANGUAGES) * 2
    for row in rows:
        added = 4 if row["language"] == "th" else 0
        assert row["prompt"][0]["content"].startswith("What's so")
        assert row["chosen"][0]["content"] == str(2 + added)
        wrong = {int(other["rejected"][0]["content"]) - 4 * (other["language"] == "th")
                 for other in rows if other["item"] == row["item"]}
        assert len(wrong) == 1 and wrong < {1, 3, 4}


def test_a_question_whose_options_are_one_in_some_language_is_left_out(tmp_path):
    assert option_rows(write_options(tmp_path, {"fr": dict.fromkeys("ABCD", "moi")})) == []


def real_rows(count=20):
    return [{"id": f"{language}-{place}", "language": language, "item": f"{language}-{place}",
             "prompt": "x", "chosen": "good", "rejected": "bad", "kind": "content",
             "flaw": f"chat-{language}", "longer": False, "place": place, "level": 1}
            for language in CHAT_LANGUAGES for place in range(count)]


@pytest.mark.parametrize(("name", "bad"), [
    ("swapped-20", {"en": 4, "zh": 4}), ("adversarial-zh", {"zh": 20})])  # fmt: skip
def test_labels_are_swapped_where_the_scenario_says(name, bad):
    pool = Pool(real_rows())
    found = draw(pool, name, 0, SCENARIOS["chat"])
    assert found == draw(pool, name, 0, real_scenarios(["en", "zh"]))
    rows = list(as_data(pool, found))
    assert Counter(row["language"] for row in rows if row["planted"]) == bad
    assert all((row["chosen"] == "bad") == row["planted"] for row in rows)


def test_parts_are_measured_alone():
    pool = Pool(real_rows())
    _, sketches = sketches_of(pool)
    turned = np.where([row["language"] == "en" for row in pool.rows], 1, -1)
    sketches.logp[:] = np.stack([turned, -turned], 1)  # margins are right in English only
    bench = Bench.of(pool, sketches, 5, SCENARIOS["chat"], real_detection.PARTS["chat"])
    found = {(cell.finder, cell.measure): cell.value
             for cell in bench.scenario("swapped-20", ("mean, unit", "margin"), 3)}
    for measure in ("auroc", "precision"):
        assert found["margin", f"{measure}, chat-en alone"] == 1
        assert found["margin", f"{measure}, chat-zh alone"] == 0
        assert np.isnan(found["margin", f"{measure}, planted alone"])
    assert found["margin", "auroc, chat alone"] == found["margin", "auroc"] == 0.5
    assert found["mean, unit", "auroc, chat alone"] > 0.95


def test_real_and_planted_pairs_are_sketched_into_one_store_and_judged_apart(
    tmp_path, monkeypatch, capsys
):
    rows = chat_rows(write_chats(tmp_path, [chat(number) for number in range(3)]))
    planted = [PLANTED | {"id": f"{place}-de", "item": str(place), "language": "de",
                          "prompt": f"Click number {place}, the", "place": place,
                          "level": 1 + place // 2} for place in range(3)]
    pool = write_rows(tmp_path / "chat.jsonl", rows)
    everything = write_rows(tmp_path / "pool.jsonl", planted)
    monkeypatch.setattr(detection, "DIM", 512)  # smaller and cheaper
    monkeypatch.setattr(sys, "argv", [
        "real_detection.py", "chat", "--pool", str(pool), "--planted", str(everything),
        "--model", str(TINY), "--store", str(tmp_path / "chat.congrad"),
        "--out", str(tmp_path / "out.csv"), "--seeds", "2"])  # fmt: skip
    real_detection.main()
    assert read_rows(pool) == rows
    assert read_rows(of_level(everything, 1, tmp_path / "level.jsonl")) == planted[:2]
    found = {(cell.scenario, cell.finder, cell.measure): cell
             for cell in read_cells(tmp_path / "out.csv")}
    assert {key[1] for key in found} == set(real_detection.FINDERS)
    assert {key[0] for key in found} == set(SCENARIOS["chat"])
    for finder in real_detection.FINDERS:
        # everything English is bad, so that German pairs have no bad ones to be told from
        assert 0 <= found["adversarial-en", finder, "auroc, chat alone"].value <= 1
        assert np.isnan(found["adversarial-en", finder, "auroc, planted alone"].value)
    assert "| adversarial-zh |" in capsys.readouterr().out


def test_a_weak_signal_is_found_better_among_more_pairs():
    pool = Pool(real_rows(count=80))
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((len(pool.rows), 64)) + 0.07 * rng.standard_normal(64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    count = len(rows)
    sketches = Sketches((rows / norm) @ (rows / norm).T, norm[:, 0],
                        rng.standard_normal((count, 2)), rng.integers(1, 9, (count, 3)))
    few, many = (growth(pool, sketches, size, draws)
                 for size, draws in ((10, 60), (80, 20)))
    assert np.mean(many["mean, unit", "all"]) > np.mean(few["mean, unit", "all"]) + 0.05
    assert np.mean(many["margin per token", "all"]) == pytest.approx(0.5, abs=0.1)
    assert set(many) == {(finder, name) for finder in ("mean, unit", "margin per token")
                         for name in ("all", "en", "zh")}


def test_a_tenth_of_each_language_is_swapped_and_no_pair_drawn_twice():
    pool = Pool(real_rows())
    place, bad = draw_pairs(pool, 20, random.Random(0))
    assert sorted(place) == list(range(40))
    assert Counter(pool.rows[one]["language"] for one, wrong in zip(place, bad, strict=True)
                   if wrong) == {"en": 2, "zh": 2}  # fmt: skip


def test_likeness_is_the_mean_over_pairs_of_different_items():
    rows = [row | {"item": str(row["place"] // 2)} for row in real_rows(count=4)]
    cosine = np.arange(64.0).reshape(8, 8)
    sketches = Sketches(cosine, np.ones(8), np.zeros((8, 2)), np.ones((8, 3), np.int32))
    apart = [(i, j) for i in range(4) for j in range(4) if i // 2 != j // 2]
    assert likeness(Pool(rows), sketches) == pytest.approx({
        "en": np.mean([cosine[i, j] for i, j in apart]),
        "zh": np.mean([cosine[4 + i, 4 + j] for i, j in apart])})  # fmt: skip
