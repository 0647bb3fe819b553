"""Codes of bad records are a contract: every one that the code can give is in docs/data.md."""

import ast
import re
import sys
from pathlib import Path

import pytest

import congrad_cli
from congrad_cli.records.damage import BROKEN

PACKAGE = Path(congrad_cli.__file__).parent
DATA = (PACKAGE.parent / "docs" / "data.md").read_text()
MAKERS = {"fail": 0, "Fault": 0, "Skip": 1, "BadRecord": 2}
"""Calls that give a code, and the place of the code among their arguments."""

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))


def codes() -> set[str]:
    """The codes that stand as texts in the package."""
    found = set(BROKEN) | {"overlong", "no-room"}  # variables where they are used
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            place = MAKERS.get(name)
            if place is None or len(node.args) <= place:
                continue
            code = node.args[place]
            if isinstance(code, ast.Constant) and re.fullmatch(r"[a-z0-9-]+", str(code.value)):
                found.add(code.value)
    return found


def documented() -> set[str]:
    """The codes of the table."""
    table = DATA.split("| code | meaning |")[1].split("\n\n")[0]
    return {code for row in table.strip().splitlines()
            for code in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1])}


def test_the_reader_of_codes_sees_them():
    assert {"tie", "not-json", "cut-off", "no-room", "template", "not-finite"} <= codes()


def test_every_code_is_documented_and_every_documented_one_exists():
    assert documented() == codes()


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_files_give_records_or_located_errors(seed):
    """A small run of the benchmark, which holds the real one."""
    from fuzz_records import main

    found = main(400, seed)
    assert found["record"] > 50
    assert len(found) > 12  # or the mutations reach no more than the first check
