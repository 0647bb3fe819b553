"""``congrad sketch --dry-run``: nothing is loaded, nothing is stored, and the answer is right."""

import gzip
import json

import pytest
from test_cli_data import BAD


@pytest.fixture
def dry(forked_congrad, tiny_model):
    def run(*arguments, **options):
        return forked_congrad("sketch", "--model", tiny_model, "--dry-run", *arguments, **options)

    return run


def test_the_report_says_what_a_sketch_would_find(dry, small_pairs, small_store, tmp_path):
    """Against the store of a real sketch of the same pairs."""
    from congrad_cli.store import GradientStore

    done = dry(small_pairs, "--json", "--dim", "512", "--width", "8", "--store-dtype", "float16")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert done.stdout.count(b"\n") == 1
    store = GradientStore.open(small_store)
    assert report["schema"] == "congrad.dry-run/1"
    assert report["records"] == report["overall"]["pairs"] == len(store)
    assert {group["name"]: group["pairs"] for group in report["groups"]} == {
        name: int((store.column("group") == number).sum())
        for number, name in enumerate(store.groups)}
    tokens = store.column("tokens")
    assert report["overall"]["tokens"] == int(tokens.sum())
    assert report["overall"]["prompt"]["max"] == int(tokens[:, 0].max())
    shards = sum(path.stat().st_size for path in (small_store / "shards").iterdir())
    assert 0.9 * shards < report["store_bytes"] <= shards
    assert report["left_out"] == {}
    assert report["refusal"] is None
    assert b"would be sketched" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_would_stop_a_sketch_is_shown_with_all_the_rest(dry, small_lines, tmp_path):
    """One look must show every problem, not the first; CI sees the exit code."""
    (tmp_path / "d.jsonl").write_bytes(b"".join([*small_lines, *BAD.values()]))
    done = dry("d.jsonl", "--json", "--rejects", "r.jsonl", cwd=tmp_path)
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert report["left_out"] == dict.fromkeys(BAD, 1)
    assert report["refusal"].startswith(f"d.jsonl:{len(small_lines) + 1}: not valid JSON")
    assert b"a sketch would stop: d.jsonl:" in done.stderr
    codes = [json.loads(line)["code"] for line in (tmp_path / "r.jsonl").open("rb")]
    assert codes == list(BAD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "r.jsonl"]
    skipping = dry("d.jsonl", "--bad-records", "skip", cwd=tmp_path)
    assert skipping.returncode == 0
    assert skipping.stdout == b""
    limited = dry("d.jsonl", "--bad-records", "skip", "--max-bad", "4", cwd=tmp_path)
    assert limited.returncode == 3


@pytest.mark.parametrize(("overlong", "code"), [("truncate", 0), ("skip", 0), ("stop", 3)])
def test_long_pairs_are_counted_as_the_option_says(dry, small_pairs, overlong, code, small_store):
    from congrad_cli.store import GradientStore

    tokens = GradientStore.open(small_store).column("tokens")
    limit = int(tokens[:, 0].max()) + 1  # every prompt leaves room
    longer = int((tokens[:, 0] + tokens[:, 1:].max(1) > limit).sum())
    assert 0 < longer < len(tokens)
    done = dry(small_pairs, "--json", "--max-length", limit, "--overlong", overlong)
    assert done.returncode == code, done.stderr
    report = json.loads(done.stdout)
    if overlong == "truncate":
        alike = report["left_out"].get("same-tokens", 0)  # what differs was cut off
        assert 0 < report["overall"]["truncated"] <= longer
        assert report["overall"]["truncated"] + alike == longer
    else:
        assert report["left_out"] == {"overlong": longer}


def test_packed_data_comes_through_a_pipe(dry, small_lines, tmp_path):
    done = dry("-", "--json", stdin=gzip.compress(b"".join(small_lines)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == len(small_lines)
    assert not list(tmp_path.iterdir())


def test_weights_are_not_needed(forked_congrad, small_pairs, sample_data, tmp_path):
    """A laptop can check the data of a model that it could never load."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((sample_data / "tiny-model" / name).read_bytes())
    done = forked_congrad("sketch", small_pairs, "--model", folder, "--dry-run")
    assert done.returncode == 0, done.stderr
