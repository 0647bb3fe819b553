"""The benchmark of finders: its measures, its draws, and that it asks congrad what it says."""

import csv
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import memory_store

from congrad_cli.consensus.groups import group_gradients
from congrad_cli.consensus.solver import solve
from congrad_cli.demo import auroc as plain_auroc
from congrad_cli.direction import Consensus
from congrad_cli.filter.scores import pair_scores
from congrad_cli.progress import Silent
from congrad_cli.records.record import DataFile
from congrad_cli.settings import RecordSettings, SketchSettings
from congrad_cli.sketch.index import index_data
from congrad_cli.sketch.run import run
from congrad_cli.store import GradientStore
from congrad_cli.weights import members

sys.path.append(str(Path(__file__).parent / "benchmarks"))
from conflicts import DECORATIONS, FLAWS, LANGUAGES
from detection import Bench
from finders import (
    FINDERS,
    REFERENCE,
    SPECS,
    DrawnPairs,
    Sketches,
    find,
    read_sketches,
)
from layout_detection import laid_out, table, unit_cosines
from measures import auroc, interval, over_seeds, precision, resamples, within
from sample_pool import BUNDLED
from scenarios import SCENARIOS, Pool, as_data, draw

RNG = np.random.default_rng(5)
VALUE = RNG.integers(0, 6, 60).astype(np.float64)  # with ties
BAD = RNG.random(60) < 0.3
TIMES = RNG.integers(0, 4, (3, 60)).astype(np.float64)


def rows_of_a_pool(core=10, extra=90):
    """Rows as in a pool, without texts."""
    rows = []

    def add(language, place, kind, flaw=""):
        rows.append({"id": f"{place}-{language}-{kind}-{flaw}", "language": language,
                     "prompt": "x", "chosen": f"good {len(rows)}", "rejected": f"bad {len(rows)}",
                     "item": str(place), "kind": kind, "flaw": flaw,
                     "longer": len(rows) % 3 == 0, "place": place, "level": 3})

    for place in range(core):
        for language in LANGUAGES:
            for flaw in FLAWS:
                add(language, place, "content", flaw)
            for kind in ("length", "style"):
                add(language, place, kind)
            for decoration in DECORATIONS if language == "de" else ():
                add(language, place, f"right-{decoration}", FLAWS[0])
                add(language, place, f"wrong-{decoration}", FLAWS[0])
    for place in range(1000, 1000 + extra):
        add("en", place, "content", FLAWS[place % 5])
    return rows


POOL = Pool(rows_of_a_pool())


def sketches_of(pool, dim=48, seed=0):
    """Gradients with a part that all good answers share, a part of the language, and noise."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(dim)
    own = {language: rng.standard_normal(dim) for language in LANGUAGES}
    rows = np.stack([shared + 0.5 * own[row["language"]] + rng.standard_normal(dim)
                     for row in pool.rows])
    count = len(rows)
    norm = np.linalg.norm(rows, axis=1)
    rows /= norm[:, None]
    return rows, Sketches(rows @ rows.T, norm, rng.standard_normal((count, 2)),
                          rng.integers(1, 9, (count, 3)))


def test_a_finder_normalises_pairs_as_its_name_says():
    for name, spec in SPECS.items():
        assert spec.settings.pair_norm in name


def test_auroc_of_weights_is_auroc_of_copies():
    for times, found in zip(TIMES, auroc(VALUE, BAD, TIMES), strict=True):
        value, bad = (np.repeat(of, times.astype(int)) for of in (VALUE, BAD))
        assert found == pytest.approx(plain_auroc(value[~bad].tolist(), value[bad].tolist()))


def test_precision_of_weights_is_precision_of_copies():
    value = RNG.permutation(60).astype(np.float64)
    for times, found in zip(TIMES, precision(value, BAD, TIMES), strict=True):
        copies = np.repeat(np.arange(60), times.astype(int))
        lowest = copies[np.argsort(value[copies])][: BAD[copies].sum()]
        assert found == pytest.approx(BAD[lowest].mean())


def test_within_is_the_mean_over_groups_that_have_both_kinds():
    group = np.repeat([0, 1, 2], 20).astype(np.int32)
    bad = BAD & (group != 2)
    parts = [auroc(VALUE[group == one], bad[group == one], TIMES[:, group == one])
             for one in (0, 1)]
    np.testing.assert_allclose(within(VALUE, bad, TIMES, group), np.mean(parts, 0))


def test_an_interval_is_as_wide_as_the_mean_of_the_resampled_scatters():
    value = np.random.default_rng(1).standard_normal(400)
    drawn = resamples(400, 2000, np.random.default_rng(2))
    middle, low, high = interval(drawn @ value / 400)
    assert middle == pytest.approx(value.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * value.std() / 20, rel=0.1)


def test_seeds_without_a_result_do_not_count():
    parts = [np.array([0.5, np.nan]), np.array([0.7, 0.9])]
    np.testing.assert_allclose(over_seeds(parts, np.ones((2, 2))), [0.6, 0.9])


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_draw_takes_no_pair_twice_and_turns_what_it_calls_bad(name):
    found = draw(POOL, name, 0)
    assert len(set(found.place)) == len(found.place)
    assert found == draw(POOL, name, 0)
    assert found != draw(POOL, name, 1)
    for row, turned in zip(as_data(POOL, found), found.turned, strict=True):
        assert row["chosen"].startswith("bad" if turned else "good")
        assert row["judged"] == (row["kind"] not in ("length", "style"))
        assert row["planted"] == (turned and row["judged"])


@pytest.mark.parametrize("rate", [10, 20, 40])
def test_every_language_has_its_share_of_swapped_labels(rate):
    found = list(as_data(POOL, draw(POOL, f"swapped-{rate}", 3)))
    bad = Counter(row["language"] for row in found if row["planted"])
    assert bad == dict.fromkeys(LANGUAGES, rate // 10)


def test_an_unseen_flaw_is_only_in_bad_labels():
    found = list(as_data(POOL, draw(POOL, "off-topic-20-unseen", 0)))
    assert {row["planted"] for row in found if row["flaw"] == "off-topic"} == {True}
    assert {row["flaw"] for row in found if not row["planted"]} == set(FLAWS) - {"off-topic"}


def test_scores_in_coordinates_are_those_of_the_rows():
    rows, sketches = sketches_of(POOL)
    found = draw(POOL, "swapped-20", 0)
    languages = [POOL.rows[place]["language"] for place in found.place]
    names = sorted(set(languages))
    pairs = DrawnPairs(sketches, found.place, found.turned,
                       np.array([names.index(one) for one in languages], np.int32), names)
    signed = np.where(found.turned, -1, 1)[:, None] * rows[found.place]
    store = memory_store(signed, sketches.norm[found.place], languages)
    for name in (REFERENCE, "mean, unit", "upgrad, raw"):
        settings = SPECS[name].settings
        belong = members(store, store.column("group"), len(names), settings)
        groups = group_gradients(store, names, belong)
        a = solve(groups.gramian, settings).coefficients
        consensus = Consensus(a @ groups.gradients, groups.gradients, a, groups.excess)
        expected = pair_scores(store, consensus, belong, True).score
        np.testing.assert_allclose(find(pairs, name, np.arange(len(pairs)), 0).value, expected,
                                   atol=2e-3)  # the store's rows are float16


def test_leaving_out_items_of_one_pair_is_leaving_out_the_pair():
    _, sketches = sketches_of(POOL)
    found = draw(POOL, "swapped-20", 0)
    label = np.array([LANGUAGES.index(POOL.rows[place]["language"]) for place in found.place],
                     np.int32)
    pairs = DrawnPairs(sketches, found.place, found.turned, label, list(LANGUAGES))
    alone = np.arange(len(pairs))
    for name in ("pcgrad, raw", "mean, unit"):
        np.testing.assert_allclose(find(pairs, f"{name}, item left out", alone, 0).value,
                                   find(pairs, name, alone, 0).value, atol=1e-8)


def test_folded_sketches_have_the_inner_products_of_their_sums():
    rows = np.random.default_rng(0).standard_normal((6, 32))
    store = memory_store(rows, np.ones(6), ["de"] * 6, width=2, store_dtype="float16")
    folded = rows.reshape(6, 2, 2, 8).sum(2).reshape(6, 16)
    folded /= np.linalg.norm(folded, axis=1, keepdims=True)
    np.testing.assert_allclose(read_sketches(store, 2).cosine, folded @ folded.T, atol=2e-3)
    coarse = read_sketches(store, 1, "int4").cosine
    np.testing.assert_allclose(np.diagonal(coarse), 1)
    np.testing.assert_allclose(coarse, read_sketches(store).cosine, atol=0.2)


def test_every_finder_is_measured_in_every_kind_of_scenario():
    _, sketches = sketches_of(POOL)
    bench = Bench.of(POOL, sketches, 10)
    for name in ("bias-length-1", "opposed-length-3"):
        cells = bench.scenario(name, FINDERS, 2)
        found = {cell.finder: cell for cell in cells if cell.measure == "auroc"}
        assert set(found) == set(FINDERS)
        assert {cell.scenario for cell in cells} == {name}
        assert all(cell.low <= cell.high for cell in found.values())
        # gradients alone tell here: lengths, log-probabilities and norms are random
        assert found[REFERENCE].value > 0.95
        assert found["mean, unit, item left out"].value > 0.9
        assert all(0.2 < found[one].value < 0.8 for one in ("margin", "length", "random"))


def test_a_noisy_layout_finds_less_than_the_store_and_the_same_one_as_much(tmp_path, capsys):
    rows, stored = sketches_of(POOL)
    noisy = rows + 0.5 * np.random.default_rng(1).standard_normal(rows.shape)
    layouts = {"store": stored, "again": stored,
               "noisy": replace(stored, cosine=unit_cosines(noisy))}
    table(POOL, layouts, ["mean, unit"], ["swapped-20"], 2, tmp_path / "x.csv")
    lines = list(csv.DictReader((tmp_path / "x.csv").open(encoding="utf-8")))
    beyond = {one["layout"]: one for one in lines if one["measure"] == "beyond"}
    assert float(beyond["again"]["low"]) == float(beyond["again"]["high"]) == 0
    assert float(beyond["noisy"]["high"]) < 0
    assert "+0.000 [+0.000, +0.000]" in capsys.readouterr().out


def test_exact_gradients_and_other_layouts_stand_at_the_place_of_their_pair(tmp_path):
    lines = BUNDLED.read_bytes().splitlines(keepends=True)[:4]
    (tmp_path / "data.jsonl").write_bytes(b"".join(lines))
    names = [json.loads(line)["id"] for line in lines]
    wanted = {name: 2 - place for place, name in enumerate(names[:3])}  # turned, and one left out
    like = Sketches(np.eye(3), np.ones(3), np.zeros((3, 2)), np.ones((3, 3), np.int32))
    model = BUNDLED.parent / "tiny-model"
    laid = laid_out(str(model), tmp_path / "data.jsonl", wanted, like, exact=True)
    settings = SketchSettings(model=str(model), device="cpu", threads=1, store_dtype="float16")
    index = index_data([DataFile("data.jsonl", tmp_path / "data.jsonl")], RecordSettings())
    run(index, tmp_path / "store", settings, Silent())
    store = read_sketches(GradientStore.open(tmp_path / "store")).cosine[:3, :3][::-1, ::-1]
    np.testing.assert_allclose(laid["exact gradients"].cosine, store, atol=0.04)
    for name, far in (("16 x 16 blocks", 0.2), ("count sketch, 8,192", 0.06)):
        np.testing.assert_allclose(laid[name].cosine, laid["exact gradients"].cosine, atol=far)
