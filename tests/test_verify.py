"""``congrad verify``: no byte of a store changes unnoticed, and what is damaged is made again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st
from synthetic import random_rows, write_projection, write_store

from congrad_cli.codec import Codec
from congrad_cli.digests import check_header, check_tensors
from congrad_cli.errors import StoreError
from congrad_cli.header import read_header
from congrad_cli.locks import RankLock
from congrad_cli.progress import Silent
from congrad_cli.repair import verify
from congrad_cli.settings import STORE_DTYPES
from congrad_cli.store import GradientStore, shard_files
from congrad_cli.tensors import map_arrays, pack_arrays
from congrad_cli.verify import LENGTH_TOLERANCE, check_rows
from congrad_cli.writer import ShardWriter

DIM, WIDTH = 64, 4


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    """A store of two shards; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("verify")
    path = write_store(folder, random_rows(7, DIM), groups=["de", "en"] * 3 + ["fr"],
                       shards=[range(4), range(4, 7)], width=WIDTH, store_dtype="int4")
    write_projection(path)
    return path


@pytest.fixture
def store(synthetic, tmp_path) -> Path:
    return Path(shutil.copytree(synthetic, tmp_path / "s"))


def check(path, quick=False, repair=False):
    return verify(path, quick, repair, Silent())


def problems(path, **how):
    return [(finding.file, finding.what) for finding in check(path, **how).problems]


def notes(path):
    return {finding.kind for finding in check(path).findings if not finding.problem}


def shard(path, number=0) -> Path:
    return shard_files(path)[number]


def flip(file: Path, place: int, bits: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= bits
    file.write_bytes(data)


def rewrite(file: Path, change=None, **about) -> None:
    """Write a file again with other arrays or metadata, and digests that are right."""
    arrays, metadata = map_arrays(file)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    if change is not None:
        change(arrays)
    data = pack_arrays(arrays, {name: value for name, value in (metadata | about).items()
                                if name not in ("sha256", "digest")})
    file.unlink()
    file.write_bytes(data)


def test_a_store_that_is_as_it_was_written_has_no_findings(store):
    report = check(store)
    assert report.findings == []
    assert (report.shards, report.pairs) == (2, 7)
    assert report.size == sum(file.stat().st_size for file in shard_files(store))


@given(place=st.integers(0, 1 << 20), bits=st.integers(1, 255))
def test_any_changed_byte_of_a_shard_is_found(synthetic, tmp_path_factory, place, bits):
    copy = Path(shutil.copytree(synthetic, tmp_path_factory.mktemp("flip") / "s"))
    flip(shard(copy), place, bits)
    found = check(copy)
    assert [finding.file for finding in found.problems] == ["shards/r000-00000.safetensors"]
    assert found.pairs == 3


@given(name=st.sampled_from(["shards/r000-00000", "index", "projection"]),
       place=st.integers(0, 3000), value=st.sampled_from(b"\t 1e\"") | st.integers(0, 255))
def test_any_changed_byte_of_any_file_is_found(synthetic, tmp_path_factory, name, place, value):
    """Most of them in the header, and changed to what JSON may take for the same."""
    data = bytearray((synthetic / f"{name}.safetensors").read_bytes())
    file = tmp_path_factory.mktemp("byte") / "file"
    place %= len(data)
    same = data[place] == value
    data[place] = value
    file.write_bytes(data)
    if same:
        check_tensors(check_header(file))
    else:
        with pytest.raises(StoreError):
            check_tensors(check_header(file))


@given(share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found(synthetic, tmp_path_factory, share):
    copy = Path(shutil.copytree(synthetic, tmp_path_factory.mktemp("cut") / "s"))
    with shard(copy).open("r+b") as file:
        file.truncate(int(share * shard(copy).stat().st_size))
    for quick in (False, True):  # the header tells; no byte of the rows need be read
        assert [name for name, _ in problems(copy, quick=quick)] == [
            "shards/r000-00000.safetensors"]


def test_bytes_behind_the_end_are_found(store):
    with shard(store).open("ab") as file:
        file.write(b"\0")
    assert problems(store) == [("shards/r000-00000.safetensors", (
        "damaged or not of a store (bytes behind its last tensor)"))]


def test_quick_leaves_the_rows_alone(store):
    flip(shard(store), -1)
    assert problems(store, quick=True) == []
    ((name, what),) = problems(store)
    assert name == "shards/r000-00000.safetensors" and what.endswith("is not as it was written")


@pytest.mark.parametrize("code", STORE_DTYPES)
def test_rows_of_any_code_are_unit_vectors_and_others_are_found(code, tmp_path):
    """Tails as heavy as numbers have, blocks odd and even: the bounds hold for what was coded."""
    rng = np.random.default_rng(3)
    for width in (1, 4, 32, 192 // 3):
        rows = np.concatenate([rng.standard_t(1.5, (20, 192)), np.eye(192)[:3], np.ones((1, 192)),
                               np.repeat(np.eye(16)[:2], 12, axis=1)])
        folder = tmp_path / str(width)
        folder.mkdir()
        path = write_store(folder, rows, width=width, store_dtype=code)
        file = check_header(shard(path))
        codec = read_header(path).codec
        check_rows(file, codec)
        decoded = codec.decode(file.arrays).astype(np.float64)
        np.testing.assert_allclose(codec.squares(file.arrays), (decoded**2).sum(1), rtol=1e-5)
    name = "direction" if code == "float16" else "scale"

    def halve(arrays):
        arrays[name][7] = arrays[name][7] / 2

    write_projection(path)
    rewrite(shard(path), halve)
    ((_, what),) = problems(path)
    assert what.startswith("row 7 has length")


def test_a_length_is_checked_as_closely_as_the_code_allows():
    rows = random_rows(5, 512).astype(np.float32)
    for code in ("float16", "int8", "int4"):
        codec = Codec(code, 512, 8)
        assert (abs(np.sqrt(codec.squares(codec.encode(rows))) - 1) < LENGTH_TOLERANCE).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1])
def test_numbers_that_cannot_be_are_found_though_their_digests_are_right(store, bad):
    def change(arrays):
        arrays["scale"][2, 1] = bad

    rewrite(shard(store), change)
    assert problems(store)[0][1] == "the scale of a row is no length"


def test_a_shard_of_another_store_is_set_aside_and_a_foreign_header_is_not(store):
    other = read_header(store).fingerprint | {"model": {"weights": "other"}}
    rewrite(shard(store), fingerprint=other)
    assert problems(store) == [("shards/r000-00000.safetensors", "belongs to another store")]
    header = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps(header | {"fingerprint": other}))
    (store / "projection.safetensors").unlink()
    rewrite(shard(store), fingerprint=read_header(store).fingerprint | {"model": {"weights": "x"}})
    report = check(store, repair=True)
    assert "its fingerprint is that of none of the 2 shards" in [
        finding.what for finding in report.open]
    assert len(shard_files(store)) == 2 and not report.moved


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"null", b'{"format": 2}', b'{"format": 1}', b"\xff"])
def test_a_header_that_cannot_be_read_is_one_problem(store, content):
    (store / "store.json").write_bytes(content)
    report = check(store, repair=True)
    assert [finding.file for finding in report.open] == ["store.json"]
    assert len(shard_files(store)) == 2


def test_what_is_no_store_is_said_in_a_sentence(congrad, tmp_path):
    for command in ("verify", "show"):
        done = congrad(command, tmp_path)
        assert done.returncode == 4
        assert done.stderr.startswith(f"congrad: error: {tmp_path} is not a store:".encode())


HOSTILE = {
    "huge header": (1 << 62).to_bytes(8, "little") + b"{}",
    "no metadata": (2).to_bytes(8, "little") + b"{}",
    "nesting": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "nothing": b"",
    "a few bytes": b"abc",
}


def forged(tensors, about=b"{}"):
    header = {"__metadata__": {"congrad": about.decode()}, **tensors}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + bytes(8)


@pytest.mark.parametrize("content", [
    *HOSTILE.values(),
    forged({"norm": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}),
    forged({"norm": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}),
    forged({"norm": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}),
    forged({"norm": {"dtype": "F32", "shape": [0, 1 << 70], "data_offsets": [0, 0]}}),
    forged({"norm": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8.0]}}),
    forged({"norm": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}),
    forged({"norm": {"dtype": "F32", "shape": [2], "data_offsets": None}}),
    forged({"norm": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
           b'{"sha256": ["norm"], "digest": 1}'),
])
@pytest.mark.parametrize(
    "name", ["shards/r000-00000", "index", "projection", "consensus/default"])
def test_hostile_files_are_problems_and_no_crash(store, name, content):
    file = store / f"{name}.safetensors"
    file.unlink(missing_ok=True)
    file.write_bytes(content)
    assert [found for found, _ in problems(store)] == [f"{name}.safetensors"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: Path(path).symlink_to("gone")])
def test_what_is_no_regular_file_is_never_opened(store, make):
    names = ["shards/r000-00007", "index", "consensus/default"]
    for name in names:
        (store / f"{name}.safetensors").unlink(missing_ok=True)
        make(store / f"{name}.safetensors")
    make(store / "skipped" / "r007.jsonl")
    report = check(store, repair=True)
    assert {finding.file.split(".")[0] for finding in report.problems} == set(names)
    assert not report.open


def test_pairs_stored_twice_are_a_note(store):
    shutil.copy(shard(store), store / "shards" / "r001-00000.safetensors")
    assert problems(store) == [] and notes(store) == {"twice"}


def test_what_a_killed_run_leaves_is_removed_and_what_a_live_one_writes_is_not(store):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename.replace(".", "-")[:24]
    left = [store / "shards" / f".r000-00002.safetensors.0123abcd.{host}.{dead.pid}.tmp",
            store / f".index.safetensors.0123abcd.{host}.{dead.pid}.tmp"]
    mine = store / f".index.safetensors.0123abcd.{host}.{os.getpid()}.tmp"
    theirs = store / f".index.safetensors.0123abcd.another.{dead.pid}.tmp"
    for file in (*left, mine, theirs):
        file.write_bytes(b"x")
    assert problems(store) == [] and notes(store) == {"temporary"}
    report = check(store, repair=True)
    assert sorted(report.removed) == sorted(str(file.relative_to(store)) for file in left)
    assert not any(file.exists() for file in left) and mine.exists() and theirs.exists()


def test_a_store_that_is_being_written_is_not_repaired(store):
    flip(shard(store), -1)
    with RankLock(store, 0, 1):
        assert notes(store) == {"locks", "incomplete"}
        with pytest.raises(StoreError, match="is being written"):
            check(store, repair=True)
    assert len(shard_files(store)) == 2


def test_a_quarantined_file_never_gives_way_to_another(store):
    first = shard(store)
    for number in range(3):
        first.write_bytes(str(number).encode())
        assert check(store, repair=True).open == []
    kept = {file.name: file.read_bytes() for file in (store / "quarantine").iterdir()}
    assert kept == {"r000-00000.safetensors": b"0", "r000-00000.1.safetensors": b"1",
                    "r000-00000.2.safetensors": b"2"}


def test_a_lost_projection_cannot_be_repaired_here(store):
    """A new one may be another: rows made with it would not fit those that are there."""
    file = store / "projection.safetensors"
    flip(file, -1)
    assert [finding.file for finding in check(store, repair=True).open] == [file.name]
    assert file.exists()
    file.unlink()
    assert problems(store) == [(file.name, "it is missing; no row can be added without it")]


def test_data_lists_and_strangers_are_notes(store, tmp_path):
    (store / "skipped" / "r000.jsonl").write_bytes(b'{"code": "x"}\n{"co')
    (store / "notes.txt").write_text("mine")
    (store / "shards" / "x.safetensors").write_text("mine")
    data = GradientStore.open(store).index.sources[0].path
    before = Path(data).read_bytes()
    try:
        Path(data).write_bytes(before + before.splitlines()[0] + b"\n")
        report = check(store)
        assert {(finding.file, finding.kind) for finding in report.findings} == {
            ("skipped/r000.jsonl", "skipped"), ("notes.txt", "foreign"),
            ("shards/x.safetensors", "foreign"), ("data.jsonl", "data")}
        assert "has 8 records now, and had 7" in report.findings[1].what
        assert not report.problems
    finally:
        Path(data).write_bytes(before)


def test_missing_rows_are_a_note(store):
    shard(store).unlink()
    assert notes(store) == {"incomplete"}


def test_a_consensus_of_other_pairs_is_a_note_and_a_changed_one_a_problem(store, congrad):
    assert congrad("consensus", store).returncode == 0
    assert check(store).findings == []
    file = store / "consensus" / "default.safetensors"
    whole = file.read_bytes()
    at = whole.index(b"orders") + 10  # among the settings, which no tensor's digest covers
    assert whole[at : at + 2] == b"32"
    file.write_bytes(whole[:at] + b"33" + whole[at + 2 :])
    assert [name for name, _ in problems(store)] == ["consensus/default.safetensors"]
    report = check(store, repair=True)
    assert report.moved == {"consensus/default.safetensors":
                            "quarantine/consensus-default.safetensors"}
    file.write_bytes(whole)
    shard(store).unlink()
    assert notes(store) == {"incomplete", "consensus"}


def test_json_says_what_was_found_and_where_it_went(store, congrad):
    flip(shard(store), -1)
    done = congrad("verify", store, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 4 and not found["ok"]
    assert found["schema"] == "congrad.verify/1"
    assert (found["shards"], found["pairs"]) == (1, 3)
    assert found["problems"][0]["file"] == "shards/r000-00000.safetensors"
    assert b"congrad: error: shards/r000-00000.safetensors: tensor 'direction'" in done.stderr
    done = congrad("verify", store, "--json", "--repair")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"]
    assert found["problems"][0]["moved_to"] == "quarantine/r000-00000.safetensors"
    assert b"run the same sketch command again" in done.stderr
    done = congrad("verify", stdin=bytes(store) + b"\n")
    assert (done.returncode, done.stdout[:19]) == (0, b"OK: 1 shard, 3 pair")


def test_a_flipped_byte_is_found_and_its_rows_come_back_as_they_were(
    forked_congrad, small_pairs, tiny_model, store_copy
):
    """The same sketch command makes just what was set aside, the same bytes row by row."""
    header, whole = read_header(store_copy), shard(store_copy)
    arrays, _ = map_arrays(whole)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    whole.unlink()
    writer = ShardWriter(store_copy, header)  # the store's rows, in two shards
    for part in (slice(0, 7), slice(7, None)):
        writer.append({name: array[part] for name, array in arrays.items()})
        writer.commit()
    before = rows_by_digest(store_copy)
    assert forked_congrad("verify", store_copy).returncode == 0
    flip(shard(store_copy), 5000)
    done = forked_congrad("verify", store_copy)
    assert done.returncode == 4 and b"r000-00000.safetensors" in done.stderr
    assert forked_congrad("verify", store_copy, "--repair").returncode == 0
    assert len(rows_by_digest(store_copy)) == len(before) - 7
    done = forked_congrad(
        "sketch", small_pairs, "--model", tiny_model, "--store", store_copy, *SMALL)
    assert done.returncode == 0, done.stderr.decode()
    assert len(map_arrays(shard_files(store_copy)[-1])[0]["norm"]) == 7
    assert rows_by_digest(store_copy) == before
    assert forked_congrad("verify", store_copy).stdout.startswith(b"OK: 2 shards, 24 pairs")


def rows_by_digest(path):
    """The bytes of every stored row, by the digest of its pair."""
    found = {}
    for file in shard_files(path):
        arrays, _ = map_arrays(file)
        for place, digest in enumerate(arrays["digest"]):
            found[bytes(digest)] = {name: array[place].tobytes() for name, array in arrays.items()}
    return found
