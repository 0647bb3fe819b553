"""The benchmark of models that learned from selected pairs: its data, selections and measures."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import downstream
import downstream_plan as plan
import downstream_tables as tables
from conflicts import LANGUAGES
from downstream_chats import with_chats
from downstream_data import SCENARIOS, SEEN, UNSEEN, HeldOut, lenders_of, parts_of_bundled
from measures import interval, resamples, seeds_interval
from scenarios import Pool
from test_benchmarks_detection import rows_of_a_pool, sketches_of

from congrad_cli.store import GradientStore

POOL = Pool([row for row in rows_of_a_pool(core=20, extra=160) if row["language"] in SEEN])


def line(scenario, selection, seed, pairs, texts, **more):
    """A cell as the benchmark writes it."""
    return {"scenario": scenario, "selection": selection, "seed": seed, "bad": 0.0, "kept": 1,
            "pairs": pairs, "texts": texts} | more


def initial(pairs=4):
    """Of two paragraphs in two languages, one of them unseen."""
    items = ["a", "a", "b", "b"] * (pairs // 4)
    return line(tables.INITIAL, "", 0, [[-10.0, -20.0]] * pairs, [-30.0, -10.0],
                languages=["en", "ko"] * (pairs // 2), items=items,
                pair_tokens=[[5, 10]] * pairs, text_languages=["en", "ko"],
                text_items=["c", "c"], text_tokens=[30, 10])


def found(rows, **wanted):
    """The one row that has these values."""
    (row,) = [row for row in rows if all(getattr(row, name) == value
                                         for name, value in wanted.items())]
    return row


@pytest.fixture(scope="module")
def bundled():
    return parts_of_bundled(("en", "de", "ja"), 10, 4)


@pytest.fixture(scope="module")
def drawn():
    _, sketches = sketches_of(POOL)
    return {name: plan.make(POOL, sketches, name, 3) for name in SCENARIOS}


def test_no_paragraph_and_no_unseen_language_is_in_training_and_held_out(bundled):
    trained = {row["item"] for row in bundled.pool.rows}
    measured = {row["item"] for row in bundled.held_out.pairs}
    assert len(trained) == 10 and len(measured) == 4 and not trained & measured
    assert {row["language"] for row in bundled.pool.rows} == {"en", "de"}
    assert Counter(row["language"] for row in bundled.held_out.pairs) == {
        "en": 4, "de": 4, "ja": 4}


def test_unseen_languages_are_in_no_draw(drawn):
    names = {row["id"]: row["language"] for row in POOL.rows}
    for one in drawn.values():
        assert {names[name] for name in one.ids} == set(SEEN)
    assert set(SEEN) | set(UNSEEN) == set(LANGUAGES)


def test_all_selections_but_all_data_have_half_of_the_pairs(drawn):
    for one in drawn.values():
        count = len(one.ids)
        for name, kept in one.kept.items():
            assert len(set(kept)) == len(kept) == (count if name == plan.ALL else count // 2)
        assert set(one.kept) == set(plan.SELECTIONS)


def test_what_was_added_is_of_the_same_draws(drawn):
    _, sketches = sketches_of(POOL)
    for name, first in drawn.items():
        added = plan.make(POOL, sketches, name, 3, added=True)
        half = set(added.kept["congrad half, unit"])
        above = set(added.kept[plan.DEFAULT])
        assert half <= above or above <= half  # one order, two places to cut
        again = replace(first, kept=dict(first.kept))
        (both,) = plan.merge({name: {"3": again}}, {name: {"3": added}})[name].values()
        assert set(both.kept) == {*plan.SELECTIONS, *plan.ADDED}


def test_plans_of_different_draws_are_refused(drawn):
    one, other = drawn["swapped-20"], drawn["adversarial-1"]
    with pytest.raises(SystemExit, match="swapped-20, seed 3"):
        plan.merge({"swapped-20": {"3": one}}, {"swapped-20": {"3": other}})


def test_right_labels_have_no_bad_one_and_congrad_has_fewer_than_a_random_half(drawn):
    for name in ("swapped-20", "adversarial-1"):
        one = drawn[name]
        assert one.bad(plan.ORACLE) == 0
        assert one.bad("congrad half") < one.bad(plan.RANDOM) / 2
    assert drawn["clean"].bad(plan.ALL) == 0


def test_half_of_the_languages_prefer_the_opposite(drawn):
    one = drawn["opposed-length"]
    known = {row["id"]: row for row in POOL.rows}
    turned = {known[name]["language"]: turn for name, turn in zip(one.ids, one.turned, strict=True)
              if known[name]["kind"] == "length"}
    assert sorted(turned.values()) == [False] * 5 + [True] * 5


def test_turned_labels_are_turned_in_what_is_trained_on(drawn):
    one = drawn["swapped-20"]
    rows = one.rows(POOL, plan.ALL)
    for row, turned in zip(rows, one.turned, strict=True):
        assert row["chosen"].startswith("bad" if turned else "good")
        assert row["rejected"].startswith("good" if turned else "bad")


def test_a_plan_that_was_written_is_read_again(drawn, tmp_path):
    whole = {name: {"3": one} for name, one in drawn.items()}
    plan.write(tmp_path / "plan.json", whole)
    assert plan.read(tmp_path / "plan.json") == whole


def test_measures_of_one_model_are_those_of_its_log_probabilities():
    model = line("swapped-20", "all data", 0,
                 [[-9.0, -20.0], [-11.0, -20.0], [-10.0, -20.0], [-9.0, -30.0]], [-33.0, -10.0])
    rows = tables.measure([initial(), model], count=5)
    of = {"scenario": "swapped-20", "beyond": ""}
    # rewards are +1, -1, 0 and +11 times beta: right, wrong, a tie, right
    assert found(rows, **of, subset="all", measure=tables.REWARD).value == pytest.approx(2.5 / 4)
    assert found(rows, **of, subset="seen", measure=tables.REWARD).value == pytest.approx(1.5 / 2)
    assert found(rows, **of, subset="ko", measure=tables.REWARD).value == pytest.approx(1 / 2)
    assert found(rows, **of, subset="all", measure=tables.MARGIN).value == pytest.approx(
        0.1 * 11 / 4)
    # per token: -1.8 against -2, -2.2 against -2, a tie, -1.8 against -3
    assert found(rows, **of, subset="all", measure=tables.LIKELIER).value == pytest.approx(2.5 / 4)
    # 3 nats lost over 40 tokens
    assert found(rows, **of, subset="all", measure=tables.TAX).value == pytest.approx(3 / 40)


def test_differences_are_paired_over_seeds_and_over_items():
    rng = np.random.default_rng(0)
    lines = [initial(40)]
    for seed in range(3):
        base = rng.normal(-15, 5, (40, 2))
        lines.append(line("clean", "all data", seed, base.tolist(), [-30.0, -10.0]))
        if seed < 2:  # the winner is likelier by 1 in every pair, whatever else varies
            lines.append(line("clean", "congrad half", seed, (base + np.array([1, 0])).tolist(),
                              [-30.0, -10.0]))
    rows = tables.measure(lines, count=50)
    difference = found(rows, selection="congrad half", subset="all", measure=tables.MARGIN,
                       beyond="all data")
    assert difference.seeds == 2
    for value in (difference.value, difference.low, difference.high):
        assert value == pytest.approx(0.1)
    alone = found(rows, selection="congrad half", subset="all", measure=tables.MARGIN, beyond="")
    assert alone.high - alone.low > 0.05


def test_scenarios_with_bad_labels_are_pooled_over_the_seeds_that_all_have():
    def cell(scenario, seed, gain):
        pairs = [[-10.0 + gain, -20.0]] * 4
        return line(scenario, "all data", seed, pairs, [-30.0, -10.0]) | {"bad": gain / 10}

    lines = [initial(), cell("swapped-20", 0, 1), cell("adversarial-1", 0, 3),
             cell("swapped-20", 1, 9), cell("clean", 0, 7)]
    rows = tables.measure(lines, count=5)
    pooled = found(rows, scenario=tables.POOLED, subset="all", measure=tables.MARGIN, beyond="")
    assert pooled.seeds == 2  # one of each scenario
    assert pooled.value == pytest.approx(0.1 * 2)
    assert pooled.bad == pytest.approx(0.2)


def test_the_printed_tables_have_the_measured_numbers(capsys):
    lines = [initial()] + [
        line("swapped-20", name, seed, [[-10.0 + gain, -20.0]] * 4, [-30.0, -10.0 - gain])
        for name, gain in (("all data", 1), ("random half", -1)) for seed in (0, 1)]
    tables.show(tables.measure(lines, count=5))
    head, _, first, second = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert head.startswith("| swapped-20 | seeds | bad labels | reward accuracy | ")
    assert first == ("| all data | 2 | 0% | 1.000 | - | **+1.000** [+1.000, +1.000] | "
                     "**+1.000** [+1.000, +1.000] | - | 0.100 | - |")
    assert second == ("| random half | 2 | 0% | 0.000 | **-1.000** [-1.000, -1.000] | - | - | "
                      "**-1.000** [-1.000, -1.000] | -0.100 | **-0.050** [-0.050, -0.050] |")


def test_intervals_hold_the_truth_of_few_seeds_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for seeds in (3, 5):
        drawn = resamples(seeds, 200, rng)
        held = 0
        for _ in range(600):
            parts = [np.full(201, value) for value in rng.normal(0, 1, seeds)]
            _, low, high = seeds_interval(parts, drawn)
            held += low <= 0 <= high
        assert 0.93 < held / 600 < 0.975


def test_one_seed_has_the_interval_of_its_items():
    part = np.arange(101.0)
    assert seeds_interval([part], resamples(1, 100, np.random.default_rng(0))) == interval(part)


@pytest.mark.parametrize("count", [2, 3, 4, 439])
def test_no_paragraph_lends_to_itself(count):
    keys = [("help", str(number)) for number in range(count)]
    lenders = lenders_of(keys)
    assert sorted(lenders) == sorted(keys)
    assert all(key != lender for key, lender in zip(keys, lenders, strict=True))


def test_a_line_that_was_cut_off_counts_as_not_there(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text(json.dumps(initial()) + "\n" + json.dumps(initial())[:50])
    assert tables.read_lines([path]) == [initial()]


def test_what_follows_a_line_that_was_cut_off_is_whole(tmp_path):
    path = tmp_path / "cells.jsonl"
    first = line("clean", "all data", 0, [], [], setup={})
    path.write_text(json.dumps(first) + "\n" + '{"scenario": "cl')
    downstream.Cells(path, {}).add(first | {"seed": 1})
    assert tables.read_lines([path]) == [first, first | {"seed": 1}]


def test_cells_of_another_setting_are_refused(tmp_path):
    path = tmp_path / "cells.jsonl"
    cells = downstream.Cells(path, {"learning_rate": 1.0})
    cells.add(line("clean", "all data", 0, [], []))
    assert ("clean", "all data", 0) in downstream.Cells(path, {"learning_rate": 1.0})
    with pytest.raises(SystemExit, match=r"learning_rate': 1\.0"):
        downstream.Cells(path, {"learning_rate": 2.0})


@pytest.mark.slow
def test_the_smallest_setting_weighs_as_sketches_do_and_runs_once(tmp_path, capsys):
    downstream.main(["--smoke", "--work", str(tmp_path)])
    cells = (tmp_path / "cells.jsonl").read_bytes()
    lines = tables.read_lines([tmp_path / "cells.jsonl"])
    assert len(lines) == 4
    assert all(one["pairs"] != lines[0]["pairs"] for one in lines[1:])
    assert (tmp_path / "cells.csv").exists()
    store = GradientStore.open(tmp_path / "smoke.congrad")
    pairs = [json.loads(row) for row in (tmp_path / "pool.jsonl").open(encoding="utf-8")]
    again = downstream.weigh(str(downstream.TINY), HeldOut(pairs, []))
    assert again["pair_tokens"] == store.column("tokens")[:, 1:].tolist()
    np.testing.assert_allclose(again["pairs"], store.column("logp"), atol=1e-2)
    downstream.main(["--smoke", "--work", str(tmp_path)])
    assert (tmp_path / "cells.jsonl").read_bytes() == cells
    assert "congrad half" in capsys.readouterr().out


def test_real_chats_are_trained_on_or_held_out_never_both(tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]
    for language in ("en", "zh"):
        records = [{"conversations": [*turns, {"from": "human", "value": f"Who is {number}?"}],
                    "chosen": {"from": "gpt", "value": "x" * number},
                    "rejected": {"from": "gpt", "value": "y"}} for number in range(1, 13)]
        (tmp_path / f"dpo_{language}_demo.json").write_text(json.dumps(records))
    bundled = parts_of_bundled(("en", "de", "ja"), 10, 4)
    parts = with_chats(bundled, tmp_path, each=4)
    trained = [row for row in parts.pool.rows if row not in bundled.pool.rows]
    held_out = [row for row in parts.held_out.pairs if row not in bundled.held_out.pairs]
    assert [row["language"] for row in trained] == ["en"] * 4 + ["zh"] * 4
    assert [row["language"] for row in held_out] == ["chat-en"] * 4 + ["chat-zh"] * 4
    items = [{row["item"] for row in rows} for rows in (trained, held_out)]
    assert not items[0] & items[1]
    longest = max(len(row["chosen"]) for row in trained + held_out)
    assert longest == 8  # of twelve the eight shortest
    assert trained[0]["prompt"].startswith("Hi\n\nYes?\n\nWho is ")
    languages = np.array([row["language"] for row in parts.held_out.pairs])
    found = dict(tables.subsets(languages))
    assert found["chats"].sum() == 8
    np.testing.assert_array_equal(found["planted"], ~found["chats"])


def test_a_pair_of_which_nothing_is_weighed_does_not_count():
    first = initial() | {"pair_tokens": [[5, 10], [5, 10], [5, 0], [0, 0]]}
    trained = line("clean", "all data", 0, [[-9.0, -20.0], [-11.0, -20.0], [-1.0, -20.0],
                                            [-10.0, -20.0]], [-30.0, -10.0])
    found = {row.measure: row.value for row in tables.measure([first, trained], count=50)
             if (row.scenario, row.subset, row.beyond) == ("clean", "all", "")}
    assert found["reward accuracy"] == pytest.approx(0.5)  # one right, one wrong, two left out
    assert found["reward margin"] == pytest.approx(0.0, abs=1e-12)
    assert np.isfinite(found["log-prob accuracy"])
