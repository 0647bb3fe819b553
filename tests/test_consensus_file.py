"""What a consensus file must say to be believed, whoever wrote it."""

import io

import numpy as np
import pytest
from synthetic import random_rows

from congrad_cli import api, arguments
from congrad_cli.consensus import run as consensus
from congrad_cli.direction import consensus_file, read_consensus
from congrad_cli.errors import NumericsError, StoreError, UsageError
from congrad_cli.filter import run as filtering
from congrad_cli.progress import Silent
from congrad_cli.release import find_consensus, store_named
from congrad_cli.settings import ConsensusSettings, FilterSettings
from congrad_cli.store import GradientStore
from congrad_cli.tensors import map_arrays, pack_arrays


@pytest.fixture
def path(make_store):
    store = make_store(random_rows(8, 16), groups=["de", "en"] * 4)
    consensus.run(store, ConsensusSettings(), Silent())
    return store


def rewrite(path, change):
    """Write the file anew with its digests in order, as only its author could."""
    file = consensus_file(path, "default")
    arrays, metadata = map_arrays(file)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    change(arrays, metadata)
    file.write_bytes(pack_arrays(arrays, metadata))


def judged(path, **options):
    return filtering.judge(path, FilterSettings(**options), Silent())


def test_a_changed_byte_of_the_stores_own_consensus_is_found(path):
    """A direction that is a little off would drop the wrong pairs in silence."""
    file = consensus_file(path, "default")
    content = bytearray(file.read_bytes())
    content[map_arrays(file)[0]["direction"].offset + 6] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="is not what was written"):
        judged(path)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tensor", ["direction", "gradients", "coefficients", "excess", "scale"])
def test_a_consensus_with_numbers_that_are_not_finite_is_refused(path, tensor, number):
    def change(arrays, _):
        arrays[tensor].reshape(-1)[0] = number

    rewrite(path, change)
    with pytest.raises(StoreError, match="a number that is not finite"):
        judged(path)


@pytest.mark.parametrize("change", [
    {"beta": 0.0}, {"beta": -1.0}, {"beta": 10**400}, {"beta": float("nan")}, {"loss": "none"},
    {"length_penalty": float("inf")}, {"label_smoothing": 0.5}, {"average": "none"},
    {"trim": float("nan")}, {"ema_batch": 0}, {"ema_batch": 10**30}, {"ema_decay": 1.0},
    {"pair_norm": "clip:2"}, {"method": "none"}, {"seed": -1},
])  # fmt: skip
def test_a_consensus_made_with_impossible_settings_is_refused(path, change):
    """They would divide by zero where the same loss weighs other pairs."""
    rewrite(path, lambda _, metadata: metadata["settings"].update(change))
    with pytest.raises(StoreError, match="unknown settings"):
        read_consensus(path, "default", GradientStore.open(path))


def test_groups_of_one_name_are_refused(path):
    rewrite(path, lambda _, metadata: metadata.update(groups=["de", "de"]))
    with pytest.raises(StoreError, match="two groups have one name"):
        judged(path)


@pytest.mark.parametrize("options", [
    {"method": "none"}, {"average": "none"}, {"loss": "none"}, {"pair_norm": "long"},
    {"beta": float("inf")}, {"trim": 0.5}, {"merge_groups": 1.5}, {"ema_batch": 0},
])  # fmt: skip
def test_settings_from_python_are_checked_as_those_of_the_shell(path, options):
    with pytest.raises(UsageError):
        consensus.run(path, ConsensusSettings(**options), Silent())


@pytest.mark.parametrize("options", [{"loss": "none"}, {"beta": float("inf")}])
def test_the_loss_that_filter_scores_by_is_checked(path, options):
    with pytest.raises(UsageError):
        judged(path, **options)


def test_weights_that_are_not_finite_are_an_error_not_a_pair_without_a_score(path):
    settings = ConsensusSettings(loss="lp-dpo", length_penalty=1e308)
    with pytest.raises(NumericsError, match="weights that are not finite"):
        consensus.run(path, settings, Silent())
    with pytest.raises(NumericsError, match="weights that are not finite"):
        judged(path, loss="lp-dpo", length_penalty=1e308)


def test_a_name_too_long_for_a_file_is_refused_before_the_pairs_are_read(path):
    with pytest.raises(UsageError, match="cannot name a consensus"):
        consensus.run(path, ConsensusSettings(name="ü" * 101), Silent())
    consensus.run(path, ConsensusSettings(name="ü" * 100), Silent())
    assert len(consensus_file(path, "ü" * 100).read_bytes())


@pytest.mark.parametrize("text", ["a" * 300, "./" + "a" * 300, "a\0b"])
def test_a_text_that_can_name_no_file_names_no_consensus(path, text):
    with pytest.raises((StoreError, UsageError)):
        filtering.run(path, FilterSettings(consensus=text), io.BytesIO(), Silent())
    assert store_named([text]) is None
    if "/" not in text:
        assert find_consensus(text, path).name == text


def test_a_consensus_that_is_missing_is_told_with_those_there_are(path):
    consensus.run(path, ConsensusSettings(name="strict"), Silent())
    with pytest.raises(StoreError, match="no consensus named 'strikt'") as caught:
        judged(path, consensus="strikt")
    assert caught.value.hints == ("there: default, strict",
                                  f"run: congrad consensus {path} --name strikt")


def test_outputs_are_looked_at_before_the_pairs(path, monkeypatch, tmp_path):
    """Hours of scoring shall not end with a folder that is not there."""
    def unwanted(*_):
        raise AssertionError("the pairs were read")

    monkeypatch.setattr(filtering, "judge", unwanted)
    for wrong in ({"scores": tmp_path / "none" / "x"}, {"output": tmp_path / "x.parquet"},
                  {"output": tmp_path / "x", "dropped": tmp_path / "x"}):
        with pytest.raises(UsageError):
            filtering.run(path, FilterSettings(**wrong), io.BytesIO(), Silent())


@pytest.mark.parametrize("options", [
    {"orders": 8, "method": "upgrad"}, {"trim": 0.2}, {"ema_decay": 0.5}, {"ema_batch": 4},
    {"length_penalty": 0.1}, {"label_smoothing": 0.2, "loss": "lp-dpo"},
    {"normalize_groups": "unit", "method": "nash-mtl"},
])  # fmt: skip
def test_an_option_that_the_others_leave_without_use_is_refused(options):
    """Who passes --trim alone would believe that something is trimmed."""
    with pytest.raises(UsageError, match="does nothing with"):
        arguments.check_used(ConsensusSettings(**options))


@pytest.mark.parametrize("options", [
    {}, {"orders": 8}, {"trim": 0.2, "average": "trimmed"}, {"ema_batch": 4, "average": "ema"},
    {"length_penalty": 0.1, "loss": "lp-dpo"}, {"normalize_groups": "unit", "method": "mgda"},
])  # fmt: skip
def test_options_that_are_used_pass(options):
    arguments.check_used(ConsensusSettings(**options))


def test_a_loss_option_of_filter_that_does_nothing_is_refused(path):
    with pytest.raises(UsageError, match="--label-smoothing does nothing with --loss dpo"):
        judged(path, label_smoothing=0.2)
    judged(path, label_smoothing=0.2, loss="robust")


@pytest.mark.parametrize("options", [
    {"groups": "cluster:x"}, {"weights": {"de": -1}}, {"weights": {"de": "2"}}, {"method": "none"},
])  # fmt: skip
def test_options_from_python_are_refused_in_a_sentence(path, options):
    with pytest.raises(UsageError):
        api.consensus(path, **options)
