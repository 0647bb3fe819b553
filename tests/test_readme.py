"""Every shell block and the Python block of the README runs, in a folder such as its readers have.

What a reader has is made: ``pairs.jsonl``, ``new.jsonl``, and a folder of the big model's name that
holds the tiny one. ``congrad`` is a fork of one process that has imported torch.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from preloaded import congrad_program

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.M | re.S)
SET_UP = "python3 -m venv"
"""The two commands that make an environment; CI runs the second one as it stands."""


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_lines, sample_data):
    """The reader's folder; blocks run in it one after the other, as they stand in the README."""
    folder = tmp_path_factory.mktemp("reader")
    records = [json.loads(line) | {"source": "web" if number % 2 else "books"}
               for number, line in enumerate(small_lines)]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "new.jsonl").write_text("".join(lines[:5]), encoding="utf-8")
    (folder / "meta-llama").mkdir()
    (folder / "meta-llama" / "Meta-Llama-3-8B").symlink_to(sample_data / "tiny-model")
    (folder / "bin").mkdir()
    with congrad_program(folder / "bin"):
        yield folder


def run(place, command):
    environment = os.environ | {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1",
    }
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done


@pytest.mark.parametrize("number", [
    number for number, (_, block) in enumerate(BLOCKS) if SET_UP not in block])
def test_blocks_of_the_readme_run(number, place):
    kind, block = BLOCKS[number]
    if "jq " in block and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    done = run(place, ["bash", "-euc", block] if kind == "sh" else [sys.executable, "-c", block])
    for name in re.findall(r"(?:> |-o |--summary |--scores )(\S+\.\w+)", block):
        assert (place / name).stat().st_size, name
    if kind == "python":
        assert done.stdout.count(b"\n") >= 2


def test_there_are_blocks_to_run():
    assert sum(SET_UP in block for _, block in BLOCKS) == 2
    assert len(BLOCKS) >= 8


def test_links_lead_somewhere():
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = file.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (file.parent / target).exists(), f"{file.name}: {target}"
