"""A loop that is killed at any moment, and run again, makes what it would have made.

The processes are real, and so is everything in them but the training (that has tests of its own).
"""

import json
import signal
from pathlib import Path

import pytest
from killed_loop import MOMENTS

PROGRAM = Path(__file__).parent / "killed_loop.py"
TEXT = ("candidates", "judgements")
STEPS = [f"{number}/{stage}" for number in (1, 2) for stage in (
    "prompts", "candidates", "judgements", "pairs", "sketch", "consensus", "filter", "train",
    "evaluation")]  # fmt: skip

CONFIG = """
[run]
rounds = 2
[model]
path = "{model}"
device = "cpu"
threads = 1
[prompts]
files = ["{data}/prompts.jsonl"]
languages = ["de", "en"]
per_language = 5
[backend]
batch = 20
[generate]
candidates = 4
temperature = 1.0
top_p = 1.0
max_tokens = 24
[judge]
kind = "log-prob"
[pairs]
check_language = false
[sketch]
dim = 128
width = 8
[filter]
keep_ratio = 0.7
[train]
max_length = 128
[evaluate]
prompts = ["{held_out}"]
per_language = 1
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory, sample_data, tiny_model) -> Path:
    """Two rounds of few prompts that end early, so that most of them give a pair."""
    folder = tmp_path_factory.mktemp("config")
    held_out = folder / "held-out.jsonl"
    held_out.write_text('{"prompt": "Der Himmel", "language": "de"}\n'
                        '{"prompt": "The sky", "language": "en"}\n')
    path = folder / "loop.toml"
    path.write_text(CONFIG.format(model=tiny_model, data=sample_data, held_out=held_out))
    return path


@pytest.fixture(scope="module")
def run(config, forked_congrad):
    """Runs the loop into a folder, killed at a moment; returns the exit code."""

    def run(folder: Path, moment: str = "never", *more) -> int:
        done = forked_congrad(moment, "loop", config, "--set", f"run={folder}", "-q", *more,
                              program=PROGRAM)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
        return done.returncode

    return run


def made(folder: Path) -> dict[str, bytes]:
    """All items, pairs, kept and dropped lines, and metrics of a run, by file."""
    names = ("*/*/*.jsonl", "metrics.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes()
            for name in names for path in folder.glob(name)}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory) -> dict[str, bytes]:
    """What an uninterrupted run made."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(folder) == 0
    return made(folder)


def test_the_undisturbed_run_is_worth_comparing_with(undisturbed):
    """Guards the tests below: rounds that make nothing, or the same, would hide mistakes."""
    for number in (1, 2):
        assert undisturbed[f"round-{number}/04-pairs/pairs.jsonl"].count(b"\n") >= 3
        assert undisturbed[f"round-{number}/07-filter/kept.jsonl"]
    first, second = (
        [json.loads(line)["candidates"] for line in
         undisturbed[f"round-{number}/02-candidates/results.jsonl"].splitlines()]
        for number in (1, 2))
    assert first != second
    assert undisturbed["metrics.jsonl"].count(b"\n") == 3


def survive(run, folder, moments, undisturbed):
    """Kill one run at one moment after the other, then let it end."""
    for moment in moments:
        assert run(folder, moment) == -signal.SIGKILL, f"{moment} never came"
    assert run(folder) == 0
    assert made(folder) == undisturbed
    assert not list(folder.rglob("*.part.jsonl"))
    assert not list(folder.rglob("*.tmp"))


def test_a_loop_killed_in_every_stage_makes_what_it_would_have_made(run, undisturbed, tmp_path):
    moments = ["finish 0/evaluation"]
    for step in STEPS:
        number, stage = step.split("/")
        if number == "1":
            moments += [f"item {stage}"] * (stage in TEXT) + [f"finish {step}"]
    survive(run, tmp_path / "run", [*moments, "finish 2/filter"], undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_loop_killed_at_every_moment_of_every_stage_makes_what_it_would_have_made(
    run, undisturbed, tmp_path, moment
):
    names = [*TEXT, "evaluation"] if moment in ("item", "results") else ["0/evaluation", *STEPS]
    survive(run, tmp_path / "run", [f"{moment} {name}" for name in names], undisturbed)


def test_making_a_step_anew_makes_the_same_and_leaves_what_is_before(run, undisturbed, tmp_path):
    folder = tmp_path / "run"
    assert run(folder, "never", "--until", "1/train") == 0
    before = {path: path.stat().st_mtime_ns for path in folder.glob("round-1/*/DONE.json")}
    assert len(before) == 8
    assert run(folder, "never", "--restart-from", "1/consensus", "--until", "1/filter") == 0
    after = {path: path.stat().st_mtime_ns for path in folder.glob("round-1/*/DONE.json")}
    names = {path.parent.name for path in before if after.get(path) == before[path]}
    assert names == {"01-prompts", "02-candidates", "03-judgements", "04-pairs", "05-sketch"}
    assert {path.parent.name for path in after} - names == {"06-consensus", "07-filter"}
    there = made(folder)
    del there["metrics.jsonl"]  # of fewer rounds
    assert there == {name: undisturbed[name] for name in there}
