"""The consensus as it lies in the store: written by ``consensus``, read by ``filter``."""

import hashlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import StoreError, UsageError
from congrad_cli.header import StoreHeader
from congrad_cli.settings import FORMAT, ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.tensors import Arrays, check_sums, map_arrays, pack_arrays, replace_file
from congrad_cli.weights import Members, check_settings

MATRICES = {"conflict_range": (2,), "after": ()}
"""What a file may tell of every two groups, behind [L, L]: the 95 % interval of their cosine, and
the cosine between what they add to the consensus."""
LONGEST_NAME = 200
"""Bytes of a consensus' name: file systems allow 255, ending and all."""


@dataclass(frozen=True)
class Consensus:
    """A direction and what it was made of, float64: d [D], G [L, D], a [L] with d = G^T a.

    ``excess`` [L, r] is what decoding adds to |G_l|^2, by sub-sketch; see the module ``products``.
    """

    direction: NDArray[np.float64]
    gradients: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    excess: NDArray[np.float64]


@dataclass(frozen=True)
class StoredConsensus:
    """A consensus, the names [L] of its groups, what every pair added to them, and its options.

    ``findings`` is what the command said of it, as JSON (``congrad.consensus/1`` in
    docs/commands.md); ``matrices`` are those of :data:`MATRICES` that the file has.
    """

    consensus: Consensus
    names: list[str]
    members: Members
    settings: ConsensusSettings
    findings: dict[str, Any] = field(default_factory=dict)
    matrices: Arrays = field(default_factory=dict)


def can_name(text: str) -> bool:
    """Whether a consensus may be called that: its file stays inside the store, and can be made."""
    outside = not text or text.startswith(".") or "/" in text or "\0" in text
    return not outside and len(text.encode(errors="surrogatepass")) <= LONGEST_NAME


def consensus_file(path: Path, name: str) -> Path:
    """Where the consensus called ``name`` lies; raises unless the name stays inside the store."""
    if not can_name(name):
        raise UsageError(f"'{name}' cannot name a consensus.",
                         f"use up to {LONGEST_NAME} letters, digits, - and _")
    return path / "consensus" / f"{name}.safetensors"


def consensus_files(path: Path) -> dict[str, Path]:
    """Name -> file of all that lie in the store at ``path``, in the order of their files."""
    return {file.name.removesuffix(".safetensors"): file
            for file in sorted((path / "consensus").glob("*.safetensors"))}


def write_consensus(
    path: Path, found: StoredConsensus, store: GradientStore, more: Arrays | None = None
) -> None:
    """Write ``consensus/NAME.safetensors``, replacing an older one of that name.

    ``more`` are further arrays, such as :data:`MATRICES`.
    """
    metadata = {
        "format": FORMAT,
        "fingerprint": store.header.fingerprint,
        "settings": asdict(found.settings),
        "groups": found.names,
        "pairs": pairs_digest(store),
        "findings": found.findings,
    }
    # a file that is released says by itself which pairs it was made of
    arrays = vars(found.consensus) | vars(found.members) | {"digest": store.column("digest")}
    data = pack_arrays(arrays | (more or {}), metadata)
    replace_file(consensus_file(path, found.settings.name), data)


def read_consensus(path: Path, name: str, store: GradientStore) -> StoredConsensus:
    """Read a consensus back; it must have seen exactly the store's rows."""
    file, again = consensus_file(path, name), "" if name == "default" else f" --name {name}"
    cure = f"run: congrad consensus {path}{again}"
    arrays, metadata = open_consensus(file, store.header, cure)
    if metadata.get("pairs") != pairs_digest(store):
        raise StoreError(f"{file} was made when the store held other pairs.", cure)
    return parse_consensus(file, arrays, metadata, store.header, len(store), cure)


def open_consensus(file: Path, header: StoreHeader, cure: str) -> tuple[Arrays, dict[str, Any]]:
    """The tensors and metadata of a consensus of the store with that header."""
    if not file.is_file():
        there = sorted(one.stem for one in file.parent.glob("*.safetensors"))
        raise StoreError(f"{file.parent.parent} has no consensus named '{file.stem}'.",
                         *([f"there: {', '.join(there)}"] if there else []), cure)
    arrays, metadata = map_arrays(file)
    if metadata.get("fingerprint") != header.fingerprint:
        raise StoreError(f"{file} belongs to another store.", cure)
    return arrays, metadata


def parse_consensus(
    file: Path, arrays: Arrays, metadata: dict[str, Any], header: StoreHeader, pairs: int, cure: str
) -> StoredConsensus:
    """What a file's tensors and metadata say; made of so many ``pairs``.

    Raises :class:`StoreError` where a byte of the tensors has changed, and for nonsense.
    """
    names = metadata.get("groups")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StoreError(f"{file} does not name its groups; an older congrad made it.", cure)
    if len(set(names)) < len(names):
        raise StoreError(f"{file}: two groups have one name.", cure)
    groups = len(names)
    shapes = {"direction": (header.dim,),
              "gradients": (groups, header.dim),
              "coefficients": (groups,),
              "excess": (groups, header.width),
              "label": (pairs,), "scale": (pairs,), "share": (pairs,)}
    copies = {}
    for tensor, shape in shapes.items():
        kind = np.int32 if tensor == "label" else np.float64
        found = arrays.get(tensor)
        if found is None or found.shape != shape or found.dtype != kind:
            raise StoreError(f"{file}: tensor '{tensor}' is missing or has another shape.", cure)
        copies[tensor] = np.array(found)
        if not np.isfinite(copies[tensor]).all():
            raise StoreError(f"{file}: it holds a number that is not finite.", cure)
    check_sums(file, copies, metadata, cure)
    label = copies["label"]
    if pairs and not 0 <= label.min() <= label.max() < groups:
        raise StoreError(f"{file}: a pair in no group.", cure)
    try:
        settings = ConsensusSettings(**metadata["settings"])
        _check_kinds(settings)
        check_settings(settings)
    except (KeyError, TypeError, UsageError) as error:
        raise StoreError(f"{file}: unknown settings ({error}).", cure) from error
    belong = Members(**{tensor: copies.pop(tensor) for tensor in ("label", "scale", "share")})
    findings = metadata.get("findings")  # an older congrad wrote none
    matrices = {name: np.array(arrays[name]) for name, tail in MATRICES.items()
                if name in arrays and arrays[name].shape == (groups, groups, *tail)}
    return StoredConsensus(Consensus(**copies), names, belong, settings,
                           findings if isinstance(findings, dict) else {}, matrices)


def _check_kinds(settings: ConsensusSettings) -> None:
    """Raise :class:`TypeError` unless every value is of its default's kind."""
    for item in fields(settings):
        value, default = getattr(settings, item.name), item.default
        if not isinstance(value, float | int if isinstance(default, float) else type(default)):
            raise TypeError(f"{item.name} is {value!r}")


def pairs_digest(store: GradientStore) -> str:
    """Names the pairs, their order and their groups."""
    content = hashlib.sha256(store.column("digest").tobytes() + store.column("group").tobytes())
    content.update("\0".join(store.groups).encode(errors="surrogatepass"))
    return content.hexdigest()
