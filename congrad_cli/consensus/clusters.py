"""Groups from the data's own gradients: spherical k-means over the directions of the pairs.

A pair's point is the direction of g_i: its sketch, turned round where the loss weighs it
negatively. Rows are long and many, so three things are done with them:

1. *Training* sees a sample of at most SAMPLE pairs, each folded with random signs to as few
   numbers as let the sample fit into TRAINING numbers (256 MiB); products stay right on average.
   k-means++ makes several beginnings on a part of the sample, the best one goes on with all of it.
2. The sample's pairs, unfolded, give every cluster its centre, the direction of their sum.
3. One pass over the store puts every pair into the cluster whose centre is nearest.

Which pairs are sampled, and in which order they are looked at, hangs on their digests alone: the
same pairs in another order of the data make the same clusters. Training runs on one thread, so that
it comes out the same every time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import UsageError
from congrad_cli.products import row_squares, runs, with_copies
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats

Rows = NDArray[np.float32]
Labels = NDArray[np.int32]

SAMPLE, TRAINING = 1 << 17, 1 << 26
SHORTEST = 512
"""Rows are folded to no fewer numbers."""
BEGINNINGS, FIRST_STEPS, STEPS = 3, 8, 25
PART = 1 << 10
"""So many rows are read at a time where they do not come in blocks."""


@dataclass(frozen=True)
class Clusters:
    """K clusters, the largest first, and the number of every pair's, [N].

    ``cohesion`` [K] is the mean cosine of two pairs of a cluster, free of what codes add; nan for
    a cluster of one. ``empty`` clusters were asked for, but nothing was nearest to them.
    """

    label: Labels
    cohesion: Floats
    empty: int

    @property
    def names(self) -> list[str]:
        """cluster-000 and so on."""
        return [f"cluster-{number:03d}" for number in range(len(self.cohesion))]


def cluster_pairs(store: GradientStore, sign: Floats, count: int, seed: int) -> Clusters:
    """The pairs of the store in at most ``count`` clusters; ``sign`` [N] turns their directions.

    Raises :class:`UsageError` where there are fewer pairs than that.
    """
    if count > len(store):
        raise UsageError(f"--groups cluster:{count} asks for more clusters than there are pairs.",
                         f"the store has {len(store):,} pairs")
    digest = np.ascontiguousarray(store.column("digest")).view("S16").reshape(-1)
    order = np.argsort(digest, kind="stable")  # of digests: as good as drawn at random
    sample = order[:SAMPLE]
    centres = _centres(store, sample, sign, _trained(store, sample, sign, count, seed), count)
    label, cohesion = _assigned(store, sign, centres)
    size = np.bincount(label, minlength=count)
    first = np.full(count, len(order))  # of its pairs by digest: no two clusters share one
    np.minimum.at(first, label[order], np.arange(len(order)))
    by_size = np.lexsort((first, -size))
    new = np.empty(count, np.int32)
    new[by_size] = np.arange(count)
    kept = by_size[: int((size > 0).sum())]
    return Clusters(new[label], cohesion[kept], count - len(kept))


def fold(rows: Rows, length: int, seed: int) -> Rows:
    """Rows [n, D] with random signs, added up to ``length`` numbers each; products stay right
    on average, to 1 / sqrt(length)."""
    dim = rows.shape[1]
    if dim <= length:
        return rows
    words = np.random.Philox(key=seed).random_raw(dim)  # the same on any machine
    signed = rows * np.where(words & np.uint64(1), 1, -1).astype(np.float32)
    folds = -(-dim // length)
    signed = np.pad(signed, ((0, 0), (0, folds * length - dim)))
    return np.asarray(signed.reshape(len(rows), folds, length).sum(1), np.float32)


def _trained(
    store: GradientStore, sample: NDArray[np.int64], sign: Floats, count: int, seed: int
) -> Labels:
    """The cluster of every sampled pair."""
    length = min(store.header.dim, max(TRAINING // len(sample), SHORTEST))
    points = np.empty((len(sample), length), np.float32)
    for some, rows in _turned(store, sample, sign):
        points[some] = _units(fold(rows, length, seed))
    few = points[: max(4096, 32 * count)]
    began = [_lloyd(few, plus_plus(few, count, seed + number), FIRST_STEPS, seed)
             for number in range(BEGINNINGS)]
    best = max(began, key=lambda found: found[1])[0]
    centres, _ = _lloyd(points, best, STEPS, seed)
    return _nearest(points, centres)


def plus_plus(points: Rows, count: int, seed: int) -> Rows:
    """k-means++: ``count`` of the unit rows, each drawn by its distance from those before."""
    random = np.random.Generator(np.random.Philox(key=seed))
    picked = [int(random.integers(len(points)))]
    distance = np.full(len(points), np.inf)
    while len(picked) < count:
        away = 2 - 2 * (points @ points[picked[-1]]).astype(np.float64)
        distance = np.minimum(distance, np.maximum(away, 0))
        distance[picked[-1]] = 0
        if not distance.any():  # as many equal rows as there are left
            distance[np.setdiff1d(np.arange(len(points)), picked)] = 1
        edge = np.cumsum(distance)
        at = int(np.searchsorted(edge, random.random() * edge[-1], side="right"))
        picked.append(min(at, int(np.flatnonzero(distance)[-1])))
    return points[picked]


def _lloyd(points: Rows, centres: Rows, steps: int, seed: int) -> tuple[Rows, float]:
    """Spherical k-means from these centres: the centres that it ends with, and how near they are.

    A cluster that loses all its points gets half of a large one.
    """
    import faiss

    with _one_thread():
        means = faiss.Kmeans(
            points.shape[1], len(centres), niter=steps, spherical=True, seed=seed % (1 << 31),
            min_points_per_centroid=1, max_points_per_centroid=len(points),
        )  # fmt: skip
        means.train(points, init_centroids=np.ascontiguousarray(centres))
    return np.asarray(means.centroids, np.float32), float(np.asarray(means.obj)[-1])


@contextmanager
def _one_thread() -> Iterator[None]:
    """faiss adds up in another order with every number of threads."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _centres(
    store: GradientStore, sample: NDArray[np.int64], sign: Floats, label: Labels, count: int
) -> Rows:
    """The direction of every cluster's sampled pairs, [K, D]; zero where there are none."""
    total = np.zeros((count, store.header.dim))
    for some, rows in _turned(store, sample, sign):
        _add(total, rows, label[some])
    return _units(total.astype(np.float32))


def _assigned(store: GradientStore, sign: Floats, centres: Rows) -> tuple[Labels, Floats]:
    """The nearest cluster of every pair, [N], and the cohesion of every cluster, [K].

    That is |S|^2 without the squares of its rows themselves, S the sum of a cluster's directions.
    """
    label = np.empty(len(store), np.int32)
    total = np.zeros(centres.shape)
    true, excess = np.zeros(len(centres)), np.zeros(len(centres))
    copies = with_copies(store, np.zeros(len(store)), np.ones(len(store)))  # they stay together
    for block in store.blocks():
        rows = block.direction
        rows *= _signs(sign[block.place])
        found = _nearest(rows, centres)
        label[block.place] = found
        _add(total, rows, found)
        squares = row_squares(rows, store.header.codec)
        np.add.at(true, found, squares.true.sum(1))
        np.add.at(excess, found, copies[block.place] * squares.excess.sum(1))
    size = np.bincount(label, minlength=len(centres))
    among = np.vecdot(total, total) - true - excess
    pairs = true * (size - 1)  # n (n - 1), but for what rounding leaves of |x|^2 = 1
    return label, np.asarray(among / np.where(pairs > 0, pairs, np.nan), np.float64)


def _add(total: Floats, rows: Rows, label: Labels) -> None:
    """Add rows [n, D] to the sums [K, D] of their labels."""
    order = np.argsort(label, kind="stable")
    for run in runs(label[order]):
        inside = order[run]
        total[label[inside[0]]] += rows[inside].sum(0)


def _units(rows: Rows) -> Rows:
    """Each row divided by its length; zero stays zero."""
    norm = np.sqrt(np.vecdot(rows, rows))[:, None]
    return np.asarray(rows / np.where(norm > 0, norm, 1), np.float32)


def _nearest(rows: Rows, centres: Rows) -> Labels:
    """The centre with the largest product, the first of equal ones, [n]."""
    parts = [(rows[begin : begin + PART] @ centres.T).argmax(1)
             for begin in range(0, len(rows), PART)]
    return np.concatenate(parts).astype(np.int32)


def _turned(
    store: GradientStore, places: NDArray[np.int64], sign: Floats
) -> Iterator[tuple[NDArray[np.int64], Rows]]:
    """The directions of the pairs at ``places``, turned by ``sign``, and which of them they are.

    They come some at a time, and as the store has them: few of its files are open at once.
    """
    order = np.argsort(places)
    step = max(min(PART, (1 << 22) // store.header.dim), 1)
    for begin in range(0, len(places), step):
        some = order[begin : begin + step]
        yield some, store.directions(places[some]) * _signs(sign[places[some]])


def _signs(sign: Floats) -> Rows:
    """-1 or 1, [n, 1]; pairs without a weight point where their sketch does."""
    return np.where(sign < 0, -1, 1).astype(np.float32)[:, None]
