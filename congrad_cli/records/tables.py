"""Parquet and arrow tables -> :class:`Item`: each row as a line of JSON.

Arrow holds what JSON does not: dates and decimals become text, bytes base64, and numbers that are
none null. And it holds more than was written: every struct of a list has the keys of all of them,
null where they were missing, so that nulls inside lists of structs are left out again. A row is a
line; what cannot become one is damaged, and only what cannot be read ends the file.
"""

import base64
import datetime
import decimal
import json
import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from congrad_cli.errors import InputError
from congrad_cli.records.compression import Fault, cannot_read
from congrad_cli.records.record import DataFile, Item

ROWS = 256
"""How many rows are turned to Python at once."""
BUFFER = 1 << 20

encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
Convert = Callable[[Any], Any]


def read_table(file: DataFile, form: str) -> Iterator[Item]:
    """The rows of a "parquet" or "arrow" file, from 1.

    Raises :class:`InputError` where the file cannot be opened, or pyarrow is missing.
    """
    _import_pyarrow(file.name)
    import pyarrow

    row = 1
    try:
        with file.path.open("rb") as opened:
            batches = _parquet(opened) if form == "parquet" else _arrow(opened)
            try:
                for batch in batches:
                    yield from _rows(batch, file.name, row)
                    row += len(batch)
            except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
                fault = _fault(file, form, error)
                yield Item(row, b"", fault.at(file.name, row))
    except OSError as error:
        raise cannot_read(file.name, error) from error


def _import_pyarrow(name: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError(f"{name} needs the package pyarrow.",
                         "pip install 'congrad-cli[parquet]'") from error


def _parquet(file: BinaryIO) -> Iterator[Any]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(
        file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True
    )
    yield from table.iter_batches(ROWS, use_threads=False)


def _arrow(file: BinaryIO) -> Iterator[Any]:
    import pyarrow

    if file.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(file)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        file.seek(0)
        batches = iter(pyarrow.ipc.open_stream(file))
    for batch in batches:
        for start in range(0, len(batch), ROWS):
            yield batch.slice(start, ROWS)


def _fault(file: DataFile, form: str, error: BaseException) -> Fault:
    whole = True
    if form == "parquet":
        with file.path.open("rb") as opened:
            opened.seek(-4, 2)
            whole = opened.read() == b"PAR1"
    said = " ".join(str(error).split()).rstrip(".")
    code = "corrupt" if whole else "cut-off"
    return Fault(code, f"the {form} data cannot be read on ({said[:120]}).",
                 "copy or download the file again")


def _rows(batch: Any, name: str, first: int) -> Iterator[Item]:
    """The rows of a small batch. Unchecked bytes must not become objects: they could be anything,
    so that where the batch is not sound, each row is checked for itself."""
    converters = [_converter(column.type, inside=False) for column in batch.schema]
    names = batch.schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are named '{twice}'")
    try:
        batch.validate(full=True)
        yield from [
            Item(row, _line(names, values)) for row, values in
            enumerate(_values(batch, converters), start=first)
        ]
    except _errors():
        for index in range(len(batch)):
            yield _row(batch.slice(index, 1), names, converters, (name, first + index))


def _row(row: Any, names: list[str], converters: list[Convert | None],
         place: tuple[str, int]) -> Item:  # fmt: skip
    try:
        row.validate(full=True)
        values = next(_values(row, converters))
        return Item(place[1], _line(names, values))
    except _errors() as error:
        bad_text = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
        what = "not UTF-8" if bad_text else "a value that JSON cannot hold"
        fault = Fault("not-utf8" if bad_text else "corrupt", f"{what} ({str(error)[:120]}).",
                      "remove the row, or write it again")
        return Item(place[1], b"", fault.at(*place))


def _errors() -> tuple[type[Exception], ...]:
    """What a value that Python or JSON cannot hold raises."""
    import pyarrow

    return pyarrow.ArrowException, ValueError, TypeError, ArithmeticError, RecursionError


def _values(batch: Any, converters: list[Convert | None]) -> Iterator[tuple[Any, ...]]:
    columns = [
        column.to_pylist() if convert is None else list(map(convert, column.to_pylist()))
        for column, convert in zip(batch.columns, converters, strict=True)
    ]
    return zip(*columns, strict=True)


def _line(names: list[str], values: tuple[Any, ...]) -> bytes:
    row = dict(zip(names, values, strict=True))
    return encode(row).encode() + b"\n"


def _converter(kind: Any, inside: bool) -> Convert | None:
    """What makes JSON of the Python values of an arrow type; None where they are JSON already.

    ``inside``: whether they lie inside a list, where nulls of structs were filled in by arrow.
    """
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _converter(kind.value_type, inside)
    if getattr(kind, "extension_name", None) == "arrow.json":
        return lambda value: None if value is None else json.loads(value)
    if types.is_struct(kind):
        fields = {field.name: _converter(field.type, inside) for field in kind}
        return lambda value: _struct(value, fields, inside)
    if types.is_map(kind):
        return lambda pairs: _map(pairs, _converter(kind.item_type, inside))
    if types.is_nested(kind) and hasattr(kind, "value_type"):
        element = _converter(kind.value_type, inside=True)
        return None if element is None else lambda value: _list(value, element)
    is_plain = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean,
                types.is_null)  # fmt: skip
    return None if any(test(kind) for test in is_plain) else _scalar


def _struct(
    value: dict[str, Any] | None, fields: dict[str, Convert | None], inside: bool
) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        key: part if (convert := fields[key]) is None else convert(part)
        for key, part in value.items()
        if not (inside and part is None)
    }


def _map(pairs: list[tuple[Any, Any]] | None, convert: Convert | None) -> dict[str, Any] | None:
    if pairs is None:
        return None
    result = {str(key): part if convert is None else convert(part) for key, part in pairs}
    if len(result) < len(pairs):
        raise ValueError("a key stands twice in one map")
    return result


def _list(value: list[Any] | None, convert: Convert) -> list[Any] | None:
    return None if value is None else [convert(part) for part in value]


def _scalar(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta | uuid.UUID):
        return str(value)
    return value
