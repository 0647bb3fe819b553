"""``consensus --groups cluster:K``: clusters that were planted are found, whatever the order."""

import json
import re
from math import comb
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from products import product_table
from synthetic import columns, digests_of, header, index_of, memory_store, normalised

from congrad_cli import arguments
from congrad_cli.consensus import clusters
from congrad_cli.consensus.clusters import cluster_pairs, fold
from congrad_cli.consensus.run import run
from congrad_cli.direction import consensus_file, read_consensus
from congrad_cli.errors import UsageError
from congrad_cli.progress import Silent
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore

DTYPES = ("float16", "int4", "1bit")


def adjusted_rand(one, other):
    """Hubert and Arabie's index: 1 for the same clusters, 0 on average for unrelated ones."""
    table = np.zeros((one.max() + 1, other.max() + 1), int)
    np.add.at(table, (one, other), 1)
    pairs = sum(comb(cell, 2) for cell in table.ravel().tolist())
    rows = sum(comb(cell, 2) for cell in table.sum(1).tolist())
    cols = sum(comb(cell, 2) for cell in table.sum(0).tolist())
    chance = rows * cols / comb(len(one), 2)
    return (pairs - chance) / ((rows + cols) / 2 - chance)


def planted(count=400, dim=512, among=5, strength=0.35, seed=0):
    """Rows [count, dim] around ``among`` directions, and the one that each is around."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, among, count)
    rows = strength * rng.standard_normal((among, dim))[truth] + rng.standard_normal((count, dim))
    return normalised(rows), truth


def store_of(rows, digests, groups=None):
    """A store in memory, of float16, whose pairs have these digests."""
    about = header(rows.shape[1])
    groups = groups or ["en"] * len(rows)
    return GradientStore(Path("memory"), about, index_of(groups, digests),
                         [columns(range(len(rows)), rows, np.ones(len(rows)), digests)])


@pytest.mark.parametrize("store_dtype", DTYPES)
def test_planted_clusters_are_found(store_dtype):
    rows, truth = planted()
    store = memory_store(rows, np.ones(400), ["en"] * 400, width=8, store_dtype=store_dtype)
    found = cluster_pairs(store, np.ones(400), 5, 0)
    assert adjusted_rand(truth, found.label) > 0.97
    size = np.bincount(found.label)
    assert (np.diff(size) <= 0).all()
    assert found.names == [f"cluster-{number:03d}" for number in range(5)]
    assert found.empty == 0


def test_the_reference_index_tells_right_from_wrong():
    _, truth = planted()
    assert adjusted_rand(truth, (truth + 2) % 5) == 1
    assert abs(adjusted_rand(truth, np.random.default_rng(1).permutation(truth))) < 0.05


def test_a_sample_of_folded_rows_is_enough(monkeypatch):
    """Large stores are never trained on whole: here on a quarter of the pairs and numbers."""
    monkeypatch.setattr(clusters, "SAMPLE", 200)
    monkeypatch.setattr(clusters, "TRAINING", 200 * 128)
    monkeypatch.setattr(clusters, "SHORTEST", 16)
    rows, truth = planted(800)
    store = memory_store(rows, np.ones(800), ["en"] * 800)
    assert adjusted_rand(truth, cluster_pairs(store, np.ones(800), 5, 0).label) > 0.97


def test_pairs_that_the_loss_pushes_back_are_turned_round():
    """What counts is where g_i points, not u_i."""
    rows, truth = planted()
    sign = np.random.default_rng(1).choice([-1.0, 1.0], 400)
    store = memory_store(rows * sign[:, None], np.ones(400), ["en"] * 400)
    assert adjusted_rand(truth, cluster_pairs(store, sign, 5, 0).label) > 0.97
    assert adjusted_rand(truth, cluster_pairs(store, np.ones(400), 5, 0).label) < 0.7


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), strength=st.sampled_from([0.0, 0.1, 0.4]))
def test_the_order_of_the_data_changes_no_cluster(seed, strength):
    """Without any signal too, where the least difference would decide."""
    rows, _ = planted(120, 64, 4, strength, seed)
    digests = digests_of(120)
    order = np.random.default_rng(seed).permutation(120)
    plain = cluster_pairs(store_of(rows, digests), np.ones(120), 4, 0)
    moved = cluster_pairs(store_of(rows[order], digests[order]), np.ones(120), 4, 0)
    np.testing.assert_array_equal(moved.label, plain.label[order])
    np.testing.assert_allclose(moved.cohesion, plain.cohesion, atol=1e-6)


def test_threads_change_nothing_and_are_left_as_they_were():
    rows, _ = planted(strength=0.05)
    store = memory_store(rows, np.ones(400), ["en"] * 400)
    alone = cluster_pairs(store, np.ones(400), 7, 0)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        both = cluster_pairs(store, np.ones(400), 7, 0)
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)
    np.testing.assert_array_equal(both.label, alone.label)


@pytest.mark.parametrize("store_dtype", DTYPES)
def test_cohesion_is_the_mean_cosine_of_two_pairs(store_dtype):
    rows, _ = planted(80)
    store = memory_store(rows, np.ones(80), ["en"] * 80, width=8, store_dtype=store_dtype)
    found = cluster_pairs(store, np.ones(80), 5, 0)
    table = product_table(store).sum(0)
    for number, cohesion in enumerate(found.cohesion):
        inside = np.flatnonzero(found.label == number)
        among = table[np.ix_(inside, inside)][~np.eye(len(inside), dtype=bool)]
        assert cohesion == pytest.approx(among.mean(), abs=1e-6 if store_dtype != "float16" else
                                         1e-4)  # whose rows are units but for rounding


def test_clusters_without_pairs_are_left_out():
    """Three different rows make no more than three clusters."""
    rows = np.eye(3)[np.arange(30) % 3]
    found = cluster_pairs(memory_store(rows, np.ones(30), ["en"] * 30), np.ones(30), 8, 0)
    assert found.empty == 8 - len(found.names) >= 5
    assert set(found.label.tolist()) == set(range(len(found.names)))
    for cluster in range(len(found.names)):
        assert len(np.unique(np.arange(30)[found.label == cluster] % 3)) == 1
    np.testing.assert_allclose(found.cohesion, 1, atol=1e-6)


def test_more_clusters_than_pairs_are_refused():
    store = memory_store(np.eye(4), np.ones(4), ["en"] * 4)
    with pytest.raises(UsageError, match="more clusters than there are pairs"):
        cluster_pairs(store, np.ones(4), 5, 0)
    found = cluster_pairs(store, np.ones(4), 4, 0)
    assert sorted(found.label.tolist()) == [0, 1, 2, 3]
    assert np.isnan(found.cohesion).all()  # there is no other pair


@given(
    vectors=st.integers(0, 2**32), dim=st.integers(1, 40), length=st.integers(1, 40),
    factor=st.floats(-3, 3, width=16),
)
def test_folding_is_linear_and_keeps_short_rows(vectors, dim, length, factor):
    rows = np.random.default_rng(vectors).standard_normal((3, dim)).astype(np.float32)
    folded = fold(rows, length, 7)
    assert folded.shape == (3, min(length, dim))
    if dim <= length:
        np.testing.assert_array_equal(folded, rows)
    mixed = fold((rows[:1] + factor * rows[1:2]).astype(np.float32), length, 7)
    np.testing.assert_allclose(mixed, folded[:1] + factor * folded[1:2], atol=1e-4)


def test_folding_keeps_products_on_average():
    """100 does not divide 230: the last fold is a part of one."""
    rows = np.random.default_rng(0).standard_normal((2, 230)).astype(np.float32)
    found = np.array([np.vdot(*fold(rows, 100, seed)) for seed in range(400)])
    error = found.std() / 20
    assert error > 0.1
    assert abs(found.mean() - np.vdot(*rows)) < 4 * error


def test_the_consensus_holds_the_clusters_as_its_groups(make_store):
    """And equal runs are equal bytes; the summary says what the clusters are made of."""
    rows, truth = planted(120, 128, 3, 0.6)
    path = make_store(rows, groups=["de" if one == 0 else "nl" for one in truth])
    options = ConsensusSettings(groups="cluster:3")
    summary = run(path, options, Silent())
    first = consensus_file(path, "default").read_bytes()
    again = run(path, options, Silent())
    assert consensus_file(path, "default").read_bytes() == first
    assert again.grouping.to_json() == summary.grouping.to_json()
    assert list(summary.to_json()["clusters"]) == summary.names

    found = read_consensus(path, "default", GradientStore.open(path))
    assert found.names == summary.names == ["cluster-000", "cluster-001", "cluster-002"]
    assert adjusted_rand(truth, found.members.label) == 1
    for number, cluster in enumerate(summary.grouping.clusters):
        inside = found.members.label == number
        assert cluster.pairs == inside.sum() == summary.pairs[number]
        (only,) = np.unique(truth[inside])
        assert cluster.made_of == {"nl" if only else "de": inside.sum()}
        mean = 0.05 * rows[inside].mean(0)  # half of beta
        assert found.consensus.gradients[number] == pytest.approx(mean, abs=1e-4)


def test_the_command_clusters_and_filter_goes_by_the_clusters(congrad, make_store, tmp_path):
    rows, truth = planted(40, 64, 2, 0.8)
    path = make_store(rows, groups=["de", "nl"] * 20)
    done = congrad("consensus", path, "--groups", "cluster:2")
    said = done.stderr.decode()
    assert "clusters (cosine" in said
    assert "cluster-001" in said
    assert "de 5" in said  # its share, fifty-something per cent or so
    quotas = tmp_path / "quotas.json"
    quotas.write_text('{"cluster-000": 3, "cluster-001": 1}')
    scores = tmp_path / "scores.jsonl"
    kept = congrad("filter", path, "--quotas", quotas, "--scores", scores)
    assert kept.stdout.count(b"\n") == 4
    entries = [json.loads(line) for line in scores.read_bytes().splitlines()]
    labels = np.array([int(entry["group"].removeprefix("cluster-")) for entry in entries])
    assert adjusted_rand(truth, labels) == 1


@pytest.mark.parametrize("value", [
    "cluster", "cluster:", "cluster:x", "cluster:1", "cluster:501", "cluster:-3", "data:3", "",
    "cluster:²", "cluster:" + 5000 * "9"])
def test_groups_that_make_no_sense_are_refused(value):
    with pytest.raises(UsageError, match=f"--groups {re.escape(value)}: "):
        arguments.groups(value)


def test_a_wrong_number_of_clusters_is_a_usage_error(congrad, make_store):
    path = make_store(np.eye(4))
    for groups, message in (("cluster:501", b"from 2 to 500"), ("cluster:5", b"than there are")):
        done = congrad("consensus", path, "--groups", groups)
        assert done.returncode == 2
        assert message in done.stderr
        assert b"Traceback" not in done.stderr
