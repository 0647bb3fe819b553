"""Help is instant, numpy-only commands stay numpy-only, and every option says what it does."""

import json
import os
import subprocess
import sys

import pytest
import typer.main
from synthetic import random_rows, write_projection

from congrad_cli.cli import app

HEAVY = ("torch", "transformers", "numpy", "faiss", "rich")

# The modules go to stderr: the commands keep stdout for themselves.
RUN_AND_LIST = """
import json, sys
from congrad_cli.cli import app
try:
    app(sys.argv[1:], prog_name="congrad")
finally:
    sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
"""

LOUD = ("--quiet", "-q", "--verbose", "-v")

# A public contract: a name that goes away breaks users' scripts, a new one wants this line.
OPTIONS = {
    "sketch": {
        "DATA", "--model", "-m", "--store", "-s", "--revision", "--chat-template", "--max-length",
        "--row-size", "--dim", "--width", "--leading", "--seed", "--reference", "--token-weighting",
        "--layers", "--store-dtype", "--adapter", "--dtype", "--device-map",
        "--gradient-checkpointing", "--bad-records",
        "--share-prompt", "--no-share-prompt", "--device", "--batch-tokens", "--threads",
        "--overwrite", "--prompt-field", "--chosen-field", "--rejected-field", "--language-field",
        "--id-field", "--language", "--languages", "--detect-language", "--min-confidence",
        "--shape", "--group-by", "--overlong", "--max-bad", "--rejects", "--dry-run", "--json",
        "--shard", *LOUD,
    },
    "consensus": {
        "STORE", "--method", "--orders", "--seed", "--average", "--ema-decay", "--ema-batch",
        "--trim", "--pair-norm", "--normalize-groups", "--weights", "--groups", "--merge-groups",
        "--min-pairs", "--require-descent",
        "--loss", "--beta", "--length-penalty", "--label-smoothing", "--name", "--json",
        "--allow-partial", *LOUD,
    },
    "filter": {
        "STORE", "--rank-by", "--seed", "--min-score", "--keep-ratio", "--keep", "--quotas",
        "--per-group",
        "--keep-at-least", "--confidence", "--leave-one-out", "--no-leave-one-out",
        "--leave-out-by", "--leave-group-out",
        "--dedup", "--group-cosines", "--max-conflict", "--loss",
        "--beta", "--length-penalty", "--label-smoothing", "--allow-partial", "--consensus",
        "--data", "--output", "-o", "--dropped", "--scores", "--summary", "--json",
        "--annotate", "--max-drop-rate", "--min-per-group", *LOUD,
    },
    "show": {"STORE", "--compare", "--json"},
    "verify": {
        "STORE", "--repair", "--quick", "--exact", "--model", "-m", "--revision", "--adapter",
        "--chat-template", "--device", "--data", "--seed", "--threads", "--json", *LOUD,
    },
    "report": {
        "PLACE", "--output", "-o", "--summary", "--examples", "--consensus", "--rank-by",
        "--min-score", "--keep-ratio", "--keep", "--per-group", "--allow-partial", "--data",
        *LOUD,
    },
    "demo": {"--pairs", "--threads", *LOUD},
    "loop": set(),
    "loop run": {
        "CONFIG", "--set", "--until", "--restart-from", "--dry-run", *LOUD,
    },
    "loop generate": {
        "PROMPTS", "--output", "-o", "--model", "-m", "--config", "--set", *LOUD,
    },
    "loop judge": {
        "CANDIDATES", "--output", "-o", "--model", "-m", "--config", "--set", *LOUD,
    },
    "loop pairs": {
        "CANDIDATES", "JUDGEMENTS", "--output", "-o", "--config", "--set", *LOUD,
    },
    "loop train": {
        "PAIRS", "--output", "-o", "--model", "-m", "--reference", "--config", "--set", *LOUD,
    },
}

COMMANDS = dict(typer.main.get_command(app).commands)
COMMANDS |= {f"loop {name}": command for name, command in COMMANDS["loop"].commands.items()}


def modules_after(*args) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The finished command, and the top-level names of what its process imported."""
    command = [sys.executable, "-c", RUN_AND_LIST, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stderr.rpartition("\n")[2])
    return done, {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("command", [
    (), ("sketch",), ("consensus",), ("filter",), ("show",), ("verify",), ("demo",),
    ("report",), ("loop",), ("loop", "run"), ("loop", "train")])
def test_help_imports_nothing_heavy(command):
    """Numbers and models take seconds to import; help must not wait for them."""
    done, imported = modules_after(*command, "--help")
    assert "Usage: congrad" in done.stdout
    assert imported.isdisjoint(HEAVY)


def test_consensus_and_filter_run_without_torch(make_store):
    """Both work on files alone; in a pipe each would wait seconds for torch."""
    store = make_store(random_rows(6, 8), groups=["de", "en"] * 3)
    _, imported = modules_after("consensus", store)
    assert imported.isdisjoint({"torch", "transformers", "faiss"})
    done, imported = modules_after("filter", store, "--min-score", "-2")
    assert done.stdout.count("\n") == 6
    assert imported.isdisjoint({"torch", "transformers", "faiss"})


def test_show_and_verify_run_without_torch(make_store):
    store = make_store(random_rows(6, 8))
    write_projection(store)
    for command in (("show",), ("show", "--json"), ("verify",), ("verify", "--quick", "--json")):
        done, imported = modules_after(command[0], store, *command[1:])
        assert done.stdout
        assert imported.isdisjoint({"torch", "transformers", "faiss"})


def test_the_loops_help_shows_both_ways():
    done, _ = modules_after("loop", "--help")
    assert "congrad loop CONFIG.toml" in " ".join(done.stdout.split())
    for name in ("run", "generate", "judge", "pairs", "train"):
        assert f"\n  {name} " in done.stdout


def test_a_wrong_configuration_is_reported_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "loop.toml").write_text("[generate]\ncandidate = 3\n")
    command = [sys.executable, "-c", RUN_AND_LIST, "loop", "loop.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    names = {name.partition(".")[0] for name in json.loads(done.stderr.rpartition("\n")[2])}
    assert names.isdisjoint(HEAVY)


def test_a_run_that_is_done_is_seen_without_torch(tmp_path):
    """Reading what is there takes no seconds; nor does a dry run."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "language": "en"}\n')
    (tmp_path / "loop.toml").write_text(
        '[run]\nfolder = "run"\nrounds = 1\n[model]\npath = "model"\n'
        '[prompts]\nfiles = ["p.jsonl"]\nper_language = 1\n')
    _, imported = modules_after("loop", tmp_path / "loop.toml", "--dry-run")
    assert imported.isdisjoint({"torch", "transformers", "faiss"})
    _, imported = modules_after("loop", tmp_path / "loop.toml", "--until", "1/prompts")
    assert imported.isdisjoint({"torch", "transformers", "faiss"})


def test_help_lists_every_command_with_one_line():
    assert set(COMMANDS) == set(OPTIONS)
    for command in COMMANDS.values():
        assert command.help
        assert "\n" not in command.help.strip()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_help(name):
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_are_these(name):
    names = set()
    for parameter in COMMANDS[name].params:
        options = [option for option in (*parameter.opts, *parameter.secondary_opts)
                   if option.startswith("-")]
        names.update(options or [parameter.name.upper()])
    assert names == OPTIONS[name]


@pytest.mark.parametrize(
    ("data", "model", "code"), [("{}", ".", 8), ("{}", "nowhere.gguf", 8), ("{", "org/name", 3)]
)
def test_a_wrong_path_or_line_is_reported_before_torch_is_imported(data, model, code, tmp_path):
    """Seconds of waiting for a typo are seconds too many."""
    (tmp_path / "pairs.jsonl").write_text(data)
    command = [sys.executable, "-c", RUN_AND_LIST, "sketch", "pairs.jsonl", "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    names = {name.partition(".")[0] for name in json.loads(done.stderr.rpartition("\n")[2])}
    assert not names & {"torch", "transformers"}


def test_an_interrupt_while_the_commands_are_imported_ends_quietly():
    """The first third of a second is imports; a traceback there would look like a bug."""
    code = ("import builtins, sys\n"
            "from congrad_cli.__main__ import main\n"
            "real = builtins.__import__\n"
            "def interrupted(name, *rest, **more):\n"
            "    if name == 'typer':\n"
            "        raise KeyboardInterrupt\n"
            "    return real(name, *rest, **more)\n"
            "builtins.__import__ = interrupted\n"
            "main()\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(("words", "found"), [
    ("congrad con", {"consensus"}),
    ("congrad consensus --merge", {"--merge-groups"}),
    ("congrad consensus --method up", {"upgrad"}),
    ("congrad consensus --pair-norm ", {"raw", "unit"}),
    ("congrad loop gen", {"generate"}),
])  # fmt: skip
def test_shells_complete_commands_options_and_values_at_once(words, found):
    """Somebody waits at every press of Tab: nothing heavy may be imported."""
    environment = os.environ | {
        "_CONGRAD_COMPLETE": "complete_bash", "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    command = [sys.executable, "-c", RUN_AND_LIST]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == found
    imported = {name.partition(".")[0] for name in json.loads(done.stderr.rpartition("\n")[2])}
    assert imported.isdisjoint(HEAVY)
