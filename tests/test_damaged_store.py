"""What a damaged store is told to its user: one sentence, exit code 4, and what to do."""

import json
import shutil

import numpy as np
import pytest
from conftest import SMALL

from congrad_cli.store import shard_files
from congrad_cli.tensors import map_arrays


def truncate(store):
    (file,) = shard_files(store)
    file.write_bytes(file.read_bytes()[:-100])


def flip(store):
    """One bit of a norm: the number is still one that may be."""
    (file,) = shard_files(store)
    data = bytearray(file.read_bytes())
    norm = np.array(map_arrays(file)[0]["norm"])
    data[data.index(norm.tobytes())] ^= 1
    file.write_bytes(data)


def forget_index(store):
    (store / "index.safetensors").unlink()


def another_format(store):
    place = store / "store.json"
    place.write_text(json.dumps(json.loads(place.read_bytes()) | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "what", "cure", "sketch_mends"),
    [
        (truncate, "r000-00000.safetensors: damaged", "verify STORE --repair", False),
        (flip, "'norm' is not what was written", "verify STORE --repair", False),
        (forget_index, "has no index.safetensors", "run the same sketch command", True),
        (another_format, "store format 99, this congrad reads", "--overwrite", False),
    ],
)
def test_every_command_refuses_a_damaged_store_in_one_sentence(
    damage, what, cure, sketch_mends, agreed_store, forked_congrad, small_pairs, tiny_model,
    tmp_path,
):
    store = shutil.copytree(agreed_store, tmp_path / "s.congrad")
    damage(store)
    sketch = ["sketch", small_pairs, "-m", tiny_model, "-s", store, *SMALL]
    for command in (["consensus", store], ["filter", store], sketch):
        done = forked_congrad(*command)
        if sketch_mends and command is sketch:
            assert (done.returncode, done.stdout) == (0, str(store).encode() + b"\n")
            continue
        first, *hints = done.stderr.decode().split("congrad: error: ")[1].splitlines()
        assert (done.returncode, done.stdout) == (4, b"")
        assert what in first
        assert cure in " ".join(hints)
        assert all(hint.startswith("  ") for hint in hints), "one error, and what belongs to it"
