"""``congrad verify --exact``: stored rows against gradients that are formed in full."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import normalised

from congrad_cli.codec import Codec
from congrad_cli.exactness import Measured, compare_measured, stored_pairs
from congrad_cli.model_source import find_model
from congrad_cli.progress import Silent
from congrad_cli.sketch import exact_check
from congrad_cli.sketch.exact_check import choose_places, materialise
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.model import load_model
from congrad_cli.sketch.tokens import TokenizedPair
from congrad_cli.store import GradientStore, shard_files
from congrad_cli.tensors import map_arrays, pack_arrays


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(find_model(tiny_model), torch.device("cpu"), torch.float32)


PAIRS = [TokenizedPair(None, [5, 6, 7], [8, 9], [10, 11, 12]),
         TokenizedPair(None, [], [5, 9, 3], [11, 2]),
         TokenizedPair(None, [20, 21], [22], [23, 24])]


def flat_gradient(model, layers, pair, mean):
    """u_i by the model's own loss, which is the mean of -log pi over the answer."""
    weights = [layer.weight.requires_grad_(True) for layer in layers.values()]
    total = 0.0
    for sign, answer in ((-1, pair.chosen), (1, pair.rejected)):
        ids = torch.tensor([pair.prompt + answer])
        labels = ids.clone()
        labels[0, : len(pair.prompt)] = -100
        known = len(answer) - (not pair.prompt)
        loss = model(input_ids=ids, labels=labels).loss
        total = total + sign * loss * (known / len(answer) if mean else known)
    found = torch.autograd.grad(total, weights)
    for weight in weights:
        weight.requires_grad_(False)
    return torch.cat([part.flatten() for part in found]).double().numpy()


@pytest.mark.parametrize("weighting", ["sum", "mean"])
@pytest.mark.parametrize("chunk", [1 << 30, 1 << 23])
def test_products_are_those_of_gradients_by_the_models_own_loss(
    model, weighting, chunk, monkeypatch
):
    """In one chunk of layers, and in many."""
    monkeypatch.setattr(exact_check, "CHUNK_BYTES", chunk)
    layers = choose_layers(all_layers(model), "blocks")
    found = materialise(model, layers, PAIRS, weighting, Silent())
    rows = np.stack([flat_gradient(model, layers, pair, weighting == "mean") for pair in PAIRS])
    np.testing.assert_allclose(found.norm, np.linalg.norm(rows, axis=1), rtol=1e-5)
    unit = normalised(rows)
    np.testing.assert_allclose(found.cosine, unit @ unit.T, atol=1e-5)


@pytest.fixture
def eight(forked_congrad, small_lines, tiny_model, tmp_path) -> Path:
    """Eight pairs in rows of the usual code, and large enough to tell one from another."""
    data, store = tmp_path / "eight.jsonl", tmp_path / "eight.congrad"
    data.write_bytes(b"".join(small_lines[:8]))
    done = forked_congrad("sketch", data, "-m", tiny_model, "--dim", 8192, "--width", 16)
    assert done.returncode == 0, done.stderr.decode()
    return store


def change(store, edit):
    """Edit a store's only shard; its digests stay right."""
    (file,) = shard_files(store)
    arrays, about = map_arrays(file)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    edit(arrays)
    about = {name: value for name, value in about.items() if name not in ("sha256", "digest")}
    file.unlink()
    file.write_bytes(pack_arrays(arrays, about))


def test_rows_that_are_right_pass_and_rows_that_are_not_exit_5(eight, forked_congrad, tiny_model):
    def verify(*options):
        return forked_congrad("verify", eight, "--exact", 8, "-m", tiny_model, "--json", *options)

    done = verify()
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)["exact"]
    assert found["pairs"] == 8 and not found["far_off"]
    assert found["rmse"] < 2 * found["expected"] < 0.05
    assert found["logp_error"] < 1e-5 and found["norm_error"] < 0.2
    assert b"materialised gradients" in done.stderr

    def copy_row(arrays):
        arrays["direction"][3], arrays["scale"][3] = arrays["direction"][5], arrays["scale"][5]

    change(eight, copy_row)
    done = verify()
    assert done.returncode == 5
    assert json.loads(done.stdout)["exact"]["far_off"]
    assert b"far off" in done.stderr and b"its cosines are off by" in done.stderr


def test_other_log_probabilities_and_norms_are_far_off(eight, forked_congrad, tiny_model):
    def edit(arrays):
        arrays["logp"][2, 1] *= 1.01
        arrays["norm"][4] *= 3

    change(eight, edit)
    done = forked_congrad("verify", eight, "--exact", 8, "-m", tiny_model)
    assert done.returncode == 5
    assert done.stderr.count(b"eight.jsonl:") == 2
    assert b"its norm is off by " in done.stderr and b"a log-probability is off" in done.stderr


def test_another_model_or_other_data_is_named_before_anything_is_computed(
    eight, forked_congrad, tiny_model, tmp_path
):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"initializer_range": 0.03}))
    done = forked_congrad("verify", eight, "--exact", 3, "-m", other)
    assert done.returncode == 4 and b"was made with another model" in done.stderr
    assert b"--chat-template of the sketch" in done.stderr and b"loading" not in done.stderr
    data = tmp_path / "eight.jsonl"
    lines = data.read_bytes().splitlines(keepends=True)
    data.write_bytes(b"".join(lines[::-1]))
    done = forked_congrad("verify", eight, "--exact", 3, "-m", tiny_model)
    assert done.returncode == 4 and b"not the record that was sketched" in done.stderr
    data.rename(tmp_path / "moved.jsonl")
    done = forked_congrad("verify", eight, "--exact", 3, "-m", tiny_model)
    assert done.returncode == 4 and b"pass --data FILE with its new place" in done.stderr
    (tmp_path / "moved.jsonl").write_bytes(b"".join(lines))
    done = forked_congrad("verify", eight, "--exact", 3, "-m", tiny_model,
                          "--data", tmp_path / "moved.jsonl")
    assert done.returncode == 0, done.stderr.decode()


def test_exact_needs_a_model(congrad, tmp_path):
    done = congrad("verify", tmp_path, "--exact", 4)
    assert done.returncode == 2 and b"--exact needs --model" in done.stderr


def test_places_are_spread_over_groups_and_depend_on_the_seed(make_store):
    store = GradientStore.open(make_store(np.eye(30), groups=["a"] * 20 + ["b"] * 6 + ["c"] * 4))
    group = store.column("group")
    places = choose_places(store, 9, 0)
    assert np.bincount(group[places]).tolist() == [3, 3, 3]
    assert sorted(set(places.tolist())) == places.tolist()
    assert choose_places(store, 9, 0).tolist() == places.tolist()
    assert any(choose_places(store, 9, seed).tolist() != places.tolist() for seed in range(1, 4))
    assert choose_places(store, 99, 0).tolist() == list(range(30))


def measured(rows, norm):
    unit = normalised(rows)
    return Measured(unit @ unit.T, np.asarray(norm, float), -np.ones((len(rows), 2)))


@pytest.mark.parametrize("code", ["float16", "int8", "int4", "1bit"])
def test_rows_that_stand_for_themselves_are_compared_without_what_a_code_adds(code):
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((6, 4096)) + 0.5 * rng.standard_normal(4096)
    codec = Codec(code, 4096, 16)
    decoded = codec.decode(codec.encode(normalised(rows).astype(np.float32))).astype(np.float64)
    exact = measured(rows, np.arange(1, 7))
    stored = stored_pairs(decoded, exact.norm, exact.logp, codec)
    found = compare_measured(stored, exact, code, False, list("abcdef"))
    assert not found.trouble
    assert found.largest < {"float16": 1e-3, "int8": 1e-3, "int4": 0.01, "1bit": 0.05}[code]
    sign = 1 - 2 * np.eye(6)[2]
    turned = replace(exact, cosine=exact.cosine * np.outer(sign, sign))
    trouble = compare_measured(stored, turned, code, False, list("abcdef")).trouble
    off = {line[0]: float(line.split("off by ")[1].split(",")[0]) for line in trouble}
    assert max(off, key=lambda name: off[name]) == "c" and off["c"] == pytest.approx(0.4, abs=0.05)


def test_one_sub_sketch_knows_no_error_and_judges_no_cosine():
    exact = measured(np.eye(4, 64), np.ones(4))
    stored = stored_pairs(np.eye(4, 64)[::-1].copy(), exact.norm, exact.logp,
                          Codec("float16", 64, 1))
    found = compare_measured(stored, exact, "float16", False, list("abcd"))
    assert found.expected is None and not found.trouble
