"""What pairs are compared with: a consensus of their own store, or one that another released."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import Consensus, StoredConsensus, read_consensus
from congrad_cli.progress import Progress
from congrad_cli.release import check_comparable, find_consensus, read_released, sha256_of
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.store_index import find_digests
from congrad_cli.tensors import Arrays
from congrad_cli.weights import Members, pair_weights


@dataclass(frozen=True)
class Target:
    """A consensus, and how the store's N pairs stand to it.

    ``groups`` [L] name the consensus' gradients, and ``members`` say what every pair added to
    them: nothing (share 0), where another store's pairs made it. ``names`` and ``label`` [N] are
    the pairs' own groups. ``seen`` counts the pairs that the consensus was made of; None where
    its file does not say.
    """

    consensus: Consensus
    groups: list[str]
    members: Members
    settings: ConsensusSettings
    names: list[str]
    label: NDArray[np.int32]
    store: Path
    released: bool = False
    seen: int | None = None
    sha256: str = ""
    findings: dict[str, Any] = field(default_factory=dict)  # what the consensus command said
    matrices: Arrays = field(default_factory=dict)  # see direction.MATRICES


def find_target(store: GradientStore, text: str, progress: Progress) -> Target:
    """The consensus that ``--consensus`` means. Raises :class:`StoreError` unless it fits."""
    place = find_consensus(text, store.path)
    if place.store == store.path:
        target = own_target(store, read_consensus(store.path, place.name, store))
    else:
        check_comparable(store.path, place.store)
        released = read_released(place)
        target = released_target(store, released.found, released.digest, place.store)
        if target.seen is None:
            progress.note(f"{place.file} does not say which pairs it was made of; if any is among "
                          "these, it is scored with itself inside")
        elif target.seen:
            progress.note(f"{target.seen:,} of the {len(store):,} pairs were among those that "
                          f"{place.file} was made of: they are scored with themselves inside")
    return replace(target, sha256=sha256_of(place.file))


def own_target(store: GradientStore, found: StoredConsensus) -> Target:
    """A consensus of the store's own pairs; its groups need not be the data's."""
    return Target(
        consensus=found.consensus, groups=found.names, members=found.members,
        settings=found.settings, names=found.names, label=found.members.label,
        store=store.path, seen=int((found.members.share > 0).sum()),
        findings=found.findings, matrices=found.matrices,
    )  # fmt: skip


def released_target(
    store: GradientStore,
    found: StoredConsensus,
    digest: NDArray[np.uint8] | None,
    other: Path,
) -> Target:
    """A consensus that the pairs had no part in; their groups are the data's."""
    label, count = store.column("group"), len(store)
    weight = pair_weights(store, found.settings)  # no average is made, so lengths do not matter
    nothing = Members(np.zeros(count, np.int32), weight, np.zeros(count))
    seen = None
    if digest is not None:
        inside = digest[found.members.share > 0]
        seen = int((find_digests(store.column("digest"), inside) >= 0).sum())
    return Target(
        consensus=found.consensus, groups=found.names, members=nothing,
        settings=found.settings, names=store.groups, label=label,
        store=other, released=True, seen=seen,
    )  # fmt: skip
