"""Scores against recomputing every average without the pair, and the rules that use them."""

import io
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from products import members_of
from synthetic import memory_store, random_rows

from congrad_cli.consensus import run as consensus
from congrad_cli.direction import Consensus, read_consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter import run as filtering
from congrad_cli.filter.policy import check_rule, decide
from congrad_cli.filter.scores import pair_scores
from congrad_cli.products import exact_targets, fast_targets, pair_products
from congrad_cli.progress import Silent
from congrad_cli.settings import ConsensusSettings, FilterSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import average_coefficients

ALONE = 1 - 1e-12


def cosine(a, b):
    """nan where one of the two is zero."""
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / scale if scale > 0 else np.nan


def brute_scores(directions, scale, share, label, coefficients):
    """cos(g_i, d_-i): every group's average is taken again over the pairs that are left."""
    terms = directions.astype(np.float64) * scale[:, None]
    result = []
    for i in range(len(terms)):
        d = np.zeros(terms.shape[1])
        for group, coefficient in enumerate(coefficients):
            others = (label == group) & (np.arange(len(terms)) != i)
            left = 1 - share[i] if label[i] == group else 1.0
            if left > 1 - ALONE:  # a group that was this pair alone is left out
                d += coefficient * (share[others] / left) @ terms[others]
        own = terms[i] if scale[i] else directions[i].astype(np.float64)
        result.append(cosine(own, d))
    return np.array(result)


def consensus_of(directions, scale, share, label, coefficients):
    """The consensus of all pairs, in float64."""
    terms = directions.astype(np.float64) * (scale * share)[:, None]
    groups = np.array([terms[label == group].sum(0) for group in range(len(coefficients))])
    nothing = np.zeros((len(groups), 1))  # float16 rows stand for themselves
    return Consensus(coefficients @ groups, groups, np.asarray(coefficients, np.float64), nothing)


@st.composite
def cases(draw):
    """Groups of several sizes (one of a single pair), norms over three decades, zero weights."""
    sizes = [*draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)), 1]
    label = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    label = rng.permutation(label).astype(np.int32)
    count = len(label)
    scale = 10.0 ** rng.uniform(-3, 0, count) * rng.choice([1, 1, 1, -1, 0], count)
    scale *= draw(st.sampled_from([1.0, 1e-8, 1e-30]))
    average = draw(st.sampled_from([
        ConsensusSettings(),
        ConsensusSettings(average="ema", ema_decay=0.5, ema_batch=2),
        ConsensusSettings(average="ema", ema_decay=0.0, ema_batch=1),  # shares of 1 and of 0
    ]))
    coefficients = rng.uniform(0.3, 2.0, len(sizes))
    return random_rows(count, 8, seed=count), scale, label, average, coefficients


def score(directions, scale, label, average, coefficients, leave_one_out=True):
    groups = [f"g{number}" for number in label]
    share = average_coefficients(label, len(coefficients), average)
    order = np.argsort(np.sin(np.arange(len(label))))  # rows lie in two shards, out of order
    store = memory_store(directions, np.ones(len(label)), groups, [order[:3], order[3:]])
    found = consensus_of(directions, scale, share, label, coefficients)
    scores = pair_scores(store, found, members_of(store, scale, share), leave_one_out)
    return scores.score, share, found


@given(case=cases())
def test_leave_one_out_is_the_consensus_without_the_pair(case):
    directions, scale, label, _, coefficients = case
    found, share, _ = score(*case)
    expected = brute_scores(directions, scale, share, label, coefficients)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(case=cases())
def test_without_leave_one_out_it_is_the_plain_cosine(case):
    directions, scale, *_ = case
    found, _, everything = score(*case, leave_one_out=False)
    own = directions.astype(np.float64) * np.where(scale == 0, 1.0, scale)[:, None]
    expected = np.array([cosine(term, everything.direction) for term in own])
    np.testing.assert_allclose(found, expected, atol=1e-6)  # products are float32


def test_a_group_of_one_is_compared_with_the_other_groups():
    """Its own gradient is its whole group; scoring it against itself would always praise it."""
    directions = np.eye(4)[[0, 1, 1]]
    case = (directions, np.ones(3), np.array([0, 1, 1], np.int32), ConsensusSettings(), np.ones(2))
    found, *_ = score(*case)
    np.testing.assert_allclose(found, [0.0, 1 / np.sqrt(2), 1 / np.sqrt(2)], atol=1e-12)
    flattered, *_ = score(*case, leave_one_out=False)
    assert flattered[0] > 0.7


def test_a_single_pair_has_no_score():
    """Without it there is no consensus."""
    case = (np.eye(2)[:1], np.ones(1), np.zeros(1, np.int32), ConsensusSettings(), np.ones(1))
    assert np.isnan(score(*case)[0]).all()


def test_where_the_others_cancel_there_is_no_score():
    """A pair and its mirror image leave rounding errors, which must not decide about a third."""
    one = random_rows(1, 8)[0]
    for seed in range(20):
        other = random_rows(1, 8, seed)[0]
        found, *_ = score(
            np.array([other, one, -one]), np.array([1.0, 0.7, 0.7]), np.zeros(3, np.int32),
            ConsensusSettings(), np.ones(1),
        )
        assert np.isnan(found).tolist() == [True, False, False]


def test_a_pair_of_no_weight_is_scored_on_its_sketch():
    """Its gradient pulls nothing, but where it would point is known."""
    directions = np.eye(3)[[0, 0, 1]]
    scale = np.array([0.0, 1.0, 1.0])
    label = np.zeros(3, np.int32)
    found, *_ = score(directions, scale, label, ConsensusSettings(), np.ones(1))
    np.testing.assert_allclose(found[0], 1 / np.sqrt(2), atol=1e-12)


def test_a_pair_that_pulls_backwards_scores_backwards():
    """A negative weight (IPO past its target) turns the pair's gradient round."""
    directions = random_rows(4, 8)
    label = np.zeros(4, np.int32)
    forth, *_ = score(directions, np.ones(4), label, ConsensusSettings(), np.ones(1))
    back, *_ = score(directions, np.array([-1.0, 1, 1, 1]), label, ConsensusSettings(), np.ones(1))
    np.testing.assert_allclose(back[0], -forth[0], atol=1e-12)


@pytest.mark.parametrize("exponent", [-120, -27, 30])
def test_scale_changes_no_score(exponent):
    """Gradients of 1e-8 have squares of 1e-16 and fourth powers of 1e-32."""
    directions = random_rows(12, 8)
    label = np.arange(12, dtype=np.int32) % 3
    scale = np.linspace(0.5, 2, 12)
    case = (label, ConsensusSettings(), np.ones(3))
    plain, *_ = score(directions, scale, *case)
    scaled, *_ = score(directions, np.ldexp(scale, exponent), *case)
    np.testing.assert_allclose(scaled, plain, atol=1e-12)


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_groups_far_apart_in_size_lose_nothing(leave_one_out):
    """Products are taken in float32, which ends at 1e-45; the solver may weigh groups back up."""
    directions = random_rows(20, 64)
    label = np.arange(20, dtype=np.int32) % 2
    plain = np.linspace(0.5, 2, 20)
    far = np.where(label == 1, 1e-60, 1.0)
    options = (ConsensusSettings(), np.ones(2), leave_one_out)
    expected, *_ = score(directions, plain, label, *options)
    options = (ConsensusSettings(), np.array([1.0, 1e60]), leave_one_out)
    found, *_ = score(directions, plain * far, label, *options)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("store_dtype", ["float16", "int8", "int4", "1bit"])
def test_products_in_float32_are_those_in_float64(store_dtype):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 200).astype(np.int32)
    store = memory_store(random_rows(200, 1024), np.ones(200), [f"g{n}" for n in label],
                         width=8, store_dtype=store_dtype)
    size = 10.0 ** np.arange(-20, 5, 5)
    gradients = rng.standard_normal((5, 1024)) * size[:, None]
    found = Consensus(gradients.sum(0), gradients, np.ones(5), np.abs(rng.standard_normal((5, 8))))
    (block,) = store.blocks(label=label)
    assert (np.diff(label[block.place]) >= 0).all()
    factor, term = rng.standard_normal((2, 200)) * size[label[block.place]]
    exact, fast = (
        pair_products(rows, label[block.place], factor, term, make(found, 8), store.header.codec)
        for rows, make in ((block.direction.astype(np.float64), exact_targets),
                           (block.direction, fast_targets))
    )
    for name in ("square", "with_d", "with_group"):
        one, other = getattr(exact, name), getattr(fast, name)
        size = np.abs(one).max(1, keepdims=True)
        np.testing.assert_allclose(other / size, one / size, atol=2e-6)


def test_more_rows_than_a_block_holds():
    """The store is read 1,024 rows at a time; every row must meet its own share and group."""
    count = 1100
    rng = np.random.default_rng(0)
    directions, label = random_rows(count, 4), rng.integers(0, 2, count).astype(np.int32)
    scale = rng.uniform(0.5, 2, count)
    found, share, _ = score(directions, scale, label, ConsensusSettings(), np.ones(2))
    terms = directions.astype(np.float64) * scale[:, None]
    for i in (0, 1023, 1024, count - 1):
        left = [(share * (label == group) * (np.arange(count) != i)) @ terms
                / (1 - share[i] * (label[i] == group)) for group in (0, 1)]
        assert found[i] == pytest.approx(cosine(terms[i], left[0] + left[1]), abs=1e-6)


@pytest.mark.parametrize("average", ["mean", "ema"])
@pytest.mark.parametrize("pair_norm", ["raw", "unit"])
def test_filter_reports_the_brute_force_scores_of_a_store(make_store, pair_norm, average, tmp_path):
    """From the files to the score file, with the options that the consensus was made with."""
    rng = np.random.default_rng(3)
    groups = [*rng.choice(["de", "en", "sw"], 29), "th"]
    path = make_store(rng.standard_normal((30, 16)), 1e-7 * rng.lognormal(size=30), groups)
    settings = ConsensusSettings(pair_norm=pair_norm, average=average, ema_batch=2)
    consensus.run(path, settings, Silent())
    scores = tmp_path / "scores.jsonl"
    filtering.run(path, FilterSettings(scores=scores), io.BytesIO(), Silent())

    store = GradientStore.open(path)
    label = store.column("group")
    scale = store.column("norm").astype(np.float64) if pair_norm == "raw" else np.ones(30)
    share = average_coefficients(label, 4, settings)
    coefficients = read_consensus(path, "default", store).consensus.coefficients
    expected = brute_scores(store.column("direction"), scale, share, label, coefficients)
    found = [json.loads(line)["score"] for line in scores.read_bytes().splitlines()]
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- rules -----------------------------------------------------------------------------------

NAN = np.nan


def kept(score, group=None, **rule):
    """The rows that the rule keeps."""
    score = np.array(score)
    group = np.zeros(len(score), np.int32) if group is None else np.array(group, np.int32)
    return np.flatnonzero(decide(score, group, FilterSettings(**rule)).keep).tolist()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [0, 2, 4]),  # no rule: at least 0
        ({"min_score": 0.0}, [0, 2, 4]),
        ({"min_score": 0.5}, [0, 4]),  # "at least" includes it
        ({"min_score": -2.0}, [0, 1, 2, 4]),
        ({"min_score": 1.1}, []),
        ({"keep": 0}, []),
        ({"keep": 1}, [0]),  # of two equal scores the earlier pair
        ({"keep": 2}, [0, 4]),
        ({"keep": 3}, [0, 2, 4]),
        ({"keep": 99}, [0, 1, 2, 4]),  # a pair without a score is never kept
        ({"keep_ratio": 0.0}, []),
        ({"keep_ratio": 0.2}, [0]),
        ({"keep_ratio": 0.21}, [0, 4]),  # a started pair is a whole one
        ({"keep_ratio": 0.4}, [0, 4]),
        ({"keep_ratio": 1.0}, [0, 1, 2, 4]),
    ],
)
def test_the_rules_on_one_group(rule, expected):
    assert kept([0.5, -0.1, 0.0, NAN, 0.5], **rule) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"keep": 1}, [1, 2]),
        ({"keep": 2}, [0, 1, 2, 4]),
        ({"keep_ratio": 0.5}, [1, 2, 4]),  # one of two, two of three
        ({"keep_ratio": 0.3}, [1, 2]),
        ({"min_score": 0.4}, [1, 2]),
    ],
)
def test_the_rules_inside_each_group(rule, expected):
    scores, groups = [0.1, 0.5, 0.9, -0.3, -0.2], [0, 0, 1, 1, 1]
    assert kept(scores, groups, per_group=True, **rule) == expected


def test_of_many_equal_scores_the_earlier_pairs_are_kept():
    """More than a sort of small lists keeps in order by accident."""
    assert kept(np.tile([0.5, 0.25, 0.5], 200), keep=300) == [
        row for row in range(600) if row % 3 != 1
    ][:300]


@given(
    scores=st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5]) | st.just(NAN), max_size=30),
    ratio=st.fractions(0, 1, max_denominator=50),
)
@example(scores=[0.5, *[0.0] * 99], ratio=Fraction(7, 100))
def test_a_ratio_keeps_that_share_rounded_up(scores, ratio):
    """Never one more because 0.07 * 100 is 7.000000000000001 in floating point."""
    wanted = -(-ratio.numerator * len(scores) // ratio.denominator)
    rows = kept(scores, keep_ratio=float(ratio))
    defined = [row for row, value in enumerate(scores) if value == value]
    assert len(rows) == min(wanted, len(defined))
    lost = set(defined) - set(rows)
    assert all((scores[a], -a) > (scores[b], -b) for a in rows for b in lost)


@pytest.mark.parametrize(
    ("rule", "reasons"),
    [
        ({}, ["kept", "below-min-score", "no-direction"]),
        ({"keep": 1}, ["kept", "beyond-keep", "no-direction"]),
        ({"keep_ratio": 0.1}, ["kept", "beyond-keep-ratio", "no-direction"]),
    ],
)
def test_every_pair_gets_its_reason(rule, reasons):
    decided = decide(np.array([0.5, -0.5, NAN]), np.zeros(3, np.int32), FilterSettings(**rule))
    assert decided.reason == reasons


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"keep": 3, "keep_ratio": 0.5}, "--keep-ratio and --keep are two rules"),
        ({"min_score": 0.0, "keep": 3}, "--min-score and --keep are two rules"),
        ({"keep_ratio": 1.01}, "not between 0 and 1"),
        ({"keep_ratio": -0.1}, "not between 0 and 1"),
        ({"keep_ratio": NAN}, "not between 0 and 1"),
        ({"keep": -1}, "--keep -1 is negative"),
        ({"min_score": NAN}, "--min-score nan"),
    ],
)
def test_rules_without_sense_are_refused(rule, message):
    with pytest.raises(UsageError, match=message):
        check_rule(FilterSettings(**rule))


def test_a_language_without_a_single_sketch_is_shown_without_warnings(make_store):
    """All its prompts were too long: its median is undefined, which is no reason to complain."""
    path = make_store(random_rows(4, 6), groups=["de", "de", "sw", "sw"], skipped=[2, 3])
    consensus.run(path, ConsensusSettings(), Silent())
    summary = filtering.run(path, FilterSettings(min_score=-2), io.BytesIO(), Silent())
    assert summary.pairs == [2, 0]
    assert summary.kept == [2, 0]
    assert np.isnan(summary.median[1])
    assert summary.reasons == {"no-room": 2}
