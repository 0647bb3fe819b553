"""However a sketch was shared out and wherever it stopped, the rows are the same, and each is once.

Windows are of 4 rows here: 24 pairs are 6 windows.
"""

import itertools
import json
import subprocess
import sys

import numpy as np
import patched
import pytest
import typer.main
from conftest import SMALL

from congrad_cli.cli import app
from congrad_cli.store import GradientStore, open_shard, shard_files, stored_digests

WINDOW = 4


@pytest.fixture(scope="module")
def sketch(forked_congrad, small_pairs, tiny_model):
    """Sketches the pairs into a store, by several runs; returns what the last one wrote."""

    def run(store, *runs, code=0):
        for options in runs:
            done = forked_congrad("sketch", small_pairs, "-m", tiny_model, "-s", store, *SMALL,
                                  *options, WINDOW=WINDOW, SHARD_ROWS=3)  # fmt: skip
            assert done.returncode == code, done.stderr.decode()
        return done.stdout

    return run


@pytest.fixture(scope="module")
def whole(sketch, tmp_path_factory):
    """The store of one run."""
    store = tmp_path_factory.mktemp("whole") / "s.congrad"
    assert sketch(store, ["--batch-tokens", "300"]) == str(store).encode() + b"\n"
    return store


@pytest.fixture(scope="module")
def filtered(forked_congrad):
    """What ``filter`` keeps of a store, and the scores it writes."""

    def run(store, *options):
        assert forked_congrad("consensus", store).returncode == 0
        scores = store.with_suffix(".scores")
        done = forked_congrad("filter", store, "--scores", scores, *options)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout, scores.read_bytes()

    return run


def rows(store):
    """All columns, in the data's order; raises unless each pair is stored once."""
    opened = GradientStore.open(store)
    shards = [open_shard(file, opened.header) for file in shard_files(store)]
    digests = stored_digests(shards)
    assert len(digests) == len(np.unique(digests, axis=0)) == len(opened) == opened.rows
    names = ("direction", "norm", "logp", "tokens", "digest")
    return {name: opened.column(name) for name in names}


@pytest.mark.parametrize(
    "shards",
    [["0/2", "1/2"], ["2/3", "0/3", "1/3"], ["1/3", "0/2", "0/1"]],
    ids=["two ranks", "three ranks", "another number of ranks each time"],
)
def test_any_number_of_ranks_gives_the_same_rows_and_lines(
    shards, sketch, whole, filtered, tmp_path
):
    store = tmp_path / "s.congrad"
    said = sketch(store, *(["--batch-tokens", "300", "--shard", shard] for shard in shards))
    assert said == (str(store).encode() + b"\n" if shards[-1] == "0/1" else b"")
    for name, column in rows(whole).items():
        np.testing.assert_array_equal(rows(store)[name], column)
    assert filtered(store) == filtered(whole)


def test_another_budget_changes_rows_by_rounding_and_only_borderline_pairs(
    sketch, filtered, tmp_path
):
    stores = [tmp_path / budget for budget in ("512", "8192")]
    for store in stores:
        sketch(store, ["--batch-tokens", store.name])
    first, second = map(rows, stores)
    for name in ("tokens", "digest"):
        np.testing.assert_array_equal(first[name], second[name])
    for name in ("norm", "logp"):  # sums of float32 in another order
        np.testing.assert_allclose(first[name], second[name], rtol=1e-4)
    # a number of a row that lies between two of float16's may become one or the other
    apart = first["direction"].astype(np.float64) - second["direction"]
    assert np.linalg.norm(apart, axis=1).max() < 2.0**-10
    threshold = np.median([entry["score"] for entry in scores(filtered(stores[0])[1])])
    (kept, about), (others, again) = (
        filtered(store, "--min-score", str(threshold)) for store in stores
    )
    for one, two in zip(scores(about), scores(again), strict=True):
        assert abs(one["score"] - two["score"]) < 2.0**-9, "two unit vectors' changes"
        assert one["keep"] == two["keep"] or abs(one["score"] - threshold) < 2.0**-9
    assert len({*kept.splitlines()} ^ {*others.splitlines()}) <= 1, "the pair at the threshold"


def scores(text):
    return [json.loads(line) for line in text.splitlines()]


def spelt(option):
    """Every way to write an option of ours."""
    for name in (*option.opts, *option.secondary_opts):
        yield [name] if option.is_flag else [name, "1"]
        if name.startswith("--") and not option.is_flag:
            yield [f"{name}=1"]


def test_torchrun_hands_every_option_of_ours_to_us(capsys):
    """Its own parser reads the whole line, and knows abbreviations."""
    parser = pytest.importorskip("torch.distributed.run").get_args_parser()
    params = typer.main.get_command(app).commands["sketch"].params
    options = [param for param in params if param.param_type_name == "option"]
    assert {"--model", "--batch-tokens", "--shard", "-m", "-s", "-q"} <= {
        name for option in options for name in option.opts}
    for words in itertools.chain.from_iterable(map(spelt, options)):
        ours = ["sketch", "d.jsonl", *words]
        line = ["--nproc-per-node", "2", "-m", "congrad_cli", *ours]
        read = parser.parse_args(line)
        assert read.training_script_args == ours, words
        assert (read.training_script, read.module, read.nproc_per_node) == (
            "congrad_cli", True, "2"), words


@pytest.mark.slow  # three processes import torch: 30 s
def test_under_torchrun_rank_0_waits_and_prints_the_path_alone(
    small_pairs, tiny_model, sketch, whole, tmp_path
):
    store = tmp_path / "s.congrad"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
         "0", patched.__file__, "WINDOW=4", "--", "sketch", small_pairs, "-m", tiny_model,
         "-s", store, *SMALL, "--batch-tokens", "300"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == str(store).encode() + b"\n"
    assert {file.name[:4] for file in shard_files(store)} == {"r000", "r001"}
    for name, column in rows(whole).items():
        np.testing.assert_array_equal(rows(store)[name], column)
