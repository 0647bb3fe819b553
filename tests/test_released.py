"""New pairs against a consensus that another store released, of which little needs to be left."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import normalised, random_rows, write_projection

from congrad_cli.consensus import run as consensus
from congrad_cli.direction import read_consensus
from congrad_cli.errors import CongradError, GateError, StoreError, UsageError
from congrad_cli.filter import run as filtering
from congrad_cli.filter.gates import require_gates
from congrad_cli.header import read_header
from congrad_cli.progress import Silent
from congrad_cli.release import ConsensusPlace, find_consensus, sha256_of, store_named
from congrad_cli.repair import verify
from congrad_cli.settings import STORE_DTYPES, ConsensusSettings, FilterSettings
from congrad_cli.show import describe
from congrad_cli.store import GradientStore
from congrad_cli.tensors import map_arrays, pack_arrays
from congrad_cli.verify import COPY_AGAIN

OTHER_GROUPS = ["de", "en", "sw", "th"] * 5
NEW_GROUPS = ["sw", "de", "fr"] * 5


def rows_of(count, seed):
    common = np.random.default_rng(99).standard_normal(64)
    return np.random.default_rng(seed).standard_normal((count, 64)) + 0.4 * common


def release(store, to):
    """What another machine is given of a store."""
    (to / "consensus").mkdir(parents=True)
    for name in ("store.json", "projection.safetensors", "consensus/default.safetensors"):
        shutil.copy(store / name, to / name)
    return to


@pytest.fixture
def stores(make_store, tmp_path):
    """A store with new pairs, and what was released of another one."""

    def make(new=None, **coded):
        coded = {"width": 4, "store_dtype": "float16"} | coded
        other = make_store(rows_of(20, 1), np.linspace(1, 2, 20), OTHER_GROUPS, **coded)
        rows = rows_of(15, 2) if new is None else new
        path = make_store(rows, np.linspace(2, 1, 15), NEW_GROUPS, **coded)
        for store in (other, path):
            write_projection(store)
        consensus.run(other, ConsensusSettings(), Silent())
        return path, release(other, tmp_path / "released.congrad"), other

    return make


def scored(path, tmp_path, **options):
    scores, kept = tmp_path / "scores.jsonl", io.BytesIO()
    summary = filtering.run(path, FilterSettings(scores=scores, **options), kept, Silent())
    entries = [json.loads(line) for line in scores.read_bytes().splitlines()]
    return entries, summary, kept.getvalue().splitlines(keepends=True)


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_new_pairs_are_scored_by_their_cosine_with_the_released_direction(
    stores, tmp_path, store_dtype
):
    """No pair is in it, so nothing is left out; the decoded row counts with its true length."""
    path, released, other = stores(store_dtype=store_dtype)
    entries, summary, kept = scored(path, tmp_path, consensus=str(released), group_cosines=True)
    opened = GradientStore.open(path)
    found = read_consensus(other, "default", GradientStore.open(other)).consensus
    rows = np.concatenate([block.direction for block in opened.blocks()]).astype(float)
    own = np.linalg.norm(rows, axis=1) if store_dtype == "float16" else np.ones(15)
    length = np.sqrt(found.direction @ found.direction
                     - found.coefficients**2 @ found.excess.sum(1))
    np.testing.assert_allclose([entry["score"] for entry in entries],
                               rows @ found.direction / own / length, atol=1e-7)
    lengths = np.sqrt(np.vecdot(found.gradients, found.gradients) - found.excess.sum(1))
    np.testing.assert_allclose(
        [[entry["cosines"][name] for name in ("de", "en", "sw", "th")] for entry in entries],
        rows @ found.gradients.T / own[:, None] / lengths, atol=1e-7)
    assert [entry["group"] for entry in entries] == NEW_GROUPS
    assert summary.names == ["de", "fr", "sw"]
    data = (path.parent / "data.jsonl").read_bytes().splitlines(keepends=True)
    assert kept == [line for line, entry in zip(data, entries, strict=True) if entry["score"] >= 0]
    about = summary.to_json()["consensus"]
    assert about["store"] == str(released) and about["pairs_seen"] == 15  # of equal records
    assert about["sha256"] == sha256_of(released / "consensus/default.safetensors")
    assert about["method"] == "pcgrad"


def test_the_mean_of_the_released_groups_can_be_ranked_by(stores, tmp_path):
    path, released, other = stores()
    entries, summary, _ = scored(path, tmp_path, consensus=str(released), rank_by="mean-score",
                                 keep=4)
    found = read_consensus(other, "default", GradientStore.open(other)).consensus
    unit = normalised(GradientStore.open(path).column("direction").astype(float))
    np.testing.assert_allclose([entry["score"] for entry in entries],
                               unit @ normalised(found.gradients.mean(0)[None])[0], atol=1e-7)
    assert summary.about == f"cosine with the plain mean of the groups of {released}"


def test_quotas_and_gates_are_those_of_the_new_groups(stores, tmp_path):
    path, released, _ = stores()
    quotas = tmp_path / "quotas.json"
    quotas.write_text('{"fr": 2, "*": 1}')
    _, summary, kept = scored(path, tmp_path, consensus=str(released), quotas=quotas,
                              min_per_group=2, annotate=True, dedup=0.99)
    assert dict(zip(summary.names, summary.kept, strict=True)) == {"de": 1, "fr": 2, "sw": 1}
    assert all("score" in json.loads(line)["congrad"] for line in kept)
    with pytest.raises(GateError, match="groups that keep fewer: de 1, sw 1"):
        require_gates(summary.gates)


def test_confidence_and_another_loss_work_against_it(stores, tmp_path):
    path, released, _ = stores()
    plain, *_ = scored(path, tmp_path, consensus=str(released))
    sure, *_ = scored(path, tmp_path, consensus=str(released), confidence=1.0, loss="hinge")
    assert [entry["score"] for entry in sure] == [entry["score"] for entry in plain]
    assert [entry["keep"] for entry in sure] == [
        entry["score"] >= -entry["error"] for entry in plain]


def test_conflicts_are_those_of_the_new_groups(stores, tmp_path):
    french = np.array(NEW_GROUPS) == "fr"
    path, released, _ = stores(new=rows_of(15, 2) * np.where(french, -1, 1)[:, None])
    limits = {"max_conflict": 0.0}
    _, summary, _ = scored(path, tmp_path, consensus=str(released), **limits)
    (gate,) = summary.gates
    opened = GradientStore.open(path)
    terms = opened.column("direction") * np.linspace(2, 1, 15)[:, None]
    mean = [terms[np.array(NEW_GROUPS) == name].mean(0) for name in ("de", "fr", "sw")]
    assert sum(mean[i] @ mean[j] < 0 for i in range(3) for j in range(i)) == 2
    assert (gate.value, gate.met) == (pytest.approx(2 / 3), False)
    with pytest.raises(GateError, match="--max-conflict 0: 2 of 3 pairs of groups conflict"):
        require_gates(summary.gates)
    consensus.run(path, ConsensusSettings(), Silent())
    _, again, _ = scored(path, tmp_path, **limits)
    assert again.gates[0].value == gate.value  # equal, from the file's own gradients


def test_copies_do_not_need_what_is_gone(stores, tmp_path):
    """What was released has no shards, no index, no data, and scores as the whole store does."""
    path, released, other = stores()
    assert not (released / "shards").exists() and not (released / "index.safetensors").exists()
    assert scored(path, tmp_path, consensus=str(released))[0] == scored(
        path, tmp_path, consensus=f"{other}:default")[0]


class Notes(Silent):
    """Collects what is said."""

    def __init__(self):
        self.said = []

    def note(self, message, kind=""):
        self.said.append(message)


def filtered_notes(path, released):
    notes = Notes()
    filtering.run(path, FilterSettings(consensus=str(released)), io.BytesIO(), notes)
    return notes.said


def test_pairs_that_were_in_it_are_counted(stores):
    path, released, _ = stores()
    assert filtered_notes(path, released) == [
        f"15 of the 15 pairs were among those that {released}/consensus/default.safetensors was "
        "made of: they are scored with themselves inside"]
    file = released / "consensus/default.safetensors"
    arrays, metadata = map_arrays(file)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    file.write_bytes(pack_arrays(arrays | {"digest": 255 - arrays["digest"]}, metadata))
    assert filtered_notes(path, released) == []
    del arrays["digest"]
    file.write_bytes(pack_arrays(arrays, metadata))
    assert "does not say which pairs it was made of" in filtered_notes(path, released)[0]


def test_without_a_single_new_pair_nothing_breaks(stores, make_store, tmp_path):
    _, released, _ = stores()
    path = make_store(random_rows(2, 64), skipped=[0, 1], width=4, store_dtype="float16")
    write_projection(path)
    options = {"max_conflict": 0.0, "dedup": 0.9, "group_cosines": True}
    entries, summary, kept = scored(path, tmp_path, consensus=str(released), **options)
    assert [entry["keep"] for entry in entries] == [False, False] and not kept
    assert summary.gates[0].met


# --- what does not fit -----------------------------------------------------------------------


def with_header(path, **changes):
    """The store under another header, and its consensus with it."""
    header = read_header(path)
    fingerprint = {**header.fingerprint, **changes.pop("fingerprint", {})}
    header = replace(header, fingerprint=fingerprint, **changes)
    (path / "store.json").write_bytes(header.to_json())
    for file in (path / "consensus/default.safetensors", path / "projection.safetensors"):
        arrays, metadata = map_arrays(file)
        arrays = {name: np.array(array) for name, array in arrays.items()}
        file.write_bytes(pack_arrays(arrays, metadata | {"fingerprint": fingerprint}))


@pytest.mark.parametrize(("part", "message", "hint"), [
    ({"model": {"weights": "v"}}, "was made with another model", "weights v"),
    ({"settings": {"seed": 0, "dim": 64, "store_dtype": "float16", "max_length": 9}},
     "was made with other settings", "max_length 9"),
])  # fmt: skip
def test_another_model_or_setting_is_named(stores, part, message, hint):
    path, released, _ = stores()
    with_header(released, fingerprint=part)
    with pytest.raises(StoreError, match=message) as caught:
        filtering.run(path, FilterSettings(consensus=str(released)), io.BytesIO(), Silent())
    assert caught.value.exit_code == 4
    assert any(hint in line for line in caught.value.hints)


def test_another_projection_is_refused(stores):
    """Leading directions of another machine may be a little off, not others."""
    path, released, _ = stores()
    file = released / "projection.safetensors"
    arrays, metadata = map_arrays(file)
    basis = np.array(arrays["layer"])

    def attempt(**layers):
        file.write_bytes(pack_arrays(layers, metadata))
        filtering.run(path, FilterSettings(consensus=str(released)), io.BytesIO(), Silent())

    attempt(layer=basis + np.float32(1e-5))
    for layers in ({"layer": -basis}, {"layer": basis[:, :1]}, {"layer": basis, "head": basis}):
        with pytest.raises(StoreError, match="another projection"):
            attempt(**layers)
    shorter = json.loads((released / "store.json").read_text()) | {"dim": 32}
    (released / "store.json").write_text(json.dumps(shorter))
    with pytest.raises(StoreError, match="another projection: 32 numbers, width 4"):
        attempt(layer=basis)
    (released / "store.json").write_text(json.dumps(shorter | {"dim": 64}))
    file.unlink()
    with pytest.raises(StoreError, match=r"projection.safetensors is missing"):
        filtering.run(path, FilterSettings(consensus=str(released)), io.BytesIO(), Silent())


def test_a_changed_byte_of_what_was_released_is_found(stores):
    path, released, _ = stores()
    file = released / "consensus/default.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="is not what was written"):
        filtering.run(path, FilterSettings(consensus=str(released)), io.BytesIO(), Silent())


def test_a_direction_that_is_no_number_is_refused(stores):
    """Nothing would have a score against it."""
    path, released, _ = stores()
    file = released / "consensus/default.safetensors"
    arrays, metadata = map_arrays(file)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    arrays["direction"][3] = np.nan
    file.write_bytes(pack_arrays(arrays, metadata))
    with pytest.raises(StoreError, match="a number that is not finite"):
        filtering.run(path, FilterSettings(consensus=str(released)), io.BytesIO(), Silent())


def test_items_have_no_part_in_a_released_direction(stores):
    path, released, _ = stores()
    settings = FilterSettings(consensus=str(released), leave_out_by="id")
    with pytest.raises(UsageError, match="--leave-out-by does nothing here"):
        filtering.run(path, settings, io.BytesIO(), Silent())


# --- names -----------------------------------------------------------------------------------


def test_a_name_of_the_stores_own_comes_first(stores, monkeypatch, tmp_path):
    path, released, other = stores()
    consensus.run(path, ConsensusSettings(name="v1"), Silent())
    monkeypatch.chdir(tmp_path)
    assert find_consensus("v1", path) == ConsensusPlace(path, "v1")
    assert find_consensus("nowhere", path) == ConsensusPlace(path, "nowhere")
    assert find_consensus("released.congrad", path).store == Path("released.congrad")
    assert find_consensus(f"{released}:v2", path) == ConsensusPlace(released, "v2")
    assert find_consensus(f"{path}:v1", path) == ConsensusPlace(path, "v1")
    assert find_consensus(str(path), path) == ConsensusPlace(path, "default")
    shutil.move(released, tmp_path / "v1")
    assert find_consensus("v1", path) == ConsensusPlace(path, "v1")
    assert find_consensus("./v1", path).store == Path("./v1")
    shutil.move(tmp_path / "v1", tmp_path / "a:b")
    assert find_consensus("a:b", path) == ConsensusPlace(Path("a:b"), "default")
    assert store_named(["v1", f"{other}:x"]) == other
    assert store_named(["v1"]) is None


@pytest.mark.parametrize(("text", "message"), [
    ("no/such", "no/such is no store"), ("", "cannot name a consensus"),
    ("missing", "has no consensus named 'missing'"),
])  # fmt: skip
def test_what_names_no_consensus_is_refused(stores, text, message):
    path, *_ = stores()
    with pytest.raises(CongradError, match=message):
        filtering.run(path, FilterSettings(consensus=text), io.BytesIO(), Silent())


def test_the_command_takes_another_store(stores, forked_congrad, tmp_path):
    path, released, _ = stores()
    done = forked_congrad("filter", path, "--consensus", released, "-o", tmp_path / "kept",
                          "--json")
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["consensus"]["store"] == str(released)
    assert found["score_is"] == f"cosine with the consensus of {released}"
    with_header(released, fingerprint={"model": {"weights": "v"}})
    done = forked_congrad("filter", path, "--consensus", released)
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"was made with another model" in done.stderr and b"Traceback" not in done.stderr


def test_what_was_released_is_shown_and_verified_as_what_it_is(stores, forked_congrad):
    _, released, _ = stores()
    shown = forked_congrad("show", released)
    assert "on disk    a direction to compare with, no pairs; " in shown.stdout.decode()
    assert "consensus default: released without its pairs\n" in shown.stdout.decode()
    assert "trouble" not in shown.stdout.decode()
    assert describe(released)["unreadable"] == []
    verified = forked_congrad("verify", released)
    assert (verified.returncode, verified.stdout) == (0, b"OK: 0 shards, 0 pairs, 0.0 MB\n")
    assert "a direction to compare with, without its pairs" in verified.stderr.decode()


def test_damage_to_what_was_released_is_found_and_left_where_it_is(stores):
    _, released, _ = stores()
    file = released / "consensus" / "default.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (released / "projection.safetensors").unlink()
    report = verify(released, False, True, Silent())
    assert [(item.file, item.hint) for item in report.open] == [
        ("projection.safetensors", COPY_AGAIN), ("consensus/default.safetensors", COPY_AGAIN)]
    assert file.exists()
    assert "damaged" in describe(released)["consensus"][0]["why"]


def test_a_store_that_lost_its_pairs_is_no_release(stores):
    _, _, other = stores()
    (other / "index.safetensors").unlink()
    for shard in (other / "shards").iterdir():
        shard.unlink()
    assert [item.file for item in verify(other, False, False, Silent()).open] == [
        "index.safetensors"]
    assert not describe(other)["released"]
    assert describe(other)["unreadable"] != []
