"""Every baseline against its definition, and the same rules on top of it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import columns, digests_of, header, index_of, random_rows
from test_scores import brute_scores

from congrad_cli.consensus import run as consensus
from congrad_cli.direction import Consensus, StoredConsensus, read_consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter import run as filtering
from congrad_cli.filter.ranking import check_ranking, mean_rank, random_values, rank_pairs
from congrad_cli.filter.target import own_target
from congrad_cli.progress import Silent
from congrad_cli.settings import ConsensusSettings, FilterSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import average_coefficients, members

LABELS = ["de", "en", "en", "de", "sw", "en"]
LOGP = np.array([[-3, -4], [-2, -7], [-9, -1], [-5, -5], [-1, -2], [-8, -6]], np.float32)
REF = np.array([[-1, -4], [-2, -2], [-9, -9], [-4, -5], [-1, -1], [-5, -6]], np.float32)
NORM = np.array([1.0, 4.0, 2.0, 0.5, 3.0, 1.5])


def store_with(**optional):
    """Six pairs with log-probabilities, and with optional columns."""
    about = replace(header(8), optional=list(optional))
    rows = random_rows(6, 8)
    shard = columns(range(6), rows, NORM) | {"logp": LOGP} | optional
    return GradientStore(Path("memory"), about, index_of(LABELS), [shard])


def ranked(store, made=None, **options):
    d = np.ones(store.header.dim)
    found = Consensus(d, np.ones((3, len(d))), np.ones(3), np.zeros((3, 1)))
    made = made or ConsensusSettings()
    belong = members(store, store.column("group"), 3, made)
    target = own_target(store, StoredConsensus(found, store.groups, belong, made))
    return rank_pairs(store, target, FilterSettings(**options))


def test_the_margin_is_the_policys_own_without_a_reference():
    ranking = ranked(store_with(), rank_by="margin")
    assert ranking.scores.score.tolist() == [1, 5, -8, 0, 1, -2]
    assert np.isnan(ranking.scores.error).all()
    assert "no reference" in ranking.about


def test_the_margin_is_that_over_the_reference_where_there_is_one():
    ranking = ranked(store_with(ref_logp=REF), rank_by="margin")
    assert ranking.scores.score.tolist() == [-2, 5, -8, -1, 1, -3]
    assert "the reference's subtracted" in ranking.about


def test_the_margin_weighs_tokens_as_the_sketch_did():
    weighted = LOGP / 2
    ranking = ranked(store_with(weighted_logp=weighted), rank_by="margin")
    assert ranking.scores.score.tolist() == [0.5, 2.5, -4, 0, 0.5, -1]


def test_the_norm_is_that_of_the_loss_gradient_small_ones_first():
    """Beta times sigmoid(-beta Delta), times |u|; whatever the average made of the norms."""
    delta = (LOGP - REF) @ [1, -1]
    expected = -0.5 / (1 + np.exp(0.5 * delta)) * NORM
    made = ConsensusSettings(beta=0.5, pair_norm="unit")
    ranking = ranked(store_with(ref_logp=REF), made, rank_by="norm")
    np.testing.assert_allclose(ranking.scores.score, expected, rtol=1e-6)
    other = ranked(store_with(ref_logp=REF), ConsensusSettings(), rank_by="norm", beta=0.5)
    np.testing.assert_allclose(other.scores.score, expected, rtol=1e-6)


def test_a_pair_of_weight_zero_has_no_norm_and_says_so():
    made = ConsensusSettings(loss="hinge", beta=0.5)
    ranking = ranked(store_with(ref_logp=REF), made, rank_by="norm")
    assert ranking.silent.tolist() == [False, True, False, False, False, False]
    assert str(ranking.scores.score[1]) == "0.0"


@given(order=st.permutations(range(20)), seed=st.integers(0, 2**63 - 1))
def test_a_random_number_belongs_to_its_pair(order, seed):
    digest = digests_of(20)
    plain = random_values(digest, seed)
    assert random_values(digest[list(order)], seed).tolist() == plain[list(order)].tolist()
    assert random_values(digest[3:4], seed) == plain[3]
    assert not (random_values(digest, seed // 2 + 1) == plain).any() or seed // 2 + 1 == seed


def test_random_numbers_fill_the_range_evenly():
    value = np.sort(random_values(digests_of(4000), 7))
    assert 0 <= value[0] < value[-1] <= 1
    assert np.abs(value - np.linspace(0, 1, 4000)).max() < 1.63 / np.sqrt(4000)  # KS at 1 %


@pytest.fixture
def store(make_store):
    """Conflicting groups, so that surgery changes something."""
    rng = np.random.default_rng(1)
    labels = rng.choice(["de", "en", "sw"], 30)
    toward = {"de": [1, 0.2], "en": [-0.8, 0.6], "sw": [-0.5, -0.5]}
    rows = rng.standard_normal((30, 8))
    rows[:, :2] += [np.multiply(3, toward[label]) for label in labels]
    path = make_store(rows, rng.lognormal(size=30), list(labels), width=2)
    consensus.run(path, ConsensusSettings(pair_norm="raw"), Silent())
    return path


def scores_of(path, tmp_path, **options):
    file = tmp_path / "scores"
    filtering.run(path, FilterSettings(scores=file, **options), io.BytesIO(), Silent())
    return [json.loads(line) for line in file.read_bytes().splitlines()]


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_the_mean_score_is_the_cosine_to_the_mean_of_the_groups(store, tmp_path, leave_one_out):
    found = scores_of(store, tmp_path, rank_by="mean-score", leave_one_out=leave_one_out)
    read = GradientStore.open(store)
    label, scale = read.column("group"), read.column("norm").astype(np.float64)
    directions = read.column("direction").astype(np.float64)
    share = average_coefficients(label, 3, ConsensusSettings())
    if leave_one_out:
        expected = brute_scores(directions, scale, share, label, np.full(3, 1 / 3))
    else:
        groups = [(directions * scale[:, None])[label == group].mean(0) for group in range(3)]
        mean = np.mean(groups, 0)
        expected = directions @ mean / np.linalg.norm(directions, axis=1) / np.linalg.norm(mean)
    score = [entry["score"] for entry in found]
    np.testing.assert_allclose(score, expected, atol=1e-6)
    assert {entry["rank_by"] for entry in found} == {"mean-score"}
    assert all(entry["error"] > 0 for entry in found)
    plain = scores_of(store, tmp_path, leave_one_out=leave_one_out)
    assert max(abs(one["score"] - two) for one, two in zip(plain, score, strict=True)) > 0.05
    assert not any("rank_by" in entry for entry in plain)


def test_the_mean_score_is_that_of_a_consensus_without_surgery(store, tmp_path):
    consensus.run(store, ConsensusSettings(method="mean", pair_norm="raw", name="plain"), Silent())
    wanted = scores_of(store, tmp_path, consensus="plain")
    found = scores_of(store, tmp_path, rank_by="mean-score", confidence=1.0)
    for one, two in zip(wanted, found, strict=True):
        assert two["score"] == pytest.approx(one["score"], abs=1e-12)
        assert two["error"] == pytest.approx(one["error"], abs=1e-12)


@pytest.mark.parametrize("name", ["mean-score", "norm", "random"])
def test_rules_apply_to_whatever_ranks(store, tmp_path, name):
    found = scores_of(store, tmp_path, rank_by=name, keep=7)
    best = sorted(found, key=lambda entry: (-entry["score"], entry["row"]))[:7]
    assert [entry["row"] for entry in found if entry["keep"]] == sorted(
        entry["row"] for entry in best)


def test_the_command_names_what_it_ranked_by(store, forked_congrad, tmp_path):
    summary = tmp_path / "summary"
    options = ("filter", store, "--rank-by", "random", "--keep-ratio", "0.5")
    done = forked_congrad(*options, "--seed", "3", "--summary", summary)
    assert done.returncode == 0, done.stderr
    found = json.loads(summary.read_bytes())
    assert (found["rank_by"], found["score_is"]) == ("random", "random numbers of seed 3")
    assert b"filter by random: random numbers of seed 3" in done.stderr
    assert forked_congrad(*options, "--seed", "3", "-q").stdout == done.stdout
    assert forked_congrad(*options, "--seed", "4", "-q").stdout != done.stdout
    done = forked_congrad("filter", store, "--rank-by", "length", "--keep", "3")
    assert done.returncode == 2
    assert b"--rank-by length: pass one of score, mean-score" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 3}, "--seed does nothing without --rank-by random"),
        ({"rank_by": "norm"}, "--rank-by norm has no threshold of its own"),
        ({"rank_by": "margin", "min_score": 0.0, "confidence": 1.0}, "--confidence does nothing"),
        ({"rank_by": "random", "keep": 1, "leave_one_out": False}, "--no-leave-one-out does noth"),
        ({"rank_by": "random", "keep": 1, "loss": "dpo"}, "--loss does nothing"),
        ({"rank_by": "margin", "keep": 1, "length_penalty": 0.1}, "--length-penalty does nothing"),
    ],
)
def test_options_that_a_ranking_cannot_use_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        check_ranking(FilterSettings(**options))


def test_a_threshold_may_be_named_for_any_ranking():
    for name in ("margin", "norm", "random"):
        check_ranking(FilterSettings(rank_by=name, min_score=0.5))
    check_ranking(FilterSettings(rank_by="norm", keep=1, loss="hinge"))
    check_ranking(FilterSettings(rank_by="mean-score", confidence=1.0))


def test_the_margin_per_token_divides_each_answer_by_its_own_length():
    store = store_with(ref_logp=REF)
    tokens = store.column("tokens")[:, 1:]
    ratio = (LOGP.astype(np.float64) - REF) / tokens
    ranking = ranked(store, rank_by="margin-per-token", keep=2)
    np.testing.assert_allclose(ranking.scores.score, ratio[:, 0] - ratio[:, 1])
    assert "per token" in ranking.about
    assert "reference's subtracted" in ranking.about


@given(values=st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=30))
def test_the_mean_of_ranks_counts_who_is_below(values):
    one, other = np.array(values, np.float64).T
    found = mean_rank(one, other)
    for place, (first, second) in enumerate(values):
        below = [np.mean([(part < value) + 0.5 * (part == value)])
                 for part, value in ((one, first), (other, second))]
        assert found[place] == pytest.approx(np.mean(below))


def test_pairs_without_a_number_have_no_rank():
    found = mean_rank(np.array([0.1, np.nan, 0.3]), np.array([1.0, 5.0, 2.0]))
    assert np.isnan(found[1])
    np.testing.assert_allclose(found[[0, 2]], [0.25, 0.75])


def test_score_and_margin_joins_the_two(store, tmp_path):
    score, margin, both = (
        np.array([entry["score"] for entry in scores_of(store, tmp_path, rank_by=name, keep=9)])
        for name in ("score", "margin-per-token", "score-and-margin"))
    np.testing.assert_allclose(both, mean_rank(score, margin))


@pytest.mark.parametrize("store_dtype", ["float16", "int4", "1bit"])
def test_a_pair_can_be_scored_by_the_other_groups_alone(make_store, tmp_path, store_dtype):
    """Against d - a_l G_l, from the decoded rows themselves: nothing of the pair is in it."""
    rng = np.random.default_rng(5)
    labels = [["de", "en", "sw"][number] for number in rng.integers(0, 3, 60)]
    path = make_store(rng.standard_normal((60, 96)), rng.lognormal(size=60), labels, width=4,
                      store_dtype=store_dtype)
    consensus.run(path, ConsensusSettings(pair_norm="raw"), Silent())
    found = [entry["score"] for entry in scores_of(path, tmp_path, leave_group_out=True)]
    read = GradientStore.open(path)
    stored = read_consensus(path, "default", read)
    rows = np.concatenate([block.direction for block in read.blocks()]).astype(np.float64)
    label, made = stored.members.label, stored.consensus
    for place, row in enumerate(rows):
        without = made.direction - made.coefficients[label[place]] * made.gradients[label[place]]
        others = label != label[place]
        pull = (made.coefficients[label] * stored.members.scale * stored.members.share)[others]
        square = np.vecdot(rows[others], rows[others])
        excess = 0 if store_dtype == "float16" else (pull**2 * (square - 1)).sum()
        own = 1.0 if store_dtype != "float16" else row @ row
        expected = row @ without / np.sqrt(own * (without @ without - excess))
        assert found[place] == pytest.approx(np.clip(expected, -1, 1), abs=1e-5)


def test_leaving_the_group_out_needs_other_groups(make_store, tmp_path):
    path = make_store(np.eye(4), groups=["de"] * 4)
    consensus.run(path, ConsensusSettings(), Silent())
    with pytest.raises(UsageError, match="one group alone"):
        scores_of(path, tmp_path, leave_group_out=True)
    for more in ({"leave_one_out": False}, {"leave_out_by": "item"}):
        with pytest.raises(UsageError, match="contradict"):
            scores_of(path, tmp_path, leave_group_out=True, **more)


@pytest.mark.parametrize("use", [{"dedup": 0.9}, {"max_conflict": 0.5}, {"group_cosines": True}])
def test_a_loss_may_be_named_where_signs_of_gradients_matter(use):
    check_ranking(FilterSettings(rank_by="random", keep=1, loss="hinge", **use))
