"""Mutated data files: whatever the bytes are, records or located errors come out, never more.

Takes real lines of every shape (``tests/shapes`` and the bundled pairs), mutates bytes, JSON
tokens and structure, and reads each as a file of its own: as lines, as an array, gzip, zstd or
parquet, cut off at random places. A result is wrong if anything but a record or a located
:class:`BadRecord` comes out, if a record's bytes are not those of the file, or if it cannot be
digested. Prints how many inputs gave what.

    OMP_NUM_THREADS=1 python tests/benchmarks/fuzz_records.py --inputs 20000 --seed 0
"""

import argparse
import gzip
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from congrad_cli.errors import CongradError
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import DataFile, Record
from congrad_cli.settings import RecordSettings

HERE = Path(__file__).resolve().parent.parent
SAMPLE = HERE.parent / "sample_data" / "preferences.jsonl"
TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\\ud800", b"null", b"NaN", b"1e999",
    b"-", b"true", b"[]", b"{}", b'""', b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8", b"\xed\xa0\x80", b"9" * 5000, b"[" * 2000, b"\x1f\x8b", b"\x28\xb5\x2f\xfd",
    b"PAR1", b'"chosen"', b'"rejected"', b'"prompt"', b'"role"', b'"content"', b'"language"',
    b"\n\nHuman: ", b"\n\nAssistant: ",
)  # fmt: skip
VALUES = (None, True, 0, -1.5, "", " ", "x", [], [[]], {}, [{}], {"role": 1}, [{"role": "user"}],
          [{"role": "user", "content": "x"}], [{"from": "gpt", "value": "y"}],
          [{"role": "assistant", "content": None}], "\ud800", "a" * 100_000)  # fmt: skip


def seeds() -> list[bytes]:
    """Real lines of every shape."""
    lines = SAMPLE.read_bytes().splitlines()[:60]
    for path in sorted((HERE / "shapes").glob("*.jsonl")):
        lines += path.read_bytes().splitlines()
    return lines


def mutate_bytes(line: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, or tokens put in."""
    data = bytearray(line)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(data) + 1)
        end = min(place + rng.choice((0, 1, 3, 30)), len(data))
        kind = rng.randrange(4)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place:end]
        elif kind == 2:
            data[place:place] = data[place:end]
        else:
            data[place:end] = rng.choice(TOKENS)
    return bytes(data)


def mutate_fields(line: bytes, rng: random.Random) -> bytes:
    """Valid JSON whose fields are gone, renamed, swapped, or hold something else."""
    fields = json.loads(line)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not fields:
            break
        name, other = rng.choice(list(fields)), rng.choice(list(fields))
        kind = rng.randrange(5)
        if kind == 0:
            del fields[name]
        elif kind == 1:
            fields[name] = deepcopy(rng.choice(VALUES))
        elif kind == 2:
            fields[name], fields[other] = fields[other], fields[name]
        elif kind == 3:
            fields[rng.choice(("prompt", "reject", "tools", "ref_chosen_logps", "chosen"))] = (
                fields.pop(name))
        elif isinstance(fields[name], list) and fields[name]:
            part = rng.randrange(len(fields[name]))
            fields[name][part] = deepcopy(rng.choice(VALUES))
    return json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def as_lines(lines: list[bytes], rng: random.Random) -> bytes:
    """Lines with any of the usual ends."""
    return b"".join(line + rng.choice((b"\n", b"\r\n", b"\n\n", b" \n")) for line in lines)


def as_array(lines: list[bytes], rng: random.Random) -> bytes:
    """One array."""
    return b"[" + rng.choice((b",", b",\n", b" ,\r\n\t")).join(lines) + b"]"


def as_gzip(lines: list[bytes], rng: random.Random) -> bytes:
    """Lines or an array, packed, sometimes in two members."""
    data = rng.choice((as_lines, as_array))(lines, rng)
    half = rng.randrange(len(data) + 1)
    return gzip.compress(data[:half], 1) + gzip.compress(data[half:], 1)


def as_zstd(lines: list[bytes], rng: random.Random) -> bytes:
    """Lines or an array, packed."""
    import zstandard

    return zstandard.compress(rng.choice((as_lines, as_array))(lines, rng))


def as_parquet(lines: list[bytes], rng: random.Random) -> bytes:
    """A table of what is JSON among the lines; another container where there is none."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    try:
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    except (pyarrow.ArrowException, AttributeError, TypeError, ValueError, UnicodeError):
        return as_lines(lines, rng)
    return sink.getvalue().to_pybytes()


CONTAINERS: tuple[Callable[[list[bytes], random.Random], bytes], ...] = (
    as_lines, as_lines, as_lines, as_array, as_gzip, as_zstd, as_parquet)  # fmt: skip


def one_input(lines: list[bytes], rng: random.Random) -> bytes:
    """A file of one to four lines, most of them mutated; sometimes the file itself is, too."""
    chosen = [rng.choice(lines) for _ in range(rng.choice((1, 1, 2, 4)))]
    mutated = [rng.choice((mutate_bytes, mutate_bytes, mutate_fields))(line, rng)
               if rng.random() < 0.9 else line for line in chosen]
    data = rng.choice(CONTAINERS)(mutated, rng)
    if rng.random() < 0.15:
        data = data[: rng.randrange(len(data) + 1)]
    elif rng.random() < 0.1:
        data = mutate_bytes(data, rng)
    return data


def judge(path: Path, data: bytes, settings: RecordSettings) -> Counter[str]:
    """What came out of a file; raises where something else did."""
    found: Counter[str] = Counter()
    try:
        for item in read_records([DataFile("fuzz", path)], settings):
            if isinstance(item, Record):
                item.digest()
                found["record"] += 1
            else:
                assert item.error.message.startswith(f"fuzz:{item.line}: "), item.error.message
                assert "\n" not in item.error.message, item.error.message
                found[item.error.code] += 1
            plain = not data.startswith((b"\x1f\x8b", b"\x28\xb5", b"PAR1"))
            assert not plain or item.raw in data, item.raw[:80]
    except CongradError as error:
        found[f"refused: {error.message[:40]}"] += 1
    return found


def main(inputs: int, seed: int) -> Counter[str]:
    """Read that many inputs; how many records and errors of which code came out."""
    rng, lines = random.Random(seed), seeds()
    found: Counter[str] = Counter()
    choices = (RecordSettings(language="de"), RecordSettings(), RecordSettings(shape="implicit"),
               RecordSettings(group_by=("language", "source")))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz"
        for number in range(inputs):
            data = one_input(lines, rng)
            path.write_bytes(data)
            try:
                found += judge(path, data, rng.choice(choices))
            except BaseException:
                print(f"input {number} of seed {seed}: {data[:300]!r}")
                raise
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    result = main(args.inputs, args.seed)
    print(f"{args.inputs:,} inputs, seed {args.seed}, {time.monotonic() - began:.0f} s: no failure")
    for code, count in result.most_common():
        print(f"  {code}: {count:,}")
