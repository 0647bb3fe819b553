"""Losses and references through the commands: one sketch, every loss."""

import json

import numpy as np
import pytest

from congrad_cli.store import GradientStore


@pytest.fixture(scope="module")
def with_reference(forked_congrad, sample_data, small_pairs, tmp_path_factory):
    """A store with a reference's log-probabilities; the reference is a perturbed policy."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = tmp_path_factory.mktemp("reference")
    model = AutoModelForCausalLM.from_pretrained(sample_data / "tiny-model")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * weight.std() * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(root / "model")
    AutoTokenizer.from_pretrained(sample_data / "tiny-model").save_pretrained(root / "model")
    store = root / "s.congrad"
    done = forked_congrad(
        "sketch", small_pairs, "--model", sample_data / "tiny-model", "--store", store,
        "--reference", root / "model", "--token-weighting", "mean", "--dim", 512, "--width", 8,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return store


def test_reference_and_weighted_log_probs_are_stored(with_reference):
    store = GradientStore.open(with_reference)
    weighted, tokens = store.column("weighted_logp"), store.column("tokens")
    np.testing.assert_allclose(weighted, store.column("logp") / tokens[:, 1:], rtol=1e-5)
    reference = store.column("ref_logp")
    assert reference.dtype == np.float32 and reference.shape == (len(store), 2)
    assert 1e-3 < np.abs(reference - weighted).max() < 2, "close to the policy, but not the same"


@pytest.mark.parametrize("loss", ["dpo", "lp-dpo", "ipo", "hinge", "robust"])
def test_every_loss_works_on_one_sketch(forked_congrad, with_reference, loss):
    named = ("--name", loss)
    done = forked_congrad("consensus", with_reference, "--loss", loss, *named)
    assert done.returncode == 0, done.stderr.decode()
    done = forked_congrad("filter", with_reference, "--consensus", loss, "--min-score", -2)
    assert done.returncode == 0 and done.stdout


def test_ipo_is_refused_on_a_store_of_sums(forked_congrad, small_store):
    done = forked_congrad("consensus", small_store, "--loss", "ipo", "--name", "ipo")
    assert done.returncode == 2 and b"--token-weighting mean" in done.stderr
    assert done.stdout == b""


def test_a_loss_that_can_do_nothing_without_a_reference_says_so(forked_congrad, small_store):
    done = forked_congrad("consensus", small_store, "--loss", "hinge", "--name", "hinge")
    assert done.returncode == 0 and b"its own reference" in done.stderr


def test_pairs_of_weight_zero_are_flagged(forked_congrad, with_reference, tmp_path):
    """A hinge with a large beta is satisfied by every pair whose margin is positive enough."""
    named = ("--name", "flat")
    done = forked_congrad("consensus", with_reference, "--loss", "hinge", "--beta", 1000, *named)
    assert b"weight 0" in done.stderr, done.stderr.decode()
    scores = tmp_path / "scores.jsonl"
    done = forked_congrad("filter", with_reference, "--consensus", "flat", "--scores", scores)
    assert done.returncode == 0, done.stderr.decode()
    entries = [json.loads(line) for line in scores.read_bytes().splitlines()]
    flagged = [entry for entry in entries if entry.get("flag") == "zero-weight"]
    assert 0 < len(flagged) < len(entries)
    assert all(entry["score"] is not None for entry in flagged)


def test_filter_scores_by_a_loss_of_its_own(forked_congrad, with_reference, tmp_path):
    """ipo with a large beta pulls pairs back whose margin is large already: their sign turns."""
    done = forked_congrad("consensus", with_reference, "--name", "by-dpo")
    assert done.returncode == 0, done.stderr.decode()

    def scores(*options):
        path = tmp_path / f"scores-{len(options)}.jsonl"
        done = forked_congrad("filter", with_reference, "--consensus", "by-dpo", "--min-score", -2,
                              "--scores", path, *options)  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return [json.loads(line)["score"] for line in path.read_bytes().splitlines()]

    store = GradientStore.open(with_reference)
    ratio = store.column("weighted_logp").astype(np.float64) - store.column("ref_logp")
    beta = 1e4
    turned = 1 / beta - 2 * (ratio[:, 0] - ratio[:, 1]) < 0
    assert 0 < turned.sum() < len(turned)
    plain, by_ipo = np.array(scores()), np.array(scores("--loss", "ipo", "--beta", beta))
    np.testing.assert_allclose(by_ipo, np.where(turned, -plain, plain))
    refused = forked_congrad("filter", with_reference, "--loss", "simpo")
    assert refused.returncode == 2 and b"pass one of dpo" in refused.stderr


def test_filter_refuses_ipo_on_a_store_of_sums(forked_congrad, agreed_store):
    done = forked_congrad("filter", agreed_store, "--loss", "ipo")
    assert done.returncode == 2 and b"--token-weighting mean" in done.stderr
    assert done.stdout == b""


def test_reference_log_probs_of_the_data_are_used(
    forked_congrad, sample_data, small_pairs, tmp_path
):
    rows = [json.loads(line) for line in small_pairs.read_bytes().splitlines()[:4]]
    for index, row in enumerate(rows):
        row |= {"ref_chosen_logps": -10.0 - index, "ref_rejected_logps": -20}
    data, store = tmp_path / "pairs.jsonl", tmp_path / "s.congrad"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("sketch", data, "--model", sample_data / "tiny-model", "--store", store,
                 "--dim", 512, "--width", 8)  # fmt: skip
    assert forked_congrad(*arguments).returncode == 0
    expected = [[-10.0 - index, -20.0] for index in range(4)]
    np.testing.assert_array_equal(GradientStore.open(store).column("ref_logp"), expected)

    done = forked_congrad(*arguments, "--token-weighting", "ld:0.5", "--overwrite")
    assert done.returncode == 2 and b"--reference" in done.stderr

    del rows[2]["ref_chosen_logps"], rows[2]["ref_rejected_logps"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = forked_congrad(*arguments, "--overwrite")
    assert done.returncode == 3 and b"pairs.jsonl:3: some records have" in done.stderr

    rows[2]["ref_chosen_logps"] = "much"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = forked_congrad(*arguments, "--overwrite")
    assert done.returncode == 3 and b"'ref_chosen_logps' is no log-probability" in done.stderr


@pytest.mark.parametrize("weighting", ["ld", "ld:2", "ld:x", "median", "sum:1"])
def test_unknown_token_weightings_are_usage_errors(
    forked_congrad, sample_data, small_pairs, tmp_path, weighting
):
    done = forked_congrad("sketch", small_pairs, "--model", sample_data / "tiny-model",
                   "--store", tmp_path / "s", "--token-weighting", weighting)  # fmt: skip
    assert done.returncode == 2 and b"pass sum, mean or ld:A" in done.stderr
