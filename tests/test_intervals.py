"""How sure a consensus is: intervals that hold the truth, outliers, and what a machine can read."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import World, cosine_table, coverage
from synthetic import normalised

from congrad_cli.consensus.bootstrap import DRAWS, draw_weights, intervals, widening
from congrad_cli.consensus.certificate import certify
from congrad_cli.consensus.outliers import find_outliers, safety_hint, top_share
from congrad_cli.consensus.run import run
from congrad_cli.direction import read_consensus
from congrad_cli.progress import Silent
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.tensors import map_arrays
from congrad_cli.weights import Members, members

seeds = st.integers(0, 2**32)

RAW = ConsensusSettings(pair_norm="raw")


# --- intervals -------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [
    World(signal=0.5), World(signal=2), World(signal=5, cosine=0.1), World(signal=50),
    World(signal=5, tails=3.0),
], ids=str)
def test_intervals_hold_the_truth_in_about_95_of_100_cases(world):
    found = coverage(world, trials=60, seed=0)
    assert 0.90 <= found["conflict"] <= 0.985
    assert 0.90 <= found["along"] <= 0.99


def test_cosines_of_small_groups_are_not_drawn_towards_zero():
    """Half of a group's square is noise: plain cosines are half of what they should be."""
    found = coverage(World(signal=1, cosine=0.8, dim=1000), trials=30, seed=0)
    assert found["plain error"] < -0.25
    assert abs(found["error"]) < 0.03


@pytest.mark.parametrize(("blocks", "student"), [
    (2, 12.706), (4, 3.182), (8, 2.365), (16, 2.131), (32, 2.040)])
def test_few_blocks_widen_as_students_quantile_does(blocks, student):
    expected = student / 1.96 * math.sqrt(blocks / (blocks - 1))
    assert widening(blocks) == pytest.approx(expected, rel=0.01)


def test_weights_are_draws_with_repetition():
    first = np.array([0, 32, 32, 33, 41])
    weight = draw_weights(first, 4000, seed=3)
    np.testing.assert_array_equal(weight[32], 1)
    for begin, end in ((0, 32), (33, 41)):
        often = 1 + (weight[begin:end] - 1) / widening(end - begin)
        np.testing.assert_allclose(often, np.rint(often), atol=1e-9)
        np.testing.assert_allclose(often.sum(0), end - begin)
        assert often.min() > -0.5
        np.testing.assert_allclose(often.mean(1), 1, atol=0.08)
    np.testing.assert_array_equal(draw_weights(first, 4000, seed=3), weight)
    assert (draw_weights(first, 4000, seed=4) != weight).any()


@given(seed=seeds, power=st.integers(-200, 200))
def test_intervals_know_neither_scale_nor_the_length_of_d(seed, power):
    rng = np.random.default_rng(seed)
    _, sums = World(blocks=6, dim=20).draw(rng)
    a, first, share = rng.uniform(0.1, 1, 4), np.arange(5) * 6, np.full(24, 1 / 6)
    plain = intervals(sums @ sums.T, share, first, a, seed=0)
    scaled = intervals(np.ldexp(sums @ sums.T, 2 * power), share, first, np.ldexp(a, 5), seed=0)
    for name, value in vars(plain).items():
        np.testing.assert_allclose(getattr(scaled, name), value, atol=1e-5)


@given(seed=seeds)
def test_where_there_is_hardly_noise_the_cosines_are_the_true_ones(seed):
    rng = np.random.default_rng(seed)
    world = World(groups=3, blocks=32, signal=1e4, dim=30)
    truth, sums = world.draw(rng)
    found = world.found(sums, np.ones(3))
    real = cosine_table(truth)
    np.testing.assert_allclose(found.conflict[np.triu_indices(3, 1)],
                               real[np.triu_indices(3, 1)], atol=0.02)
    np.testing.assert_allclose(found.signal, 1, atol=0.01)


def test_one_block_tells_nothing_and_is_not_asked():
    sums = np.random.default_rng(0).standard_normal((5, 9))
    first, share = np.array([0, 2, 3, 3, 5]), np.array([0.5, 0.5, 1, 0.5, 0.5])
    alone = intervals(np.eye(3), np.ones(3), np.arange(4), np.ones(3), seed=0)
    assert np.isnan(alone.conflict_range).all()
    assert alone.along_range.shape == (3, 2)
    found = intervals(sums @ sums.T, share, first, np.ones(4), seed=0)
    assert np.isnan(found.along_range[[1, 2]]).all()
    assert np.isnan(found.conflict_range[1]).all()
    assert np.isnan(found.conflict_range[:, 2]).all()
    assert not np.isnan(found.along_range[[0, 3]]).any()
    assert not np.isnan(found.conflict_range[0, 3]).any()


def test_conflicts_whose_interval_holds_zero_are_counted_apart():
    conflict = np.array([[1.0, -0.5, -0.1], [-0.5, 1.0, 0.4], [-0.1, 0.4, 1.0]])
    ends = np.full((3, 3, 2), np.nan)
    ends[1, 0] = ends[0, 1] = (-0.7, -0.2)
    ends[2, 0] = ends[0, 2] = (-0.3, 0.1)
    ends[2, 1] = ends[1, 2] = (-0.1, 0.6)
    found = World().found(World().draw(np.random.default_rng(0))[1], np.ones(4))
    along = np.array([[0.1, 0.5], [-0.1, 0.3], [np.nan, np.nan]])
    sure = replace(found, conflict_range=ends, along_range=along)
    told = certify(["a", "b", "c"], np.array([0.3, 0.1, 0.2]), conflict, np.ones(3, bool), None,
                   sure)
    assert (told.conflicts, told.unresolved, told.pairs) == (2, 1, 3)
    assert told.unsure == ["b", "c"]


def test_two_real_conflicts_are_told_from_a_draw_of_chance(make_store):
    """Two groups that oppose each other, two that have nothing in common but few pairs."""
    rng = np.random.default_rng(1)
    way = rng.standard_normal((2, 256))
    label = np.repeat(np.arange(4), [60, 60, 6, 6])
    pull = np.where(label[:, None] == 0, way[0], np.where(label[:, None] == 1, -way[0], 0.1))
    path = make_store(0.7 * pull + rng.standard_normal((132, 256)), groups=[f"g{n}" for n in label])
    found = run(path, ConsensusSettings(), Silent())
    low, high = found.intervals.conflict_range[0, 1]
    assert -1 <= low < high < -0.8
    low, high = found.intervals.conflict_range[2, 3]
    assert low < 0 < high
    assert found.certificate.conflicts - found.certificate.unresolved >= 1


# --- outliers and hints ----------------------------------------------------------------------


def lengths_store(make_store, norms, groups):
    rng = np.random.default_rng(0)
    return make_store(rng.standard_normal((len(norms), 32)) + 0.5, norms, groups)


def test_a_pair_that_rules_its_group_is_named_and_still_counts(make_store):
    norms = np.random.default_rng(1).lognormal(sigma=0.4, size=120)
    norms[17] = 60
    path = lengths_store(make_store, norms, ["de", "en"] * 60)
    found = run(path, RAW, Silent())
    (one,) = found.outliers
    store = GradientStore.open(path)
    assert (one.row, one.group) == (17, "en")
    assert one.digest == store.column("digest")[17].tobytes().hex()
    own = norms[1::2]
    assert one.share == pytest.approx(60**2 / (own**2).sum(), rel=1e-3)
    assert one.times_median == pytest.approx(60 / np.median(own), rel=1e-3)
    assert read_consensus(path, "default", store).members.share[17] == pytest.approx(1 / 60)
    assert "the longest 1 %" in found.hint
    for options in ({"pair_norm": "unit"}, {"pair_norm": "clip:0.9"}, {"average": "trimmed"}):
        again = run(path, ConsensusSettings(name="again", **options), Silent())
        assert again.outliers == []


def test_even_lengths_have_no_outliers_and_no_hint(make_store):
    norms = np.random.default_rng(2).lognormal(sigma=0.5, size=200)
    found = run(lengths_store(make_store, norms, ["de", "en"] * 100), ConsensusSettings(), Silent())
    assert (found.outliers, found.hint) == ([], None)


def test_averages_of_noise_are_told(make_store):
    """Pairs that agree on nothing; a store of few pairs is not judged."""
    rng = np.random.default_rng(3)
    rows, groups = rng.standard_normal((160, 512)), ["de", "en", "fr", "sw"] * 40
    found = run(make_store(rows, groups=groups), RAW, Silent())
    assert "noise" in found.hint
    few, unit = make_store(rows[:80], groups=groups[:80]), ConsensusSettings(pair_norm="unit")
    assert run(few, RAW, Silent()).hint is None
    assert run(make_store(rows, groups=groups), unit, Silent()).hint is None


@given(seed=seeds, power=st.integers(-100, 100))
def test_the_share_of_the_longest_knows_no_scale(seed, power):
    length = np.random.default_rng(seed).lognormal(size=300)
    found = [top_share(Members(np.zeros(300, np.int32), scale, np.ones(300)))
             for scale in (length, -np.ldexp(length, power))]
    assert found[0] == found[1] == pytest.approx(
        (np.sort(length)[-3:] ** 2).sum() / (length**2).sum())


def test_pairs_of_no_weight_are_no_outliers(make_store):
    path = lengths_store(make_store, np.ones(4), ["de"] * 4)
    store = GradientStore.open(path)
    belong = members(store, store.column("group"), 1, ConsensusSettings())
    silent = replace(belong, scale=np.zeros(4))
    assert find_outliers(store, ["de"], silent) == []
    assert safety_hint(silent, np.full(1, np.nan), ConsensusSettings()) is None


# --- for machines ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(make_store):
    """Groups with many pairs, few, and one; an enormous pair."""
    rng = np.random.default_rng(4)
    groups = ["de"] * 40 + ["en"] * 5 + ["is"]
    norms = np.ones(46)
    norms[3] = 50
    return make_store(normalised(rng.standard_normal((46, 24)) + 0.3), norms, groups)


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_json_is_one_object_that_says_what_the_file_says(small, congrad):
    done = congrad("consensus", small, "--json", "--method", "mgda", "--average", "trimmed",
                   "--trim", "0.02", "--pair-norm", "clip:0.99", "--min-pairs", "2")
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout, parse_constant=no_constant)
    assert (found["schema"], found["command"]) == ("congrad.consensus/1", "consensus")
    assert found["settings"]["average"] == "trimmed"
    assert found["settings"]["trim"] == 0.02
    assert found["settings"]["pair_norm"] == "clip:0.99"
    groups = found["groups"]
    assert [groups[name]["pairs"] for name in ("de", "en", "is")] == [40, 5, 1]
    assert [groups[name]["blocks"] for name in ("de", "en", "is")] == [32, 5, 1]
    assert groups["is"]["takes_part"] is False
    assert "--min-pairs" in groups["is"]["why_not"]
    assert groups["is"]["interval"] is None
    assert groups["de"]["interval"][0] <= groups["de"]["cosine"] <= groups["de"]["interval"][1]
    assert found["conflicts"]["groups"] == ["de", "en", "is"]
    assert np.shape(found["conflicts"]["cosine"]) == (3, 3)
    assert found["conflicts"]["interval"][0][2] is None
    assert len(found["conflicts"]["interval"][0][1]) == 2
    assert found["certificate"]["draws"] == DRAWS
    assert found["certificate"]["gap"] < 1e-9
    store = GradientStore.open(small)
    kept = read_consensus(small, "default", store)
    assert kept.settings.trim == 0.02
    for key, value in kept.findings.items():
        assert found[key] == value
    arrays, _ = map_arrays(small / "consensus" / "default.safetensors")
    np.testing.assert_allclose(arrays["conflict"], found["conflicts"]["cosine"], atol=1e-6)
    assert arrays["conflict_range"].shape == (3, 3, 2)


def test_json_is_there_where_the_certificate_is_not_met(make_store, congrad):
    path = make_store([[1.0, 0.0], [-0.8, 0.6]], [10.0, 1.0], ["en", "sw"])
    done = congrad("consensus", path, "--method", "mean", "--pair-norm", "raw", "--require-descent",
                   "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout)["certificate"]["worse"] == ["sw"]


def test_people_see_intervals_and_outliers(small, congrad):
    done = congrad("consensus", small, "--pair-norm", "raw")
    said = done.stderr.decode()
    assert done.stdout.decode().strip() == str(small)
    assert "95 % interval" in said
    assert "1 pair with an extreme share of the group's average; all of them count" in said
    assert "row 3, de: 50.0 times the median length" in said


@pytest.mark.parametrize("arguments", [
    ("--pair-norm", "clip:2"), ("--average", "median"), ("--trim", "0.5")])
def test_options_that_make_no_sense_are_refused(small, congrad, arguments):
    done = congrad("consensus", small, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("method", ["pcgrad", "upgrad"])
def test_what_is_left_of_conflicts_is_told_by_the_changed_gradients(make_store, method):
    """Two groups: each is projected onto the other's normal, and the cosine turns its sign."""
    rows = np.array([[1.0, 0.0, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    path = make_store(rows, groups=["de", "en", "sw"], norms=[1.0, 2.0, 0.5])
    run(path, ConsensusSettings(method=method, orders=4), Silent())
    after = read_consensus(path, "default", GradientStore.open(path)).matrices["after"]
    expected = np.array([[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(after, expected, atol=1e-3)


def test_methods_that_change_no_gradient_tell_nothing_of_after(make_store):
    path = make_store(np.eye(3), groups=["de", "en", "sw"])
    run(path, ConsensusSettings(method="mean"), Silent())
    assert "after" not in read_consensus(path, "default", GradientStore.open(path)).matrices
