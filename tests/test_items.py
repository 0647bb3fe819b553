"""Copies and whole items taken out of the consensus, against averaging all again without them."""

import errno
import io
import json
import os
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from products import members_of, product_table, table_errors, table_scores, without
from synthetic import memory_store, normalised

from congrad_cli.consensus import run as consensus
from congrad_cli.consensus.groups import group_gradients
from congrad_cli.direction import Consensus
from congrad_cli.errors import InputError, UsageError
from congrad_cli.filter import run as filtering
from congrad_cli.filter import without as reading
from congrad_cli.filter.compare import compare
from congrad_cli.filter.cosines import group_cosines
from congrad_cli.filter.items import make_items
from congrad_cli.filter.scores import pair_scores
from congrad_cli.progress import Silent
from congrad_cli.settings import STORE_DTYPES, ConsensusSettings, FilterSettings
from congrad_cli.store import GradientStore
from congrad_cli.store_index import read_index, write_index
from congrad_cli.weights import average_coefficients

AVERAGES = (ConsensusSettings(), ConsensusSettings(average="ema", ema_decay=0.5, ema_batch=2))


def digests(names):
    """A digest for each name, [N, 16]."""
    return np.array([list(f"{name:>16}".encode()) for name in names], np.uint8).reshape(-1, 16)


@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=20),
       with_values=st.booleans())
def test_items_are_what_copies_and_values_join(pairs, with_values):
    """Against joining any two pairs with something in common until nothing changes."""
    content = [one[0] for one in pairs]
    value = np.array([one[1] for one in pairs], np.int64)
    item = list(range(len(pairs)))
    for _ in pairs:
        for i in range(len(pairs)):
            for j in range(len(pairs)):
                if content[i] == content[j] or (with_values and value[i] == value[j]):
                    item[i] = item[j] = min(item[i], item[j])
    found = make_items(digests(content), value if with_values else None)
    expected = [[i for i in range(len(pairs)) if item[i] == name] for name in sorted(set(item))]
    assert [places.tolist() for places in found] == [part for part in expected if len(part) > 1]
    assert len(found) == sum(len(part) > 1 for part in expected)
    assert np.flatnonzero(found.single).tolist() == sorted(
        part[0] for part in expected if len(part) == 1)


@st.composite
def cases(draw):
    """A coded store with items across groups, scales over two decades with zeros and signs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = draw(st.integers(1, 4))
    count = draw(st.integers(2, 14))
    label = rng.integers(0, groups, count)
    label[: min(groups, count)] = np.arange(groups)[:count]
    item = rng.integers(0, draw(st.integers(1, count)), count)
    scale = 10.0 ** rng.uniform(-2, 0, count) * rng.choice([1, 1, 1, -1, 0], count)
    scale *= draw(st.sampled_from([1.0, 1e-8, 1e-30]))
    store = memory_store(
        normalised(rng.standard_normal((count, 96))), np.ones(count), [f"g{n}" for n in label],
        width=draw(st.sampled_from([1, 4, 6])), store_dtype=draw(st.sampled_from(STORE_DTYPES)),
    )
    label = store.column("group")
    share = average_coefficients(label, len(store.groups), draw(st.sampled_from(AVERAGES)))
    return store, item, scale, share, label, rng.uniform(0.3, 2.0, len(store.groups))


def consensus_of(store, scale, share, coefficients):
    groups = group_gradients(store, store.groups, members_of(store, scale, share))
    return Consensus(np.asarray(coefficients, float) @ groups.gradients, groups.gradients,
                     np.asarray(coefficients, float), groups.excess)


def sensible(expected):
    """Where noise has not cancelled almost all of a square: there G's float32 sums show."""
    return ~(np.abs(expected) > 3)


@pytest.mark.parametrize("held", [3, 512])
@given(case=cases())
def test_scores_are_those_of_groups_averaged_again_without_the_item(held, case):
    """Items of more rows than are held at a time are read twice, and come out the same."""
    store, item, scale, share, *rest = case
    label, coefficients = rest
    found = consensus_of(store, scale, share, coefficients)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "ROWS", held)
        scores = pair_scores(store, found, members_of(store, scale, share), True,
                             make_items(store.column("digest"), item))
    table = product_table(store)
    expected = table_scores(table.sum(0), scale, share, label, coefficients, item=item)
    usual = sensible(expected)
    np.testing.assert_allclose(
        scores.score[usual], np.clip(expected, -1, 1)[usual], atol=1e-4)
    errors = table_errors(table, scale, share, label, coefficients, item=item)
    usual &= ~(errors > 1) & ~np.isnan(expected)
    if len(table) > 1:
        np.testing.assert_allclose(scores.error[usual], errors[usual], rtol=2e-3, atol=1e-5)


def table_cosines(table, item, scale, share, label, coefficients):
    """cos(g_i, G_l) by products of rows, G_l without the row's item."""
    result = np.full((len(scale), len(coefficients)), np.nan)
    for i in range(len(scale)):
        for group in range(len(coefficients)):
            only = np.zeros(len(coefficients))
            only[group] = 1
            g = without(item == item[i], scale, share, label, only)
            square = table[i, i] * (g @ table @ g)
            if square > 1e-12 * table[i, i] * ((g**2) @ np.diagonal(table)):
                result[i, group] = np.sign(scale[i] or 1) * (table[i] @ g) / np.sqrt(square)
    return result


@given(case=cases(), by_item=st.booleans())
def test_group_cosines_are_those_of_groups_averaged_again(case, by_item):
    store, item, scale, share, label, coefficients = case
    item = item if by_item else np.arange(len(item))
    found = consensus_of(store, scale, share, coefficients)
    cosines = group_cosines(store, found, members_of(store, scale, share), scale,
                            make_items(store.column("digest"), item))
    table = product_table(store).sum(0)
    expected = table_cosines(table, item, scale, share, label, coefficients)
    usual = sensible(expected) & ~np.isnan(expected)
    np.testing.assert_allclose(cosines[usual], np.clip(expected, -1, 1)[usual], atol=1e-4)
    nothing = np.isnan(expected)
    assert np.isnan(np.asarray(cosines)[nothing]).all()


def test_group_cosines_without_leaving_out_are_plain_cosines():
    rows = normalised(np.random.default_rng(0).standard_normal((9, 32)))
    store = memory_store(rows, np.ones(9), ["de", "en", "sw"] * 3)
    scale, share = np.linspace(1, 2, 9), np.full(9, 1 / 3)
    found = consensus_of(store, scale, share, np.ones(3))
    plain = group_cosines(store, found, members_of(store, scale, share), scale, None)
    unit = normalised(store.column("direction").astype(float))
    np.testing.assert_allclose(plain, unit @ normalised(found.gradients).T, atol=1e-6)
    turned = group_cosines(store, found, members_of(store, scale, share), -scale, None)
    assert (np.asarray(turned) == -np.asarray(plain)).all()


# --- from the files on -----------------------------------------------------------------------


@pytest.fixture
def store(make_store):
    """Twelve pairs: four items in three languages each. The data names the items."""
    rng = np.random.default_rng(7)
    rows = np.repeat(rng.standard_normal((4, 64)), 3, 0) + 0.3 * rng.standard_normal((12, 64))
    path = make_store(rows, groups=["de", "en", "sw"] * 4, width=4, store_dtype="int4")
    consensus.run(path, ConsensusSettings(), Silent())
    return path


def named(path, values, tmp_path, field="item"):
    """The store's data with a field more, which is no part of the pairs."""
    lines = [json.loads(line) for line in (path.parent / "data.jsonl").read_text().splitlines()]
    data = tmp_path / "named.jsonl"
    data.write_text("".join(
        json.dumps(line if value is None else {**line, field: value}) + "\n"
        for line, value in zip(lines, values, strict=True)))
    return str(data)


def scored(path, tmp_path, **options):
    scores = tmp_path / "scores.jsonl"
    filtering.run(path, FilterSettings(scores=scores, **options), io.BytesIO(), Silent())
    return [json.loads(line) for line in scores.read_bytes().splitlines()]


def test_translations_no_longer_praise_each_other(store, tmp_path):
    data = named(store, [{"nr": row // 3} for row in range(12)], tmp_path, "meta")
    alone = [entry["score"] for entry in scored(store, tmp_path)]
    whole = [entry["score"] for entry in
             scored(store, tmp_path, data=(data,), leave_out_by="meta.nr")]
    assert np.mean(alone) > 0.2 > 0 > np.mean(whole)
    opened = GradientStore.open(store)
    target = filtering.find_target(opened, "default", Silent())
    expected = table_scores(
        product_table(opened).sum(0), target.members.scale, target.members.share, target.label,
        target.consensus.coefficients, item=np.arange(12) // 3)
    np.testing.assert_allclose(whole, expected, atol=1e-4)


def test_group_cosines_are_in_the_score_file(store, tmp_path):
    entries = scored(store, tmp_path, group_cosines=True)
    assert [list(entry["cosines"]) for entry in entries] == [["de", "en", "sw"]] * 12
    opened = GradientStore.open(store)
    target = filtering.find_target(opened, "default", Silent())
    expected = table_cosines(
        product_table(opened).sum(0), np.arange(12), target.members.scale, target.members.share,
        target.label, np.ones(3))
    np.testing.assert_allclose([list(entry["cosines"].values()) for entry in entries], expected,
                               atol=1e-4)


def test_values_are_compared_by_type_and_value(store, tmp_path):
    """1 and 1.0 are one number; "1" and true are something else."""
    values = [1, 1.0, "1", True, "a", "a", False, 0, "b", "c", "d", "e"]
    opened = GradientStore.open(store)
    files = filtering.data_files(opened, FilterSettings(data=(named(store, values, tmp_path),)))
    found = filtering.read_values(opened, files, "item").tolist()
    assert [found.index(value) for value in found] == [0, 0, 2, 3, 4, 4, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(("value", "message"), [
    (None, r"named.jsonl:3: no field 'item', which --leave-out-by names"),
    ([1], r"named.jsonl:3: 'item' is no single value"),
])  # fmt: skip
def test_a_record_that_belongs_to_no_item_is_named(store, tmp_path, value, message):
    data = named(store, ["a", "b", value, *"cdefghijk"], tmp_path)
    with pytest.raises(InputError, match=message):
        scored(store, tmp_path, data=(data,), leave_out_by="item")
    assert not (tmp_path / "scores.jsonl").exists()


@pytest.mark.parametrize(("options", "message"), [
    ({"leave_one_out": False}, "contradict each other"),
    ({"rank_by": "margin", "keep": 1}, "--leave-out-by does nothing with --rank-by margin"),
])  # fmt: skip
def test_leaving_items_out_of_nothing_is_refused(store, options, message):
    with pytest.raises(UsageError, match=message):
        filtering.run(store, FilterSettings(leave_out_by="item", **options), io.BytesIO(), Silent())


def test_group_cosines_need_a_score_file(store):
    with pytest.raises(UsageError, match="--group-cosines adds to the score file"):
        filtering.run(store, FilterSettings(group_cosines=True), io.BytesIO(), Silent())


def test_a_pair_that_stands_twice_is_not_scored_against_its_copy(make_store, tmp_path):
    """Its copy would say that it is right, whatever it is."""
    rows = normalised(np.random.default_rng(3).standard_normal((6, 64)))
    path = make_store(rows, groups=["de"] * 3 + ["en"] * 3)
    data = path.parent / "data.jsonl"
    lines = data.read_bytes().splitlines(keepends=True)
    data.write_bytes(b"".join([*lines, lines[0]]))
    index = read_index(path)
    again = np.r_[np.arange(6), 0]
    write_index(path, type(index)(index.sources, index.fields, index.groups, index.group[again],
                                  index.digest[again]))
    consensus.run(path, ConsensusSettings(method="mean"), Silent())
    score = [entry["score"] for entry in scored(path, tmp_path)]
    unit = GradientStore.open(path).column("direction").astype(float)
    others = unit[1:3].mean(0) + unit[3:6].mean(0)
    expected = unit[0] @ others / np.linalg.norm(others) / np.linalg.norm(unit[0])
    assert score[0] == score[6] == pytest.approx(expected, abs=1e-6)
    flattered = [entry["score"] for entry in scored(path, tmp_path, leave_one_out=False)]
    assert flattered[0] > score[0] + 0.3


def test_leaving_items_out_serves_group_cosines_whatever_pairs_are_ranked_by(store, tmp_path):
    """Then the options do something, and may be given."""
    options = {"group_cosines": True, "data": (named(store, "aabbccddeeff", tmp_path),)}
    with_item, without, whole = (
        [entry["cosines"] for entry in scored(
            store, tmp_path, rank_by="margin", keep=3, **options, **more)]
        for more in ({"leave_out_by": "item"}, {}, {"leave_one_out": False}))
    by_score = scored(store, tmp_path, leave_out_by="item", **options)
    assert with_item == [entry["cosines"] for entry in by_score]
    assert with_item != without != whole


def test_cosines_that_do_not_fit_on_the_disk_are_an_error(store, tmp_path, monkeypatch):
    """Written through a map, they would kill the process where the disk is full."""
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        scored(store, tmp_path, group_cosines=True)


def twice(path):
    """The same store, of data that holds every pair twice."""
    index = read_index(path)
    again = np.tile(np.arange(len(index.group)), 2)
    write_index(path, type(index)(index.sources, index.fields, index.groups, index.group[again],
                                  index.digest[again]))
    return path


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_data_that_stands_twice_changes_no_number(make_store, tmp_path, store_dtype):
    """Copies are one row with one error of its code, and the averages of all pairs are the same."""
    rows = np.random.default_rng(3).standard_normal((12, 64)) + 0.3
    path = make_store(rows, groups=["de", "en", "sw"] * 4, width=4, store_dtype=store_dtype)

    def numbers():
        summary = consensus.run(path, ConsensusSettings(), Silent())
        consensus.run(path, ConsensusSettings(pair_norm="unit", name="unit"), Silent())
        entries = [scored(path, tmp_path, group_cosines=True, leave_one_out=alone)[:12]
                   for alone in (True, False)]
        return [*summary.norm, *summary.conflict.ravel(), *summary.cosine,
                compare(path, "default", "unit", Silent()).direction_cosine,
                *(number for entry in chain(*entries)
                  for number in (entry["score"], entry["error"], *entry["cosines"].values()))]

    once = numbers()
    data = path.parent / "data.jsonl"
    data.write_bytes(2 * data.read_bytes())
    twice(path)
    np.testing.assert_allclose(numbers(), once, atol=2e-6)


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_a_clusters_cohesion_counts_copies_as_equal(make_store, store_dtype):
    """Two copies have a cosine of 1, not that of two decoded rows."""
    path = make_store(np.random.default_rng(3).standard_normal((12, 64)), width=4,
                      store_dtype=store_dtype)
    once, twofold = (
        consensus.run(prepare(path), ConsensusSettings(groups="cluster:2"), Silent()
                      ).grouping.clusters
        for prepare in (Path, twice))
    for one, two in zip(once, twofold, strict=True):
        n = one.pairs
        assert two.pairs == 2 * n
        expected = (4 * n * (n - 1) * one.cohesion + 2 * n) / (2 * n * (2 * n - 1))
        assert two.cohesion == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_group_cosines_of_whole_groups_hold_nothing_of_the_code(store_dtype):
    """The group holds the decoded row, and what decoding adds to it is no agreement."""
    rows = np.random.default_rng(0).standard_normal((9, 64))
    store = memory_store(normalised(rows), np.ones(9), ["de", "en", "sw"] * 3, width=4,
                         store_dtype=store_dtype)
    scale, share, label = np.linspace(1, 2, 9), np.full(9, 1 / 3), store.column("group")
    found = consensus_of(store, scale, share, np.ones(3))
    cosines = group_cosines(store, found, members_of(store, scale, share), scale, None)
    table = product_table(store).sum(0)
    term = (label[:, None] == np.arange(3)) * (scale * share)[:, None]
    length = np.sqrt(np.diagonal(table)[:, None] * np.diagonal(term.T @ table @ term))
    np.testing.assert_allclose(cosines, table @ term / length, atol=1e-6)
