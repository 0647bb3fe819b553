"""What `congrad sketch` does with the options of the engine, as a user sees it."""

import json
from pathlib import Path

import pytest
from conftest import SMALL
from zoo import build, zoo

from congrad_cli.store import GradientStore
from congrad_cli.tensors import map_arrays


@pytest.fixture
def few(small_lines, tmp_path) -> Path:
    path = tmp_path / "few.jsonl"
    path.write_bytes(b"".join(small_lines[:6]))
    return path


@pytest.fixture
def sketch(forked_congrad, few, tiny_model, tmp_path):
    """Runs ``congrad sketch`` on six pairs."""

    def run(*options, model=tiny_model, store="store"):
        return forked_congrad(
            "sketch", few, "--model", model, "--store", tmp_path / store, *SMALL, *options
        )

    return run


def rows_of(path: Path):
    return next(iter(GradientStore.open(path).blocks())).direction


def test_it_says_what_share_of_the_model_it_sees(sketch):
    done = sketch()
    assert done.returncode == 0, done.stderr.decode()
    told = done.stderr.decode()
    assert "42 weights hold 74.9% of the parameters and" in told
    assert "of the gradient's energy, measured on 4 pairs; left out: embeddings 25.0% (" in told


def test_all_layers_leave_nothing_out_and_are_another_sketch(sketch, tmp_path):
    done = sketch("--layers", "all")
    assert done.returncode == 0, done.stderr.decode()
    assert b"100.0% of the parameters" in done.stderr
    assert b"left out: nothing" in done.stderr
    other = sketch()
    assert other.returncode == 4
    assert b"other settings" in other.stderr and b"layers all" in other.stderr
    assert sketch(store="blocks").returncode == 0
    assert abs((rows_of(tmp_path / "store") * rows_of(tmp_path / "blocks")).sum(1)).max() < 0.9


def test_layers_that_do_not_exist_are_a_usage_error(sketch, tmp_path):
    done = sketch("--layers", "blocks,!*.mpl")
    assert done.returncode == 2
    assert b"--layers !*.mpl: the model has no such weight" in done.stderr
    assert not (tmp_path / "store" / "store.json").exists()


def test_batches_checkpointing_and_maps_do_not_change_the_rows(sketch, tmp_path):
    assert sketch().returncode == 0
    plain = rows_of(tmp_path / "store")
    for number, options in enumerate([
        ("--batch-tokens", 64), ("--gradient-checkpointing",), ("--device-map", "auto"),
    ]):
        done = sketch(*options, store=f"other-{number}")
        assert done.returncode == 0, done.stderr.decode()
        assert ((rows_of(tmp_path / f"other-{number}") * plain).sum(1) > 1 - 1e-3).all(), options


@pytest.mark.parametrize(
    ("option", "value"),
    [("--batch-tokens", "many"), ("--batch-tokens", "0"), ("--width", "-1"),
     ("--bad-records", "ignore"), ("--dtype", "int8")],
)
def test_values_that_are_none_are_refused(option, value, sketch):
    done = sketch(option, value)
    assert done.returncode == 2
    assert f"{option} {value}: pass ".encode() in done.stderr


def test_the_width_is_chosen_for_the_model(forked_congrad, few, tiny_model, tmp_path):
    store = tmp_path / "auto"
    done = forked_congrad("sketch", few, "--model", tiny_model, "--store", store)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((store / "store.json").read_text())["width"] == 64


@pytest.mark.parametrize(
    ("options", "dim", "code", "size"),
    [((), 32768, "int4", 16384), (("--row-size", "8k"), 65536, "1bit", 8192),
     (("--row-size", "4k"), 32768, "1bit", 4096),
     (("--store-dtype", "int8", "--dim", 4096), 4096, "int8", 4096)],
)  # fmt: skip
def test_a_row_has_the_size_that_was_asked_for(
    options, dim, code, size, forked_congrad, few, tiny_model, tmp_path
):
    store = tmp_path / "store"
    done = forked_congrad("sketch", few, "--model", tiny_model, "--store", store, *options)
    assert done.returncode == 0, done.stderr.decode()
    header = GradientStore.open(store).header
    assert (header.dim, header.store_dtype) == (dim, code)
    arrays, _ = map_arrays(next((store / "shards").iterdir()))
    assert arrays["direction"].nbytes == 6 * size
    assert arrays["scale"].nbytes <= 6 * 128


@pytest.mark.parametrize("option", [("--dim", 512), ("--store-dtype", "int8")])
def test_a_size_and_what_makes_it_up_are_not_given_together(option, sketch):
    done = sketch("--row-size", "4k", *option)
    assert done.returncode == 2
    assert b"--row-size 4k sets --dim and --store-dtype" in done.stderr


def test_an_adapter_is_sketched_alone(sketch, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    tuned.save_pretrained(tmp_path / "adapter")
    done = sketch("--adapter", tmp_path / "adapter")
    assert done.returncode == 0, done.stderr.decode()
    assert b"24 weights hold 100.0% of the parameters" in done.stderr
    assert sketch().returncode == 4  # without the adapter it is another model
    missing = sketch("--adapter", tmp_path / "nowhere", store="other")
    assert missing.returncode == 8 and b"adapter_config.json is needed" in missing.stderr


def test_more_tokens_than_positions_are_refused_before_the_first_pair(sketch, tiny_model, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    build(zoo(len(tokenizer))["gpt2"]).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    done = sketch(model=tmp_path / "gpt2")
    assert done.returncode == 2
    assert b"pass --max-length 256" in done.stderr
    done = sketch("--max-length", 256, model=tmp_path / "gpt2")
    assert done.returncode == 0, done.stderr.decode()


def test_progress_counts_every_pair_once(forked_congrad, few, small_lines, tiny_model, tmp_path):
    """Pairs that stand in the data twice, and those that an earlier run has sketched."""
    few.write_bytes(b"".join([*small_lines[:6], *small_lines[:2]]))
    command = ("sketch", few, "--model", tiny_model, "--store", tmp_path / "s", *SMALL)
    assert b"sketch: 8 of 8 pairs" in forked_congrad(*command).stderr
    few.write_bytes(b"".join(small_lines[:7]))
    assert b"sketch: 7 of 7 pairs" in forked_congrad(*command).stderr
