"""A consensus that other pairs are compared with: which one is meant, and does it fit.

Of the store that made it three files are needed: ``store.json``, ``projection.safetensors`` and
``consensus/NAME.safetensors``. Its data, index and shards may be gone.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import (
    StoredConsensus,
    can_name,
    consensus_file,
    consensus_files,
    open_consensus,
    parse_consensus,
)
from congrad_cli.errors import StoreError, UsageError
from congrad_cli.header import StoreHeader, check_same, read_header
from congrad_cli.tensors import check_sums, map_arrays

PROJECTION = "projection.safetensors"
SAME_DIRECTIONS = 1e-3
"""Leading directions are unit vectors. Two machines find them this close to each other; what that
does to a cosine is far below the error of the sketch."""

COPY = ("sketch the pairs with the same model and settings into a folder that has the other "
        f"store's {PROJECTION}")


@dataclass(frozen=True)
class ConsensusPlace:
    """The store that has a consensus, and its name there."""

    store: Path
    name: str

    @property
    def file(self) -> Path:
        """Where it lies."""
        return consensus_file(self.store, self.name)


@dataclass(frozen=True)
class Released:
    """A consensus read without its store's pairs; ``digest`` [n, 16] names the pairs that it was
    made of, where the file says so."""

    found: StoredConsensus
    digest: NDArray[np.uint8] | None


def find_consensus(text: str, path: Path | None) -> ConsensusPlace:
    """What ``NAME``, ``STORE`` or ``STORE:NAME`` means to the store at ``path``, if there is one.

    A name that the store itself has comes first. Raises :class:`UsageError` for a bare name where
    there is no store.
    """
    if path is not None and can_name(text) and consensus_file(path, text).is_file():
        return ConsensusPlace(path, text)
    before, _, name = text.rpartition(":")
    for store, called in ((text, "default"), (before, name)):
        if _is_store(store):
            place = ConsensusPlace(Path(store), called)
            consensus_file(place.store, called)  # refuses what is no name
            same = path is not None and place.store.resolve() == path.resolve()
            return ConsensusPlace(path, called) if path is not None and same else place
    if "/" in text:
        raise StoreError(f"{text} is no store: no store.json in it.",
                         "pass the folder of a store, or FOLDER:NAME")
    if path is None:
        raise UsageError(f"'{text}' is a name, and no store was given.",
                         f"name the store first, or pass STORE:{text}")
    return ConsensusPlace(path, text)


def store_named(texts: Iterable[str]) -> Path | None:
    """The store of the first of these that names one."""
    for text in texts:
        for store in (text, text.rpartition(":")[0]):
            if _is_store(store):
                return Path(store)
    return None


def _is_store(text: str) -> bool:
    """Whether a folder of that name is a store; some texts can name none."""
    try:
        return bool(text) and (Path(text) / "store.json").is_file()
    except (OSError, ValueError):
        return False


def is_release(path: Path) -> bool:
    """Whether the folder of a store has its consensus alone. A store that lost its index and all
    shards still has the folders that it kept them in."""
    kept = ("index.safetensors", "shards", "skipped")
    return bool(consensus_files(path)) and not any((path / name).exists() for name in kept)


def read_released(place: ConsensusPlace) -> Released:
    """Read a consensus by itself. Raises :class:`StoreError` where a byte of it has changed."""
    again = "" if place.name == "default" else f" --name {place.name}"
    cure = f"copy it again, or run: congrad consensus {place.store}{again}"
    header = read_header(place.store)
    arrays, metadata = open_consensus(place.file, header, cure)
    label, digest = arrays.get("label"), arrays.get("digest")
    pairs = len(label) if label is not None and label.ndim == 1 else 0
    found = parse_consensus(place.file, arrays, metadata, header, pairs, cure)
    if digest is None:
        return Released(found, None)
    check_sums(place.file, {"digest": digest}, metadata, cure)
    if digest.dtype != np.uint8 or digest.shape != (pairs, 16):
        raise StoreError(f"{place.file}: tensor 'digest' has another shape.", cure)
    return Released(found, np.array(digest))


def check_comparable(path: Path, other: Path) -> None:
    """Raise :class:`StoreError` unless rows of the two stores can be compared.

    Model and settings must be equal, and the leading directions that the projection keeps.
    """
    ours, theirs = read_header(path), read_header(other)
    check_same(other, theirs, ours, f"{path} must be sketched as {other} was; data may differ")
    if (theirs.dim, theirs.width) != (ours.dim, ours.width):
        raise StoreError(f"{other} was made with another projection: {theirs.dim} numbers, width "
                         f"{theirs.width}, and {path} with {ours.dim}, {ours.width}.", COPY)
    _check_projections(path / PROJECTION, ours, other / PROJECTION)


def _check_projections(place: Path, header: StoreHeader, other: Path) -> None:
    for file in (place, other):
        if not file.is_file():
            raise StoreError(f"{file} is missing: nobody knows what the rows stand for.",
                             "copy it from where the store came from")
    (ours, about), (theirs, there) = map_arrays(place), map_arrays(other)
    for file, metadata in ((place, about), (other, there)):
        if metadata.get("fingerprint") != header.fingerprint:
            raise StoreError(f"{file} belongs to another store.", COPY)
    if about.get("sha256") == there.get("sha256"):
        return
    if ours.keys() != theirs.keys():
        name = min(ours.keys() ^ theirs.keys())
        raise StoreError(f"{other}: another projection: only one of the two has '{name}'.", COPY)
    for name, basis in ours.items():
        same = basis.shape == theirs[name].shape
        if not (same and np.allclose(basis, theirs[name], rtol=0, atol=SAME_DIRECTIONS)):
            raise StoreError(f"{other}: another projection: the leading directions of '{name}' "
                             f"are not those of {place}.", COPY)


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, as ``sha256sum`` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
