"""Group gradients and consensus against references that share no code with them."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from products import members_of
from synthetic import memory_store, random_rows

from congrad_cli.consensus.groups import cosines, group_gradients
from congrad_cli.consensus.run import run
from congrad_cli.consensus.solver import pcgrad, random_orders, solve
from congrad_cli.direction import read_consensus
from congrad_cli.errors import NumericsError, StoreError, UsageError
from congrad_cli.progress import Silent
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.tensors import map_arrays, pack_arrays
from congrad_cli.weights import average_coefficients, dpo_weights, pair_scales

# Few distinct values, so that ties, zero vectors, and exact opposites come up.
gradients = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.integers(-4, 4)
)
seeds = st.integers(0, 2**32)


def surgery(vectors, orders):
    """PCGrad as the paper's Algorithm 1 writes it, on the vectors themselves."""
    total = np.zeros(vectors.shape[1])
    for order in orders:
        for i, opponents in enumerate(order):
            vector = vectors[i].copy()
            for j in opponents:
                if j != i and vector @ vectors[j] < 0:
                    vector -= vector @ vectors[j] / (vectors[j] @ vectors[j]) * vectors[j]
            total += vector
    return total / len(orders)


def solved(vectors, **settings):
    """The direction that the solver finds for the vectors."""
    return solve(vectors @ vectors.T, ConsensusSettings(**settings)).coefficients @ vectors


# --- solver ----------------------------------------------------------------------------------


@given(vectors=gradients, orders=st.integers(1, 4), seed=seeds)
def test_pcgrad_is_surgery_on_the_vectors_themselves(vectors, orders, seed):
    """We work on the Gramian; the paper works on the gradients, in the same random orders."""
    assume(vectors.any())
    direction = solved(vectors, orders=orders, seed=seed)
    expected = surgery(vectors, random_orders(len(vectors), orders, seed))
    np.testing.assert_allclose(direction, expected, atol=1e-9 * np.abs(vectors).sum())


@given(vectors=gradients, seed=seeds)
def test_pcgrad_leaves_two_groups_without_conflict(vectors, seed):
    """With two groups each is projected onto the other's normal: neither can lose."""
    vectors = vectors[:2]
    assume(len(vectors) == 2 and vectors.any())
    assert (vectors @ solved(vectors, orders=2, seed=seed)).min() >= -1e-9


@given(vectors=gradients, seed=seeds)
def test_pcgrad_of_two_groups_does_not_know_their_order(vectors, seed):
    vectors = vectors[:2]
    assume(len(vectors) == 2 and vectors.any())
    np.testing.assert_allclose(
        solved(vectors, seed=seed), solved(vectors[::-1], seed=seed + 1), atol=1e-9
    )


@given(vectors=gradients, seed=seeds)
def test_pcgrad_adds_up_groups_that_do_not_conflict(vectors, seed):
    vectors = np.abs(vectors)
    assume(vectors.any())
    np.testing.assert_array_equal(
        pcgrad(vectors @ vectors.T, orders=3, seed=seed).sum(0), np.ones(len(vectors))
    )


@given(vectors=gradients)
def test_mean_is_the_plain_mean(vectors):
    assume(vectors.any())
    np.testing.assert_allclose(solved(vectors, method="mean"), vectors.mean(0), atol=1e-12)


@given(vectors=gradients, data=st.data())
def test_mean_does_not_know_the_groups_order(vectors, data):
    assume(vectors.any())
    order = data.draw(st.permutations(range(len(vectors))))
    np.testing.assert_allclose(
        solved(vectors[order], method="mean"), solved(vectors, method="mean"), atol=1e-12
    )


@given(vectors=gradients, seed=seeds, power=st.integers(-400, 400))
def test_scale_changes_nothing_at_all(vectors, seed, power):
    """A factor 2^k is exact in floating point, so what is decided must be exactly the same."""
    assume(vectors.any())
    gramian = vectors @ vectors.T
    settings = ConsensusSettings(orders=3, seed=seed)
    np.testing.assert_array_equal(
        solve(np.ldexp(gramian, power), settings).coefficients,
        solve(gramian, settings).coefficients,
    )


@pytest.mark.parametrize("scale", [1e-8, 1e-30, 1e30])
def test_tiny_and_huge_gradients_keep_their_direction(scale):
    """Gradients of a good model are 1e-6 and less; their products must not vanish."""
    vectors = np.random.default_rng(0).standard_normal((7, 3))
    np.testing.assert_allclose(solved(scale * vectors) / scale, solved(vectors), rtol=1e-9)


@given(count=st.integers(1, 8), orders=st.integers(1, 5), seed=seeds)
def test_every_group_gets_a_random_order_of_all(count, orders, seed):
    drawn = random_orders(count, orders, seed)
    assert drawn.shape == (orders, count, count)
    np.testing.assert_array_equal(np.sort(drawn), np.broadcast_to(np.arange(count), drawn.shape))
    np.testing.assert_array_equal(drawn, random_orders(count, orders, seed))


def test_orders_are_fair_and_fixed():
    """Each opponent comes first equally often; and the numbers are the same on every machine."""
    first = random_orders(4, 4000, seed=1)[:, 0, 0]
    assert np.abs(np.bincount(first) - 1000).max() < 120  # 4 standard deviations
    assert random_orders(4, 1, seed=0).tolist() == PINNED_ORDERS
    assert (random_orders(4, 1, seed=1) != random_orders(4, 1, seed=0)).any()


PINNED_ORDERS = [[[0, 2, 1, 3], [1, 0, 2, 3], [3, 1, 0, 2], [1, 0, 3, 2]]]


@pytest.mark.parametrize("gramian", [np.zeros((2, 2)), [[1, np.nan], [np.nan, 1]], [[np.inf]]])
def test_no_direction_is_an_error_of_the_numbers(gramian):
    with pytest.raises(NumericsError, match="zero or not finite"):
        solve(np.array(gramian), ConsensusSettings())


@pytest.mark.parametrize("count", [2, 3, 6])
def test_pcgrad_is_torchjds_in_the_same_orders(count, monkeypatch):
    """TorchJD draws its orders from torch.randperm; it is given ours instead."""
    torch = pytest.importorskip("torch")
    aggregation = pytest.importorskip("torchjd.aggregation")
    vectors = np.random.default_rng(count).standard_normal((count, 4))
    order = random_orders(count, 1, seed=3)[0]
    rows = iter(torch.from_numpy(order))
    monkeypatch.setattr(torch, "randperm", lambda size: next(rows))
    expected = aggregation.PCGrad()(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(solved(vectors, orders=1, seed=3), expected, rtol=1e-10)


def test_pcgrad_of_two_groups_is_torchjds_in_any_order():
    torch = pytest.importorskip("torch")
    aggregation = pytest.importorskip("torchjd.aggregation")
    vectors = np.random.default_rng(5).standard_normal((2, 4))
    vectors[1] -= vectors[0]  # in conflict
    expected = aggregation.PCGrad()(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(solved(vectors), expected, rtol=1e-10)


# --- weights and averages --------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_dpo_weights_are_the_gradient_of_the_loss(beta):
    """-dL/dtheta = w du/dtheta, so w is minus the derivative of the loss by the margin."""
    torch = pytest.importorskip("torch")
    margin = torch.linspace(-30, 30, 121, dtype=torch.float64, requires_grad=True)
    loss = -torch.nn.functional.logsigmoid(beta * margin).sum()
    (gradient,) = torch.autograd.grad(loss, margin)
    np.testing.assert_allclose(
        dpo_weights(margin.detach().numpy(), beta), -gradient.numpy(), rtol=1e-9, atol=1e-300
    )


def test_dpo_weights_of_large_margins_stay_exact():
    """A pair that the policy has long learnt still pulls, e^-x as strongly."""
    margin = np.array([-1e4, 0.0, 300.0, 1e4])
    np.testing.assert_allclose(
        dpo_weights(margin, 1.0), [1.0, 0.5, np.exp(-300.0), 0.0], rtol=1e-12
    )


def test_unit_lets_every_pair_pull_equally_and_raw_does_not():
    weight, norm = np.array([0.1, 0.2]), np.array([5.0, 1e-8])
    np.testing.assert_array_equal(pair_scales(weight, norm, "raw"), weight * norm)
    np.testing.assert_array_equal(pair_scales(weight, norm, "unit"), weight)


def moving_average(terms, decay, batch):
    """The paper's recursion from zero, divided by what the start at zero leaves out."""
    average, left = np.zeros(terms.shape[1]), 1.0
    for begin in range(0, len(terms), batch):
        average = decay * average + (1 - decay) * terms[begin : begin + batch].mean(0)
        left *= decay
    return average / (1 - left)


labels = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(lambda x: np.array(x, np.int32))


@given(
    label=labels,
    decay=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    batch=st.integers(1, 12),
    seed=seeds,
)
def test_ema_shares_are_the_recursion(label, decay, batch, seed):
    """Groups interleave in the file; each runs its own average over its own mini-batches."""
    terms = np.random.default_rng(seed).standard_normal((len(label), 3))
    settings = ConsensusSettings(average="ema", ema_decay=decay, ema_batch=batch)
    share = average_coefficients(label, 4, settings)
    for group in np.unique(label):
        inside = label == group
        np.testing.assert_allclose(
            share[inside] @ terms[inside], moving_average(terms[inside], decay, batch), atol=1e-12
        )


@given(label=labels, average=st.sampled_from(["mean", "ema"]))
def test_shares_add_up_to_one_in_every_group(label, average):
    share = average_coefficients(label, 5, ConsensusSettings(average=average))
    sums = np.bincount(label, share, minlength=5)
    np.testing.assert_allclose(sums[np.unique(label)], 1.0)
    assert (share > 0).all()
    if average == "mean":
        np.testing.assert_allclose(share, 1 / np.bincount(label)[label])


# --- group gradients -------------------------------------------------------------------------


def brute_groups(directions, terms, label, count):
    """G_l in float64, one pair after the other."""
    result = np.zeros((count, directions.shape[1]))
    for direction, term, group in zip(directions, terms, label, strict=True):
        result[group] += term * direction.astype(np.float64)
    return result


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-20])
def test_group_gradients_over_shards_in_any_order(scale):
    """Two blocks, three shards, rows out of order on disk: the sums are those of all rows."""
    rng = np.random.default_rng(1)
    count, dim = 1500, 12
    directions = random_rows(count, dim, seed=2)
    groups = rng.choice(["de", "en", "sw", "th"], count)
    terms = scale * np.exp(rng.standard_normal(count)) * rng.choice([-1, 1], count)
    order = rng.permutation(count)
    store = memory_store(
        directions, np.ones(count), groups, [order[:200], order[200:207], order[207:]]
    )
    found = group_gradients(store, store.groups, members_of(store, terms, np.ones(count)))
    label = store.column("group")
    assert found.names == ["de", "en", "sw", "th"]
    np.testing.assert_array_equal(found.pairs, np.bincount(label))
    expected = brute_groups(directions, terms, label, 4)
    np.testing.assert_allclose(found.gradients, expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(
        found.gramian, expected @ expected.T, atol=1e-6 * np.abs(expected @ expected.T).max()
    )


def test_pairs_that_weigh_nothing_add_nothing():
    store = memory_store(random_rows(3, 4), np.ones(3), ["de", "en", "en"])
    found = group_gradients(store, store.groups, members_of(store, np.zeros(3), np.ones(3)))
    assert not found.gradients.any()
    assert not cosines(found.gramian).any()


@given(vectors=gradients)
def test_cosines_between_groups(vectors):
    expected = np.zeros((len(vectors), len(vectors)))
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors):
            if a.any() and b.any():
                expected[i, j] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(cosines(vectors @ vectors.T), expected, atol=1e-12)


# --- the command on a store ------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(make_store):
    """30 pairs of 3 languages with gradients of very different sizes, in two shards."""
    rng = np.random.default_rng(7)
    order = rng.permutation(30)
    groups = list(rng.permutation(["de", "en", "sw"] * 10))
    norms = np.exp(2 * rng.standard_normal(30)) * 1e-6
    return make_store(
        rng.standard_normal((30, 16)), norms, groups, shards=[order[:11], order[11:]]
    )


@pytest.mark.parametrize("average", ["mean", "ema"])
@pytest.mark.parametrize("pair_norm", ["raw", "unit"])
@pytest.mark.parametrize("method", ["mean", "pcgrad"])
def test_the_consensus_of_a_store_by_brute_force(store, method, pair_norm, average):
    settings = ConsensusSettings(
        method=method, orders=2, average=average, ema_batch=3, pair_norm=pair_norm, beta=0.2,
        name=f"{method}-{pair_norm}-{average}",
    )
    summary = run(store, settings, Silent())
    opened = GradientStore.open(store)
    directions = opened.column("direction").astype(np.float64)
    label = opened.column("group")
    terms = 0.5 * 0.2 * directions  # beta sigmoid(0) u, for a margin of zero
    if pair_norm == "raw":
        terms *= opened.column("norm")[:, None]
    average_of = {"mean": lambda part: part.mean(0),
                  "ema": lambda part: moving_average(part, 0.9, 3)}[average]
    expected = np.array([average_of(terms[label == group]) for group in range(3)])
    d = expected.mean(0) if method == "mean" else surgery(expected, random_orders(3, 2, 0))

    stored = read_consensus(store, settings.name, opened)
    consensus = stored.consensus
    assert stored.settings == settings
    np.testing.assert_allclose(
        consensus.gradients, expected, atol=2e-6 * np.abs(expected).max())
    np.testing.assert_allclose(consensus.direction, d, atol=2e-6 * np.abs(d).max())
    np.testing.assert_allclose(
        consensus.coefficients @ consensus.gradients, consensus.direction, rtol=1e-12)
    norms = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(summary.norm, norms, rtol=1e-5)
    np.testing.assert_allclose(
        summary.cosine, expected @ d / norms / np.linalg.norm(d), atol=1e-5)
    assert summary.pairs == [10, 10, 10]
    assert summary.names == ["de", "en", "sw"]


def test_the_same_consensus_twice_is_the_same_file(store):
    files = []
    for _ in range(2):
        run(store, ConsensusSettings(name="again"), Silent())
        files.append((store / "consensus" / "again.safetensors").read_bytes())
    assert files[0] == files[1]


def test_groups_that_cancel_have_no_direction(make_store):
    store = make_store([[1.0, 0.0], [-1.0, 0.0]], groups=["de", "en"])
    with pytest.raises(NumericsError, match="cancel"):
        run(store, ConsensusSettings(method="mean"), Silent())


def test_a_store_where_every_pair_was_skipped_has_no_consensus(make_store):
    store = make_store(random_rows(2, 4), skipped=[0, 1])
    with pytest.raises(StoreError, match="no sketched pairs"):
        run(store, ConsensusSettings(), Silent())


def test_a_language_whose_pairs_were_all_skipped_takes_no_part(make_store):
    directions = random_rows(4, 6)
    groups = ["de", "en", "sw", "sw"]
    with_empty = make_store(directions, groups=groups, skipped=[2, 3])
    without = make_store(directions[:2], groups=groups[:2])
    summaries = [run(path, ConsensusSettings(), Silent()) for path in (with_empty, without)]
    stores = [GradientStore.open(path) for path in (with_empty, without)]
    found, expected = (
        read_consensus(opened.path, "default", opened).consensus.direction for opened in stores
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert summaries[0].pairs == [1, 1, 0]
    assert summaries[0].cosine[2] == 0


def test_a_consensus_is_refused_once_the_store_holds_other_pairs(make_store):
    directions = random_rows(3, 6)
    store = make_store(directions)
    run(store, ConsensusSettings(), Silent())
    other = make_store(directions, shards=[[0, 1]])
    file = "consensus/default.safetensors"
    (other / file).write_bytes((store / file).read_bytes())
    with pytest.raises(StoreError, match="when the store held other pairs"):
        read_consensus(other, "default", GradientStore.open(other))


def test_a_consensus_of_other_groups_says_what_is_wrong_and_what_to_do(make_store):
    directions = random_rows(3, 6)
    store = make_store(directions, groups=["a", "b", "c"])
    run(store, ConsensusSettings(), Silent())
    other = make_store(directions, groups=["a", "b", "b"])
    file = "consensus/default.safetensors"
    (other / file).write_bytes((store / file).read_bytes())
    with pytest.raises(StoreError, match="when the store held other pairs") as caught:
        read_consensus(other, "default", GradientStore.open(other))
    assert caught.value.hints == (f"run: congrad consensus {other}",)


@pytest.mark.parametrize(
    "change", [{"beta": "x"}, {"beta": None}, {"average": 3}, {"ema_batch": 1.5}, {"new": 1}]
)
def test_a_consensus_made_with_settings_of_other_kinds_is_refused(make_store, change):
    """It may come from a newer congrad, or from somebody's editor."""
    path = make_store(random_rows(2, 4))
    run(path, ConsensusSettings(), Silent())
    file = path / "consensus" / "default.safetensors"
    arrays, metadata = map_arrays(file)
    metadata["settings"] |= change
    file.write_bytes(pack_arrays({name: np.array(a) for name, a in arrays.items()}, metadata))
    with pytest.raises(StoreError, match="unknown settings"):
        read_consensus(path, "default", GradientStore.open(path))


def test_a_consensus_of_that_name_must_exist(store):
    with pytest.raises(StoreError, match="no consensus named 'none'") as caught:
        read_consensus(store, "none", GradientStore.open(store))
    assert "congrad consensus" in caught.value.hints[-1]


@pytest.mark.parametrize("name", ["../evil", "a/b", "/evil", "", ".", "..", "a\0"])
def test_a_name_that_is_no_file_name_is_refused(store, name):
    """The name becomes a file inside the store, never one elsewhere."""
    before = sorted(store.parent.rglob("*"))
    with pytest.raises(UsageError, match="cannot name a consensus"):
        run(store, ConsensusSettings(name=name), Silent())
    with pytest.raises(UsageError, match="cannot name a consensus"):
        read_consensus(store, name, GradientStore.open(store))
    assert sorted(store.parent.rglob("*")) == before


def test_pcgrad_over_many_orders_does_not_hang_on_the_seed():
    """Why orders are averaged: a single one moves the direction visibly."""
    vectors = np.random.default_rng(11).standard_normal((6, 3))

    def spread(orders):
        found = [solved(vectors, orders=orders, seed=seed) for seed in range(8)]
        units = np.array([d / np.linalg.norm(d) for d in found])
        return max(np.linalg.norm(a - b) for a, b in pairwise(units))

    assert spread(128) < spread(1) / 4


def test_numbers_in_a_summary_are_plain(store):
    """What a machine will read must be JSON, not numpy."""
    summary = run(store, ConsensusSettings(name="plain"), Silent())
    json.dumps([summary.names, summary.pairs])


def test_a_store_that_nobody_has_filled_yet_says_so(make_store):
    path = make_store(random_rows(2, 4), shards=[])
    with pytest.raises(StoreError, match="no sketched pairs") as caught:
        run(path, ConsensusSettings(allow_partial=True), Silent())
    assert caught.value.hints == ("the sketch command continues where it stopped",)
