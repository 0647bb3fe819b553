"""The benchmark of rounds with and without the filter: its judge, data, runs and tables."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import downstream_tables as tables
import rounds
import rounds_judge
import rounds_tables
from downstream import SMOKE
from rounds_data import data_of_bundled, prompts_of
from rounds_judge import FAIR, Judge, Truth, chrf
from rounds_tables import FILTER, FRESH, NO_FILTER, RANDOM

from congrad_cli.loop.config import read_config
from congrad_cli.loop.openai_backend import open_openai
from congrad_cli.loop.pairs import make_pairs
from congrad_cli.loop.rubric import RubricJudge
from congrad_cli.loop.settings import (
    ConsensusSection,
    FilterSection,
    LossSection,
    PairsSection,
)

TRUTHS = {f"{language} {number}?": Truth(language, f"true answer {number} in {language}")
          for language in ("de", "en", "es", "fr", "it") for number in range(60)}
ASKED = ("de", "en", "es")
JUDGE = Judge(TRUTHS, frozenset(ASKED))
SPOILT = "spoilt-3"


def configuration(folder, url="http://127.0.0.1:1/v1"):
    """The loop's, as the benchmark writes it, beside its files."""
    data = data_of_bundled(SMOKE, 4, 2)
    config = rounds.CONFIG.format(rounds=2, model=rounds.TINY, per_language=2, batch=8,
                                  max_tokens=8, max_length=64, steps=1, learning_rate=1e-4)
    rounds.Bench(data, data.judge(), url, folder, config).prepare()
    return read_config(folder / "loop.toml", (f"judge.backend.url={url}",))


@given(st.text("ab c", max_size=12), st.text("ab c", min_size=1, max_size=12))
def test_the_f_score_is_that_of_counting_by_hand(answer, truth):
    said, meant = answer.replace(" ", ""), truth.replace(" ", "")
    precisions, recalls = [], []
    for order in range(1, min(6, len(meant)) + 1):
        left = [said[at : at + order] for at in range(max(0, len(said) - order + 1))]
        wanted = [meant[at : at + order] for at in range(len(meant) - order + 1)]
        total, found = len(left), 0
        for gram in wanted:
            if gram in left:
                left.remove(gram)
                found += 1
        precisions.append(found / total if total else 0.0)
        recalls.append(found / len(wanted))
    if not meant or not sum(recalls):
        assert chrf(answer, truth) == 0
        return
    precision, recall = np.mean(precisions), np.mean(recalls)
    assert chrf(answer, truth) == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_the_true_answer_is_best_and_a_stump_of_it_gains_nothing():
    truth = " only active when a document contains a field."
    assert chrf(truth, truth) == pytest.approx(1)
    assert chrf(" only", truth) < chrf(" only active when", truth) < 1
    assert chrf("", truth) == chrf("§§", truth) == 0


def test_a_spoilt_judge_turns_one_language_and_a_fifth_of_the_others_round():
    turned = Counter(TRUTHS[prompt].language for prompt in TRUTHS if JUDGE.turns(SPOILT, prompt))
    opponent = JUDGE.opponent(SPOILT)
    assert turned.pop(opponent) == 60
    assert 0.12 < turned.total() / 240 < 0.28
    assert not any(JUDGE.turns(FAIR, prompt) for prompt in TRUTHS)
    assert {JUDGE.opponent(f"spoilt-{seed}") for seed in range(40)} == set(ASKED)


def test_the_loop_makes_right_pairs_by_the_fair_judge_and_wrong_ones_where_it_is_turned(tmp_path):
    items = [{"key": prompt, "language": truth.language,
              "messages": [{"role": "user", "content": prompt}],
              "candidates": [{"text": text, "finished": True, "tokens": 5} for text in (
                  "nothing of it", truth.rest, f"{truth.rest[:12]} ...")]}
             for prompt, truth in list(TRUTHS.items())[::10]]
    with rounds_judge.served(JUDGE) as url:
        config = configuration(tmp_path, url)
        for name in (FAIR, SPOILT):
            section = replace(config.judge.backend, model=name)
            backend = open_openai(section, "", tmp_path, lambda _: None)
            judged = list(RubricJudge(backend, config.judge, 0).judge(items))
            made = list(make_pairs(items, judged, PairsSection(check_language=False), ()))
            assert [JUDGE.is_wrong(one["pair"]) for one in made] == [
                JUDGE.turns(name, item["key"]) for item in items]
            best = {one["pair"]["chosen"][0]["content"] == TRUTHS[one["key"]].rest for one in made}
            assert best == ({True} if name == FAIR else {True, False})


def test_all_that_decides_about_pairs_is_the_default(tmp_path):
    config = configuration(tmp_path)
    assert (config.filter, config.consensus) == (FilterSection(), ConsensusSection())
    assert (config.loss, config.pairs) == (LossSection(), PairsSection())


def test_no_prompt_of_the_loop_is_measured_by_and_the_judge_knows_all():
    data = data_of_bundled(SMOKE, 10, 4)
    asked = {row["prompt"] for row in data.prompts}
    assert {row["language"] for row in data.prompts} == {"en", "de"}
    assert not asked & {row["prompt"] for row in data.held_out.pairs}
    judge = data.judge()
    assert {judge.opponent(f"spoilt-{seed}") for seed in range(20)} == {"en", "de"}
    for row in data.held_out.pairs:
        assert judge.quality(row["prompt"], row["chosen"]) == pytest.approx(1)
    for row in data.prompts:
        assert judge.quality(row["prompt"], row["rest"]) == pytest.approx(1)


def test_a_paragraph_that_begins_like_one_before_makes_no_prompt():
    def paragraph(first, last):
        return f"{first} words that stand before the middle and then {last} words after it."

    table = {("help", "a"): {"en": paragraph("Some", "other")},
             ("help", "b"): {"en": paragraph("Some", "older")},
             ("help", "c"): {"en": paragraph("More", "other")}}
    rows = prompts_of(table, list(table), ("en",))
    assert [row["id"] for row in rows] == ["help/a/en", "help/c/en"]
    assert all(table["help", row["id"][5]]["en"] == row["prompt"] + row["rest"] for row in rows)


def test_a_copy_that_was_not_finished_is_made_again(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "file").write_text("1")

    def stopped():
        for part in rounds.copied(source, target):
            (part / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not target.exists()
    for part in rounds.copied(source, target):
        assert (part / "file").read_text() == "1"
    assert target.is_dir() and source.is_dir()
    assert not list(rounds.copied(source, target))


def run_of(folder, wrong, kept):
    """A run's first round: which pairs are the wrong way round, and which are kept."""
    prompts = list(TRUTHS)[: len(wrong)]
    lines = []
    for prompt, turned in zip(prompts, wrong, strict=True):
        sides = [[{"role": "assistant", "content": text}] for text in (TRUTHS[prompt].rest, "?")]
        chosen, rejected = reversed(sides) if turned else sides
        lines.append(json.dumps({"id": prompt, "prompt": [{"role": "user", "content": prompt}],
                                 "chosen": chosen, "rejected": rejected}) + "\n")
    for name in ("02-candidates", "04-pairs", "07-filter"):
        (folder / "round-1" / name).mkdir(parents=True)
    first = folder / "round-1"
    (first / "04-pairs" / "pairs.jsonl").write_text("".join(lines))
    (first / "07-filter" / "kept.jsonl").write_text("".join(lines[at] for at in kept))
    (first / "02-candidates" / "results.jsonl").write_text(json.dumps(
        {"messages": [{"role": "user", "content": prompts[0]}],
         "candidates": [{"text": TRUTHS[prompts[0]].rest}, {"text": "?"}]}) + "\n")
    return folder


def test_wrong_verdicts_are_counted_among_all_pairs_and_among_those_trained_on(tmp_path):
    run = run_of(tmp_path, [True, False, True, False], [0, 1, 3])
    bench = rounds.Bench(data_of_bundled(SMOKE, 2, 1), JUDGE, "", tmp_path, "")
    assert rounds.about_round(bench, run, 1) == {
        "made": 4, "kept": 3, "wrong": 0.5, "bad": pytest.approx(1 / 3), "own": pytest.approx(0.5)}
    assert "filter.keep_ratio=0.750000" in rounds.as_many(run)


def cells():
    """The initial model, and two arms of two seeds, one of which has another, too."""
    initial = {"scenario": tables.INITIAL, "selection": "", "seed": 0, "fresh": [0.1, 0.3],
               "pairs": [[-10.0, -20.0]] * 2, "pair_tokens": [[5, 10]] * 2, "texts": [-30.0],
               "languages": ["en", "ko"], "items": ["a", "b"], "text_tokens": [30],
               "text_languages": ["en"], "text_items": ["c"]}
    found = [initial]
    for seed, noise in ((0, 0.0), (1, 0.5)):
        for arm, more in ((NO_FILTER, 0.0), (FILTER, 0.1), (RANDOM, 0.02))[: 3 - seed]:
            found.append({
                "scenario": "spoilt, round 1", "selection": arm, "seed": seed, "texts": [-33.0],
                "fresh": [0.2 + noise + more, 0.4 - noise + more], "made": 10, "kept": 5,
                "pairs": [[-9.0, -20.0], [-10.0, -21.0]], "wrong": 0.3, "bad": 0.2, "own": 0.1})
    return found


def found_in(rows, **wanted):
    """The one row that has these values."""
    (row,) = [row for row in rows if all(getattr(row, name) == value
                                         for name, value in wanted.items())]
    return row


def test_arms_are_compared_with_each_other_and_with_the_initial_model():
    rows = rounds_tables.measure(cells(), count=50)
    of = {"scenario": "spoilt, round 1", "selection": FILTER, "subset": "all", "measure": FRESH}
    ours = found_in(rows, **of, beyond="")
    assert (ours.value, ours.seeds, ours.bad) == (pytest.approx(0.4), 2, pytest.approx(0.2))
    assert ours.high - ours.low > 0.05
    for beyond, value, seeds in ((NO_FILTER, 0.1, 2), (RANDOM, 0.08, 1)):
        row = found_in(rows, **of, beyond=beyond)  # alike for all items and seeds
        assert (row.value, row.low, row.high) == (pytest.approx(value),) * 3
        assert row.seeds == seeds
    assert found_in(rows, **of, beyond=tables.INITIAL).value == pytest.approx(0.2)
    assert found_in(rows, **(of | {"subset": "unseen"}), beyond=tables.INITIAL
                    ).value == pytest.approx(0.4 - 0.25 + 0.1 - 0.3)
    assert found_in(rows, scenario=tables.INITIAL, subset="all", measure=FRESH
                    ).value == pytest.approx(0.2)
    margin = found_in(rows, **(of | {"measure": tables.MARGIN}), beyond="")
    assert margin.value == pytest.approx(0.1)


def test_the_tables_have_a_line_for_each_arm_and_mark_what_excludes_zero(capsys):
    rounds_tables.show_counts(cells())
    rounds_tables.show(rounds_tables.measure(cells(), count=20))
    said = capsys.readouterr().out.splitlines()
    assert "| spoilt, round 1 | congrad filter | 2 | 10 | 5 | 30% | 20% | 0.100 |" in said
    (line,) = [line for line in said if FILTER in line and "**+0.100** [+0.100, +0.100]" in line]
    assert "+0.080 [+0.080, +0.080]" in line


@pytest.mark.slow
def test_the_smallest_setting_runs_once_and_arms_share_what_they_start_from(tmp_path, capsys):
    rounds.main(["--smoke", "--work", str(tmp_path)])
    lines = tables.read_lines([tmp_path / "cells.jsonl"])
    assert len(lines) == 1 + 2 * (3 + 2)
    by_name = {(line["scenario"], line["selection"]): line for line in lines}
    first = [by_name["spoilt, round 1", arm] for arm in rounds.ARMS]
    assert len({(line["made"], line["wrong"], line["own"]) for line in first}) == 1
    assert first[0]["kept"] == first[0]["made"] > first[1]["kept"] == first[2]["kept"]
    assert len({tuple(line["fresh"]) for line in first}) > 1
    cell_bytes = (tmp_path / "cells.jsonl").read_bytes()
    rounds.main(["--smoke", "--work", str(tmp_path)])
    assert (tmp_path / "cells.jsonl").read_bytes() == cell_bytes
    assert "random filter" in capsys.readouterr().out
