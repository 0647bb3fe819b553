"""What is in a store: its settings, its data, how far it has come, and what was made of it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from congrad_cli.direction import (
    StoredConsensus,
    consensus_files,
    pairs_digest,
    read_consensus,
)
from congrad_cli.errors import CongradError, StoreError
from congrad_cli.header import StoreHeader, read_header
from congrad_cli.locks import live_ranks
from congrad_cli.products import group_products
from congrad_cli.release import ConsensusPlace, is_release, read_released
from congrad_cli.settings import RecordSettings, SketchSettings
from congrad_cli.store import GradientStore, open_shard, shard_files
from congrad_cli.store_index import StoreIndex, read_index
from congrad_cli.tensors import Arrays, map_arrays

SCHEMA = "congrad.show/1"
BINS = 16
"""Of the histograms of row lengths in tokens."""


def describe(path: Path) -> dict[str, Any]:
    """The store at ``path`` as one JSON object; what cannot be read is named, and no error.

    Raises :class:`StoreError` where there is no store, or one of another format.
    """
    header = read_header(path)
    shards, unreadable = _shards(path, header)
    rows = sum(len(shard["norm"]) for shard in shards.values())
    size = sum(file.stat().st_size for file in shards)
    released = is_release(path)
    index, trouble = (None, []) if released else _index(path)
    about = {
        "schema": SCHEMA,
        "path": str(path),
        "model": header.model,
        "format": header.format,
        "row": {"code": header.store_dtype, "numbers": header.dim, "width": header.width},
        "settings": header.fingerprint.get("settings"),
        "changed": _changed(header),
        "versions": header.versions,
        "released": released,
        "shards": len(shards),
        "stored": rows,
        "bytes": sum(_sizes(path)),
        "bytes_per_pair": size / rows if rows else None,
        "unreadable": unreadable + trouble,
        "set_aside": _count(path / "quarantine"),
        "writers": [
            {"rank": rank, "ranks": info.world, "pid": info.pid, "host": info.host,
             "seconds_ago": info.age} for rank, info in live_ranks(path).items()],
    }  # fmt: skip
    store = None if index is None else GradientStore(
        path, header, index, list(shards.values()), list(shards))
    if store is not None:
        about |= _progress(store) | _data(store)
    alone = "released without its pairs" if released else "the store has no index"
    return about | {"consensus": list(_consensus(path, store, alone))}


def _shards(path: Path, header: StoreHeader) -> tuple[dict[Path, Arrays], list[str]]:
    """The columns of the shards that can be read, and what is wrong with the others."""
    found: dict[Path, Arrays] = {}
    bad = []
    for file in shard_files(path):
        try:
            found[file] = open_shard(file, header)
        except StoreError as error:
            bad.append(error.message)
    return found, bad


def _index(path: Path) -> tuple[StoreIndex | None, list[str]]:
    try:
        return read_index(path), []
    except StoreError as error:
        return None, [error.message]


def _changed(header: StoreHeader) -> dict[str, Any]:
    """The settings that are not what ``sketch`` does by itself; those without a default are not
    the user's."""
    defaults = {item.name: item.default for item in fields(SketchSettings)
                if item.default is not MISSING and item.name not in ("dtype", "width")}
    settings = header.fingerprint.get("settings")
    return {name: value for name, value in (settings if isinstance(settings, dict) else {}).items()
            if name in defaults and defaults[name] != value}


def _progress(store: GradientStore) -> dict[str, Any]:
    """How far the store has come, and what each group has."""
    skipped = store.skipped()
    missing = store.rows - len(store) - len(skipped)
    tokens = store.column("tokens").sum(1)  # [N]
    ends = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 1)
    group = store.column("group")
    records = np.bincount(store.index.group[store.index.group >= 0], minlength=len(store.groups))
    return {
        "records": store.rows,
        "sketched": len(store),
        "skipped": dict(sorted(Counter(skipped.values()).items())),
        "missing": missing,
        "complete": missing == 0,
        "mean_tokens": _mean(tokens),
        "token_range": ends,
        "groups": [
            {"name": name, "records": int(records[label]),
             "sketched": int((group == label).sum()), "mean_tokens": _mean(tokens[group == label]),
             "token_histogram": np.histogram(tokens[group == label], BINS, ends)[0].tolist()}
            for label, name in enumerate(store.groups)
        ],
    }  # fmt: skip


def _data(store: GradientStore) -> dict[str, Any]:
    """Where the data is, and how it was read."""
    defaults = asdict(RecordSettings())
    return {
        "data": [
            {**asdict(source), "there": (store.path / source.path).is_file()}
            for source in store.index.sources
        ],
        "read_as": {name: value for name, value in asdict(store.index.fields).items()
                    if value != defaults[name]},
    }  # fmt: skip


def _consensus(
    path: Path, store: GradientStore | None, alone: str
) -> Iterator[dict[str, Any]]:
    """Every consensus; ``fits`` says whether it was made of the pairs there are now, or else
    ``why`` not; ``alone``: why nobody knows the pairs."""
    for name, file in consensus_files(path).items():
        about: dict[str, Any] = {"name": name, "fits": False}
        try:
            metadata = map_arrays(file)[1]
            about["settings"] = metadata.get("settings")
            about |= _facts(read_released(ConsensusPlace(path, name)).found)
            if store is None:
                about["why"] = alone
            elif metadata.get("pairs") != pairs_digest(store):
                about["why"] = "made when the store held other pairs"
            else:
                read_consensus(path, name, store)
                about["fits"] = True
        except CongradError as error:
            about["why"] = error.message
        yield about


def _facts(found: StoredConsensus) -> dict[str, Any]:
    """How many groups a consensus has, and the one that its direction suits least."""
    with np.errstate(all="ignore"):  # whatever the numbers are
        products = group_products(found.consensus)
        square = products.group_square.sum(1) * products.d_square.sum()
        along = products.d_group.sum(1)
        cosine = along / np.sqrt(np.where(square > 0, square, np.nan))
    there = np.flatnonzero(np.isfinite(cosine))
    least = int(there[np.argmin(cosine[there])]) if len(there) else None
    return {
        "groups": len(found.names),
        "least_cosine": None if least is None else float(np.clip(cosine[least], -1, 1)),
        "least_group": None if least is None else found.names[least],
    }


def _sizes(path: Path) -> Iterator[int]:
    for place in path.rglob("*"):
        if place.is_file() and not place.is_symlink():
            yield place.stat().st_size


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _mean(numbers: Any) -> float | None:
    return float(np.mean(numbers)) if len(numbers) else None
