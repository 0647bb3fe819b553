"""``congrad show``: what is in a store, whatever state it is in."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import random_rows, write_store

from congrad_cli.errors import StoreError
from congrad_cli.header import read_header
from congrad_cli.locks import RankLock
from congrad_cli.show import describe
from congrad_cli.store import shard_files

GROUPS = ["de", "en", "en", "de", "fr", "en"]


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("show"), random_rows(6, 64), groups=GROUPS,
                       shards=[[0, 1], [2, 3]], skipped=[4], width=4, store_dtype="int4")


@pytest.fixture
def store(synthetic, tmp_path) -> Path:
    return Path(shutil.copytree(synthetic, tmp_path / "s"))


def test_it_counts_what_is_there_what_was_skipped_and_what_is_missing(store):
    about = describe(store)
    assert about["schema"] == "congrad.show/1"
    assert (about["records"], about["sketched"], about["missing"]) == (6, 4, 1)
    assert about["skipped"] == {"no-room": 1} and not about["complete"]
    counts = [sum(group.pop("token_histogram")) for group in about["groups"]]
    assert counts == [2, 2, 0]
    assert about["groups"] == [
        {"name": "de", "records": 2, "sketched": 2, "mean_tokens": 3.0},
        {"name": "en", "records": 3, "sketched": 2, "mean_tokens": 3.0},
        {"name": "fr", "records": 1, "sketched": 0, "mean_tokens": None}]
    assert about["row"] == {"code": "int4", "numbers": 64, "width": 4}
    assert (about["shards"], about["stored"], about["consensus"]) == (2, 4, [])
    assert about["bytes"] == sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    assert about["bytes_per_pair"] == sum(f.stat().st_size for f in shard_files(store)) / 4
    assert about["data"][0]["there"] and about["data"][0]["records"] == 6
    json.dumps(about)


def test_settings_that_are_not_the_defaults_are_told_apart(small_store, store):
    about = describe(small_store)
    assert about["changed"] == {"dim": 512, "store_dtype": "float16"}
    assert about["settings"]["max_length"] == 1024 and about["complete"]
    assert set(about["versions"]) == {"congrad", "torch", "transformers"}
    assert about["read_as"] == {}


def test_a_consensus_fits_until_the_pairs_change(agreed_store, tmp_path):
    path = Path(shutil.copytree(agreed_store, tmp_path / "s"))

    def made_by_default():
        """Other tests add consensus files of other names to the store that is copied here."""
        return next(made for made in describe(path)["consensus"] if made["name"] == "default")

    made = made_by_default()
    assert made["fits"] and made["settings"]["orders"] == 32
    shard_files(path)[0].unlink()
    made = made_by_default()
    assert not made["fits"] and made["why"] == "made when the store held other pairs"


def test_a_store_without_an_index_still_shows_what_it_holds(store):
    (store / "index.safetensors").unlink()
    about = describe(store)
    assert about["stored"] == 4 and "records" not in about
    assert "has no index.safetensors" in about["unreadable"][0]


def test_damaged_shards_are_named_and_the_others_counted(store):
    shard_files(store)[0].write_bytes(b"x")
    about = describe(store)
    assert (about["shards"], about["stored"], len(about["unreadable"])) == (1, 2, 1)


def test_another_format_is_said_in_one_sentence(store, congrad):
    header = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps(header | {"format": 1}))
    with pytest.raises(StoreError, match="store format 1, this congrad reads 2"):
        describe(store)
    done = congrad("show", store)
    assert done.returncode == 4 and b"Traceback" not in done.stderr and not done.stdout


def test_live_writers_are_shown(store):
    with RankLock(store, 3, 8):
        (writer,) = describe(store)["writers"]
    assert (writer["rank"], writer["ranks"]) == (3, 8)
    assert describe(store)["writers"] == []


@given(data=st.data())
def test_no_damage_makes_it_fail(synthetic, tmp_path_factory, data):
    """Whatever a file holds: it is said, or the store is refused in one sentence."""
    path = Path(shutil.copytree(synthetic, tmp_path_factory.mktemp("any") / "s"))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        json.dumps(describe(path))
    except StoreError as error:
        assert file.name == "store.json", error


def test_plain_output_is_aligned_and_goes_to_stdout_alone(store, congrad):
    done = congrad("show", stdin=bytes(store) + b"\n")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert f"store    {store} (format 2)".split() == lines[0].split()
    assert "6 records: 4 sketched, 1 skipped (no-room 1); incomplete, 83.3% done, 1 missing" in (
        done.stdout.decode())
    facts = lines[: lines.index("")]
    names = [line.split("  ")[0] for line in facts]
    assert names == ["store", "model", "rows", "settings", "made with", "data", "pairs", "on disk"]
    assert {line[: len("made with  ")].rstrip() for line in facts} == set(names)
    assert max(map(len, lines[lines.index("") :])) < 60  # columns are as wide as what they hold


def test_json_is_one_object_whatever_names_hold(tmp_path, congrad):
    path = write_store(tmp_path, np.eye(2), groups=["a\x1b[31m", "b\nc"])
    done = congrad("show", path, "--json")
    assert [group["name"] for group in json.loads(done.stdout)["groups"]] == ["a\x1b[31m", "b\nc"]
    done = congrad("show", path)
    assert b"\x1b" not in done.stdout and rb"b\nc" in done.stdout
    assert read_header(path).format == 2
