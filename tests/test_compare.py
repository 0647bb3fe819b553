"""``show --compare``: two consensus results on the same pairs, and what ``show`` says of each."""

import io
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from products import product_table
from synthetic import write_projection

from congrad_cli.consensus import run as consensus
from congrad_cli.direction import read_consensus
from congrad_cli.errors import StoreError, UsageError
from congrad_cli.filter import run as filtering
from congrad_cli.filter.compare import compare, rank_correlation
from congrad_cli.progress import Silent
from congrad_cli.settings import STORE_DTYPES, ConsensusSettings, FilterSettings
from congrad_cli.show import describe
from congrad_cli.store import GradientStore

NAMES = ["de", "en", "sw"]


@pytest.fixture(params=STORE_DTYPES)
def store(make_store, request):
    """Conflicting groups, so that methods differ."""
    rng = np.random.default_rng(1)
    labels = rng.choice(NAMES, 40)
    toward = {"de": [1, 0.2], "en": [-0.8, 0.6], "sw": [-0.5, -0.5]}
    rows = rng.standard_normal((40, 64))
    rows[:, :2] += [np.multiply(4, toward[label]) for label in labels]
    path = make_store(rows, rng.lognormal(size=40), list(labels), width=4,
                      store_dtype=request.param)
    write_projection(path)
    consensus.run(path, ConsensusSettings(pair_norm="raw"), Silent())
    consensus.run(path, ConsensusSettings(method="mean", pair_norm="unit", name="plain"), Silent())
    return path


def filtered(path, tmp_path, name):
    """Group, score and verdict of every pair, as ``filter`` writes them."""
    scores = tmp_path / "scores.jsonl"
    filtering.run(path, FilterSettings(consensus=str(name), scores=scores), io.BytesIO(), Silent())
    return [json.loads(line) for line in scores.read_bytes().splitlines()]


def check(found, one, two):
    """The counts against the score files of both."""
    for name, kept in [(None, found.whole), *found.groups.items()]:
        there = [(a["keep"], b["keep"]) for a, b in zip(one, two, strict=True)
                 if name in (None, a["group"])]
        assert (kept.pairs, kept.a, kept.b, kept.both) == (
            len(there), sum(a for a, _ in there), sum(b for _, b in there),
            sum(a and b for a, b in there))
    assert found.overlap == found.whole.both / (
        found.whole.a + found.whole.b - found.whole.both)


def test_it_counts_what_filter_would_keep(store, tmp_path):
    found = compare(store, "default", "plain", Silent())
    one, two = (filtered(store, tmp_path, name) for name in ("default", "plain"))
    check(found, one, two)
    assert 0 < found.whole.both < found.whole.a
    assert found.rank_correlation == pytest.approx(
        rank_correlation(*(np.array([e["score"] for e in entries]) for entries in (one, two))))


def test_the_cosine_of_the_directions_holds_no_row_twice(store):
    """Both hold every row; for 1bit the plain product would be far too large."""
    found = compare(store, "default", "plain", Silent())
    opened = GradientStore.open(store)
    table = product_table(opened).sum(0)
    u, v = (made.consensus.coefficients[made.members.label] * made.members.scale
            * made.members.share
            for made in (read_consensus(store, name, opened) for name in ("default", "plain")))
    expected = u @ table @ v / np.sqrt((u @ table @ u) * (v @ table @ v))
    assert found.direction_cosine == pytest.approx(expected, abs=1e-6)
    same = compare(store, "plain", "plain", Silent())
    assert (same.direction_cosine, same.overlap, same.rank_correlation) == (1, 1, pytest.approx(1))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_equal_scores_share_their_ranks(pairs):
    """Against counting, for every number, those below it and half of its equals."""
    one, two = (np.array([pair[part] for pair in pairs], float) for part in (0, 1))
    ranks = [np.array([(x < y).sum() + ((x == y).sum() - 1) / 2 for y in x]) for x in (one, two)]
    found = rank_correlation(np.r_[one, np.nan, 1], np.r_[two, 1, np.nan])
    if ranks[0].std() and ranks[1].std():
        assert found == pytest.approx(np.corrcoef(*ranks)[0, 1])
    else:
        assert np.isnan(found)


@pytest.mark.parametrize("store", ["float16"], indirect=True)
def test_other_stores_directions_are_compared_on_the_same_pairs(store, tmp_path, forked_congrad):
    released = tmp_path / "released"
    (released / "consensus").mkdir(parents=True)
    for name in ("store.json", "projection.safetensors", "consensus/plain.safetensors"):
        shutil.copy(store / name, released / name)
    found = compare(store, "default", f"{released}:plain", Silent())
    one, two = (filtered(store, tmp_path, name) for name in ("default", f"{released}:plain"))
    check(found, one, two)
    for arguments in ((store, "--compare", "default"), ("--compare", f"{store}:default")):
        done = forked_congrad("show", *arguments, f"{released}:plain", "--json")
        assert done.returncode == 0, done.stderr.decode()
        about = json.loads(done.stdout)
        assert about["kept"] == {"pairs": 40, "a": found.whole.a, "b": found.whole.b,
                                 "both": found.whole.both}
        assert about["b"]["store"] == str(released) and about["b"]["method"] == "mean"
        assert b"kept by A" in done.stderr and b"Rank correlation" in done.stderr
    done = forked_congrad("show", store, "--compare", "default", "gone")
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"has no consensus named 'gone'" in done.stderr


@pytest.mark.parametrize("store", ["int4"], indirect=True)
def test_groups_that_gain_and_lose_come_first_and_last(store, forked_congrad):
    done = forked_congrad("show", store, "--compare", "default", "plain")
    assert (done.returncode, done.stdout) == (0, b"")
    lines = [line.split() for line in done.stderr.decode().splitlines()]
    change = [int(line[-1]) for line in lines if line and line[0] in NAMES]
    assert change == sorted(change, reverse=True) and len(change) == 3 and change[0] > change[-1]
    groups = compare(store, "default", "plain", Silent()).to_json()["groups"]
    assert sorted(kept["b"] - kept["a"] for kept in groups.values()) == sorted(change)


def test_show_tells_the_main_facts_of_every_consensus(store, forked_congrad):
    opened = GradientStore.open(store)
    summary = consensus.run(store, ConsensusSettings(), Silent())
    made = {one["name"]: one for one in describe(store)["consensus"]}
    assert made["default"]["least_cosine"] == pytest.approx(summary.cosine.min())
    assert made["default"]["least_group"] == summary.names[int(summary.cosine.argmin())]
    assert made["plain"]["groups"] == len(opened.groups) == 3
    shown = forked_congrad("show", store).stdout.decode()
    assert f"  pcgrad, unit pairs, 3 groups, least cosine {summary.cosine.min():+.3f} (" in shown
    assert "  mean, unit pairs, 3 groups" in shown


@pytest.mark.parametrize("store", ["float16"], indirect=True)
def test_a_consensus_of_other_pairs_still_shows_its_facts(store):
    """A store without its index, as it is released, is shown as far as it goes."""
    (store / "index.safetensors").unlink()
    made = describe(store)["consensus"][0]
    assert (made["fits"], made["why"], made["groups"]) == (False, "the store has no index", 3)


@pytest.mark.parametrize("store", ["float16"], indirect=True)
def test_what_cannot_be_compared_is_refused(store, tmp_path):
    with pytest.raises(StoreError, match="is no store"):
        compare(store, "default", str(tmp_path / "nowhere"), Silent())
    with pytest.raises(UsageError, match="cannot name a consensus"):
        compare(store, "default", "", Silent())


def test_a_single_pair_has_no_rank_correlation_and_no_warning(make_store, recwarn):
    path = make_store(np.eye(4)[:1])
    consensus.run(path, ConsensusSettings(), Silent())
    found = compare(path, "default", "default", Silent()).to_json()
    assert (found["rank_correlation"], found["overlap"]) == (None, None)
    assert not list(recwarn)
