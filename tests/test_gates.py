"""Gates end with exit code 6 once all output is there; the summary says what they were."""

import io
import json

import numpy as np
import pytest
from synthetic import random_rows

from congrad_cli import __version__
from congrad_cli.consensus import run as consensus
from congrad_cli.errors import GateError, UsageError
from congrad_cli.filter import run as filtering
from congrad_cli.filter.gates import gates, require_gates
from congrad_cli.progress import Silent
from congrad_cli.settings import STORE_DTYPES, ConsensusSettings, FilterSettings


@pytest.mark.parametrize(
    ("limit", "pairs", "kept", "met"),
    [
        (0.3, [10, 10], [10, 4], True),  # exactly 30 %
        (0.3, [10, 10], [10, 3], False),
        (0.0, [3], [3], True),
        (0.0, [3], [2], False),
        (1.0, [3], [0], True),
        (0.07, [100], [93], True),  # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 below 29
        (0.29, [100], [71], True),
        (0.5, [0], [0], True),
    ],
)
def test_the_drop_rate_is_of_all_sketched_pairs(limit, pairs, kept, met):
    names = [f"g{number}" for number in range(len(pairs))]
    (gate,) = gates(names, pairs, kept, FilterSettings(max_drop_rate=limit))
    assert gate.met == met
    assert gate.value == pytest.approx(1 - sum(kept) / sum(pairs) if sum(pairs) else 0)
    assert (gate.name, gate.limit) == ("max-drop-rate", limit)


@pytest.mark.parametrize(("least", "met"), [(1, True), (3, True), (4, False)])
def test_every_group_must_keep_enough(least, met):
    (gate,) = gates(["de", "en"], [9, 9], [8, 3], FilterSettings(min_per_group=least))
    assert (gate.met, gate.value, gate.limit) == (met, 3, least)


@pytest.mark.parametrize(("limit", "conflicts", "met"), [
    (0.3, (3, 10), True), (0.3, (4, 10), False), (0.0, (0, 0), True), (0.07, (7, 100), True),
    (0.0, (1, 10), False),
])  # fmt: skip
def test_so_many_pairs_of_groups_may_conflict(limit, conflicts, met):
    (gate,) = gates(["de"], [9], [9], FilterSettings(max_conflict=limit), conflicts)
    assert gate.met == met
    assert gate.value == pytest.approx(conflicts[0] / max(conflicts[1], 1))


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_conflicts_are_counted_under_every_code(make_store, store_dtype):
    """Four groups in a plane: three of their six pairs are more than a right angle apart."""
    plane = np.random.default_rng(0).standard_normal((2, 512))
    toward = np.repeat([[1, 0.0], [-1, 0.5], [0.2, 1], [-1, -1]], 3, 0) @ plane
    rows = toward + 0.3 * np.random.default_rng(1).standard_normal((12, 512))
    path = make_store(rows, groups=np.repeat(["de", "en", "fr", "sw"], 3).tolist(), width=4,
                      store_dtype=store_dtype)
    consensus.run(path, ConsensusSettings(), Silent())
    summary = filtering.run(path, FilterSettings(max_conflict=0.4), io.BytesIO(), Silent())
    assert (summary.gates[0].value, summary.gates[0].met) == (0.5, False)


def test_a_group_that_lost_all_its_pairs_fails_too():
    """Every pair of it may have been too long: that is what such a gate is for."""
    (gate,) = gates(["de", "sw"], [9, 0], [8, 0], FilterSettings(min_per_group=1))
    assert not gate.met


def test_no_gate_was_asked_for():
    require_gates(gates(["de"], [9], [0], FilterSettings()))


def test_the_error_names_each_gate_with_its_numbers():
    settings = FilterSettings(max_drop_rate=0.5, min_per_group=4)
    found = gates(["de", "en", "sw"], [9, 9, 9], [4, 3, 0], settings)
    with pytest.raises(GateError) as caught:
        require_gates(found)
    assert caught.value.exit_code == 6
    assert caught.value.message == (
        "2 gates are not met: --max-drop-rate 0.5: 20 of 27 pairs were dropped (0.7407); "
        "--min-per-group 4: groups that keep fewer: en 3, sw 0.")
    met = gates(["de", "en", "sw"], [9, 9, 9], [4, 4, 9], settings)
    require_gates(met)


@pytest.mark.parametrize(("limits", "message"), [
    ({"max_drop_rate": 1.5}, "--max-drop-rate 1.5 is not between 0 and 1"),
    ({"max_drop_rate": float("nan")}, "--max-drop-rate nan"),
    ({"min_per_group": 0}, "--min-per-group 0"),
    ({"max_conflict": -0.1}, "--max-conflict -0.1 is not between 0 and 1"),
])  # fmt: skip
def test_limits_without_sense_are_refused(limits, message, store):
    with pytest.raises(UsageError, match=message):
        filtering.run(store, FilterSettings(**limits), io.BytesIO(), Silent())


@pytest.fixture
def store(make_store):
    """Forty pairs of two groups, one of them without a sketch."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((40, 64)) + 0.2 * rng.standard_normal(64)
    path = make_store(rows, groups=["de", "en"] * 20, width=4, skipped=[7])
    consensus.run(path, ConsensusSettings(), Silent())
    return path


def test_the_summary_counts_what_was_written(store, tmp_path):
    summary, kept = tmp_path / "summary.json", io.BytesIO()
    settings = FilterSettings(keep=5, per_group=True, summary=summary, dropped=tmp_path / "out",
                              max_drop_rate=0.5, min_per_group=5)
    filtering.run(store, settings, kept, Silent())
    found = json.loads(summary.read_bytes())
    dropped = (tmp_path / "out").read_bytes().count(b"\n")
    assert set(found) == {
        "schema", "command", "store", "records", "pairs", "kept", "dropped", "reasons",
        "borderline", "groups", "rank_by", "score_is", "gates", "settings",
        "consensus", "versions", "seconds"}
    assert (found["schema"], found["command"]) == ("congrad.summary/1", "filter")
    assert found["store"] == str(store)
    assert (found["records"], found["pairs"]) == (40, 39)
    assert (found["kept"], found["dropped"]) == (kept.getvalue().count(b"\n"), dropped) == (10, 30)
    assert found["reasons"] == {"beyond-keep": 29, "no-room": 1}
    assert {name: (group["pairs"], group["kept"]) for name, group in found["groups"].items()} == {
        "de": (20, 5), "en": (19, 5)}
    assert all(-1 < group["median_score"] < 1 for group in found["groups"].values())
    assert found["gates"] == {
        "max-drop-rate": {"limit": 0.5, "value": pytest.approx(29 / 39), "met": False},
        "min-per-group": {"limit": 5, "value": 5, "met": True}}
    assert found["settings"]["keep"] == 5
    assert found["settings"]["summary"] == str(summary)
    assert found["consensus"]["method"] == "pcgrad"
    assert found["versions"]["congrad"] == __version__
    assert 0 <= found["seconds"] < 300


def test_a_summary_is_json_whatever_the_numbers_are(make_store, tmp_path):
    """A group without a score has no median, and infinity is no JSON."""
    path = make_store(random_rows(2, 8), groups=["de", "sw"], skipped=[1])
    consensus.run(path, ConsensusSettings(), Silent())
    summary = tmp_path / "summary.json"
    settings = FilterSettings(min_score=float("-inf"), summary=summary)
    filtering.run(path, settings, io.BytesIO(), Silent())
    found = json.loads(summary.read_bytes(), parse_constant=lambda name: pytest.fail(name))
    assert found["groups"]["sw"] == {"pairs": 0, "kept": 0, "median_score": None}
    assert found["borderline"] is None
    assert found["settings"]["min_score"] == "-inf"


def test_a_missed_gate_exits_6_with_everything_written(store, forked_congrad, tmp_path):
    plain = forked_congrad("filter", store, "--keep", "9", "-q")
    assert plain.returncode == 0
    files = [tmp_path / name for name in ("dropped", "scores", "summary")]
    options = [part for file in files for part in (f"--{file.name}", file)]
    done = forked_congrad("filter", store, "--keep", "9", *options, "--max-drop-rate", "0.2")
    assert done.returncode == 6
    assert done.stdout == plain.stdout
    assert [file.read_bytes().count(b"\n") for file in files] == [31, 40, 1]
    assert (b"congrad: error: a gate is not met: --max-drop-rate 0.2: 30 of 39 pairs were dropped"
            in done.stderr)
    done = forked_congrad("filter", store, "--keep", "9", "-q", "--max-drop-rate", "0.8",
                          "--min-per-group", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, b"")


def test_the_summary_goes_to_stdout_where_lines_go_to_a_file(store, forked_congrad, tmp_path):
    kept, summary = tmp_path / "kept", tmp_path / "summary"
    done = forked_congrad("filter", store, "-o", kept, "--summary", summary, "--json",
                          "--min-per-group", "99")
    assert done.returncode == 6
    assert done.stdout == summary.read_bytes()
    assert json.loads(done.stdout)["kept"] == kept.read_bytes().count(b"\n") > 0
    for output in ([], ["-o", "-"], ["-o", "/dev/stdout"]):
        done = forked_congrad("filter", store, "--json", *output)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"--json: stdout has the kept lines" in done.stderr


def test_a_summary_is_not_written_over_another_file(store, forked_congrad, tmp_path):
    quotas = tmp_path / "quotas"
    quotas.write_text('{"*": 3}')
    done = forked_congrad("filter", store, "--quotas", quotas, "--summary", quotas)
    assert done.returncode == 2
    assert b"is the file of quotas" in done.stderr
    assert quotas.read_text() == '{"*": 3}'
    done = forked_congrad("filter", store, "--scores", quotas.with_name("x"),
                          "--summary", quotas.with_name("x"))
    assert done.returncode == 2
    assert b"is --scores as well" in done.stderr


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_stdout_is_for_kept_lines_alone(name, store, forked_congrad):
    """Behind these names is stderr by then, and a log that it goes to would be replaced."""
    for option in ("--scores", "--dropped", "--summary"):
        done = forked_congrad("filter", store, option, name)
        assert done.returncode == 2, done.stderr.decode()
        assert f"{option} {name}: stdout is for kept lines alone".encode() in done.stderr


def test_no_output_replaces_a_file_of_a_store(store, forked_congrad):
    shard = next((store / "shards").iterdir())
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    for command in (
        ("filter", store, "-o", shard),
        ("filter", store, "--scores", store / "store.json"),
        ("filter", store, "--summary", store / "consensus" / "default.safetensors"),
        ("report", store, "-o", store / "index.safetensors"),
    ):
        done = forked_congrad(*command)
        assert done.returncode == 2, done.stderr.decode()
        assert f"is a file of the store {store.resolve()}".encode() in done.stderr
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before
    done = forked_congrad("filter", store, "-o", store / "kept.jsonl")  # beside them is fine
    assert done.returncode == 0, done.stderr.decode()
