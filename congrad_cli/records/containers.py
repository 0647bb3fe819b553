"""Files -> :class:`Item`: lines of JSON, one JSON array, parquet or arrow, gzip or zstd around.

What a file is, its content says, not its name: the first bytes of the binary formats are fixed,
and among texts the one that begins with ``[`` is an array. Files are read as bytes, once, from
start to end, and never held: memory does not grow with their size.

What cannot be read becomes an item with ``damage``. It is the last one where nobody could tell
where the next record begins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from congrad_cli.records.arrays import BLANK, read_array, too_long
from congrad_cli.records.compression import MAGIC, SUFFIXES, ByteStream, Fault
from congrad_cli.records.objects import BOM
from congrad_cli.records.record import DataFile, Item
from congrad_cli.records.tables import read_table

LONGEST_LINE = 32 << 20
"""A longer line is damaged; no pair is that long."""
HELD_LINE = 256 << 20
"""A longer line is not read to its end, nor is what follows it."""

HEAD = 512
TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x04\x22\x4d\x18": "compressed with lz4",
}
UTF16 = (b"\xff\xfe", b"\xfe\xff")
FORM_SUFFIXES = {
    ".jsonl": ("lines",), ".ndjson": ("lines",), ".json": ("lines", "array"),
    ".parquet": ("parquet",), ".arrow": ("arrow",),
}  # fmt: skip
SPOKEN = {"lines": "lines of JSON", "array": "a JSON array"}


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a file turns out to be. ``fault`` says why it holds no records at all."""

    compression: str | None
    form: str
    head: bytes  # of the file as it is unpacked
    fault: Fault | None = None


def container(file: DataFile) -> str:
    """"lines", "array", "parquet" or "arrow", whatever compression is around it.

    A file that is none of these, or damaged from its start, counts as lines.
    Raises :class:`InputError` where the file cannot be opened.
    """
    return _look(file).form


def read_items(file: DataFile) -> Iterator[Item]:
    """Every record of the file as it stands there, in order, with damage in its place.

    Raises :class:`InputError` where the file cannot be opened, or a package is missing.
    """
    layout = _look(file)
    if layout.fault is not None:
        yield Item(1, b"", layout.fault.at(file.name, 1))
    elif layout.form in TABLES.values():
        yield from read_table(file, layout.form)
    else:
        with ByteStream(file) as stream:
            if layout.form == "array":
                yield from read_array(stream, file.name, LONGEST_LINE, HELD_LINE)
            else:
                yield from _read_lines(stream, file.name)


def suffix_warning(file: DataFile) -> str | None:
    """What is to be said where the name promises something else than the file holds."""
    layout = _look(file)
    if layout.fault is not None or not layout.head:
        return None
    suffixes = [suffix.lower() for suffix in PurePath(file.name).suffixes]
    compression = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    forms = FORM_SUFFIXES.get(suffixes[-1]) if suffixes else None
    found = SPOKEN.get(layout.form, layout.form)
    if layout.compression is not None:
        found = f"{layout.compression}, with {found} inside"
    if compression is not None and compression != layout.compression:
        expected = compression
    elif forms is not None and layout.form not in forms:
        expected = SPOKEN.get(forms[0], forms[0])
    elif forms is not None and compression is None and layout.compression is not None:
        expected = "plain text"
    else:
        return None
    return f"{file.name} is not {expected} (it starts with {_shown(layout)}): read as {found}"


def _shown(layout: _Layout) -> str:
    if layout.compression is not None:
        return MAGIC[layout.compression].hex(" ")
    if layout.head.startswith(tuple(TABLES)):
        return repr(layout.head[:4])[1:]
    return repr(layout.head.decode("utf-8", "backslashreplace").lstrip("\ufeff \t\r\n")[:1])


def _look(file: DataFile) -> _Layout:
    with ByteStream(file) as stream:
        head = stream.read(HEAD)
        packed = stream.compression
        fault = _foreign(head, packed)
        table = next((form for magic, form in TABLES.items() if head.startswith(magic)), None)
        if fault is None and table is not None and packed is None:
            return _Layout(packed, table, head)
        text = head.removeprefix(BOM).lstrip(BLANK)
        while not text and (more := stream.read(1 << 16)):
            text = more.lstrip(BLANK)
        return _Layout(packed, "array" if text.startswith(b"[") else "lines", head, fault)


def _foreign(head: bytes, packed: str | None) -> Fault | None:
    """Why a file that begins like this holds no records that can be read."""
    cure = "unpack it first: congrad reads JSON, parquet and arrow, JSON also in gzip and zstd"
    what = next((what for magic, what in FOREIGN.items() if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        what = "a tar archive"
    if packed is not None:
        inner = MAGIC | {form: magic for magic, form in TABLES.items()}
        what = what or next((k for k, magic in inner.items() if head.startswith(magic)), None)
        if what is not None:
            return Fault("binary", f"{what} inside {packed}.", cure)
    if what is not None:
        return Fault("binary", f"{what}.", cure)
    if head.startswith(UTF16):
        return Fault("not-utf8", "UTF-16 text.", "convert it first: iconv -f UTF-16 -t UTF-8")
    kinds = {**{magic: kind for kind, magic in MAGIC.items()}, **TABLES, BOM: "UTF-8"}
    for magic, kind in kinds.items():
        if head and len(head) < len(magic) and magic.startswith(head):
            return Fault("cut-off", f"the first bytes of {kind}, and nothing more.",
                         "the file was cut off: copy or download it again")
    return None


def _read_lines(stream: ByteStream, name: str) -> Iterator[Item]:
    line = 0
    while piece := stream.readline(HELD_LINE + 1):
        line += 1
        if len(piece) > HELD_LINE:
            yield Item(line, b"", too_long(HELD_LINE).at(name, line))
            return
        if stream.fault is not None and not piece.endswith(b"\n"):
            yield Item(line, piece, stream.fault.at(name, line))
            return
        if piece.isspace() or (line == 1 and not piece.removeprefix(BOM).strip()):
            continue
        damage = too_long(LONGEST_LINE).at(name, line) if len(piece) > LONGEST_LINE else None
        yield Item(line, piece, damage)
    if stream.fault is not None:
        yield Item(line + 1, b"", stream.fault.at(name, line + 1))
