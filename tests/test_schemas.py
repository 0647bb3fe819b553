"""The manual's tables of JSON keys, against what the commands write."""

import io
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from congrad_cli.consensus import run as consensus
from congrad_cli.filter import run as filtering
from congrad_cli.filter.compare import compare
from congrad_cli.progress import Silent
from congrad_cli.settings import ConsensusSettings, FilterSettings

MANUAL = (Path(__file__).parent.parent / "docs" / "commands.md").read_text()
KINDS = {"text": str, "number": (int, float), "null": type(None), "true": bool, "false": bool}
ANY = {"REASON", "GROUP", "GATE", "OPTION"}


def documented(schema):
    """Key -> kinds, from the table that has the schema's name in its first row."""
    table = re.search(r"(?:^\|.*\n)*^\| `schema` \| text \| `" + re.escape(schema)
                      + r"` \|\n(?:^\|.*\n)*", MANUAL, re.MULTILINE)
    rows = [line.split("|")[1:3] for line in table[0].splitlines() if line.startswith("| `")]
    return {key: [kind.strip() for kind in kinds.split(",")]
            for names, kinds in rows for key in re.findall("`([^`]+)`", names)}


def walk(value, table, path=()):
    """The documented keys of an object, with the values found there."""
    if not isinstance(value, dict):
        yield ".".join(path), value
        return
    for key, part in value.items():
        here = next((name for name in [key, *sorted(ANY)] if any(
            entry.split(".")[: len(path) + 1] == [*path, name] for entry in table)), None)
        assert here is not None, f"{'.'.join([*path, key])} is not in the manual"
        yield from walk(part, table, (*path, here))


def check(value, schema):
    assert value["schema"] == schema
    table, found = documented(schema), set()
    for key, part in walk(value, table):
        found.add(key)
        kinds = table[key]
        if kinds != ["any"]:
            number = isinstance(part, int | float) and not isinstance(part, bool)
            assert any((kind == "number" and number) if kind == "number"
                       else isinstance(part, KINDS[kind]) for kind in kinds), (key, part)
    assert found == set(table)


@pytest.fixture
def store(make_store):
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((24, 64)) + 0.2 * rng.standard_normal(64)
    path = make_store(rows, groups=["de", "en"] * 12, width=4, skipped=[7])
    consensus.run(path, ConsensusSettings(), Silent())
    return path


def test_the_summary_is_as_documented(store):
    settings = FilterSettings(keep=5, max_drop_rate=0.5, min_per_group=5, max_conflict=0.5)
    found = filtering.run(store, settings, io.BytesIO(), Silent()).to_json()
    found = json.loads(json.dumps(found))
    check(found, "congrad.summary/1")
    assert found["settings"].keys() == {item.name for item in fields(FilterSettings)}
    assert found["consensus"].keys() == {
        *(item.name for item in fields(ConsensusSettings)), "store", "sha256", "pairs_seen"}


def test_the_comparison_is_as_documented(store):
    found = compare(store, "default", "default", Silent()).to_json()
    check(json.loads(json.dumps(found)), "congrad.compare/1")


def test_a_key_that_is_not_documented_would_be_noticed(store):
    found = compare(store, "default", "default", Silent()).to_json()
    with pytest.raises(AssertionError, match=r"groups\.GROUP\.c is not in the manual"):
        found["groups"]["de"]["c"] = 1
        check(found, "congrad.compare/1")
    del found["groups"]["de"]["c"], found["overlap"]
    with pytest.raises(AssertionError):
        check(found, "congrad.compare/1")
