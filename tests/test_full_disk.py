"""A disk that runs full costs the rows that no longer fit; with room the same command goes on."""

import errno
import io
import json
import os
import re

import numpy as np
import on_full_disk
import pytest
from synthetic import columns, random_rows

from congrad_cli.directory import piped_data
from congrad_cli.errors import ResourceError
from congrad_cli.store import GradientStore, read_entries, shard_files
from congrad_cli.store_index import read_index
from congrad_cli.tensors import map_arrays
from congrad_cli.writer import ShardWriter


def test_a_sketch_goes_on_where_a_full_disk_stopped_it(
    forked_congrad, small_pairs, tiny_model, tmp_path
):
    disk, data = tmp_path / "disk", tmp_path / "pairs.jsonl"
    disk.mkdir()
    data.write_bytes(small_pairs.read_bytes())
    done = forked_congrad(disk, data, tiny_model, program=on_full_disk.__file__)
    if done.returncode == on_full_disk.NO_MOUNTS:
        pytest.skip("no disk can be mounted here: that needs namespaces of Linux")
    assert done.returncode == 0, done.stderr.decode()
    full, store, again, whole, end = map(json.loads, done.stdout.splitlines())
    assert (full["code"], full["out"]) == (7, "")
    assert "Traceback" not in full["err"]
    missing = re.search(r"no space left for .*s\.congrad: about ([\d.]+) MB more", full["err"])
    rows = store["rows"]
    assert 0 < rows < store["of"] == 24
    assert float(missing[1]) == pytest.approx((24 - rows) * 65536 * 2 / 1e6, rel=0.05)
    assert f"{rows} of 24 pairs are safe; free space and run the same command" in full["err"]
    assert not [name for name in store["left"] if not name.startswith(".r000")]
    assert (again["code"], whole["code"]) == (0, 0), again["err"]
    assert f"{rows} of 24 pairs are in the store already" in again["err"]
    assert end == {"same": True, "left": []}


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_rows_that_did_not_fit_are_written_once_when_there_is_room(make_store, monkeypatch, call):
    rows = random_rows(4, 4)
    path = make_store(rows, shards=[])
    writer = ShardWriter(path, GradientStore.open(path).header)
    digests = read_index(path).digest
    writer.append(columns([0, 1, 2], rows, np.ones(4), digests))
    writer.skip(digests[3].tobytes(), "data.jsonl", 4, "no-room", "long")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                writer.commit()
    assert len(GradientStore.open(path)) == 0
    writer.commit()
    (file,) = shard_files(path)
    assert len(map_arrays(file)[0]["norm"]) == 3
    assert {entry["digest"] for entry in read_entries(path / "skipped")} == {
        digests[3].tobytes().hex()}
    found = GradientStore.open(path)
    assert (found.row.tolist(), found.skipped()) == ([0, 1, 2], {3: "no-room"})
    assert not list(path.rglob(".*"))


def test_no_room_for_piped_data_is_said_to_be_that(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no space left for the piped data"), piped_data(
        tmp_path, io.BytesIO(b"data\n")
    ):
        pass
    assert not list(tmp_path.rglob("*stdin*"))
