"""Errors of scores: against doing all again without each sub-sketch, and against the truth."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from products import members_of, product_table, table_errors
from synthetic import memory_store, normalised, random_rows

from congrad_cli.consensus import run as consensus
from congrad_cli.consensus.groups import group_gradients
from congrad_cli.direction import Consensus
from congrad_cli.display.filter import show_filter
from congrad_cli.filter import run as filtering
from congrad_cli.filter.policy import borderline, decide
from congrad_cli.filter.scores import PairScores, pair_scores
from congrad_cli.jackknife import jackknife_error
from congrad_cli.progress import Silent
from congrad_cli.settings import STORE_DTYPES, ConsensusSettings, FilterSettings

NAN = np.nan


def scores_of(store, scale, share, coefficients, leave_one_out=True):
    groups = group_gradients(store, store.groups, members_of(store, scale, share))
    d = np.asarray(coefficients, np.float64) @ groups.gradients
    found = Consensus(d, groups.gradients, np.asarray(coefficients, np.float64), groups.excess)
    return pair_scores(store, found, members_of(store, scale, share), leave_one_out)


@pytest.mark.parametrize("leave_one_out", [True, False])
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    width=st.sampled_from([2, 3, 8]),
    store_dtype=st.sampled_from(STORE_DTYPES),
    seed=st.integers(0, 999),
)
def test_errors_are_those_of_leaving_each_sub_sketch_out(
    leave_one_out, sizes, width, store_dtype, seed
):
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    rows = normalised(rng.standard_normal((len(label), 240)) + 0.5 * rng.standard_normal(240))
    store = memory_store(rows, np.ones(len(label)), [f"g{n}" for n in label],
                         width=width, store_dtype=store_dtype)
    scale = rng.lognormal(size=len(label)) * rng.choice([1, 1, -1, 0], len(label))
    share, coefficients = 1 / np.bincount(label)[label], np.linspace(0.5, 1.5, len(sizes))
    found = scores_of(store, scale, share, coefficients, leave_one_out)
    expected = table_errors(
        product_table(store), scale, share, label, coefficients, leave_one_out=leave_one_out
    )
    expected[np.isnan(found.score)] = NAN
    # Where noise has cancelled d's square without some block, G's float32 sums show.
    usual = ~(expected > 1)
    np.testing.assert_allclose(found.error[usual], expected[usual], rtol=1e-3, atol=1e-5)


def count_sketches(vectors, width, size, rng):
    """Independent count sketches of the vectors [N, P], side by side: [N, width * size]."""
    parts = []
    for _ in range(width):
        bucket = rng.integers(0, size, vectors.shape[1])
        fold = np.zeros((vectors.shape[1], size))
        fold[np.arange(vectors.shape[1]), bucket] = rng.choice([-1, 1], vectors.shape[1])
        parts.append(vectors @ fold / np.sqrt(width))
    return np.hstack(parts)


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("store_dtype", ["float16", "int4", "1bit"])
def test_true_scores_lie_within_the_errors_as_often_as_they_should(store_dtype, leave_one_out):
    """68 and 95 % for a normal error. The vectors are known, so the truth is; sketches vary."""
    rng = np.random.default_rng(5)
    label = np.repeat(np.arange(3), 20).astype(np.int32)
    common = rng.standard_normal((4, 1500))
    vectors = 0.3 * (common[0] + common[1 + label]) + rng.standard_normal((60, 1500))
    vectors *= rng.lognormal(0, 0.3, 60)[:, None]
    share, coefficients = np.full(60, 1 / 20), np.array([1.0, 0.5, 0.8])
    inside = []
    for _ in range(8):
        def stored(rows, width, code):
            norm = np.linalg.norm(rows, axis=1)
            store = memory_store(normalised(rows), norm, [f"g{n}" for n in label],
                                 width=width, store_dtype=code)
            return scores_of(store, norm, share, coefficients, leave_one_out)

        truth = stored(vectors, 1, "float16").score
        found = stored(count_sketches(vectors, 16, 64, rng), 16, store_dtype)
        inside.append(np.abs(found.score - truth) / found.error)
    ratio = np.concatenate(inside)
    assert 0.6 < (ratio < 1).mean() < 0.78
    assert 0.9 < (ratio < 2).mean() < 0.99


def test_where_nothing_is_left_without_a_sub_sketch_there_is_no_error():
    """All of a row, or of d, lies in one of them: the others cannot say how sure the score is."""
    one, both = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
    assert np.isnan(jackknife_error(one, one, both)).all()
    assert np.isnan(jackknife_error(one, both, one)).all()
    assert jackknife_error(both, both, both) == 0
    assert np.isnan(jackknife_error(both, both, np.array([[-0.5, 1.5]]))).all()


def test_one_sub_sketch_says_nothing_of_its_error():
    part = np.ones((3, 1))
    assert np.isnan(jackknife_error(part, part, part)).all()


# --- borderline pairs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        ({}, 0.0),
        ({"min_score": 0.25}, 0.25),
        ({"keep": 1}, 0.4),  # midway between 0.5 and 0.3
        ({"keep_ratio": 0.5}, 0.1),  # of five pairs, one without a score: three are kept
        ({"keep": 0}, NAN),
        ({"keep": 4}, NAN),
        ({"keep": 9}, NAN),
        ({"keep_ratio": 1.0}, NAN),
    ],
)
def test_the_threshold_of_a_rule(rule, threshold):
    score = np.array([0.3, 0.5, -0.1, NAN, 0.3])
    decided = decide(score, np.zeros(5, np.int32), FilterSettings(**rule))
    np.testing.assert_allclose(decided.threshold, np.full(5, threshold))


def test_every_group_has_its_threshold():
    score, group = np.array([0.1, 0.5, 0.9, -0.3]), np.array([0, 0, 1, 1], np.int32)
    decided = decide(score, group, FilterSettings(keep=1, per_group=True))
    np.testing.assert_allclose(decided.threshold, [0.3, 0.3, 0.3, 0.3])
    decided = decide(score, group, FilterSettings(keep_ratio=0.4, per_group=True))
    np.testing.assert_allclose(decided.threshold, [0.3, 0.3, 0.3, 0.3])


def test_borderline_pairs_lie_within_one_error_of_the_threshold():
    score = np.array([0.2, 0.2, -0.2, -0.2, NAN, 0.0])
    error = np.array([0.1, 0.3, 0.1, 0.3, NAN, NAN])
    decided = decide(score, np.zeros(6, np.int32), FilterSettings())
    assert borderline(PairScores(score, error), decided) == 2


@pytest.mark.parametrize("width", [1, 4])
def test_the_command_reports_errors(make_store, tmp_path, capfd, width):
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((40, 64)) + 0.2 * rng.standard_normal(64)
    path = make_store(rows, groups=["de", "en"] * 20, width=width)
    consensus.run(path, ConsensusSettings(), Silent())
    file = tmp_path / "scores.jsonl"
    summary = filtering.run(path, FilterSettings(scores=file), io.BytesIO(), Silent())
    entries = [json.loads(line) for line in file.read_bytes().splitlines()]
    show_filter(summary)
    said = capfd.readouterr().err
    if width == 1:
        assert {entry["error"] for entry in entries} == {None}
        assert summary.borderline is None
        assert "orderline" not in said
    else:
        assert all(entry["error"] > 0 for entry in entries)
        near = sum(abs(entry["score"]) <= entry["error"] for entry in entries)
        assert 0 < near < 40
        assert summary.borderline == near
        assert f"Borderline, within one error of the threshold: {near}." in said


def test_a_pair_without_a_score_has_no_error(make_store, tmp_path):
    path = make_store(random_rows(1, 8), width=4)
    consensus.run(path, ConsensusSettings(), Silent())
    file = tmp_path / "scores.jsonl"
    summary = filtering.run(path, FilterSettings(scores=file), io.BytesIO(), Silent())
    entry = json.loads(file.read_bytes())
    assert entry["score"] is None
    assert entry["error"] is None
    assert summary.borderline is None
