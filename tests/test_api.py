"""The Python functions do what the commands do, and stay callable whatever was imported."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import LANGUAGES, PAIRS_EACH

SCRIPT = """
import json, sys
from congrad_cli import consensus, select, sketch
store = sketch(sys.argv[1], sys.argv[2], sys.argv[3], dim=512, width=8, store_dtype="float16")
found = consensus(store, method="upgrad")
selection = select(store, keep_ratio=0.5)
from congrad_cli import consensus as again, sketch as folder   # modules by now, and callable
assert sketch(sys.argv[1], sys.argv[2], store, dim=512, width=8, store_dtype="float16") == store
assert folder(sys.argv[1], sys.argv[2], store, dim=512, width=8, store_dtype="float16") == store
assert again(store).names == found.names
print(json.dumps({"rows": selection.rows.tolist(), "reason": selection.reason,
                  "score": selection.score.tolist(), "groups": found.names}))
"""


def test_the_functions_give_what_the_commands_give(
    congrad, forked_congrad, small_pairs, tiny_model, small_store, store_copy, tmp_path
):
    command = [sys.executable, "-c", SCRIPT, small_pairs, tiny_model, tmp_path / "x.congrad"]
    done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    scores = tmp_path / "scores.jsonl"
    forked_congrad("consensus", store_copy, "--method", "upgrad")
    forked_congrad("filter", store_copy, "--keep-ratio", "0.5", "--scores", scores,
                   "-o", tmp_path / "kept.jsonl")
    entries = [json.loads(line) for line in scores.read_bytes().splitlines()]
    assert found["rows"] == [entry["row"] for entry in entries if entry["keep"]]
    assert found["reason"] == [entry["reason"] for entry in entries]
    np.testing.assert_allclose(found["score"], [entry["score"] for entry in entries], atol=1e-6)
    assert len(found["groups"]) == LANGUAGES


def test_records_in_memory_are_data(tiny_model, small_lines, tmp_path):
    from congrad_cli import api

    records = [json.loads(line) for line in small_lines]
    store = api.sketch(records, tiny_model, tmp_path / "memory.congrad", dim=512, width=8)
    api.consensus(store, weights={records[0]["language"]: 2.0})
    selection = api.select(store, min_score=-1.0)
    assert selection.rows.tolist() == list(range(LANGUAGES * PAIRS_EACH))
    assert selection.group == [record["language"] for record in records]
    with pytest.raises(api.UsageError, match="no option 'methud'") as caught:
        api.consensus(store, methud="mean")
    assert caught.value.hints == ("did you mean method?",)


def test_the_package_has_nothing_else():
    import congrad_cli

    with pytest.raises(AttributeError):
        _ = congrad_cli.filter_pairs
