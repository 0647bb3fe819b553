"""Replacing a store, and noticing that a store is of another model: nothing is lost by accident."""

import shutil

import pytest

from congrad_cli.store import GradientStore, shard_files


@pytest.fixture
def model(sample_data, tmp_path):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(sample_data / "tiny-model", tmp_path / "model")


@pytest.fixture
def sketch(forked_congrad, model, small_lines, tmp_path):
    """Runs a cheap sketch of four pairs into ``path``, from a file or from stdin."""
    data = tmp_path / "pairs.jsonl"
    data.write_bytes(b"".join(small_lines[:4]))

    def run(path, *options, stdin=None):
        source = "-" if stdin is not None else data
        return forked_congrad(
            "sketch", source, "--model", model, "--store", path, "--dim", 256, "--width", 8,
            *options, stdin=stdin or b"",
        )  # fmt: skip

    return run


def contents(path):
    """Every file of the store with its bytes."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_a_model_without_weights_replaces_nothing(sketch, model, tmp_path):
    store = tmp_path / "s"
    assert sketch(store).returncode == 0
    before = contents(store)
    (model / "model.safetensors").unlink()
    done = sketch(store, "--overwrite", "--seed", 1)
    assert done.returncode == 8, done.stderr.decode()
    assert contents(store) == before


def test_a_failed_first_run_leaves_no_store_behind(sketch, model, tmp_path):
    (model / "model.safetensors").unlink()
    assert sketch(tmp_path / "s").returncode == 8
    assert not (tmp_path / "s" / "store.json").exists()


def test_a_model_that_cannot_be_sketched_replaces_nothing(sketch, model, tmp_path):
    from transformers import MambaConfig
    from zoo import build

    store = tmp_path / "s"
    assert sketch(store).returncode == 0
    before = contents(store)
    for file in ("config.json", "model.safetensors", "generation_config.json"):
        (model / file).unlink()
    build(MambaConfig(vocab_size=4096, hidden_size=32, num_hidden_layers=2)).save_pretrained(model)
    done = sketch(store, "--overwrite", "--layers", "all")
    assert done.returncode == 8, done.stderr.decode()
    assert contents(store) == before


def test_piped_data_survives_overwriting_through_a_link(sketch, small_lines, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store, data = tmp_path / "link" / "s", b"".join(small_lines[:4])
    assert sketch(store, stdin=data).returncode == 0
    done = sketch(store, "--overwrite", "--seed", 3, stdin=data)
    assert done.returncode == 0, done.stderr.decode()
    assert len(GradientStore.open(store)) == 4
    assert [file.read_bytes() for file in (store / "source").iterdir()] == [data]


def test_weights_changed_in_the_middle_of_the_file_are_another_model(sketch, model, tmp_path):
    store = tmp_path / "s"
    assert sketch(store).returncode == 0
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    third = len(data) // 3
    data[third : third + 4096] = bytes(4096)
    weights.write_bytes(data)
    done = sketch(store)
    assert done.returncode == 4 and b"another model" in done.stderr


def test_the_layout_of_rows_is_settled_once(sketch, tmp_path):
    """A resumed run must not decide anew: other batches would give other bytes."""
    store = tmp_path / "s"
    assert sketch(store).returncode == 0
    settled = (store / "projection.safetensors").read_bytes()
    shard = shard_files(store)[0]
    first = shard.read_bytes()
    shard.unlink()  # as if the run had been killed before its commit
    assert sketch(store).returncode == 0
    assert (store / "projection.safetensors").read_bytes() == settled
    assert shard_files(store)[0].read_bytes() == first


def test_a_reference_with_another_vocabulary_is_refused(sketch, sample_data, tmp_path):
    from transformers import AutoTokenizer

    other = shutil.copytree(sample_data / "tiny-model", tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(other)
    done = sketch(tmp_path / "s", "--reference", other)
    assert done.returncode == 8 and b"another vocabulary" in done.stderr


def test_a_place_where_no_store_can_be_is_a_store_error(sketch):
    for place in ("/dev/null/s", "/proc/s"):
        done = sketch(place)
        assert done.returncode == 4, done.stderr.decode()
