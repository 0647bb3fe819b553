"""Records go back in their source's own form."""

import gzip
import io
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from congrad_cli.records.containers import read_items
from congrad_cli.records.lines import ArrayWriter, compressed, line_form, writer_for
from congrad_cli.records.record import DataFile

OBJECTS = st.lists(st.dictionaries(st.text(), st.text() | st.integers(), max_size=3), max_size=6)
INDENTS = st.none() | st.integers(0, 3)
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One file for all examples."""
    return tmp_path_factory.mktemp("lines") / "data"


def raws(path, data: bytes) -> list[bytes]:
    path.write_bytes(data)
    return [item.raw for item in read_items(DataFile("data", path))]


def written(raws, containers) -> bytes:
    out = io.BytesIO()
    writer = writer_for(out, containers)
    for raw in raws:
        writer.write(raw)
    writer.close()
    return out.getvalue()


@given(OBJECTS, st.booleans())
def test_lines_are_written_as_they_were_read(path, objects, last_newline):
    data = b"\n".join(json.dumps(one).encode() for one in objects)
    data += b"\n" if last_newline and data else b""
    assert written(raws(path, data), ["lines"]) == data


@given(OBJECTS, INDENTS)
def test_an_array_is_written_as_it_was_read(path, objects, indent):
    data = json.dumps(objects, indent=indent).encode() + b"\n"
    assert written(raws(path, data), {"array"}) == data


@given(OBJECTS, st.sets(st.integers(0, 5)), INDENTS)
def test_what_is_left_of_an_array_is_an_array_again(path, objects, gone, indent):
    kept = [raw for i, raw in enumerate(raws(path, json.dumps(objects, indent=indent).encode()))
            if i not in gone]  # fmt: skip
    left = [one for i, one in enumerate(objects) if i not in gone]
    assert json.loads(written(kept, ["array"])) == left


def test_an_array_of_nothing_is_an_array():
    assert written([], ["array"]) == b"[]\n"
    assert written([], ["lines"]) == written([], []) == b""


@given(OBJECTS, OBJECTS, INDENTS, st.booleans())
def test_elements_among_lines_become_lines(path, first, second, indent, array_first):
    lines = "".join(json.dumps(one) + "\n" for one in first).encode()
    array = json.dumps(second, indent=indent).encode()
    parts = [array, lines] if array_first else [lines, array]
    out = written([raw for part in parts for raw in raws(path, part)], ["lines", "array"])
    expected = second + first if array_first else first + second
    assert [json.loads(line) for line in out.split(b"\n")[:-1]] == expected
    assert lines in out


@given(st.lists(st.text()), INDENTS)
def test_a_line_form_is_one_line_of_the_same_value(value, indent):
    line = line_form(b" \r\n\t" + json.dumps(value, indent=indent).encode() + b"\n ")
    assert (line.count(b"\n"), line[-1:]) == (1, b"\n")
    assert not line[:1].isspace()
    assert json.loads(line) == value


def test_a_byte_order_mark_stays_only_at_the_start():
    assert written([BOM + b"{}\n", BOM + b"[]"], ["lines"]) == BOM + b"{}\n[]"


def test_an_array_writer_writes_nothing_before_it_must():
    out = io.BytesIO()
    ArrayWriter(out)
    assert out.getvalue() == b""


def unpack_zstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


@pytest.mark.parametrize(("name", "unpack"), [
    ("x.jsonl.gz", gzip.decompress), ("x.ZST", unpack_zstd),
    ("x.jsonl", bytes), ("gz", bytes),
])  # fmt: skip
def test_an_output_is_packed_as_its_name_says_and_always_alike(path, name, unpack):
    packed = []
    for _ in range(2):
        with path.open("wb") as file:
            with compressed(Path(name), file) as out:
                out.write(b"{}\n" * 3)
                out.write(b"[]\n")
            assert not file.closed
        packed.append(path.read_bytes())
    assert unpack(packed[0]) == b"{}\n{}\n{}\n[]\n"
    assert packed[0] == packed[1]
    assert raws(path, packed[0]) == [b"{}\n"] * 3 + [b"[]\n"]


def test_a_packed_output_names_neither_a_file_nor_a_time():
    file = io.BytesIO()
    with compressed(Path("x.gz"), file):
        pass
    assert file.getvalue()[3:8] == bytes(5)  # the flags, of a name too, and the time
