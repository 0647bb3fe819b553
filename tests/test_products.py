"""Consensus and scores of coarsely coded stores: nothing is added by rows meeting themselves."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from products import members_of, product_table, table_scores
from synthetic import memory_store, normalised

from congrad_cli.consensus import run as consensus
from congrad_cli.consensus.groups import group_gradients
from congrad_cli.demo import auroc
from congrad_cli.direction import Consensus, read_consensus
from congrad_cli.errors import StoreError
from congrad_cli.filter import run as filtering
from congrad_cli.filter.scores import pair_scores
from congrad_cli.progress import Silent
from congrad_cli.settings import STORE_DTYPES, ConsensusSettings, FilterSettings
from congrad_cli.store import GradientStore
from congrad_cli.tensors import map_arrays, pack_arrays
from congrad_cli.weights import average_coefficients

AVERAGES = (ConsensusSettings(), ConsensusSettings(average="ema", ema_decay=0.5, ema_batch=2))


def signal_rows(label, dim, strength, seed=0):
    """Unit rows that share a direction, partly per group, with heavy tails in uneven blocks.

    ``strength``, one number or [N], is negative where a row points backwards.
    """
    rng = np.random.default_rng(seed)
    energy = np.repeat(np.exp(0.5 * rng.standard_normal(8)), dim // 8)
    common = rng.standard_t(4, (1 + label.max() + 1, dim)) * energy
    noise = rng.standard_t(4, (len(label), dim)) * energy
    good = np.broadcast_to(strength, len(label))[:, None]
    return normalised(good * (common[0] + 0.5 * common[1 + label]) + noise)


def found_consensus(store, scale, share, coefficients):
    groups = group_gradients(store, store.groups, members_of(store, scale, share))
    direction = np.asarray(coefficients, np.float64) @ groups.gradients
    return groups, Consensus(direction, groups.gradients, np.asarray(coefficients), groups.excess)


@st.composite
def cases(draw):
    """A coded store, scales over two decades with zeros and signs, shares, coefficients."""
    sizes = [*draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)), 1]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    label = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    count = len(label)
    scale = 10.0 ** rng.uniform(-2, 0, count) * rng.choice([1, 1, 1, -1, 0], count)
    scale *= draw(st.sampled_from([1.0, 1e-8, 1e-30]))
    store = memory_store(
        normalised(rng.standard_normal((count, 96))), np.ones(count), [f"g{n}" for n in label],
        width=draw(st.sampled_from([1, 4, 6])), store_dtype=draw(st.sampled_from(STORE_DTYPES)),
    )
    share = average_coefficients(label, len(sizes), draw(st.sampled_from(AVERAGES)))
    return store, scale, share, label, rng.uniform(0.3, 2.0, len(sizes))


@given(case=cases())
def test_the_gramian_holds_no_row_twice(case):
    store, scale, share, label, coefficients = case
    groups, _ = found_consensus(store, scale, share, coefficients)
    weights = np.zeros((len(coefficients), len(label)))
    weights[label, np.arange(len(label))] = scale * share
    expected = weights @ product_table(store).sum(0) @ weights.T
    size = np.abs(expected).max()
    np.fill_diagonal(expected, np.maximum(np.diagonal(expected), 0))
    np.testing.assert_allclose(groups.gramian, expected, atol=3e-6 * size)


@pytest.mark.parametrize("leave_one_out", [True, False])
@given(case=cases())
def test_scores_are_those_of_a_group_averaged_again_without_the_pair(leave_one_out, case):
    store, scale, share, label, coefficients = case
    _, found = found_consensus(store, scale, share, coefficients)
    scores = pair_scores(store, found, members_of(store, scale, share), leave_one_out).score
    table = product_table(store).sum(0)
    expected = table_scores(table, scale, share, label, coefficients, leave_one_out)
    close = np.isclose(scores, np.clip(expected, -1, 1), atol=1e-4, equal_nan=True)
    # Where noise has cancelled almost all of d's square, G's float32 sums show.
    assert close.all() or np.abs(expected[~close]).min() > 5


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_pairs_without_signal_are_not_flattered(store_dtype):
    """In small groups of unrelated rows the others say nothing about a pair; 1bit no less."""
    label = np.repeat(np.arange(200), 4).astype(np.int32)
    rows = normalised(np.random.default_rng(0).standard_normal((800, 2048)))
    store = memory_store(rows, np.ones(800), [f"{n:03d}" for n in label],
                         width=4, store_dtype=store_dtype)
    share, scale = np.full(800, 0.25), np.ones(800)
    _, found = found_consensus(store, scale, share, np.ones(200))
    score = pair_scores(store, found, members_of(store, scale, share), leave_one_out=True).score
    assert abs(score.mean()) < 4 * score.std() / np.sqrt(800)
    assert score.std() * np.sqrt(2048) < (1.7 if store_dtype == "1bit" else 1.1)
    # Scored with itself, a pair has the share of one in 800; uncorrected it would be 0.044.
    score = pair_scores(store, found, members_of(store, scale, share), leave_one_out=False).score
    assert score.mean() == pytest.approx(np.sqrt(1 / 800), abs=0.003)


@pytest.mark.parametrize("store_dtype", ["int8", "int4", "1bit"])
def test_norms_and_conflicts_of_small_groups_are_those_of_float16(make_store, store_dtype):
    """With two pairs a group, half of |G|^2 comes from rows meeting themselves."""
    rng = np.random.default_rng(4)
    label = np.repeat(np.arange(3), 2)
    rows = signal_rows(label, 8192, 0.4) * rng.lognormal(size=6)[:, None]
    summaries = [
        consensus.run(
            make_store(rows, groups=[f"g{n}" for n in label], width=8, store_dtype=code),
            ConsensusSettings(), Silent(),
        )
        for code in ("float16", store_dtype)
    ]
    for name in ("norm", "cosine", "conflict"):
        np.testing.assert_allclose(
            getattr(summaries[1], name), getattr(summaries[0], name), atol=0.06, rtol=0.03)


def filtered(make_store, tmp_path, rows, groups, store_dtype):
    """Kept lines and scores of a store, from the files on."""
    path = make_store(rows, groups=groups, width=8, store_dtype=store_dtype)
    consensus.run(path, ConsensusSettings(), Silent())
    out, scores = io.BytesIO(), tmp_path / f"{store_dtype}.jsonl"
    filtering.run(path, FilterSettings(scores=scores), out, Silent())
    entries = [json.loads(line) for line in scores.read_bytes().splitlines()]
    return set(out.getvalue().splitlines()), np.array([entry["score"] for entry in entries])


def rank_correlation(a, b):
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


def test_codes_keep_the_order_of_scores_and_the_kept_lines(make_store, tmp_path):
    """A store with a real signal: three groups that share a direction, a quarter of it swapped."""
    rng = np.random.default_rng(0)
    label, strength = rng.integers(0, 3, 240), rng.uniform(-0.1, 0.3, 240)
    rows, swapped = signal_rows(label, 4096, strength), strength < 0
    groups = [f"g{n}" for n in label]
    kept, score = filtered(make_store, tmp_path, rows, groups, "float16")
    clear = auroc(score[~swapped], score[swapped])
    for store_dtype, correlation, moved in (
        ("int8", 0.9999, 0), ("int4", 0.999, 2), ("1bit", 0.97, 20)
    ):
        also_kept, found = filtered(make_store, tmp_path, rows, groups, store_dtype)
        assert rank_correlation(score, found) > correlation
        assert len(kept ^ also_kept) <= moved
        assert np.polyfit(score, found, 1)[0] == pytest.approx(1, abs=0.03)  # not stretched
        assert auroc(found[~swapped], found[swapped]) > clear - 0.03


def consensus_without(path, name):
    """Take a tensor out of the store's consensus file, as an older version wrote it."""
    file = path / "consensus" / "default.safetensors"
    arrays, metadata = map_arrays(file)
    rest = {key: np.array(array) for key, array in arrays.items() if key != name}
    file.write_bytes(pack_arrays(rest, metadata))
    return GradientStore.open(path)


@pytest.mark.parametrize("name", ["excess", "label", "share"])
def test_a_consensus_that_lacks_a_part_is_refused(make_store, name):
    path = make_store(np.eye(4), groups=["de", "en"] * 2, store_dtype="1bit")
    consensus.run(path, ConsensusSettings(), Silent())
    with pytest.raises(StoreError, match=f"'{name}' is missing"):
        read_consensus(path, "default", consensus_without(path, name))
