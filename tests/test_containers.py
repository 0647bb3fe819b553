"""Records out of lines, arrays, gzip and zstd: nothing lost, nothing invented, bounded memory."""

import gzip
import json
import subprocess
import sys
import textwrap
import zlib

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from congrad_cli.errors import CongradError, InputError
from congrad_cli.records import arrays, containers
from congrad_cli.records.containers import container, read_items, suffix_warning
from congrad_cli.records.record import DataFile

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=8)
BLANKS = st.text(" \t\r\n", max_size=4)
SPELLINGS = st.fixed_dictionaries({
    "indent": st.none() | st.integers(0, 3), "ensure_ascii": st.booleans(),
    "separators": st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")]),
})
BOM = b"\xef\xbb\xbf"
PACKERS = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Writes bytes into a file, always the same one, and gives it as a ``DataFile``."""
    folder = tmp_path_factory.mktemp("containers")

    def write(data: bytes, name: str = "data") -> DataFile:
        (folder / name).write_bytes(data)
        return DataFile(name, folder / name)

    return write


def spell_array(objects, spelling, blanks: str, bom: bool) -> bytes:
    elements = [blanks + json.dumps(one, **spelling) + blanks for one in objects]
    return (BOM if bom else b"") + f"{blanks}[{','.join(elements)}]{blanks}".encode()


def parts(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def whole(items):
    assert [item.damage for item in items] == [None] * len(items)
    return items


@given(OBJECTS, st.booleans(), st.booleans(), st.sampled_from([None, "gzip", "zstd"]),
       st.integers(1, 200))
def test_lines_come_back_byte_for_byte(file, objects, ascii_only, bom, packing, member):
    lines = [json.dumps(one, ensure_ascii=ascii_only).encode() + b"\n" for one in objects]
    data = (BOM if bom else b"") + b" \r\n".join([b"", *lines])  # a blank line before each
    if packing:
        packed = [PACKERS[packing](part) for part in parts(data, member)]
        items = whole(list(read_items(file(b"".join(packed)))))
    else:
        items = whole(list(read_items(file(data))))
    assert [item.raw for item in items] == lines
    assert [item.line for item in items] == list(range(2, 2 * len(lines) + 1, 2))


def test_only_a_newline_ends_a_line(file):
    lines = ['{"a": "\u2028\x85\u2029"}\r{}\x0b\x0c\r\n'.encode(), b"{}\0\n", b'{"last": 1}']
    assert [item.raw for item in read_items(file(b"".join(lines)))] == lines


@pytest.mark.parametrize("data", [b"", BOM, b"\n", b" \t\r\n \n\x0c", BOM + b"\n\n", b"[]",
                                  b" [ \n]\n ", BOM + b"\r\n[]"])
def test_what_holds_nothing_gives_nothing(file, data):
    assert list(read_items(file(data))) == []
    for pack in PACKERS.values():
        assert list(read_items(file(pack(data)))) == []


def check_array(file, data: bytes, objects) -> None:
    items = whole(list(read_items(file(data))))
    assert [json.loads(item.raw) for item in items] == objects
    if objects:
        inside = data[data.index(b"[") + 1 : data.rindex(b"]")]
        assert b",".join(item.raw for item in items) == inside
    at = data.index(b"[") + 1
    for item in items:
        begin = at + len(item.raw) - len(item.raw.lstrip())
        assert item.line == data.count(b"\n", 0, begin) + 1
        at += len(item.raw) + 1


@given(OBJECTS, SPELLINGS, BLANKS, st.booleans(), st.sampled_from([None, "gzip", "zstd"]))
def test_an_array_gives_its_elements_byte_for_byte(file, objects, spelling, blanks, bom, packing):
    data = spell_array(objects, spelling, blanks, bom)
    assert container(file(data)) == "array"
    check_array(file, data, objects)
    if packing:
        items = whole(list(read_items(file(PACKERS[packing](data)))))
        assert [json.loads(item.raw) for item in items] == objects


@given(OBJECTS, SPELLINGS, BLANKS, st.booleans())
def test_where_a_window_ends_does_not_matter(file, objects, spelling, blanks, bom):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "CHUNK", 5)
        patch.setattr(arrays, "QUICK", 64)
        check_array(file, spell_array(objects, spelling, blanks, bom), objects)


PIECES = [b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\", b"\n", b" ", b"1", b"a", b'"x"', b"{}",
          b"\xff", b'\\"', b"\\\\", b"null", b"\xc3\xa4"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=30).map(lambda seen: b"[" + b"".join(seen)))
@example(b'["a\\')
@example(b"[" * 3000)
def test_both_scanners_of_arrays_agree_on_whatever_comes(file, data):
    """The quick one may only say what the careful one says too."""
    def read():
        items = read_items(file(data))
        return [(i.line, i.raw, str(i.damage), getattr(i.damage, "hints", ())) for i in items]

    fast = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "QUICK", -1)
        assert read() == fast
        patch.setattr(arrays, "CHUNK", 1)
        assert read() == fast


@pytest.mark.parametrize(("data", "raws", "line", "code"), [
    (b"[", [b""], 1, "cut-off"),
    (b'[{"a": 1}', [b'{"a": 1}'], 1, "cut-off"),
    (b"[\n1,\n2,", [b"\n1", b"\n2", b""], 3, "cut-off"),
    (b"[1,]", [b"1", b""], 1, "not-json"),
    (b"[,1]", [b"", b"1"], 1, "not-json"),
    (b"[1\n, ]", [b"1\n", b" "], 2, "not-json"),
    (b"[1]\n\n[2]", [b"1", b"[2]"], 3, "not-json"),
    (b"[\n]\nx", [b"x"], 3, "not-json"),
    (b"[1] x", [b"1", b" x"], 1, "not-json"),
    (b'[{},\n{"a": [1}, {}]', [b"{}", b'\n{"a": [1}'], 2, "not-json"),
    (b'[{},\n{"a": "b\n"}, {}]', [b"{}", b'\n{"a": "b\n'], 2, "not-json"),
    (b"[1}]", [b"1}"], 1, "not-json"),
])  # fmt: skip
def test_a_broken_array_says_where_it_breaks(file, data, raws, line, code):
    items = list(read_items(file(data)))
    assert [item.raw for item in items] == raws
    damage = next(item for item in items if item.damage)
    assert (damage.line, damage.damage.line, damage.damage.code) == (line, line, code)


def test_one_malformed_element_costs_no_other(file):
    data = b'[{"a": 1}, {"a" 2}, NaN, {"b": 1} {"c": 2}, {"d": 4}]'
    items = whole(list(read_items(file(data))))
    assert b"[" + b",".join(item.raw for item in items) + b"]" == data
    assert len(items) == 5


@given(st.binary(max_size=200), st.sampled_from([b"", b"[", *containers.MAGIC.values(),
                                                 *containers.TABLES, *containers.FOREIGN]),
       st.sampled_from([None, "gzip", "zstd"]))
def test_any_bytes_at_all_give_items_or_damage_on_a_line_of_the_file(file, data, magic, packing):
    data = magic + data
    name = file(PACKERS[packing](data) if packing else data)
    try:
        items = list(read_items(name))
    except CongradError:
        pytest.fail("bytes are damaged records, not an error of the run")
    assert all(1 <= item.line <= data.count(b"\n") + 1 for item in items)
    assert [item.line for item in items] == sorted(item.line for item in items)
    assert all(item.damage is None or item.damage.line == item.line for item in items)
    suffix_warning(name)


def form_of(form: str) -> tuple[bytes, bytes]:
    """A file, and its unpacked bytes: 12 records, those packed in three members."""
    lines = [json.dumps({"prompt": f"Frage {i}", "a": "ä" * i}).encode() for i in range(12)]
    if form == "array":
        return (data := b"[" + b",\n ".join(lines) + b"]\n"), data
    members = [b"\n".join(lines[at : at + 4]) + b"\n" for at in (0, 4, 8)]
    return b"".join(map(PACKERS[form], members)), b"".join(members)


@pytest.mark.parametrize("form", ["array", "gzip", "zstd"])
def test_a_file_cut_anywhere_gives_a_prefix_and_then_damage(file, form):
    data, unpacked = form_of(form)
    everything = [item.raw for item in whole(list(read_items(file(data))))]
    clean = 0
    for cut in range(len(data)):
        items = list(read_items(file(data[:cut])))
        damaged = [item for item in items if item.damage]
        before = [item.raw for item in items if not item.damage]
        assert before == everything[: len(before)]
        assert all(item.damage.code == "cut-off" for item in damaged)
        assert len(damaged) < 2
        assert damaged == items[len(before) :]
        if damaged:
            assert damaged[0].raw in unpacked
        else:
            clean += 1
    # nothing at all; behind the first and second member; before the array's last newline
    assert clean == {"array": 2, "gzip": 3, "zstd": 3}[form]


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_changed_byte_is_damage_and_never_an_exception(file, form):
    data, _ = form_of(form)
    for at in range(0, len(data), 2):
        items = list(read_items(file(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])))
        assert all(item.damage.code in ("corrupt", "cut-off") for item in items if item.damage)


def test_what_stands_before_a_damage_is_given_whole(file):
    lines = [b'{"i": %d}\n' % i for i in range(500)]
    packed = bytearray(gzip.compress(b"".join(lines)))
    packed[-6] ^= 1  # in the check sum, so that all data is right
    *items, last = read_items(file(bytes(packed)))
    assert [item.raw for item in items] == lines
    assert (last.line, last.raw, last.damage.code) == (501, b"", "corrupt")
    assert "incorrect data check" in str(last.damage)


def test_zero_padding_is_no_damage_and_other_padding_is(file):
    packed = gzip.compress(b"{}\n", mtime=0)
    assert len(whole(list(read_items(file(packed + bytes(1000) + packed + b"\0"))))) == 2
    *_, last = read_items(file(packed + b"garbage"))
    assert last.damage.code == "corrupt"


def test_a_frame_to_skip_and_many_tiny_frames_are_read(file):
    skip = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    frames = [zstandard.compress(b'{"i": %d}\n' % i) for i in range(2000)]
    assert len(whole(list(read_items(file(skip + skip.join(frames)))))) == 2000


@pytest.mark.parametrize("packing", [None, "gzip", "zstd"])
@pytest.mark.parametrize("form", ["lines", "array"])
def test_long_records_are_damaged_and_endless_ones_end_the_file(file, monkeypatch, packing, form):
    monkeypatch.setattr(containers, "LONGEST_LINE", 1000)
    monkeypatch.setattr(containers, "HELD_LINE", 5000)
    monkeypatch.setattr(arrays, "CHUNK", 64)
    for size, count, kept in ((900, 3, True), (1000, 3, True), (4900, 3, True), (5100, 2, False)):
        middle = b'"' + b"x" * (size - 3) + b'"'
        data = b'{}\n"%s"\n{}\n' % middle[1:-1] if form == "lines" else b"[{},%s ,{}]" % middle
        items = list(read_items(file(PACKERS[packing](data) if packing else data)))
        assert len(items) == count
        assert (items[1].damage is not None) == (size > 1000)
        assert (len(items[1].raw) == size) == kept
        assert items[1].damage is None or items[1].damage.code == "too-long"


def test_a_binary_file_that_is_no_container_is_named(file):
    tar = b"name".ljust(257, b"\0") + b"ustar\0"
    for data, seen in ((b"PK\x03\x04...", "a zip archive"), (tar, "a tar archive"),
                       (gzip.compress(tar, mtime=0), "a tar archive inside gzip"),
                       (gzip.compress(b"PAR1...", mtime=0), "parquet inside gzip"),
                       (zstandard.compress(gzip.compress(b"{}", mtime=0)), "gzip inside zstd"),
                       ('{"a": 1}'.encode("utf-16"), "UTF-16 text")):
        (item,) = read_items(file(data))
        assert f"data:1: {seen}." == item.damage.message


@pytest.mark.parametrize(("name", "data", "warning"), [
    ("x.gz", b"{}", "x.gz is not gzip (it starts with '{'): read as lines of JSON"),
    ("x.jsonl.zst", gzip.compress(b"{}", mtime=0),
     "x.jsonl.zst is not zstd (it starts with 1f 8b): read as gzip, with lines of JSON inside"),
    ("x.jsonl", b" [1]", "x.jsonl is not lines of JSON (it starts with '['): read as a JSON array"),
    ("x.parquet", b"{}", "x.parquet is not parquet (it starts with '{'): read as lines of JSON"),
    ("x.jsonl", zstandard.compress(b"{}"), "x.jsonl is not plain text (it starts with 28 b5 2f fd):"
     " read as zstd, with lines of JSON inside"),
    ("x.json", b"PAR1", "x.json is not lines of JSON (it starts with 'PAR1'): read as parquet"),
    ("x.json", b"{}", None), ("x.json", b"[]", None),
    ("x.jsonl.gz", gzip.compress(b"{}", mtime=0), None),
    ("x.txt", b"[]", None), ("x", b"{}", None), ("x.gz", b"", None),
    ("x.JSON.ZST", zstandard.compress(b"[]"), None),
])  # fmt: skip
def test_a_wrong_suffix_is_worth_a_warning(file, name, data, warning):
    assert suffix_warning(file(data, name)) == warning


def test_a_file_that_cannot_be_opened_says_why(tmp_path):
    for path, reason in ((tmp_path / "none", "No such file or directory"),
                         (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=rf"^x: cannot be read \({reason}\)\.$"):
            list(read_items(DataFile("x", path)))


def test_a_missing_package_is_named_with_its_cure(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(InputError, match=r"^x\.zst needs the package zstandard\.$") as caught:
        container(file(zstandard.compress(b"{}"), "x.zst"))
    assert caught.value.hints == ("pip install 'congrad-cli[zst]'",)


def peak_mib(path, expected: str) -> int:
    """The most memory that reading a file took, in a process of its own.

    Not ``ru_maxrss``: it begins with what the process had that started this one.
    """
    code = """
        import pathlib, sys
        from congrad_cli.records.containers import read_items
        from congrad_cli.records.record import DataFile
        items = codes = size = 0
        for item in read_items(DataFile("x", pathlib.Path(sys.argv[1]))):
            items += 1
            size += len(item.raw)
            code = item.damage and item.damage.code
        status = pathlib.Path("/proc/self/status").read_text()
        print(items, size, code, int(status.partition("VmHWM:")[2].split()[0]) >> 10)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), path],
                          capture_output=True, check=True, text=True)
    seen, peak = done.stdout.strip().rsplit(" ", 1)
    assert seen == expected
    return int(peak)


def test_a_line_of_100_megabytes_is_held_at_most_twice(tmp_path):
    path = tmp_path / "long.jsonl"
    with path.open("wb") as out:
        out.writelines([b'{"a": "', *[b"x" * 1_000_000] * 100, b'"}\n'])
    assert peak_mib(path, f"1 {100_000_010} too-long") < 300


def test_a_bomb_is_not_unpacked_beyond_what_a_line_may_hold(tmp_path):
    path = tmp_path / "bomb.zst"
    frame = zstandard.compress(bytes(100 << 20), 19)
    path.write_bytes(frame * 20)  # 2 GB
    assert peak_mib(path, "1 0 too-long") < 700


@pytest.mark.parametrize("form", ["array", "gzip"])
def test_memory_does_not_grow_with_the_file(tmp_path, form):
    element = json.dumps({"prompt": "Wer, [du]? \"ja\"", "chosen": "ä" * 900}).encode()
    peaks = []
    for count in (2_000, 20_000):
        path = tmp_path / f"{count}.json"
        if form == "array":
            path.write_bytes(b"[" + b",\n".join([element] * count) + b"]")
            size = count * (len(element) + 1) - 1
        else:
            path.write_bytes(gzip.compress((element + b"\n") * count, 1))
            size = count * (len(element) + 1)
        peaks.append(peak_mib(path, f"{count} {size} None"))
    assert peaks[1] < peaks[0] + 8


def test_zlib_tells_of_pending_bytes_only_when_asked_again(file):
    """What fits many times into what is read at once is given to its last byte."""
    line = b"{}" + b" " * 509 + b"\n"
    for level in (1, 9):
        packer = zlib.compressobj(level, wbits=31)
        packed = packer.compress(line * 5000) + packer.flush()
        assert [item.raw for item in read_items(file(packed))] == [line] * 5000
