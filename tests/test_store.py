"""The store's files: whole or not there, the same bytes twice, and nothing believed unchecked."""

import errno
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from synthetic import columns, header, index_of, normalised, random_rows

from congrad_cli import writer as writer_module
from congrad_cli.codec import Codec
from congrad_cli.directory import check_directory, piped_data, remove_store
from congrad_cli.errors import StoreError
from congrad_cli.header import StoreHeader, check_same, read_header, shard_columns
from congrad_cli.progress import Silent
from congrad_cli.settings import STORE_DTYPES
from congrad_cli.store import GradientStore, require_complete, shard_files
from congrad_cli.store_index import Source, read_index, write_index
from congrad_cli.tensors import commit_file, map_arrays, pack_arrays, replace_file
from congrad_cli.writer import ShardWriter, create_store

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([[1, -2]], np.float16),
    "none": np.zeros((0, 4), np.int64),
    "bytes": np.array([255, 0, 7], np.uint8),
}


def temporaries(folder):
    return [path.name for path in folder.rglob(".*")]


# --- files -----------------------------------------------------------------------------------


def test_a_commit_is_exclusive(tmp_path):
    """Two processes may commit the same name; the second must notice, not overwrite."""
    file = tmp_path / "shard"
    commit_file(file, b"first")
    with pytest.raises(FileExistsError):
        commit_file(file, b"second")
    assert file.read_bytes() == b"first"
    assert not temporaries(tmp_path)


def test_a_replacement_gives_way_to_nothing_in_between(tmp_path):
    file = tmp_path / "consensus"
    replace_file(file, b"first")
    replace_file(file, b"second")
    assert file.read_bytes() == b"second"
    assert not temporaries(tmp_path)


@pytest.mark.parametrize("write", [commit_file, replace_file])
def test_a_failed_write_leaves_nothing(tmp_path, write, monkeypatch):
    """The disk is full, or is pulled, before the file is whole."""

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "shard", b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [commit_file, replace_file])
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_get_the_mode_of_the_umask(tmp_path, write, mask):
    """A store on a shared disk must be readable by the group; safetensors' own files are 0600."""
    before = os.umask(mask)
    try:
        write(tmp_path / "shard", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shard").stat().st_mode) == 0o666 & ~mask


# --- tensors ---------------------------------------------------------------------------------


def test_packed_tensors_are_safetensors_with_our_metadata(tmp_path):
    """Anyone may read a shard with the public library."""
    file = tmp_path / "t"
    file.write_bytes(pack_arrays(ARRAYS, {"rows": 2}))
    for found in (load_file(file), map_arrays(file)[0]):
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    metadata = map_arrays(file)[1]
    assert metadata["rows"] == 2
    assert metadata["sha256"]["a"] == hashlib.sha256(ARRAYS["a"].tobytes()).hexdigest()


def test_equal_tensors_pack_to_equal_bytes():
    """Whatever the order and the memory layout; safetensors alone writes metadata in any order."""
    metadata = {f"key{number}": number for number in range(20)}
    packed = pack_arrays(ARRAYS, metadata)
    turned = {name: np.asfortranarray(ARRAYS[name]) for name in reversed(ARRAYS)}
    assert pack_arrays(turned, dict(reversed(metadata.items()))) == packed
    assert pack_arrays(ARRAYS | {"a": ARRAYS["a"] + 1}, metadata) != packed


def raw_file(path, head, body=b"", size=None):
    """A safetensors file with any header."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + body)
    return path


def tensor(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    """A header with one tensor; 8 bytes of data fit it as it stands."""
    content = {"congrad": "{}"}
    return {"__metadata__": content,
            "t": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


def test_the_plain_header_is_accepted(tmp_path):
    """Guards the refusals below: each is one change away from this."""
    arrays, _ = map_arrays(raw_file(tmp_path / "t", tensor(), b"\0" * 8))
    assert arrays["t"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "head",
    [
        tensor(shape=[3]),
        tensor(shape=[2, 2]),
        tensor(shape=[-1, -2]),
        tensor(shape=[1 << 62, 1 << 62]),
        tensor(shape=[1 << 40], offsets=[0, 1 << 42]),
        tensor(shape=[0, 1 << 62], offsets=[0, 0]),
        tensor(shape=[0, 1 << 70], offsets=[0, 0]),
        tensor(shape=["a"]),
        tensor(shape=None),
        tensor(offsets=[8, 16]),
        tensor(offsets=[-8, 0]),
        tensor(offsets=[8, 0]),
        tensor(offsets=[0.0, 8.0]),
        tensor(offsets=[0]),
        tensor(offsets=["0", "8"]),
        tensor(dtype="F8"),
        tensor(dtype=[]),
        {"__metadata__": {"congrad": "{}"}, "t": {}},
        {"__metadata__": {"congrad": "{}"}, "t": []},
        {"__metadata__": {"congrad": "{}"}, "t": None},
        {"__metadata__": {"congrad": "not json"}},
        {"__metadata__": {"congrad": "[]"}},
        {"__metadata__": {"congrad": 1}},
        {"__metadata__": {}},
        {"__metadata__": []},
        {},
        [],
        "header",
        7,
        None,
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_headers_that_lie_are_refused(tmp_path, head):
    """A store may come from anywhere; nothing is allocated or mapped on its word alone."""
    file = raw_file(tmp_path / "shard", head, b"\0" * 8)
    with pytest.raises(StoreError, match="shard"):
        map_arrays(file)


@pytest.mark.parametrize("size", [1 << 20, 1 << 63, (1 << 64) - 1])
def test_a_header_size_beyond_the_file_is_refused(tmp_path, size):
    file = raw_file(tmp_path / "shard", tensor(), b"\0" * 8, size)
    with pytest.raises(StoreError, match="header of"):
        map_arrays(file)


def test_a_huge_header_is_refused_even_where_the_file_has_it(tmp_path):
    file = tmp_path / "shard"
    with file.open("wb") as target:
        target.write((1 << 33).to_bytes(8, "little"))
        target.truncate(1 << 34)  # sparse: takes no space
    with pytest.raises(StoreError, match="header of"):
        map_arrays(file)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    data = pack_arrays(ARRAYS, {"rows": 2})
    file = tmp_path / "shard"
    for length in [*range(16), *range(16, len(data), 11), len(data) - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(StoreError):
            map_arrays(file)


entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F16", "F32", "I64", "U8", "X", 3]),
        "shape": st.lists(st.integers(-3, 5) | st.just(1 << 64), max_size=3) | st.text(max_size=2),
        "data_offsets": st.lists(st.integers(-4, 40), max_size=3) | st.none(),
    },
)
heads = st.dictionaries(st.text(max_size=3), entries | st.none() | st.integers(), max_size=3)


@given(head=heads, metadata=st.sampled_from(["{}", "[]", "", "1"]), body=st.binary(max_size=40))
def test_any_header_gives_tensors_or_a_store_error(head, metadata, body, tmp_path_factory):
    head["__metadata__"] = {"congrad": metadata}
    file = raw_file(tmp_path_factory.getbasetemp() / "any", head, body)
    try:
        arrays, found = map_arrays(file)
    except StoreError:
        return
    assert isinstance(found, dict)
    assert sum(array.nbytes for array in arrays.values()) <= len(head) * len(body)


# --- header ----------------------------------------------------------------------------------


def test_a_header_comes_back_as_it_was(make_store):
    path = make_store(random_rows(3, 4), groups=["de", "日本", "sw"])
    found = read_header(path)
    assert read_index(path).groups == ["de", "sw", "日本"]
    assert StoreHeader.from_json(found.to_json(), path) == found


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1}, {"format": 3}, {"format": None}, {"dim": 0}, {"dim": 1 << 40}, {"dim": "8"},
        {"dim": None}, {"dim": True}, {"fingerprint": None}, {"fingerprint": []},
        {"versions": 3}, {"model": 1}, {"optional": ["row"]}, {"optional": None}, {"unknown": 1},
        {"width": 0}, {"width": -1},
        {"width": 3}, {"width": 8}, {"width": "1"},
        *({"fingerprint": {"settings": {"store_dtype": value}}}
          for value in ("int2", "", None, 8, ["int8"], {}, "float16 ")),
    ],
)
def test_a_header_of_other_kinds_is_refused(make_store, change):
    path = make_store(random_rows(1, 4))
    fields = json.loads((path / "store.json").read_bytes()) | change
    with pytest.raises(StoreError, match=r"store\.json"):
        StoreHeader.from_json(json.dumps(fields).encode(), path / "store.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_a_header_that_is_none_is_refused(tmp_path, data):
    (tmp_path / "store.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"store\.json"):
        read_header(tmp_path)


@pytest.mark.parametrize("name", ["missing", "empty", "file", "x" * 300, "nul\0nul"])
def test_what_is_no_store_is_named(tmp_path, name):
    """Whatever arrives in the pipe where a path should: a message, no traceback."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is not a store") as caught:
        GradientStore.open(tmp_path / name)
    assert "congrad sketch" in caught.value.hints[0]


# --- shards ----------------------------------------------------------------------------------


def test_rows_come_back_in_row_order_over_several_shards(make_store):
    """Batches are sorted by length and ranks interleave, so shards hold rows in any order."""
    rng = np.random.default_rng(0)
    count = 50
    order = rng.permutation(count)
    directions = random_rows(count, 8)
    norms = rng.uniform(1, 2, count)
    groups = [f"g{row % 3}" for row in range(count)]
    path = make_store(directions, norms, groups, shards=[order[:7], order[7:8], order[8:]])
    store = GradientStore.open(path)
    assert len(store) == count
    np.testing.assert_array_equal(store.row, np.arange(count))
    blocks = list(store.blocks(16))
    assert [len(block.row) for block in blocks] == [16, 16, 16, 2]
    for name, expected in (("row", np.arange(count)), ("direction", directions.astype(np.float32)),
                           ("norm", norms.astype(np.float32))):
        joined = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_allclose(joined, expected, atol=1e-3)  # directions: float16
        np.testing.assert_array_equal(joined, store.row if name == "row" else store.column(name))


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_coded_rows_come_back_decoded_and_in_row_order(make_store, store_dtype):
    rng = np.random.default_rng(0)
    directions, order = rng.standard_normal((50, 32)), rng.permutation(50)
    path = make_store(directions, shards=[order[:7], order[7:8], order[8:]],
                      width=4, store_dtype=store_dtype)
    store = GradientStore.open(path)
    assert store.header.store_dtype == store_dtype
    codec = Codec(store_dtype, 32, 4)
    expected = codec.decode(codec.encode(normalised(directions).astype(np.float32)))
    found = np.concatenate([block.direction for block in store.blocks(16)])
    np.testing.assert_array_equal(found, expected)
    for name, (kind, tail) in codec.columns().items():
        assert store.column(name).shape == (50, *tail)
        assert store.column(name).dtype == kind


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_blocks_by_label_hold_the_same_rows(make_store, store_dtype):
    """In the order of their labels, and of the rows within one."""
    rng = np.random.default_rng(0)
    order, label = rng.permutation(50), rng.integers(0, 3, 50).astype(np.int32)
    path = make_store(rng.standard_normal((50, 32)), rng.uniform(1, 2, 50),
                      shards=[order[:7], order[7:8], order[8:]], width=4, store_dtype=store_dtype)
    store = GradientStore.open(path)
    for plain, sorted_ in zip(store.blocks(16), store.blocks(16, label), strict=True):
        within = sorted_.place - sorted_.place.min()
        keys = list(zip(label[sorted_.place].tolist(), within.tolist(), strict=True))
        assert keys == sorted(keys)
        assert sorted(sorted_.place.tolist()) == plain.place.tolist()
        for name in ("row", "direction", "norm"):
            np.testing.assert_array_equal(getattr(sorted_, name), getattr(plain, name)[within])


def test_a_store_from_before_there_was_a_choice_is_float16(make_store):
    """Its header does not say so, and its consensus files do not know of what codes add."""
    path = make_store(random_rows(3, 4), groups=["de", "en", "en"])
    assert b"store_dtype" not in (path / "store.json").read_bytes()
    assert GradientStore.open(path).header.codec.exact


@pytest.mark.parametrize("claimed", STORE_DTYPES)
@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_rows_of_another_code_than_the_header_says_are_refused(make_store, store_dtype, claimed):
    """Bits read as halves of bytes would be rows of noise."""
    path = make_store(random_rows(3, 16), width=2, store_dtype=store_dtype)
    fields = json.loads((path / "store.json").read_bytes())
    fields["fingerprint"]["settings"]["store_dtype"] = claimed
    (path / "store.json").write_text(json.dumps(fields))
    if claimed == store_dtype:
        assert len(GradientStore.open(path)) == 3
    else:
        refuse(path, "belongs to another store")
    (file,) = shard_files(path)
    arrays = {name: np.array(array) for name, array in map_arrays(file)[0].items()}
    file.write_bytes(pack_arrays(arrays, {"fingerprint": fields["fingerprint"]}))
    if claimed != store_dtype:
        refuse(path, "missing or has another shape")


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("store_dtype", ["int8", "int4", "1bit"])
def test_a_scale_that_is_no_length_is_refused(make_store, store_dtype, scale):
    path = make_store(random_rows(3, 16), width=2, store_dtype=store_dtype)
    (file,) = shard_files(path)
    arrays, metadata = map_arrays(file)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    arrays["scale"].flat[1] = scale
    file.write_bytes(pack_arrays(arrays, metadata))
    with pytest.raises(StoreError, match="scale of a row"):
        list(GradientStore.open(path).blocks())


def test_a_store_without_shards_is_empty_but_open(make_store):
    store = GradientStore.open(make_store(random_rows(2, 4), shards=[]))
    assert len(store) == 0
    assert list(store.blocks()) == []
    assert store.column("direction").shape == (0, 4)


def test_writers_number_their_shards_on_and_clean_up_after_a_kill(make_store):
    path = make_store(random_rows(4, 4), shards=[[0], [1]])
    leftover = path / "shards" / ".r000-00002.safetensors.99.tmp"
    others = path / "shards" / ".r001-00000.safetensors.99.tmp"
    for file in (leftover, others):
        file.touch()
    writer = ShardWriter(path, read_header(path))
    assert not leftover.exists()
    assert others.exists()  # another rank may be writing it just now
    writer.append(columns([2, 3], random_rows(4, 4), np.ones(4), read_index(path).digest))
    assert len(writer) == 2
    writer.commit()
    writer.commit()  # nothing new: no empty shard
    assert [file.name for file in shard_files(path)] == [
        "r000-00000.safetensors", "r000-00001.safetensors", "r000-00002.safetensors"]
    assert GradientStore.open(path).row.tolist() == [0, 1, 2, 3]


def refuse(path, message):
    with pytest.raises(StoreError, match=message):
        GradientStore.open(path)


def test_a_pair_that_two_ranks_stored_counts_once(make_store):
    """They may both have been at it when a run was started with another number of ranks."""
    path = make_store(random_rows(3, 4), shards=[[0, 1], [1, 2]])
    store = GradientStore.open(path)
    assert store.row.tolist() == [0, 1, 2]
    assert [len(block.row) for block in store.blocks()] == [3]


def rewritten(path, **changes):
    """The store with changed tensors in its one shard."""
    (file,) = shard_files(path)
    arrays, metadata = map_arrays(file)
    arrays = {name: np.array(array) for name, array in arrays.items()} | changes
    file.write_bytes(pack_arrays(arrays, metadata))
    return path


@pytest.mark.parametrize(("name", "value", "message"), [
    ("norm", np.nan, "not finite"), ("norm", np.inf, "not finite"), ("norm", 0, "cannot be"),
    ("norm", -1, "cannot be"), ("logp", np.nan, "not finite"), ("tokens", -1, "cannot be"),
    ("digest", 0, "stored twice"),
])
def test_columns_without_sense_are_refused(make_store, name, value, message):
    path = make_store(random_rows(3, 4))
    column = np.array(map_arrays(shard_files(path)[0])[0][name])
    column[:2] = value
    refuse(rewritten(path, **{name: column}), message)


def test_a_row_that_is_not_finite_is_refused_when_it_is_read(make_store):
    path = make_store(random_rows(3, 4))
    direction = np.array(map_arrays(shard_files(path)[0])[0]["direction"])
    direction[1, 2] = np.nan
    store = GradientStore.open(rewritten(path, direction=direction))
    with pytest.raises(StoreError, match="a row is not finite"):
        list(store.blocks())


@pytest.mark.parametrize("part", ["model", "settings"])
def test_a_shard_of_another_store_is_refused(make_store, part):
    """Copied together by hand, or left over: sketches of two models must never be averaged."""
    path, other = (make_store(random_rows(2, 4), shards=[[row]]) for row in (0, 1))
    about = json.loads((other / "store.json").read_bytes())
    about["fingerprint"][part] = {"is": "different"}
    writer = ShardWriter(path, StoreHeader.from_json(json.dumps(about).encode(), other))
    writer.append(columns([1], random_rows(2, 4), np.ones(2)))
    writer.commit()
    refuse(path, "belongs to another store")


@pytest.mark.parametrize(
    ("store_dtype", "name"),
    [("float16", name) for name in shard_columns(header(4))]
    + [(code, name) for code in STORE_DTYPES[1:] for name in ("direction", "scale")],
)
@pytest.mark.parametrize("damage", ["missing", "dtype", "shape", "length"])
def test_a_shard_without_the_contracts_tensors_is_refused(make_store, store_dtype, name, damage):
    path = make_store(random_rows(3, 4), store_dtype=store_dtype)
    (file,) = shard_files(path)
    arrays, metadata = map_arrays(file)
    array = np.array(arrays[name])
    changed = {
        "missing": {},
        "dtype": {name: array.astype(np.float64)},
        "shape": {name: np.stack([array, array], axis=-1)},
        "length": {name: array[:-1]},
    }[damage]
    rest = {key: np.array(value) for key, value in arrays.items() if key != name}
    file.write_bytes(pack_arrays(rest | changed, metadata))
    refuse(path, "missing or has another shape")


@pytest.mark.parametrize("metadata", [[], 3, "x"])
def test_a_shard_with_odd_metadata_is_refused(make_store, metadata):
    path = make_store(random_rows(1, 4))
    (file,) = shard_files(path)
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    head["__metadata__"]["congrad"] = json.dumps(metadata)
    raw_file(file, head, data[8 + size :])
    refuse(path, str(file.name))


# --- skipped and completeness ----------------------------------------------------------------


def test_skipped_pairs_count_as_done_and_are_listed_by_row(make_store):
    store = GradientStore.open(make_store(random_rows(4, 4), skipped=[3, 1]))
    require_complete(store, False, Silent())
    assert store.skipped() == {1: "no-room", 3: "no-room"}
    assert {row: entry["line"] for row, entry in store.skipped_entries().items()} == {1: 2, 3: 4}


def test_missing_pairs_make_a_store_incomplete(make_store):
    store = GradientStore.open(make_store(random_rows(5, 4), shards=[[0, 2]], skipped=[1]))
    with pytest.raises(StoreError, match="incomplete: 3 of 5 pairs") as caught:
        require_complete(store, False, Silent())
    assert "same sketch command again" in caught.value.hints[0]


@pytest.mark.parametrize("command", ["consensus", "filter"])
def test_commands_refuse_an_incomplete_store(make_store, forked_congrad, command):
    path = make_store(random_rows(3, 4), shards=[[0]])
    done = forked_congrad(command, path)
    assert done.returncode == 4
    assert b"incomplete: 1 of 3 pairs" in done.stderr
    assert done.stdout == b""


def test_a_torn_last_line_of_skipped_is_ignored_then_repaired(make_store):
    """A killed run leaves half a line; the next run's lines must not grow onto it."""
    path = make_store(random_rows(4, 4), shards=[[0]], skipped=[1])
    file = path / "skipped" / "r000.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"code": "no-room", "row": 2, "li')
    assert list(GradientStore.open(path).skipped()) == [1]
    writer = ShardWriter(path, read_header(path))
    for row in (2, 3):
        digest = read_index(path).digest[row].tobytes()
        writer.skip(digest, "data.jsonl", row + 1, "no-room", "too long")
    writer.commit()
    assert list(GradientStore.open(path).skipped()) == [1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [b"[]", b"3", b"null", b"{}", b'{"row": 9, "code": "a"}', b'{"row": -1, "code": "a"}',
     b'{"row": "1", "code": "a"}', b'{"row": 1}', b'{"row": 0, "code": "a"}', b"\xff",
     b"[" * 99999],
)
def test_foreign_lines_of_skipped_are_no_pairs(make_store, line):
    """Neither a crash nor a pair: row 1 stays missing, and a sketched row is never skipped."""
    path = make_store(random_rows(2, 4), shards=[[0]])
    (path / "skipped" / "r000.jsonl").write_bytes(line + b"\n")
    store = GradientStore.open(path)
    assert store.skipped() == {}
    with pytest.raises(StoreError, match="incomplete: 1 of 2"):
        require_complete(store, False, Silent())


# --- where stores live -----------------------------------------------------------------------


def test_the_same_store_may_be_created_again_and_another_may_not(make_store):
    path = make_store(random_rows(2, 4))
    about = read_header(path)
    create_store(path, about)
    other = json.loads(about.to_json())
    other["fingerprint"]["settings"] = {"dim": 4, "seed": 1}
    with pytest.raises(StoreError, match="made with other settings") as caught:
        create_store(path, StoreHeader.from_json(json.dumps(other).encode(), path))
    assert "store: seed 0" in caught.value.hints
    assert "now:   seed 1" in caught.value.hints
    assert any("--overwrite" in hint for hint in caught.value.hints)
    assert read_header(path) == about


@pytest.mark.parametrize(
    ("part", "what"), [("settings", "other settings"), ("model", "another model")])
def test_the_part_that_differs_is_named(part, what, tmp_path):
    before, now = header(4), header(4)
    now.fingerprint[part] = "new"
    with pytest.raises(StoreError, match=what):
        check_same(tmp_path, before, now)


def test_overwriting_removes_the_store_and_nothing_else(make_store):
    """A user's own file in the folder, or a link to elsewhere, must survive --overwrite."""
    path = make_store(random_rows(2, 4), skipped=[1])
    (path / "consensus" / "default.safetensors").touch()
    (path / "notes.txt").write_text("mine")
    (path / "shards" / "mine.safetensors").touch()
    check_directory(path)
    assert read_index(path).rows == 2
    remove_store(path)
    left = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert left == {"notes.txt", "shards/mine.safetensors"}


def test_overwriting_keeps_every_file_of_the_data(make_store):
    """Piped data is the user's only copy, whatever other files are sketched with it."""
    path = make_store(random_rows(2, 4))
    (path / "source").mkdir()
    piped = [path / "source" / f"stdin-{name}.jsonl" for name in ("a", "b", "c")]
    for file in piped:
        file.touch()
    remove_store(path, keep=[path.parent / "new.jsonl", piped[0], piped[2]])
    assert [file.exists() for file in piped] == [True, False, True]


def test_what_is_not_a_store_is_never_written_into(tmp_path):
    """--store . in a home directory must not end in tears."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="exists and is not a store"):
        check_directory(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        check_directory(tmp_path / "thesis.tex")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_piped_data_is_kept_byte_for_byte_by_the_store_made_from_it(tmp_path):
    data = b"\xef\xbb\xbf{}\r\n\n{}"
    path = tmp_path / "s.congrad"
    with piped_data(path, io.BytesIO(data)) as file:
        assert file.read_bytes() == data
        create_store(path, header(4))
        source = Source("stdin", str(file.relative_to(path)), 2)
        write_index(path, replace(index_of(["de", "de"]), sources=[source]))
    assert file.read_bytes() == data
    assert not temporaries(tmp_path)

    with piped_data(path, io.BytesIO(b"other")) as other:
        assert other != file and other.read_bytes() == b"other"
    assert not other.exists(), "no store was made from it"
    assert file.read_bytes() == data, "the only copy of the lines that filter gives back"

    with piped_data(path, io.BytesIO(b"more")) as newer:
        source = Source("stdin", str(newer.relative_to(path)), 1)
        write_index(path, replace(index_of(["de"]), sources=[source]))
    assert newer.exists()
    assert not file.exists(), "nothing of it is in the store's data any more"


def test_equal_data_piped_in_twice_at_once_stays_for_the_run_that_came_first(tmp_path):
    """The second is refused by the lock, while the first has not written its index yet."""
    path = tmp_path / "s.congrad"
    with piped_data(path, io.BytesIO(b"x")) as first:
        with pytest.raises(ValueError, match="locked"), piped_data(path, io.BytesIO(b"x")):
            raise ValueError("locked")
        assert first.read_bytes() == b"x"
    assert not first.exists()


def test_piped_data_goes_when_the_sketch_fails_and_the_place_stays_usable(tmp_path):
    path = tmp_path / "s.congrad"
    with pytest.raises(ValueError, match="no"), piped_data(path, io.BytesIO(b"x")):
        raise ValueError("no")
    assert not [file for file in path.rglob("*") if file.is_file()]
    check_directory(path)


def test_a_shard_is_full_by_rows_or_by_bytes(tmp_path, monkeypatch):
    """Rows may be large: what waits for a commit must not outgrow memory."""
    about = header(8)
    create_store(tmp_path / "s", about)
    directions = random_rows(40, 8)

    def rows_until_full() -> int:
        writer = ShardWriter(tmp_path / "s", about)
        for row in range(40):
            writer.append(columns([row], directions, np.ones(40)))
            if writer.full:
                writer.commit()
                assert not writer.full and len(writer) == 0
                return row + 1
        return 0

    assert rows_until_full() == 0
    monkeypatch.setattr(writer_module, "SHARD_ROWS", 7)
    assert rows_until_full() == 7
    one = sum(part.nbytes for part in columns([0], directions, np.ones(40)).values())
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 3 * one)
    assert rows_until_full() == 3


OPEN_MANY = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from congrad_cli.store import GradientStore
store = GradientStore.open(Path(sys.argv[1]))
print(sum(len(block.direction) for block in store.blocks(7)), store.column("norm").sum())
"""


def test_a_store_may_have_more_shards_than_a_process_may_open_files(make_store):
    directions = random_rows(90, 8)
    path = make_store(directions, groups=["de"] * 90, shards=[[row] for row in range(90)])
    done = subprocess.run(
        [sys.executable, "-c", OPEN_MANY, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["90", "90.0"], done.stderr


def test_a_machine_without_resources_is_not_a_damaged_store(make_store, monkeypatch):
    path = make_store(random_rows(3, 8))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        map_arrays(next((path / "shards").iterdir()))
