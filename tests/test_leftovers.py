"""What killed and interrupted writers leave troubles nobody: no other run and no reader."""

import io
import os
import signal

import numpy as np
import pytest
from locking import elsewhere, ended, place
from synthetic import columns, index_of, random_rows

from congrad_cli import claims, tensors
from congrad_cli.claims import temporary_name
from congrad_cli.directory import check_directory, piped_data
from congrad_cli.errors import StoreError
from congrad_cli.locks import RankLock, remove_leftovers
from congrad_cli.sketch.stopping import Stopping
from congrad_cli.store import GradientStore, shard_files
from congrad_cli.store_index import read_index, write_index
from congrad_cli.tensors import map_arrays, pack_arrays
from congrad_cli.writer import ShardWriter


@pytest.mark.parametrize("name", ["projection.safetensors", "store.json", "index.safetensors"])
def test_a_store_whose_first_file_was_never_finished_may_be_made(tmp_path, name):
    temporary_name(tmp_path / name).touch()
    check_directory(tmp_path)


def test_piped_data_does_not_mind_what_a_killed_run_of_the_same_pid_left(tmp_path):
    """In containers every run may have the same PID."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / f".stdin.{os.getpid()}.tmp").touch()
    with piped_data(tmp_path, io.BytesIO(b"data\n")) as file:
        assert file.read_bytes() == b"data\n"


def test_a_lock_is_taken_though_who_ends_removes_its_folder(tmp_path, monkeypatch):
    store = tmp_path / "store"
    write = claims._write_new

    def late(path, content):
        monkeypatch.setattr(claims, "_write_new", write)
        (store / "locks").rmdir()
        store.rmdir()
        write(path, content)

    monkeypatch.setattr(claims, "_write_new", late)
    with RankLock(store, 0, 1) as lock:
        lock.check()


def test_temporary_files_of_the_dead_go_and_of_the_living_stay(tmp_path):
    store = tmp_path / "store"
    for folder in ("", "shards", "skipped", "consensus"):
        (store / folder).mkdir(exist_ok=True)
    living = elsewhere(world=2, host="node/7.cluster", pid=41)
    place(store, living, rank=1)
    dead = [store / folder / f".file.0123abcd.{owner}.tmp" for folder in ("", "shards", "skipped")
            for owner in ("node-7-cluster.4", "node-7-cluster.141", "node-8.41")]  # fmt: skip
    kept = [store / "shards" / ".r001-00000.safetensors.0123abcd.node-7-cluster.41.tmp",
            store / "consensus" / ".default.safetensors.0123abcd.node-8.41.tmp"]  # fmt: skip
    for file in (*dead, *kept):
        file.touch()
    with RankLock(store, 0, 2):
        ours = temporary_name(store / "index.safetensors")
        ours.touch()
        remove_leftovers(store)
        assert not any(file.exists() for file in dead)
        assert all(file.exists() for file in (*kept, ours))


@pytest.mark.parametrize("name", ["r000.lock", "clock"])
def test_what_the_dead_left_empty_beside_the_locks_goes_at_once(tmp_path, monkeypatch, name):
    locks = tmp_path / "locks"
    locks.mkdir()
    living = temporary_name(locks / name)
    pid = ended()
    monkeypatch.setattr(os, "getpid", lambda: pid)
    dead = temporary_name(locks / name)
    monkeypatch.undo()
    for file in (living, dead):
        file.touch()
    with RankLock(tmp_path, 0, 1):
        assert living.exists()
        assert not dead.exists()


class Interrupted(BaseException):
    """A signal's exception."""


@pytest.mark.parametrize("moment", ["after the link", "at the link"])
def test_a_commit_that_a_signal_interrupted_is_done_once(make_store, monkeypatch, moment):
    rows = random_rows(4, 4)
    path = make_store(rows, shards=[])
    writer = ShardWriter(path, GradientStore.open(path).header)
    writer.append(columns([0, 1], rows, np.ones(4), read_index(path).digest))
    link = os.link

    def interrupted(*args):
        if moment == "after the link":
            link(*args)
        raise Interrupted

    monkeypatch.setattr(os, "link", interrupted)
    with pytest.raises(Interrupted):
        writer.commit()
    monkeypatch.setattr(os, "link", link)
    writer.commit()
    writer.append(columns([2, 3], rows, np.ones(4), read_index(path).digest))
    writer.commit()
    assert len(shard_files(path)) == 2
    assert sum(len(map_arrays(file)[0]["norm"]) for file in shard_files(path)) == 4
    assert not list(path.rglob(".*"))


def test_another_shard_in_the_place_of_ours_is_an_error(make_store):
    rows = random_rows(4, 4)
    path = make_store(rows, shards=[])
    first, second = (ShardWriter(path, GradientStore.open(path).header) for _ in "12")
    for writer, places in ((first, [0, 1]), (second, [2, 3])):
        writer.append(columns(places, rows, np.ones(4), read_index(path).digest))
    first.commit()
    with pytest.raises(FileExistsError):
        second.commit()


def test_an_index_that_is_replaced_while_it_is_read_is_the_old_or_the_new(tmp_path, monkeypatch):
    """Data that has grown has a longer index."""
    indexes = [index_of(["en"] * 5), index_of(["de"] * 500)]
    write_index(tmp_path, indexes[0])
    map_tensor = tensors._map_tensor

    def replaced(*args):
        write_index(tmp_path, indexes[1])
        return map_tensor(*args)

    monkeypatch.setattr(tensors, "_map_tensor", replaced)
    found = read_index(tmp_path)
    assert (found.groups, found.rows) == (["en"], 5)
    np.testing.assert_array_equal(found.digest, indexes[0].digest)
    assert read_index(tmp_path).rows == 500


def flip(file, name, arrays):
    """Change the lowest bit of a tensor's first number."""
    data = bytearray(file.read_bytes())
    array = arrays[name]
    at = data.index(np.ascontiguousarray(array).tobytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["norm", "logp", "tokens", "digest"])
def test_a_flipped_bit_in_a_shard_is_noticed_when_it_is_opened(make_store, name):
    path = make_store(random_rows(6, 4), norms=np.arange(6) + 1.5)
    (file,) = shard_files(path)
    arrays, about = map_arrays(file)
    changed = {**arrays, "logp": arrays["logp"] + 3, "tokens": arrays["tokens"] + 7}
    file.write_bytes(pack_arrays(changed, about))
    GradientStore.open(path)
    flip(file, name, changed)
    with pytest.raises(StoreError, match=f"'{name}' is not what was written") as caught:
        GradientStore.open(path)
    assert "verify" in caught.value.hints[0]


@pytest.mark.parametrize("name", ["group", "digest"])
def test_a_flipped_bit_in_the_index_is_noticed(tmp_path, name):
    index = index_of(["de", "en", "en", "de", "en"])
    write_index(tmp_path, index)
    flip(tmp_path / "index.safetensors", name, {"group": index.group, "digest": index.digest})
    with pytest.raises(StoreError, match=f"'{name}' is not what was written") as caught:
        read_index(tmp_path)
    assert "run the same sketch command" in caught.value.hints[0]


def test_after_a_second_signal_there_is_time_to_write():
    """The grace is the batch's. Nothing interrupts the last commit, however long it takes."""
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), Stopping(lambda: None):
        signal.raise_signal(signal.SIGINT)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before
