"""What gradients are averaged over: the data's groups, clusters of the pairs, or either merged."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.consensus.averages import averages
from congrad_cli.consensus.clusters import cluster_pairs
from congrad_cli.consensus.groups import cosines
from congrad_cli.consensus.merging import merge_alike, merged_names
from congrad_cli.progress import Progress
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import members, pair_weights

TOP = 3


@dataclass(frozen=True)
class Cluster:
    """A cluster: its pairs, the mean cosine of two of them (nan: it has one), and how many of
    them each of the data's groups has, the largest first."""

    name: str
    pairs: int
    cohesion: float
    made_of: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The largest of the groups it is made of only."""
        cohesion = None if np.isnan(self.cohesion) else self.cohesion
        largest = dict(list(self.made_of.items())[:TOP])
        return {"pairs": self.pairs, "cohesion": cohesion, "made_of": largest}


@dataclass(frozen=True)
class Grouping:
    """Names [L], and the group of every pair, [N]; how they came about."""

    names: list[str]
    label: NDArray[np.int32]
    clusters: list[Cluster] = field(default_factory=list)
    empty: int = 0  # clusters that were asked for and found no pair
    merged: dict[str, list[str]] = field(default_factory=dict)  # a new name -> those it is for

    def to_json(self) -> dict[str, Any]:
        """One object; it is empty where the groups are the data's own."""
        found: dict[str, Any] = {}
        if self.clusters:
            found["clusters"] = {cluster.name: cluster.to_json() for cluster in self.clusters}
            found["empty_clusters"] = self.empty
        if self.merged:
            found["merged"] = self.merged
        return found


def choose_groups(
    store: GradientStore, settings: ConsensusSettings, progress: Progress
) -> Grouping:
    """The groups that ``settings`` ask for. Clusters and merging read the store once more each."""
    count = settings.groups.removeprefix("cluster:")
    if settings.groups == "data":
        grouping = Grouping(store.groups, store.column("group"))
    else:
        grouping = _clustered(store, int(count), settings, progress)
    if settings.merge_groups:
        grouping = _merged(store, grouping, settings, progress)
    return grouping


def _clustered(
    store: GradientStore, count: int, settings: ConsensusSettings, progress: Progress
) -> Grouping:
    progress.step(f"clustering {len(store):,} pairs")
    found = cluster_pairs(store, pair_weights(store, settings), count, settings.seed)
    there, names = store.column("group"), found.names
    table = np.zeros((len(names), len(store.groups)), np.int64)
    np.add.at(table, (found.label, there), 1)
    clusters = []
    for name, row, cohesion in zip(names, table, found.cohesion.tolist(), strict=True):
        order = sorted(np.flatnonzero(row).tolist(), key=lambda one: (-row[one], store.groups[one]))
        made_of = {store.groups[one]: int(row[one]) for one in order}
        clusters.append(Cluster(name, int(row.sum()), cohesion, made_of))
    if found.empty:
        progress.warn(f"{found.empty} of {count} clusters found no pair and are left out")
    return Grouping(names, found.label, clusters, found.empty)


def _merged(
    store: GradientStore, grouping: Grouping, settings: ConsensusSettings, progress: Progress
) -> Grouping:
    """Groups below ``--min-pairs``, or without a gradient, stay as they are."""
    names = grouping.names
    progress.step(f"comparing {len(names):,} groups")
    belong = members(store, grouping.label, len(names), settings)
    groups = averages(store, names, belong, settings).groups
    allowed = (groups.pairs >= settings.min_pairs) & (np.diagonal(groups.gramian) > 0)
    sets = merge_alike(names, cosines(groups.gramian), allowed, settings.merge_groups)
    new_names = merged_names(names, sets)
    new = np.empty(len(names), np.int32)
    for number, group in enumerate(sets):
        new[group] = number
    return Grouping(
        new_names, new[grouping.label], grouping.clusters, grouping.empty,
        {name: [names[one] for one in group]
         for name, group in zip(new_names, sets, strict=True) if len(group) > 1},
    )  # fmt: skip
