"""Random blocks and robust averages, against doing it pair by pair and leaving pairs out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from synthetic import digests_of, memory_store, normalised

from congrad_cli.block_sums import block_sums
from congrad_cli.consensus.averages import averages, geometric_median
from congrad_cli.consensus.blocks import block_products, deal, most_blocks
from congrad_cli.consensus.part import take_part
from congrad_cli.consensus.run import run
from congrad_cli.consensus.solver import pcgrad, random_orders, solve
from congrad_cli.direction import Consensus, read_consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter.scores import pair_scores
from congrad_cli.progress import Silent
from congrad_cli.settings import STORE_DTYPES, ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import average_coefficients, clip_quantile, members, pair_scales

ROBUST = (
    {"average": "trimmed", "trim": 0.2}, {"average": "median-of-means"},
    {"pair_norm": "clip:0.7"}, {"average": "trimmed", "pair_norm": "clip:0.5", "trim": 0.1},
    {"average": "median-of-means", "pair_norm": "unit"},
)  # fmt: skip
seeds = st.integers(0, 2**32)
labels = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(lambda x: np.array(x, np.int32))


# --- blocks ----------------------------------------------------------------------------------


@given(label=labels, most=st.integers(1, 9), seed=seeds)
def test_blocks_are_equal_parts_of_a_group_whatever_the_order(label, most, seed):
    digest = digests_of(len(label))
    dealt = deal(digest, label, 4, most)
    pairs = np.bincount(label, minlength=4)
    np.testing.assert_array_equal(np.diff(dealt.first), np.minimum(pairs, most))
    np.testing.assert_array_equal(dealt.groups()[dealt.block], label)
    for group in range(4):
        size = np.bincount(dealt.block[label == group], minlength=dealt.count)
        size = size[dealt.first[group] : dealt.first[group + 1]]
        assert not len(size) or size.max() - size.min() <= 1
    order = np.random.default_rng(seed).permutation(len(label))
    np.testing.assert_array_equal(
        deal(digest[order], label[order], 4, most).block, dealt.block[order])


def test_copies_of_a_pair_share_a_block():
    """They would agree with each other as independent pairs do not."""
    digest = digests_of(20)[np.repeat(np.arange(10), 2)]
    dealt = deal(digest, np.zeros(20, np.int32), 1, 32)
    np.testing.assert_array_equal(dealt.block[::2], dealt.block[1::2])
    assert dealt.count == 10


def test_blocks_are_fewer_where_memory_ends():
    assert most_blocks(50, 8192) == most_blocks(1, 64) == 32
    assert most_blocks(500, 32768) == 8
    assert most_blocks(500, 64) == 8  # products of all blocks with all
    assert most_blocks(10**6, 1 << 20) == 1


def test_a_median_of_too_few_blocks_is_refused(monkeypatch):
    monkeypatch.setattr("congrad_cli.consensus.blocks.ALTOGETHER", 5)
    rows, norms, groups = some_store()
    store, wanted = memory_store(rows, norms, groups), ConsensusSettings(average="median-of-means")
    belong = members(store, store.column("group"), 3, wanted)
    with pytest.raises(UsageError, match="room for 1 blocks in each of 3 groups"):
        averages(store, store.groups, belong, wanted)


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-30])
def test_products_of_blocks_hold_no_row_twice(store_dtype, scale):
    """Sums of 7 blocks, rows out of order on disk; every row's square is its true one."""
    rng = np.random.default_rng(2)
    rows, order = normalised(rng.standard_normal((90, 96))), rng.permutation(90)
    store = memory_store(rows, np.ones(90), ["en"] * 90, [order[:40], order[40:]],
                         width=4, store_dtype=store_dtype)
    block, terms = rng.integers(0, 7, 90), scale * rng.lognormal(size=90) * rng.choice([-1, 1], 90)
    decoded = np.concatenate([b.direction for b in store.blocks()]).astype(np.float64)
    table = decoded @ decoded.T
    if store_dtype != "float16":
        np.fill_diagonal(table, 1)
    picks = np.zeros((7, 90))
    picks[block, np.arange(90)] = terms
    found = block_sums(store, block, 7, terms)
    expected = picks @ decoded
    sums = found.unit[:, None] * found.sums
    np.testing.assert_allclose(sums, expected, atol=1e-6 * np.abs(expected).max())
    expected = picks @ table @ picks.T
    np.testing.assert_allclose(
        block_products(found), expected, atol=3e-6 * np.abs(expected).max())


# --- robust averages -------------------------------------------------------------------------


@given(label=labels, trim=st.sampled_from([0.0, 0.05, 0.2, 0.49]), seed=seeds)
def test_trimmed_leaves_out_the_longest(label, trim, seed):
    length = np.random.default_rng(seed).lognormal(size=len(label))
    wanted = ConsensusSettings(average="trimmed", trim=trim)
    share = average_coefficients(label, 4, wanted, length)
    for group in np.unique(label):
        own = np.flatnonzero(label == group)
        out = own[share[own] == 0]
        assert abs(len(out) - trim * len(own)) <= 0.5
        assert len(out) < len(own)
        kept = own[share[own] > 0]
        np.testing.assert_allclose(share[kept], 1 / len(kept))
        assert not len(out) or length[out].min() >= length[kept].max()


@given(label=labels, seed=seeds, power=st.integers(-100, 100), data=st.data())
def test_trimmed_knows_neither_scale_nor_order(label, seed, power, data):
    length = np.random.default_rng(seed).lognormal(size=len(label))
    wanted = ConsensusSettings(average="trimmed", trim=0.2)
    share = average_coefficients(label, 4, wanted, length)
    np.testing.assert_array_equal(
        average_coefficients(label, 4, wanted, np.ldexp(length, power)), share)
    order = np.array(data.draw(st.permutations(range(len(label)))))
    np.testing.assert_array_equal(
        average_coefficients(label[order], 4, wanted, length[order]), share[order])


@given(seed=seeds, count=st.integers(1, 40), quantile=st.floats(0.01, 0.99))
def test_clip_shortens_the_longest_to_one_limit_and_turns_none(seed, count, quantile):
    rng = np.random.default_rng(seed)
    weight, norm = rng.choice([-0.1, 0.0, 0.1, 0.2], count), rng.lognormal(size=count)
    scale = pair_scales(weight, norm, f"clip:{quantile}")
    raw = weight * norm
    np.testing.assert_array_equal(np.sign(scale), np.sign(raw))
    there = np.sort(np.abs(raw[raw != 0]))
    if len(there):
        limit = np.abs(scale).max()
        assert there[int(quantile * (len(there) - 1))] <= limit * (1 + 1e-12)
        np.testing.assert_allclose(np.abs(scale), np.minimum(np.abs(raw), limit))
    np.testing.assert_array_equal(
        pair_scales(weight, np.ldexp(norm, 40), f"clip:{quantile}"), np.ldexp(scale, 40))


@pytest.mark.parametrize("text", ["clip", "clip:", "clip:0", "clip:1", "clip:nan", "clip:x", "no",
                                  "unit:0.5", "clip:-1", "clip:inf"])
def test_what_is_no_pair_norm_is_refused(text):
    with pytest.raises(UsageError, match="not one of raw, unit, clip:Q"):
        clip_quantile(text)


points = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 7), st.integers(1, 4)), elements=st.integers(-4, 4)
)


@given(found=points, seed=seeds)
def test_the_geometric_median_has_the_least_sum_of_distances(found, seed):
    """No point near or far does better; some points are equal, on a line, or the median."""
    w = geometric_median(found @ found.T)
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1)

    def distances(x):
        return np.linalg.norm(found - x, axis=1).sum()

    best = w @ found
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((200, found.shape[1])) * 10 ** rng.uniform(-4, 1, (200, 1))
    others = [*found, found.mean(0), np.median(found, 0), *(best + steps)]
    least = min(distances(x) for x in others)
    assert distances(best) <= least + 2e-4 * np.abs(found).max()


@given(seed=seeds, count=st.integers(2, 32), power=st.integers(-100, 100), data=st.data())
def test_the_geometric_median_knows_neither_scale_nor_order(seed, count, power, data):
    found = np.random.default_rng(seed).standard_normal((count, count + 3))
    w = geometric_median(found @ found.T)
    order = np.array(data.draw(st.permutations(range(count))))
    np.testing.assert_allclose(
        geometric_median(found[order] @ found[order].T), w[order], atol=1e-9)
    np.testing.assert_allclose(geometric_median(np.ldexp(found @ found.T, power)), w, atol=1e-12)


def some_store(seed=0, count=60, dim=48, apart=0.0):
    """Rows, lengths over two decades, and groups: three of different sizes that share a direction.

    ``apart`` pulls the groups into three others, each against the rest.
    """
    rng = np.random.default_rng(seed)
    label = np.sort(rng.choice(3, count, p=[0.5, 0.3, 0.2]))
    own = rng.standard_normal((3, dim))
    rows = rng.standard_normal((count, dim)) + 0.7 * rng.standard_normal(dim)
    rows += apart * (own - own.mean(0))[label]
    return normalised(rows), 10 ** rng.uniform(-2, 0, count), [f"g{n}" for n in label]


def test_median_of_means_is_the_median_of_the_blocks_means(make_store):
    rows, norms, groups = some_store(count=140)
    path = make_store(rows, norms, groups)
    run(path, ConsensusSettings(average="median-of-means"), Silent())
    store = GradientStore.open(path)
    found = read_consensus(path, "default", store)
    terms = found.members.scale[:, None] * store.column("direction").astype(np.float64)
    dealt = deal(store.column("digest"), found.members.label, 3, 32)
    for group in range(3):
        own = range(*dealt.first[group : group + 2])
        means = np.array([terms[dealt.block == block].mean(0) for block in own])
        x = found.consensus.gradients[group]
        # at the median the unit vectors to all points balance each other
        to = means - x
        balance = (to / np.linalg.norm(to, axis=1, keepdims=True)).sum(0)
        assert np.linalg.norm(balance) < 1e-3
        inside = found.members.label == group
        np.testing.assert_allclose(
            found.members.share[inside] @ terms[inside], x, atol=1e-6 * np.abs(x).max())


def test_robust_averages_hardly_move_where_one_pair_is_enormous(make_store):
    rows, norms, groups = some_store(count=120)
    norms[:] = 1.0
    spoilt = norms.copy()
    spoilt[3] = 1e4
    moved = {}
    for options in ({}, *ROBUST[:3]):
        directions = []
        for lengths in (norms, spoilt):
            path = make_store(rows, lengths, groups)
            settings = ConsensusSettings(**{"method": "mean", "pair_norm": "raw"} | options)
            run(path, settings, Silent())
            found = read_consensus(path, "default", GradientStore.open(path)).consensus
            directions.append(found.direction / np.linalg.norm(found.direction))
        moved[str(options)] = directions[0] @ directions[1]
    assert moved.pop("{}") < 0.7
    assert min(moved.values()) > 0.95


# --- leaving a pair out ----------------------------------------------------------------------


def left_out_scores(rows, scale, share, label, a):
    """cos(g_i, d_-i): the group's average is taken again over the pairs that are left."""
    terms, result = rows * scale[:, None], []
    for i in range(len(rows)):
        weight = a[label] * share
        inside = label == label[i]
        weight[inside] /= 1 - share[i]
        weight[i] = 0
        d = weight @ terms
        result.append(terms[i] @ d / np.linalg.norm(terms[i]) / np.linalg.norm(d))
    return np.array(result)


@pytest.mark.parametrize("options", ROBUST, ids=str)
def test_scores_are_those_of_the_robust_average_without_the_pair(make_store, options):
    """With the coefficients of solver and average as they are, leaving out is exact."""
    rows, norms, groups = some_store()
    path = make_store(rows, norms, groups)
    run(path, ConsensusSettings(**options), Silent())
    store = GradientStore.open(path)
    found = read_consensus(path, "default", store)
    scores = pair_scores(store, found.consensus, found.members, leave_one_out=True).score
    belong = found.members
    expected = left_out_scores(store.column("direction").astype(np.float64), belong.scale,
                               belong.share, belong.label, found.consensus.coefficients)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def consensus_of(store, wanted):
    """The consensus of a store in memory, all that the command does but the certificate."""
    belong = members(store, store.column("group"), len(store.groups), wanted)
    found = averages(store, store.groups, belong, wanted)
    f = take_part(found.groups, wanted).factor
    a = f * solve(found.groups.gramian * np.outer(f, f), wanted).coefficients
    groups = found.groups
    return Consensus(a @ groups.gradients, groups.gradients, a, groups.excess), found.members


@pytest.mark.parametrize("options", [
    {}, *({"method": name, "normalize_groups": "unit"} for name in ("upgrad", "mgda", "nash-mtl")),
    *ROBUST[:3],
], ids=str)
def test_solving_again_without_the_pair_changes_little(options):
    """What leave-one-out holds fixed: the solver's coefficients, which pairs are trimmed, blocks'
    weights, the limit of lengths. Groups conflict here, and the smallest has a dozen pairs."""
    rows, norms, groups = some_store(seed=3, apart=1.5)
    wanted = ConsensusSettings(**options)
    store = memory_store(rows, norms, groups)
    consensus, belong = consensus_of(store, wanted)
    scores = pair_scores(store, consensus, belong, leave_one_out=True).score
    again = []
    for pair in range(len(rows)):
        rest = np.delete(np.arange(len(rows)), pair)
        d = consensus_of(memory_store(rows[rest], norms[rest], [groups[n] for n in rest]),
                         wanted)[0].direction
        again.append(rows[pair] @ d / np.linalg.norm(d))
    difference = np.abs(scores - again)
    print(f"{options}: largest difference {difference.max():.3f}, "
          f"root mean square {np.sqrt((difference**2).mean()):.4f}")
    assert 0 < difference.max() < 0.3
    assert np.corrcoef(scores, again)[0, 1] > 0.9


@pytest.mark.parametrize("options", [{}, {"pair_norm": "unit"}, *ROBUST[:3]], ids=str)
@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
def test_codes_of_eight_bits_and_more_change_no_score_by_a_thousandth(options, store_dtype):
    """Against rows as float32 has them, with everything computed again from those."""
    rows, norms, groups = some_store(count=80, dim=4096)
    wanted = ConsensusSettings(**options)
    store = memory_store(rows, norms, groups, width=8, store_dtype=store_dtype)
    consensus, belong = consensus_of(store, wanted)
    scores = pair_scores(store, consensus, belong, leave_one_out=True).score
    exact = rows.astype(np.float32).astype(np.float64)
    terms = exact * (belong.scale * belong.share)[:, None]
    gradients = np.array([terms[belong.label == group].sum(0) for group in range(3)])
    a = solve(gradients @ gradients.T, wanted).coefficients
    expected = left_out_scores(exact, belong.scale, belong.share, belong.label, a)
    np.testing.assert_allclose(scores, expected, atol=1e-3)


# --- surgery on many groups ------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [1, 1 << 22])
def test_pcgrad_of_many_groups_is_surgery_one_by_one(monkeypatch, numbers):
    """Opponents are met 64 at a time and many orders at once; a group is zero, two are opposed."""
    monkeypatch.setattr("congrad_cli.consensus.solver.NUMBERS", numbers)
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((140, 90)) * 10 ** rng.uniform(-3, 0, (140, 1))
    vectors[7], vectors[9] = 0, -vectors[8]
    gramian = vectors @ vectors.T
    expected = np.zeros(140)
    for order in random_orders(140, 3, seed=2):
        a, dots = np.eye(140), gramian.copy()
        for i, opponents in enumerate(order):
            for j in opponents:
                if j != i and dots[i, j] < 0 and gramian[j, j] > 0:
                    step = dots[i, j] / gramian[j, j]
                    a[i, j] -= step
                    dots[i] -= step * gramian[j]
        expected += a.sum(0) / 3
    found = pcgrad(gramian, orders=3, seed=2).sum(0)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())

