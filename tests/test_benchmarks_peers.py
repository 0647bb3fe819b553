"""The benchmark of congrad and its peers: its rule, its tokens, its lines, and that it runs."""

import csv
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import read_all

from congrad_cli.checkpoint import load_tokenizer
from congrad_cli.model_source import find_model
from congrad_cli.sketch.exact import exact_gradient
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.model import load_model
from congrad_cli.sketch.tokens import tokenize_all

sys.path.append(str(Path(__file__).parent / "benchmarks"))
sys.path.append(str(Path(__file__).parent / "benchmarks" / "peer_scripts"))
import keep_agreeing
import peer_methods
import peer_script_runs
import peers
from agreement import view
from pair_gradients import pair_gradients
from peer_script_runs import FOLDER, SCRIPTS, code_lines, run_script


class Isometry:
    """A projector without error, to the same many numbers."""

    def project(self, gradients, model_id):
        """Rows with the inner products of the gradients."""
        values, vectors = np.linalg.eigh((gradients.double() @ gradients.double().T).numpy())
        rows = np.zeros((len(gradients), peer_methods.NUMBERS), np.float32)
        rows[:, : len(gradients)] = vectors * np.sqrt(np.maximum(values, 0))
        return torch.from_numpy(rows)


@pytest.fixture
def two_languages(small_lines, tmp_path):
    """Six short pairs of two languages, in a file."""
    languages = sorted({json.loads(line)["language"] for line in small_lines})[:2]
    lines = [line for line in small_lines if json.loads(line)["language"] in languages][:6]
    path = tmp_path / "six.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def measured(monkeypatch, tmp_path, *arguments):
    """The benchmark's rows of CSV, by method and measure."""
    out = tmp_path / "peers.csv"
    monkeypatch.setattr(sys, "argv", ["peers.py", *map(str, arguments), "--out", str(out)])
    peers.main()
    with out.open(encoding="utf-8", newline="") as file:
        return {(row["method"], row["measure"]): float(row["value"])
                for row in csv.DictReader(file)}


@pytest.mark.parametrize("seed", range(5))
def test_the_scripts_rule_is_that_of_congrad(seed, tmp_path):
    draw = np.random.default_rng(seed)
    rows = (draw.standard_normal((40, 64)) + 0.05).astype(np.float16).astype(np.float32)
    groups = [f"l{number % 4 + number % 3}" for number in range(40)]
    lines = [json.dumps({"language": group, "row": row}).encode() + b"\n"
             for row, group in enumerate(groups)]
    keep_agreeing.write_agreeing(tmp_path / "kept", lines, rows)
    kept = [json.loads(line)["row"] for line in (tmp_path / "kept").read_bytes().splitlines()]
    score = view(rows, np.ones(40), groups).score["mean"]
    assert 0 < len(kept) < 40
    assert kept == np.flatnonzero(score >= 0).tolist()


def test_the_scripts_tokens_are_those_of_congrad(sample_data, tiny_model):
    data = sample_data / "preferences.jsonl"
    lines, pairs = keep_agreeing.read_pairs(data, tiny_model)
    ours = tokenize_all(read_all(data), load_tokenizer(find_model(tiny_model), None), 10**6)
    assert b"".join(lines) == data.read_bytes()
    assert pairs == [(pair.prompt, pair.chosen, pair.rejected) for pair in ours]


def test_lines_of_code_are_those_that_do_something(tmp_path):
    (tmp_path / "part.py").write_text('"""What it is."""\n\nimport other\n\nTEXT = """a\nb"""\n')
    (tmp_path / "other.py").write_text("# no code\nimport part\n")
    script = tmp_path / "script.py"
    script.write_text('import json\nfrom part import TEXT  # why\n\n\ndef f():\n    """Say."""\n'
                      "    return (\n        TEXT\n    )\n")
    assert code_lines(tmp_path / "other.py") == 1 + 3
    assert code_lines(script) == 6 + 3 + 1
    shell = tmp_path / "script.sh"
    shell.write_text("#!/bin/bash\n# why\n\nset -e\ntrue |\n  cat\n")
    assert code_lines(shell) == 3


def test_a_script_is_run_where_it_may_leave_its_gradients(monkeypatch, tmp_path):
    (tmp_path / "good.py").write_text(
        "import sys, shutil\nimport congrad_cli\nopen('gradients.npy', 'wb').write(bytes(30))\n"
        "assert open('pairs.jsonl').read() == 'a\\nb\\n'\nassert shutil.which('congrad')\n"
        "open(sys.argv[3], 'wb').write(b'b\\n')\n")
    (tmp_path / "bad.py").write_text("raise SystemExit('it broke')\n")
    monkeypatch.setattr(peer_script_runs, "FOLDER", tmp_path)
    monkeypatch.setattr(peer_script_runs, "SCRIPTS", {"good": "good.py", "bad": "bad.py"})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    found = run_script("good", b"a\nb\n", Path("model"), tmp_path / "one")
    assert (found.bytes, found.kept) == (30, {b"b\n"})
    assert found.seconds > 0
    with pytest.raises(RuntimeError, match=r"bad\.py failed:\nit broke"):
        run_script("bad", b"", Path("model"), tmp_path / "two")


def test_all_methods_see_the_same_pairs(monkeypatch, tmp_path, two_languages, tiny_model, capsys):
    monkeypatch.setattr(peer_methods, "projector", lambda weights, seed: Isometry())
    monkeypatch.setattr(peer_methods, "find_spec", lambda name: name == "trak" or None)
    found = measured(monkeypatch, tmp_path, "--model", tiny_model, "--data", two_languages,
                     "--pairs", 6, "--portion", 4, "--rounds", 1)
    assert "bergson: left out, bergson is not installed" in capsys.readouterr().out
    assert {method for method, _ in found} == {"congrad 16k", "congrad 4k", "dense 8,192",
                                               "autograd"}
    assert found["autograd", "cosine RMSE"] == 0
    assert found["dense 8,192", "cosine RMSE"] < 1e-3
    assert 1e-3 < found["congrad 16k", "cosine RMSE"] < 0.03
    assert found["congrad 16k", "cosine RMSE"] < found["congrad 4k", "cosine RMSE"] < 0.04
    for method, size in (("congrad 16k", 16512), ("congrad 4k", 4224), ("dense 8,192", 16384),
                         ("autograd", 4 * 2359296)):
        assert found[method, "bytes a pair"] == size
        assert found[method, "pairs a CPU s"] > found[method, "whole job, pairs a CPU s"] > 0
    assert found["dense 8,192", "of these also by exact"] == 1
    assert found["congrad 16k", "CPU time / congrad"] == 1


def test_the_scripts_gradients_are_the_exact_ones(two_languages, tiny_model):
    source = find_model(tiny_model)
    model = load_model(source, torch.device("cpu"), torch.float32)
    layers = choose_layers(all_layers(model), "blocks")
    ours = tokenize_all(read_all(two_languages), load_tokenizer(source, None), 10**6)
    exact = torch.stack([
        torch.cat([part.flatten() for part in exact_gradient(model, layers, pair).layers.values()])
        for pair in ours])
    _, pairs = keep_agreeing.read_pairs(two_languages, tiny_model)
    theirs = torch.stack(list(pair_gradients(str(tiny_model), pairs)))
    torch.testing.assert_close(theirs @ theirs.T, exact @ exact.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["autograd", "dense"])
def test_a_script_keeps_what_congrads_scores_keep(
    name, monkeypatch, tmp_path, two_languages, tiny_model
):
    trak = type(sys)("trak.projectors")
    trak.BasicProjector = lambda *given: Isometry()
    monkeypatch.setitem(sys.modules, "trak", type(sys)("trak"))
    monkeypatch.setitem(sys.modules, "trak.projectors", trak)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", str(two_languages), tiny_model, "kept.jsonl"])
    runpy.run_path(str(FOLDER / SCRIPTS[name]))
    lines = two_languages.read_bytes().splitlines(keepends=True)
    rows = np.load("gradients.npy").astype(np.float32)
    scores = view(rows, np.ones(6), [json.loads(line)["language"] for line in lines]).score
    expected = [line for line, score in zip(lines, scores["mean"], strict=True) if score >= 0]
    assert Path("kept.jsonl").read_bytes() == b"".join(expected)


def test_bergsons_rows_stand_for_the_same_gradients(
    monkeypatch, tmp_path, two_languages, tiny_model
):
    pytest.importorskip("bergson", reason="bergson is a peer, not a part: it is not installed")
    found = measured(monkeypatch, tmp_path, "--model", tiny_model, "--data", two_languages,
                     "--pairs", 6, "--rounds", 1, "--methods", "congrad", "bergson", "autograd")
    assert found["bergson 16 x 16", "cosine RMSE"] < 0.1
    assert found["bergson 16 x 16", "bytes a pair"] == 2 * 4 * 42 * 256
    assert not math.isnan(found["bergson 16 x 16", "CPU time / congrad"])


@pytest.mark.slow
def test_the_pipe_keeps_what_exact_gradients_keep(tmp_path, small_lines, tiny_model):
    runs = {}
    for name in ("congrad", "autograd"):
        (tmp_path / name).mkdir()
        runs[name] = run_script(name, b"".join(small_lines), Path(tiny_model), tmp_path / name)
    assert len(runs["congrad"].kept ^ runs["autograd"].kept) <= 2
    assert runs["congrad"].bytes > 16384 * len(small_lines)
