"""Stores of given numbers, without a model and without torch, for tests of what comes after."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.codec import Codec
from congrad_cli.header import Source, StoreHeader
from congrad_cli.records.groups import Grouping
from congrad_cli.records.reader import language_detector, parse_item, read_records
from congrad_cli.records.record import DataFile, Item, Record, Rejected
from congrad_cli.settings import RecordSettings
from congrad_cli.store import GradientStore
from congrad_cli.tensors import Arrays
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


def header(
    rows: int,
    dim: int,
    groups: Sequence[str],
    source: Path | None = None,
    *,
    width: int = 1,
    store_dtype: str | None = None,
) -> StoreHeader:
    """A header as ``sketch`` would write it for ``rows`` records of ``source``.

    Without ``store_dtype`` it is that of a store made before there was a choice.
    """
    settings = {"seed": 0, "dim": dim} | ({"store_dtype": store_dtype} if store_dtype else {})
    return StoreHeader(
        model="synthetic",
        dim=dim,
        width=width,
        rows=rows,
        groups=sorted(set(groups)),
        sources=[Source("data.jsonl", str(source), rows)] if source else [],
        record_settings=asdict(RecordSettings()),
        fingerprint={"data": "d", "model": {"weights": "w"}, "settings": settings},
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
    label: Any,
    digests: Any = None,
    codec: Codec | None = None,
) -> Arrays:
    """The shard columns of the given rows, float16 without ``codec``; the rest holds all rows."""
    directions = np.asarray(directions, np.float32)
    codec = codec or Codec("float16", directions.shape[1], 1)
    rows = np.asarray(rows, np.int64)
    if digests is None:
        digests = np.zeros((len(directions), 16), np.uint8)
    return {
        "row": rows,
        **codec.encode(directions[rows]),
        "norm": np.asarray(norms, np.float32)[rows],
        "logp": np.zeros((len(rows), 2), np.float32),
        "tokens": np.ones((len(rows), 3), np.int32),
        "group": np.asarray(label, np.int32)[rows],
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
    about = header(len(directions), len(directions[0]), groups, **coded)
    label = [about.groups.index(group) for group in groups]
    parts = [range(len(directions))] if shards is None else shards
    return GradientStore(
        Path("memory"),
        about,
        [columns(part, directions, norms, label, codec=about.codec) for part in parts],
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
    about = header(count, len(directions[0]), groups, data, **coded)
    label = [about.groups.index(group) for group in groups]
    path = folder / "synthetic.congrad"
    create_store(path, about)
    writer = ShardWriter(path, about)
    rows = normalised(directions)
    if shards is None:
        shards = [[row for row in range(count) if row not in set(skipped)]]
    for part in shards:
        writer.append(columns(part, rows, norms, label, digests, about.codec))
        writer.commit()
    for row in skipped:
        writer.skip(row, "data.jsonl", row + 1, "no-room", "the prompt alone is too long")
    writer.commit()
    return path
