"""Annotated records: the verdict as the last key, and every other byte as it was."""

import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli_data import BAD, filtered, pair, store_of

from congrad_cli.consensus import run as consensus
from congrad_cli.errors import InputError
from congrad_cli.filter import run as filtering
from congrad_cli.filter.annotate import annotate
from congrad_cli.progress import Silent
from congrad_cli.records.record import BadRecord, Record, Rejected
from congrad_cli.settings import ConsensusSettings, FilterSettings

ENTRY = {"row": 0, "source": "d", "line": 1, "id": "x", "group": "de", "score": 0.25,
         "error": None, "keep": True, "reason": "kept"}
NOTE = {key: ENTRY[key] for key in ("score", "error", "keep", "reason", "group")}
SPELT = b'"congrad": ' + json.dumps(NOTE).encode()


def record_of(raw, line=1):
    return Record(0, "d", line, raw, "p", "c", "r", "de", None)


def rejected(raw, code="missing-field"):
    return Rejected(0, raw, BadRecord("d", 1, code, "it is bad"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"a": 1', b"}\n"),
        (b'{"a":1', b"}\r\n"),
        (b'\xef\xbb\xbf{"a": "}"', b"}"),
        (b'  {"a": {"b": [{}]}', b" \t} \n"),
        (b' \n  {\n    "a": 1', b"\n  }\n"),  # an array's element
        ('{"a": "\\"congrad\\": ü'.encode() + b'"', b"}\n"),
        (b'{"a": "congrad"', b"}\n"),
        (b'{"a": {"congrad": 1}', b"}\n"),
        (b'{"a": "\\u0063ongrad"', b"}\n"),
    ],
)
@pytest.mark.parametrize("kind", [record_of, rejected])
def test_the_key_goes_before_the_closing_brace_and_nothing_else_changes(kind, before, after):
    assert annotate(kind(before + after), ENTRY) == before + b", " + SPELT + after


def test_an_empty_object_gets_no_comma():
    assert annotate(rejected(b"{ }\n"), ENTRY) == b"{" + SPELT + b" }\n"


@pytest.mark.parametrize("raw", [
    b"[1]\n", b"3\n", b'"}"\n', b"{oops}\n", b'{"a": NaN}\n', b'{"a": 1, "a": 2}\n', b"\xff}\n",
    b"",
])  # fmt: skip
def test_what_is_no_object_passes_as_it_is(raw):
    assert annotate(rejected(raw, "not-json"), ENTRY) == raw


def test_a_record_that_is_too_long_is_not_looked_into():
    assert annotate(rejected(b'{"a": 1}\n', "too-long"), ENTRY) == b'{"a": 1}\n'


@pytest.mark.parametrize("raw", [b'{"a": "x, \\"congrad\\": {"}\n', b'{\n "a": 1\n}', b"{ }\n"])
def test_an_older_verdict_is_replaced(raw):
    kind = rejected if raw == b"{ }\n" else record_of
    older = ENTRY | {"score": -1.0, "flag": "uncertain", "group": ', "congrad":'}
    once = annotate(kind(raw), older)
    assert annotate(kind(once), ENTRY) == annotate(kind(raw), ENTRY)


def test_an_older_verdict_is_found_in_another_spelling():
    once = json.dumps(json.loads(annotate(record_of(b'{"a": 1}'), ENTRY)), indent=1).encode()
    again = annotate(record_of(once), ENTRY | {"score": 0.5})
    assert json.loads(again) == {"a": 1, "congrad": NOTE | {"score": 0.5}}
    assert again.startswith(b'{\n "a": 1, "congrad": ')


@pytest.mark.parametrize("raw", [
    b'{"a": 1, "congrad": 3}', b'{"congrad": {"score": 1}, "a": 1}', b'{"a": 1, "congrad": {}}',
    b'{"a": 1, "\\u0063ongrad": 3}', b'{"a": 1, "congrad": null}',
    b'{' + SPELT + b', "a": 1}',  # ours, but somebody has put it elsewhere
])  # fmt: skip
def test_a_field_of_that_name_which_is_not_ours_is_an_error(raw):
    with pytest.raises(InputError, match="d:7: the record has a field 'congrad'"):
        annotate(record_of(raw, line=7), ENTRY)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    pairs=st.lists(pair, min_size=1, max_size=5),
    container=st.sampled_from(["lines", "gzip", "array"]),
    end=st.sampled_from(["\n", "\r\n", " \n"]),
    keep=st.integers(0, 5),
)
def test_without_the_key_the_output_is_the_input(pairs, container, end, keep, tmp_path_factory):
    """For kept and dropped records, in every container; and the key says what the scores say."""
    folder = tmp_path_factory.mktemp("any")
    spelt = [json.dumps(fields, ensure_ascii=False) for fields in pairs]
    content = "".join(line + end for line in spelt)
    if container == "array":
        content = "[" + f",{end}".join(spelt) + f"{end}]\n"
    data = folder / "pairs.data"
    data.write_bytes(gzip.compress(content.encode()) if container == "gzip" else content.encode())
    path, _ = store_of(folder, [str(data)])
    plain = filtered(path, folder, keep=keep)
    noted = filtered(path, folder, keep=keep, annotate=True)
    assert noted[2] == plain[2]  # the score file
    for before, after in zip(plain[:2], noted[:2], strict=True):
        text = after.decode()
        for entry in plain[2]:
            note = {key: entry[key] for key in NOTE}
            text = text.replace(f', "congrad": {json.dumps(note, ensure_ascii=False)}', "")
        assert text == before.decode()
        records = (json.loads(after) if container == "array"
                   else [json.loads(line) for line in after.splitlines()])
        assert {record["congrad"]["keep"] for record in records} <= {after is noted[0]}


def test_annotated_data_can_be_filtered_again(tmp_path, small_lines):
    """The key is no part of the pair, so the same store fits; the second verdict replaces it."""
    data = tmp_path / "d.jsonl"
    data.write_bytes(b"".join(small_lines))
    path, _ = store_of(tmp_path, [str(data)])
    everything = filtered(path, tmp_path, min_score=-2.0, annotate=True)[0]
    data.write_bytes(everything)
    again, dropped, entries = filtered(path, tmp_path, keep=5, annotate=True)
    assert again.count(b"\n") == 5
    assert (again + dropped).count(b'"congrad"') == len(small_lines)
    assert {json.loads(line)["congrad"]["reason"] for line in dropped.splitlines()} == {
        "beyond-keep"}
    assert [entry["keep"] for entry in entries].count(True) == 5


def test_bad_records_say_why_where_they_are_objects(tmp_path, small_lines):
    data = tmp_path / "d.jsonl"
    data.write_bytes(b"".join([*small_lines[:3], *BAD.values()]))
    path, _ = store_of(tmp_path, [str(data)])
    _, dropped, _ = filtered(path, tmp_path, min_score=-2.0, annotate=True)
    lines = dropped.splitlines(keepends=True)
    assert lines[:2] == [BAD["not-json"], BAD["not-utf8"]]
    for line, code in zip(lines[2:], ["empty", "no-language", "mixed-shapes"], strict=True):
        note = {"score": None, "error": None, "keep": False, "reason": code}
        assert json.loads(line)["congrad"] == note


def test_a_foreign_field_leaves_every_output_unwritten(tmp_path, small_lines):
    data = tmp_path / "d.jsonl"
    foreign = small_lines[3].replace(b"{", b'{"congrad": 3, ', 1)
    data.write_bytes(b"".join([*small_lines[:3], foreign]))
    path, _ = store_of(tmp_path, [str(data)])
    out, file = io.BytesIO(), tmp_path / "dropped"
    settings = FilterSettings(annotate=True, dropped=file, summary=tmp_path / "summary")
    with pytest.raises(InputError, match=r"d\.jsonl:4: the record has a field 'congrad'"):
        filtering.run(path, settings, out, Silent())
    assert out.getvalue() == b""
    assert {path.name for path in tmp_path.iterdir()} == {"d.jsonl", "pairs.congrad"}


def test_the_command_annotates(forked_congrad, make_store):
    store = make_store([[1, 0], [1, 0.1], [-1, 0.2], [0.9, 0]])
    consensus.run(store, ConsensusSettings(), Silent())
    done = forked_congrad("filter", store, "--annotate", "-q")
    assert done.returncode == 0, done.stderr
    notes = [json.loads(line)["congrad"] for line in done.stdout.splitlines()]
    assert [note["reason"] for note in notes] == ["kept"] * 3
    assert {tuple(note) for note in notes} == {("score", "error", "keep", "reason", "group")}
