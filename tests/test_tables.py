"""Rows of parquet and arrow as lines of JSON: what was written, and no more."""

import datetime
import decimal
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from congrad_cli.errors import CongradError, InputError
from congrad_cli.records.containers import container, read_items
from congrad_cli.records.record import DataFile

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT},
                                          optional={"name": TEXT}), min_size=1, max_size=3)
ROWS = st.lists(st.fixed_dictionaries({
    "prompt": TEXT, "chosen": MESSAGES, "score": st.floats(allow_nan=False, allow_infinity=False),
    "id": st.integers(-(2**63), 2**63 - 1), "flag": st.none() | st.booleans(),
}), min_size=1, max_size=8)  # fmt: skip
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])
SCHEMA = pa.schema([("prompt", pa.string()), ("chosen", pa.list_(MESSAGE)),
                    ("score", pa.float64()), ("id", pa.int64()), ("flag", pa.bool_())])


def write_parquet(table, path):
    pq.write_table(table, path, row_group_size=3)


def write_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as out:
        out.write_table(table, max_chunksize=3)


def write_file(table, path):
    with pa.ipc.new_file(path, table.schema) as out:
        out.write_table(table, max_chunksize=3)


WRITERS = [write_parquet, write_stream, write_file]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all examples."""
    return tmp_path_factory.mktemp("tables")


def read(path):
    return list(read_items(DataFile("data", path)))


def rows_of(table, path, write=write_parquet):
    """What the items of a table hold; none may be damaged."""
    write(table, path)
    items = read(path)
    assert [item.damage for item in items] == [None] * len(items)
    assert [item.line for item in items] == list(range(1, len(items) + 1))
    assert all(item.raw.count(b"\n") == 1 and item.raw.endswith(b"\n") for item in items)
    return [json.loads(item.raw) for item in items]


@pytest.mark.parametrize("write", WRITERS)
@given(rows=ROWS)
def test_rows_come_back_without_the_nulls_that_arrow_fills_in(folder, write, rows):
    assert rows_of(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "data", write) == rows
    assert container(DataFile("data", folder / "data")) == (
        "parquet" if write is write_parquet else "arrow"
    )


def test_nulls_stay_where_no_list_is_around_them(folder):
    call = {"function": {"name": "f", "arguments": None}}
    row = {"a": None, "s": {"x": None, "y": 1}, "l": [None, {"x": 1}], "nested": [[call]]}
    assert rows_of(pa.Table.from_pylist([row, {"l": [{"z": 1}]}]), folder / "data") == [
        {"a": None, "s": {"x": None, "y": 1}, "l": [None, {"x": 1}],
         "nested": [[{"function": {"name": "f"}}]]},
        {"a": None, "s": None, "l": [{"z": 1}], "nested": None},
    ]  # fmt: skip


def test_what_json_lacks_becomes_text_or_null(folder):
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9)
    table = pa.table({
        "nan": pa.array([float("nan")]), "inf": [[float("inf"), 1.5]],
        "half": pa.array([float("-inf")], pa.float32()), "when": [moment],
        "zone": pa.array([moment], pa.timestamp("ms", tz="UTC")), "day": [moment.date()],
        "time": [moment.time()], "price": [decimal.Decimal("1.10")], "data": [b"\xff\0"],
        "kind": pa.array(["de"]).dictionary_encode(), "big": pa.array(["x"], pa.large_string()),
        "map": pa.array([[("k", float("nan"))]], pa.map_(pa.string(), pa.float64())),
        "json": pa.array(['{"a": [1, "x", null]}'], pa.json_()),
    })  # fmt: skip
    assert rows_of(table, folder / "data", write_stream) == [{
        "nan": None, "inf": [None, 1.5], "half": None, "when": "2024-05-06T07:08:09",
        "zone": "2024-05-06T07:08:09+00:00", "day": "2024-05-06", "time": "07:08:09",
        "price": "1.10", "data": "/wA=", "kind": "de", "big": "x", "map": {"k": None},
        "json": {"a": [1, "x", None]},
    }]  # fmt: skip


def test_characters_stand_as_they_are(folder):
    write_parquet(pa.table({"a": ["ä\u2028\n漢"]}), folder / "data")
    assert [item.raw for item in read(folder / "data")] == ['{"a": "ä\u2028\\n漢"}\n'.encode()]


@pytest.mark.parametrize("write", WRITERS)
def test_a_row_that_cannot_be_text_costs_no_other(folder, write):
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0"),
                         pa.py_buffer(b"ab\xffc")])  # fmt: skip
    write(pa.table({"a": texts}), folder / "data")
    first, bad, last = read(folder / "data")
    assert (first.raw, last.raw) == (b'{"a": "ab"}\n', b'{"a": "c"}\n')
    assert (bad.line, bad.damage.line, bad.damage.code) == (2, 2, "not-utf8")


def test_a_value_out_of_range_costs_no_other_row(folder):
    years = pa.array([0, 2**62, 0], pa.timestamp("s"))
    write_stream(pa.table({"a": years, "b": ["x", "y", "z"]}), folder / "data")
    assert [item.damage and item.damage.code for item in read(folder / "data")] == [
        None, "corrupt", None]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
def test_a_table_cut_anywhere_gives_a_prefix_and_then_damage(folder, write):
    table = pa.table({"a": [f"Frage {i}" for i in range(9)], "b": [[{"x": i}] for i in range(9)]})
    write(table, folder / "whole")
    data = (folder / "whole").read_bytes()
    everything = [item.raw for item in read(folder / "whole")]
    clean = []
    for cut in [*range(16), *range(16, len(data), 7), *range(len(data) - 12, len(data))]:
        (folder / "data").write_bytes(data[:cut])
        items = read(folder / "data")
        before = [item.raw for item in items if not item.damage]
        assert before == everything[: len(before)]
        damaged = items[len(before) :]
        assert [item.line for item in damaged] == [len(before) + 1] * len(damaged)
        assert [item.damage.code in ("cut-off", "corrupt") for item in damaged] in ([], [True])
        if not damaged:
            clean.append((cut, len(before)))
    # an arrow stream may end without saying so: then all rows of whole batches are there
    assert all(cut == 0 or (write is write_stream and rows % 3 == 0) for cut, rows in clean)


@pytest.mark.parametrize("write", WRITERS)
def test_a_changed_byte_never_raises(folder, write):
    write(pa.table({"a": ["Frage", None, "x" * 30], "b": [[1], [], [2, 3]]}), folder / "whole")
    data = (folder / "whole").read_bytes()
    for at in range(8, len(data), 5):
        (folder / "data").write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            items = read(folder / "data")
        except CongradError as error:
            pytest.fail(f"byte {at}: {error}")
        assert all(item.raw.endswith(b"\n") or item.damage for item in items)


def test_two_columns_of_one_name_are_refused(folder):
    write_stream(pa.table([[1], [2]], names=["a", "a"]), folder / "data")
    (item,) = read(folder / "data")
    assert item.damage is not None
    assert "two columns are named 'a'" in str(item.damage)


def test_a_table_without_rows_or_columns_gives_nothing(folder):
    assert rows_of(SCHEMA.empty_table(), folder / "data") == []
    assert rows_of(SCHEMA.empty_table(), folder / "data", write_stream) == []


def test_a_missing_package_is_named_with_its_cure(folder, monkeypatch):
    write_parquet(pa.table({"a": [1]}), folder / "data")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"^data needs the package pyarrow\.$") as caught:
        read(folder / "data")
    assert caught.value.hints == ("pip install 'congrad-cli[parquet]'",)
