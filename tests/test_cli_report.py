"""``congrad report`` as a user runs it, and the numbers that it shows."""

import json
import re
import shutil

import numpy as np
import pytest
from test_report_page import Elements

from congrad_cli.consensus import run as consensus
from congrad_cli.direction import read_consensus
from congrad_cli.filter.target import own_target
from congrad_cli.progress import Silent
from congrad_cli.report.gather import geometry
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore


def text_of(path):
    return " ".join(" ".join(Elements(path.read_text(encoding="utf-8")).text).split())


@pytest.fixture(scope="module")
def reported(forked_congrad, agreed_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    done = forked_congrad("report", agreed_store, "-o", path, "--keep-ratio", "0.5", "--per-group")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == f"{path}\n".encode()
    return path


def test_the_report_says_what_the_filter_says(reported, forked_congrad, agreed_store, tmp_path):
    scores = tmp_path / "scores.jsonl"
    forked_congrad("filter", agreed_store, "--keep-ratio", "0.5", "--per-group",
                   "--scores", scores, "-o", tmp_path / "kept.jsonl")
    entries = [json.loads(line) for line in scores.read_bytes().splitlines()]
    kept, text = sum(entry["keep"] for entry in entries), text_of(reported)
    assert f"Kept {kept} of {len(entries)} pairs" in text
    best = max((entry for entry in entries if entry["keep"]), key=lambda entry: entry["score"])
    assert f"{best['score']:+.3f}" in text
    assert f"{best['source']}:{best['line']}" in text
    assert f"congrad filter {agreed_store} --keep-ratio 0.5 --per-group" in text


def test_its_commands_give_the_same_store_again(reported):
    line = re.search(r"congrad sketch (\S+) --model (\S+) --store (\S+) ([^<\n]*)",
                     reported.read_text())
    assert "--dim 512" in line[4]
    assert "--width 8" in line[4]
    assert "--store-dtype float16" in line[4]


def test_confidential_data_stays_out(forked_congrad, agreed_store, small_lines, tmp_path):
    path = tmp_path / "bare.html"
    done = forked_congrad("report", agreed_store, "-o", path, "--examples", 0)
    assert done.returncode == 0, done.stderr
    html = path.read_text()
    for line in small_lines:
        record = json.loads(line)
        assert record["chosen"].strip()[:30] not in html
    assert "Strongest kept" not in html


def test_a_summary_stands_for_the_filters_options(forked_congrad, agreed_store, tmp_path):
    summary, path = tmp_path / "summary.json", tmp_path / "again.html"
    forked_congrad("filter", agreed_store, "--keep", "7", "--rank-by", "norm",
                   "--summary", summary, "-o", tmp_path / "kept.jsonl")
    done = forked_congrad("report", agreed_store, "-o", path, "--summary", summary)
    assert done.returncode == 0, done.stderr
    assert "Kept 7 of " in text_of(path)
    assert "Minus the norm" in text_of(path)
    both = forked_congrad("report", agreed_store, "--summary", summary, "--keep", "3")
    assert both.returncode == 2
    (tmp_path / "no.json").write_text("[]")
    other = forked_congrad("report", agreed_store, "--summary", tmp_path / "no.json")
    assert (other.returncode, b"no summary" in other.stderr) == (2, True)


def test_without_a_consensus_the_cure_is_named(forked_congrad, small_store, tmp_path):
    done = forked_congrad("report", small_store, "-o", tmp_path / "x.html")
    assert done.returncode == 4
    assert b"congrad consensus" in done.stderr
    assert not (tmp_path / "x.html").exists()


def test_a_run_shows_its_rounds_and_its_last_store(forked_congrad, agreed_store, tmp_path):
    run = tmp_path / "run"
    for number in (1, 2):
        shutil.copytree(agreed_store, run / f"round-{number}" / "05-sketch" / "store")
    (run / "config.toml").write_text("")
    (run / "metrics.jsonl").write_text("".join(json.dumps({
        "round": number, "model": None, "stages": {"prompts": {"prompts": 1200 + number}},
        "evaluation": [{"language": "de", "measure": "win_rate", "value": 0.5 + number / 10,
                        "n": 3, "seen": False}],
    }) + "\n" for number in (1, 2)))
    done = forked_congrad("report", run, "-o", tmp_path / "run.html")
    assert done.returncode == 0, done.stderr
    text = text_of(tmp_path / "run.html")
    assert "win rate" in text
    assert "1,202" in text
    assert "de, round 2: 0.7" in text
    assert "Where groups agree" in text
    (run / "metrics.jsonl").write_text('{"round": 1}\n')
    broken = forked_congrad("report", run, "-o", tmp_path / "run.html")
    assert (broken.returncode, b"metrics.jsonl:1" in broken.stderr) == (3, True)


def test_findings_of_a_file_that_somebody_edited_do_not_stop_the_report(make_store, tmp_path):
    """A store may come from anywhere; what it says of itself may be of any kind."""
    from congrad_cli.report.run import write_report
    from congrad_cli.settings import FilterSettings
    from congrad_cli.tensors import map_arrays, pack_arrays

    store = make_store(np.eye(6), groups=["de", "en", "sw"] * 2)
    consensus.run(store, ConsensusSettings(), Silent())
    file = store / "consensus" / "default.safetensors"
    arrays, metadata = map_arrays(file)
    copies = {name: np.array(array) for name, array in arrays.items()}
    for findings in ({"certificate": [], "groups": 3}, {"groups": {"de": [1]}, "hint": {"a": 1}},
                     {"certificate": {"pairs": "x", "unsure": {}}, "outliers": None},
                     {"groups": {"de": {"interval": ["a", 2], "why_not": []}}}):
        metadata["findings"] = findings
        file.write_bytes(pack_arrays(copies, metadata))
        write_report(store, tmp_path / "r.html", FilterSettings(), 0, Silent())


def test_the_numbers_of_the_table_are_those_of_the_vectors(make_store):
    rng = np.random.default_rng(0)
    store = make_store(rng.standard_normal((60, 24)), groups=["de", "en", "sw"] * 20)
    consensus.run(store, ConsensusSettings(), Silent())
    opened = GradientStore.open(store)
    found = read_consensus(store, "default", opened)
    shape = geometry(own_target(opened, found))
    vectors, a, d = (found.consensus.gradients, found.consensus.coefficients,
                     found.consensus.direction)

    def cos(one, two):
        return one @ two / np.linalg.norm(one) / np.linalg.norm(two)

    for label, vector in enumerate(vectors):
        assert shape.cosine[label] == pytest.approx(cos(d, vector), abs=1e-9)
        assert shape.others[label] == pytest.approx(cos(d - a[label] * vector, vector), abs=1e-9)
        assert shape.norm[label] == pytest.approx(np.linalg.norm(vector))
    assert shape.share.sum() == pytest.approx(1)
