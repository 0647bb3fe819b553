"""The index: which pairs the data has now, and where they are in the store."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import columns, digests_of, index_of, random_rows

from congrad_cli.errors import StoreError
from congrad_cli.header import read_header
from congrad_cli.progress import Silent
from congrad_cli.store import GradientStore, require_complete
from congrad_cli.store_index import (
    FILE,
    NO_GROUP,
    Source,
    find_digests,
    first_of_each,
    read_index,
    write_index,
)
from congrad_cli.tensors import map_arrays, pack_arrays
from congrad_cli.writer import ShardWriter

digest = st.binary(min_size=16, max_size=16) | st.sampled_from(
    [b"\0" * 16, b"a" + b"\0" * 15, b"a" * 15 + b"\0", b"\xff" * 16])


def array(digests):
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


@given(wanted=st.lists(digest, max_size=8), known=st.lists(digest, max_size=8))
def test_digests_are_found_as_a_dictionary_finds_them(wanted, known):
    """Zeros at the end are no padding here."""
    places = {}
    for place, one in enumerate(known):
        places.setdefault(one, place)
    assert find_digests(array(wanted), array(known)).tolist() == [
        places.get(one, -1) for one in wanted]
    assert first_of_each(array(known)).tolist() == [
        places[one] == place for place, one in enumerate(known)]


def test_an_index_comes_back_and_equal_ones_are_equal_bytes(tmp_path):
    index = index_of(["de", "日本", "de"], source=tmp_path / "d.jsonl")
    write_index(tmp_path, index)
    data = (tmp_path / FILE).read_bytes()
    found = read_index(tmp_path)
    assert (found.sources, found.fields, found.groups) == (
        index.sources, index.fields, index.groups)
    np.testing.assert_array_equal(found.group, index.group)
    np.testing.assert_array_equal(found.digest, index.digest)
    write_index(tmp_path, found)
    assert (tmp_path / FILE).read_bytes() == data


def test_data_may_change_around_the_stored_pairs(make_store):
    """Order, groups and size are the index's; the shards stay as they are."""
    directions = random_rows(4, 8)
    path = make_store(directions, groups=["a", "a", "b", "b"])
    before = GradientStore.open(path)
    rows = {one.tobytes(): row for one, row in zip(before.index.digest, directions, strict=True)}
    old = before.index.digest
    new = digests_of(9)[8:]
    now = index_of(["x", "y", "x", "x", "y"], np.concatenate([old[[3, 1]], new, old[[0, 3]]]))
    write_index(path, now)
    store = GradientStore.open(path)
    assert store.row.tolist() == [0, 1, 3, 4]  # the third record is new
    assert store.column("group").tolist() == [0, 1, 0, 1]
    (block,) = store.blocks()
    expected = [rows[one.tobytes()] for one in now.digest[[0, 1, 3, 4]]]
    np.testing.assert_array_equal(block.direction, np.float32(expected))
    with pytest.raises(StoreError, match="4 of 5 pairs"):
        require_complete(store, False, Silent())


def test_rejected_items_have_no_row_whatever_their_digest(make_store):
    path = make_store(random_rows(3, 4))
    index = read_index(path)
    write_index(path, replace(index, group=np.array([0, NO_GROUP, 0], np.int32)))
    assert GradientStore.open(path).row.tolist() == [0, 2]


def test_a_pair_that_stands_twice_in_the_data_is_stored_once(make_store):
    path = make_store(random_rows(2, 4))
    index = read_index(path)
    write_index(path, index_of(["en"] * 3, index.digest[[0, 1, 0]]))
    store = GradientStore.open(path)
    assert store.row.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(store.column("direction")[0], store.column("direction")[2])


def test_a_skipped_pair_is_known_by_its_digest(make_store):
    path = make_store(random_rows(3, 4), skipped=[1])
    index = read_index(path)
    write_index(path, index_of(["en"] * 3, index.digest[[2, 0, 1]]))
    assert GradientStore.open(path).skipped() == {2: "no-room"}


@pytest.mark.parametrize("change", [
    {"sources": 3}, {"sources": [{}]}, {"sources": [{"name": "a", "path": 3, "records": 1}]},
    {"sources": [{"name": "a", "path": "../../etc/passwd", "records": 1}]},
    {"groups": [1]}, {"groups": None}, {"groups": []}, {"fields": {"unknown": 1}},
    {"fields": {"prompt_field": 3}}, {"fields": {"group_by": [1]}}, {"fields": None},
])
def test_an_index_of_other_kinds_is_refused(make_store, change):
    path = make_store(random_rows(2, 4))
    arrays, about = map_arrays(path / FILE)
    arrays = {name: np.array(value) for name, value in arrays.items()}
    (path / FILE).write_bytes(pack_arrays(arrays, {**about, **change}))
    with pytest.raises(StoreError, match="index"):
        read_index(path)


@pytest.mark.parametrize("arrays", [
    {}, {"group": np.zeros(2, np.int32)}, {"group": np.zeros(2), "digest": digests_of(2)},
    {"group": np.zeros(3, np.int32), "digest": digests_of(2)},
    {"group": np.array([0, 1], np.int32), "digest": digests_of(2)},
    {"group": np.array([0, -2], np.int32), "digest": digests_of(2)},
    {"group": np.zeros(2, np.int32), "digest": np.zeros((2, 8), np.uint8)},
])
def test_an_index_with_other_tensors_is_refused(make_store, arrays):
    path = make_store(random_rows(2, 4))
    (path / FILE).write_bytes(pack_arrays(arrays, map_arrays(path / FILE)[1]))
    with pytest.raises(StoreError, match="index"):
        read_index(path)


def test_a_store_whose_index_was_lost_says_how_to_get_it_back(make_store):
    path = make_store(random_rows(2, 4))
    (path / FILE).unlink()
    with pytest.raises(StoreError, match="which data") as caught:
        GradientStore.open(path)
    assert "same sketch command" in caught.value.hints[0]


def test_entries_of_the_index_are_data_not_code(tmp_path):
    """What a hostile file may hold is JSON and tensors."""
    write_index(tmp_path, index_of(["de"]))
    about = map_arrays(tmp_path / FILE)[1]
    assert json.loads(json.dumps(about)) == about
    assert isinstance(read_index(tmp_path).sources, list)
    assert Source("a", "b", 1) == Source("a", "b", 1, "", None)


def test_shards_that_know_no_row_of_the_data_leave_the_store_empty(make_store):
    path = make_store(random_rows(2, 4))
    write_index(path, index_of(["de"] * 2, digests_of(2)))
    writer = ShardWriter(path, read_header(path))
    assert len(GradientStore.open(path)) == 0
    writer.append(columns([0], random_rows(2, 4), np.ones(2)))
    writer.commit()
    assert GradientStore.open(path).row.tolist() == [0]


@pytest.mark.parametrize("command", ["consensus", "filter"])
def test_a_growing_store_may_be_read_where_that_is_asked_for(make_store, forked_congrad, command):
    path = make_store(random_rows(6, 8), groups=["a", "b"] * 3, shards=[[0, 1, 2, 3]])
    if command == "filter":
        assert forked_congrad("consensus", path, "--allow-partial").returncode == 0
    refused = forked_congrad(command, path)
    assert refused.returncode == 4
    assert b"--allow-partial" in refused.stderr
    done = forked_congrad(command, path, "--allow-partial")
    assert done.returncode == 0, done.stderr
    assert b"incomplete: 4 of 6 pairs" in done.stderr
    if command == "filter":
        assert b"not-sketched 2" in done.stderr
