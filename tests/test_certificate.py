"""Who takes part in the consensus and how strongly, and what the result is said to do to whom."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from products import members_of, product_table, table_scores
from synthetic import memory_store, normalised, random_rows

from congrad_cli import arguments
from congrad_cli.consensus.certificate import certify
from congrad_cli.consensus.groups import cosines, group_gradients
from congrad_cli.consensus.part import take_part
from congrad_cli.consensus.run import run
from congrad_cli.consensus.solver import solve
from congrad_cli.direction import read_consensus
from congrad_cli.errors import NumericsError, UsageError
from congrad_cli.filter.scores import pair_scores
from congrad_cli.progress import Silent
from congrad_cli.settings import STORE_DTYPES, ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import members

SIZES = {"de": 9, "en": 7, "is": 1, "sw": 2}


@pytest.fixture(scope="module")
def store(make_store):
    """Groups of several sizes whose gradients differ in length by decades, some in conflict."""
    rng = np.random.default_rng(3)
    groups = [name for name, pairs in SIZES.items() for _ in range(pairs)]
    norms = np.array([{"de": 1e-6, "en": 1e-3, "is": 1e-4, "sw": 1e-5}[name] for name in groups])
    order = rng.permutation(len(groups))
    directions = rng.standard_normal((len(groups), 12))
    return make_store(directions, norms[order], [groups[place] for place in order])


def consensus_of(path, **settings):
    """The summary, and the consensus as the store keeps it."""
    made = ConsensusSettings(**settings)
    summary = run(path, made, Silent())
    stored = read_consensus(path, made.name, GradientStore.open(path))
    found, read_back = stored.consensus, stored.settings
    assert read_back == made
    np.testing.assert_allclose(found.coefficients @ found.gradients, found.direction, rtol=1e-12)
    return summary, found


# --- who takes part --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pcgrad", "mean", "mgda", "upgrad", "aligned-mtl"])
def test_unit_solves_for_group_gradients_of_length_one(store, method):
    _, found = consensus_of(store, method=method, normalize_groups="unit", name="unit")
    unit = normalised(found.gradients)
    expected = solve(unit @ unit.T, ConsensusSettings(method=method)).coefficients @ unit
    np.testing.assert_allclose(found.direction, expected, atol=1e-9)


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_unit_takes_lengths_free_of_what_a_code_adds(store_dtype):
    """The file keeps G and its excess as they are; all that changes are the coefficients."""
    rows = random_rows(40, 256, seed=1)
    stored = memory_store(rows, np.ones(40), ["de", "en"] * 20, width=4, store_dtype=store_dtype)
    groups = group_gradients(
        stored, stored.groups, members_of(stored, np.ones(40), np.full(40, 1 / 20)))
    part = take_part(groups, ConsensusSettings(normalize_groups="unit"))
    square = (groups.gradients**2).sum(1) - groups.excess.sum(1)
    np.testing.assert_allclose(part.factor, square**-0.5, rtol=1e-9)


def test_weights_multiply_group_gradients_before_the_solver(store):
    weights = {"de": 30.0, "sw": 0.25}
    _, found = consensus_of(store, method="mgda", weights=json.dumps(weights), name="w")
    scaled = found.gradients * np.array([[30.0], [1.0], [1.0], [0.25]])
    expected = solve(scaled @ scaled.T, ConsensusSettings(method="mgda")).coefficients @ scaled
    cosine = expected @ found.direction / np.linalg.norm(expected) / np.linalg.norm(found.direction)
    assert cosine == pytest.approx(1, abs=1e-12)


def test_size_gives_every_pair_the_same_voice(store):
    """With the plain mean it is the average over all pairs, whatever their group."""
    _, found = consensus_of(
        store, method="mean", weights="size", name="size", pair_norm="raw")
    opened = GradientStore.open(store)
    directions = opened.column("direction").astype(np.float64)
    expected = (opened.column("norm")[:, None] * directions).mean(0)
    ratio = found.direction / expected
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_small_groups_take_no_part(store, make_store):
    """The consensus is that of the others; theirs is a coefficient of zero, and a reason."""
    summary, found = consensus_of(store, min_pairs=3, method="upgrad", name="large")
    assert summary.names == list(SIZES)
    assert list(summary.left_out) == ["is", "sw"]
    assert "1 of the 3 pairs" in summary.left_out["is"]
    np.testing.assert_array_equal(found.coefficients[2:], 0)
    large = found.gradients[:2]
    expected = solve(large @ large.T, ConsensusSettings(method="upgrad")).coefficients @ large
    np.testing.assert_allclose(found.direction, expected, rtol=1e-9)
    assert summary.certificate.pairs == 1


def test_a_weight_of_zero_leaves_a_group_out(store):
    summary, found = consensus_of(store, weights='{"en": 0}', name="zero")
    assert summary.left_out == {"en": "has weight 0"}
    assert found.coefficients[1] == 0


@pytest.mark.parametrize("method", ["pcgrad", "mgda", "nash-mtl"])
def test_a_group_of_next_to_no_weight_is_left_out_and_said(store, method):
    summary, found = consensus_of(store, method=method, weights='{"en": 1e-200}', name="faint")
    assert summary.left_out == {"en": "vanishes beside the others"}
    assert np.isfinite(found.direction).all()


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("changed", [
    {"min_pairs": 3}, {"normalize_groups": "unit"}, {"weights": "size"},
    {"min_pairs": 2, "normalize_groups": "unit", "weights": '{"de": 4}', "method": "upgrad"},
])  # fmt: skip
def test_scores_are_those_of_averaging_again_without_the_pair(store, changed, leave_one_out):
    """Pairs of groups that take no part are scored as well, against a d that holds nothing of
    them."""
    _, found = consensus_of(store, name="scored", **changed)
    opened = GradientStore.open(store)
    terms = members(opened, opened.column("group"), len(opened.groups), ConsensusSettings())
    scores = pair_scores(opened, found, terms, leave_one_out)
    expected = table_scores(
        product_table(opened).sum(0), terms.scale, terms.share, opened.column("group"),
        found.coefficients, leave_one_out,
    )
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(scores.score, expected, atol=1e-5)


def test_a_group_whose_weight_vanishes_beside_the_others_takes_no_part(store):
    """Its factor is no number above 0 any more, so nothing may say that it takes part."""
    summary = run(store, ConsensusSettings(weights='{"de": 1e-300, "en": 1e300}'), Silent())
    assert summary.left_out["de"] == "vanishes beside the others"


def test_as_many_pairs_as_no_group_has(store):
    with pytest.raises(UsageError, match="leaves no group") as caught:
        run(store, ConsensusSettings(min_pairs=10), Silent())
    assert caught.value.hints == ("the largest has 9 pairs",)


def test_weights_of_a_group_that_is_not_there(store):
    with pytest.raises(UsageError, match="'xx', which is no group") as caught:
        run(store, ConsensusSettings(weights='{"xx": 1}'), Silent())
    assert "de, en, is, sw" in caught.value.hints[0]


@pytest.mark.parametrize(("text", "said"), [
    ("{", "not JSON"), ("[1]", "an object of numbers"), ('{"de": "2"}', "an object of numbers"),
    ('{"de": -1}', "none negative"), ('{"de": NaN}', "an object of numbers"),
    ('{"de": 1, "de": 2}', "not JSON .a key stands twice"),
    ('{"de": true}', "an object of numbers"), (b"\xff", "not JSON"),
    ('{"de": 1' + "0" * 400 + "}", "an object of numbers"), ("[" * 100_000, "not JSON"),
])  # fmt: skip
def test_a_file_of_weights_must_hold_weights(tmp_path, text, said):
    file = tmp_path / "weights.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=said):
        arguments.group_weights(str(file), "pcgrad")


def test_weights_are_kept_by_content(tmp_path):
    """A file may change or go away; what the consensus was made with may not."""
    file = tmp_path / "weights.json"
    file.write_text('{"sw": 2, "de": 0.5}')
    assert arguments.group_weights(str(file), "upgrad") == '{"de": 0.5, "sw": 2}'
    assert arguments.group_weights("size", "upgrad") == "size"
    with pytest.raises(UsageError, match=r"nowhere\.json: No such file"):
        arguments.group_weights(str(tmp_path / "nowhere.json"), "upgrad")


@pytest.mark.parametrize("method", ["imtl-g", "nash-mtl"])
def test_weights_are_refused_where_they_do_nothing(store, method):
    with pytest.raises(UsageError, match="does nothing"):
        arguments.group_weights("size", method)
    directions = [
        normalised([consensus_of(store, method=method, weights=weights, name="no")[1].direction])
        for weights in ("uniform", '{"de": 5}')
    ]
    np.testing.assert_allclose(*directions, atol=1e-5)


# --- the certificate -------------------------------------------------------------------------

whole = st.lists(st.tuples(*[st.integers(-3, 3)] * 3).filter(any), min_size=1, max_size=6)


@given(rows=whole, d=st.tuples(*[st.integers(-3, 3)] * 3).filter(any), data=st.data())
def test_the_certificate_counts_what_vectors_show(rows, d, data):
    vectors, d = np.array(rows, float), np.array(d, float)
    inside = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)).filter(any))
    names = [f"g{place}" for place in range(len(rows))]
    cosine = vectors @ d / np.linalg.norm(vectors, axis=1) / np.linalg.norm(d)
    found = certify(names, cosine, cosines(vectors @ vectors.T), np.array(inside), None)
    part = [place for place in range(len(rows)) if inside[place]]
    assert found.worse == [names[place] for place in part if vectors[place] @ d < 0]
    assert found.least == min(cosine[part])
    assert inside[names.index(found.least_group)]
    pairs = [(i, j) for i in part for j in part if i < j]
    assert found.pairs == len(pairs)
    assert found.conflicts == sum(bool(vectors[i] @ vectors[j] < 0) for i, j in pairs)


@pytest.fixture(scope="module")
def opposed(make_store):
    """A strong language, and a weak one that wants nearly the opposite."""
    return make_store([[1.0, 0.0], [-0.8, 0.6]], np.array([10.0, 1.0]), ["en", "sw"])


def test_the_mean_makes_a_group_worse_and_upgrad_does_not(opposed):
    mean = run(
        opposed, ConsensusSettings(method="mean", pair_norm="raw"), Silent()).certificate
    assert (mean.worse, mean.conflicts, mean.pairs, mean.gap) == (["sw"], 1, 1, None)
    assert mean.least_group == "sw"
    with pytest.raises(NumericsError, match="makes groups worse: sw"):
        mean.require_descent("here")
    safe = run(opposed, ConsensusSettings(method="upgrad"), Silent()).certificate
    assert (safe.worse, safe.conflicts) == ([], 1)
    assert safe.gap < 1e-12
    safe.require_descent("here")


def test_require_descent_is_exit_5_and_the_consensus_is_there(opposed, congrad):
    done = congrad(
        "consensus", opposed, "--method", "mean", "--pair-norm", "raw", "--require-descent",
        "--name", "strict",
    )
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (5, b"")
    assert "groups that get worse (cosine below 0): sw" in said
    assert "makes groups worse: sw" in said
    assert "the consensus was written all the same" in said
    assert read_consensus(opposed, "strict", GradientStore.open(opposed)).settings.require_descent
    done = congrad("consensus", opposed, "--method", "upgrad", "--require-descent")
    assert done.returncode == 0
    assert "no group that takes part gets worse" in done.stderr.decode()


def test_the_command_says_who_takes_no_part(store, congrad, tmp_path):
    (tmp_path / "weights.json").write_text('{"en": 0}')
    done = congrad("consensus", store, "--method", "mgda", "--min-pairs", "2", "--name", "told",
                   "--weights", tmp_path / "weights.json", "--normalize-groups", "unit")
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert "takes no part: en, which has weight 0" in said
    assert "takes no part: is, which has 1 of the 2 pairs of --min-pairs" in said
    assert "of the optimum" in said
    made = read_consensus(store, "told", GradientStore.open(store)).settings
    assert (made.weights, made.normalize_groups, made.min_pairs) == ('{"en": 0}', "unit", 2)
