"""Stores of given numbers, without a model and without torch, for tests of what comes after."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.codec import Codec
from congrad_cli.header import StoreHeader, read_header
from congrad_cli.records.groups import Grouping
from congrad_cli.records.reader import language_detector, parse_item, read_records
from congrad_cli.records.record import DataFile, Item, Record, Rejected
from congrad_cli.settings import RecordSettings
from congrad_cli.store import GradientStore
from congrad_cli.store_index import Source, StoreIndex, write_index
from congrad_cli.tensors import Arrays, pack_arrays
from congrad_cli.writer import ShardWriter, create_store


def normalised(directions: Any) -> NDArray[np.float64]:
    """Each row divided by its length."""
    directions = np.asarray(directions, np.float64)
    return np.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True))


def unit_rows(directions: Any) -> NDArray[np.float16]:
    """Each row divided by its length, as a store of float16 keeps it."""
    return normalised(directions).astype(np.float16)


def random_rows(count: int, dim: int, seed: int = 0) -> NDArray[np.float16]:
    """Random unit rows."""
    return unit_rows(np.random.default_rng(seed).standard_normal((count, dim)))


def header(dim: int, *, width: int = 1, store_dtype: str | None = None) -> StoreHeader:
    """A header as ``sketch`` would write it.

    Without ``store_dtype`` it is that of a store made before there was a choice.
    """
    settings = {"seed": 0, "dim": dim} | ({"store_dtype": store_dtype} if store_dtype else {})
    return StoreHeader(
        model="synthetic",
        dim=dim,
        width=width,
        fingerprint={"model": {"weights": "w"}, "settings": settings},
    )


def digests_of(count: int) -> NDArray[np.uint8]:
    """Digests that differ, [count, 16]."""
    names = (hashlib.sha256(str(row).encode()).digest()[:16] for row in range(count))
    return np.frombuffer(b"".join(names), np.uint8).reshape(-1, 16)


def index_of(groups: Sequence[str], digests: Any = None, source: Path | None = None) -> StoreIndex:
    """The index of as many records as there are ``groups``."""
    names = sorted(set(groups))
    return StoreIndex(
        sources=[Source("data.jsonl", str(source), len(groups))] if source else [],
        fields=RecordSettings(),
        groups=names,
        group=np.array([names.index(group) for group in groups], np.int32),
        digest=digests_of(len(groups)) if digests is None else np.asarray(digests, np.uint8),
    )


def parse_line(raw: bytes, number: int = 1, row: int = 0, **settings: Any) -> Record:
    """One line as a record of a file of its own shape; raises what is wrong with it."""
    fields = RecordSettings(**settings)
    grouping = Grouping(fields, DataFile("data.jsonl", Path("data.jsonl")),
                        language_detector(fields))
    return parse_item(Item(number, raw), row, "data.jsonl", fields, None, grouping)


def read_all(path: Path, **settings: Any) -> list[Record]:
    """The records of a file; raises what is wrong with the first bad one."""
    records = []
    for record in read_records([DataFile(path.name, path)], RecordSettings(**settings)):
        if isinstance(record, Rejected):
            raise record.error
        records.append(record)
    return records


def columns(
    rows: Sequence[int],
    directions: Any,
    norms: Any,
    digests: Any = None,
    codec: Codec | None = None,
) -> Arrays:
    """The shard columns of the given rows, float16 without ``codec``; the rest holds all rows."""
    directions = np.asarray(directions, np.float32)
    codec = codec or Codec("float16", directions.shape[1], 1)
    rows = np.asarray(rows, np.int64)
    if digests is None:
        digests = digests_of(len(directions))
    return {
        **codec.encode(directions[rows]),
        "norm": np.asarray(norms, np.float32)[rows],
        "logp": np.zeros((len(rows), 2), np.float32),
        "tokens": np.ones((len(rows), 3), np.int32),
        "digest": np.asarray(digests, np.uint8)[rows],
    }


def memory_store(
    directions: Any,
    norms: Any,
    groups: Sequence[str],
    shards: Iterable[Sequence[int]] | None = None,
    **coded: Any,
) -> GradientStore:
    """An open store that lies in memory only; ``coded``: the header's width and store_dtype."""
    about = header(len(directions[0]), **coded)
    parts = [range(len(directions))] if shards is None else shards
    return GradientStore(
        Path("memory"),
        about,
        index_of(groups),
        [columns(part, directions, norms, codec=about.codec) for part in parts],
    )


def write_store(
    folder: Path,
    directions: Any,
    norms: Any = None,
    groups: Sequence[str] | None = None,
    *,
    shards: Iterable[Sequence[int]] | None = None,
    skipped: Sequence[int] = (),
    **coded: Any,
) -> Path:
    """A store at ``folder/synthetic.congrad``, and ``folder/data.jsonl`` that it was made from.

    Row i is ``directions[i]`` made a unit vector, with ``norms[i]`` and ``groups[i]``. ``shards``
    lists the rows of each shard, in any order and not necessarily all; ``skipped`` rows have none.
    ``coded`` gives the header's width and store_dtype.
    """
    count = len(directions)
    norms = np.ones(count) if norms is None else norms
    groups = ["en"] * count if groups is None else groups
    data = folder / "data.jsonl"
    data.write_text(
        "".join(
            json.dumps({"id": f"pair-{row}", "lang": groups[row], "prompt": f"Question {row}?",
                        "chosen": " Yes.", "rejected": " No."}) + "\n"
            for row in range(count)
        )
    )
    digests = [np.frombuffer(record.digest(), np.uint8) for record in read_all(data)]
    about = header(len(directions[0]), **coded)
    path = folder / "synthetic.congrad"
    create_store(path, about)
    write_index(path, index_of(groups, digests, data))
    writer = ShardWriter(path, about)
    rows = normalised(directions)
    if shards is None:
        shards = [[row for row in range(count) if row not in set(skipped)]]
    for part in shards:
        writer.append(columns(part, rows, norms, digests, about.codec))
        writer.commit()
    for row in skipped:
        digest = digests[row].tobytes()
        writer.skip(digest, "data.jsonl", row + 1, "no-room", "the prompt alone is too long")
    writer.commit()
    return path


def write_projection(path: Path) -> None:
    """A ``projection.safetensors`` for a store, as ``sketch`` leaves one."""
    about = read_header(path)
    data = pack_arrays({"layer": random_rows(4, 2).astype(np.float32)}, {
        "difference": 0.0, "tolerance": 1e-5, "width": about.width,
        "fingerprint": about.fingerprint,
    })  # fmt: skip
    (path / "projection.safetensors").write_bytes(data)
