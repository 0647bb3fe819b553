"""Groups from the data's own gradients: spherical k-means over the directions of the pairs.

A pair's point is the direction of g_i: its sketch, turned round where the loss weighs it
negatively. Rows are long and many, so three things are done with them:

1. *Training* sees a sample of at most SAMPLE pairs, each folded with random signs to as few
   numbers as let the sample fit into TRAINING numbers (256 MiB); products stay right on average.
   k-means++ makes several beginnings on a part of the sample, the best one goes on with all of it.
2. The sample's pairs, unfolded, give every cluster its centre, the direction of their sum.
3. One pass over the store puts every pair into the cluster whose centre is nearest.

Which pairs are sampled, and in which order they are looked at, hangs on their digests alone: the
same pairs in another order of the data make the same clusters. One thread does it all, so that it
comes out the same every time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import UsageError
from congrad_cli.products import row_squares, runs
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
    place_of = _trained(store, sample, sign, count, seed)
    centres = _centres(store, sample, sign, place_of, count)
    label, total, square = _assigned(store, sign, centres)
    size = np.bincount(label, minlength=count)
    first = np.full(count, len(order))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    np.minimum.at(first, label, rank)
    by_size = np.lexsort((first, -size))
    new = np.empty(count, np.int32)
    new[by_size] = np.arange(count)
    kept = by_size[: int((size > 0).sum())]
    return Clusters(new[label], _cohesion(total, square, size)[kept], count - len(kept))


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
    for part, rows in _turned(store, sample, sign):
        folded = fold(rows, length, seed)
        norm = np.sqrt(np.vecdot(folded, folded))[:, None]
        points[part] = np.divide(folded, norm, out=np.zeros_like(folded), where=norm > 0)
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
    total = np.zeros((count, store.header.dim), np.float32)
    by_label = np.argsort(label, kind="stable")
    for part, rows in _turned(store, sample[by_label], sign):
        _add(total, rows, label[by_label[part]])
    norm = np.sqrt(np.vecdot(total, total))[:, None]
    total /= np.where(norm > 0, norm, 1)
    return total


def _assigned(store: GradientStore, sign: Floats, centres: Rows) -> tuple[Labels, Rows, Floats]:
    """Of all pairs: the nearest cluster [N]; per cluster the sum [K, D] of their directions, and
    of the squares of these, [K]."""
    label = np.empty(len(store), np.int32)
    total = np.zeros_like(centres)
    square, true = np.zeros(len(centres)), np.zeros(len(centres))
    for block in store.blocks():
        rows = block.direction * _signs(sign[block.place])
        found = _nearest(rows, centres)
        label[block.place] = found
        by_label = np.argsort(found, kind="stable")
        _add(total, rows[by_label], found[by_label])
        squares = row_squares(rows, store.header.codec)
        np.add.at(square, found, (squares.true + squares.excess).sum(1))
        np.add.at(true, found, squares.true.sum(1))
    return label, total, np.stack([square, true])


def _cohesion(total: Rows, square: Floats, size: NDArray[np.int64]) -> Floats:
    """The mean cosine of two different pairs of a cluster: |S|^2 without its rows' own squares."""
    among = np.array([float(np.vdot(row, row)) for row in total.astype(np.float64)]) - square[0]
    pairs = square[1] * (size - 1)
    return np.asarray(among / np.where(pairs > 0, pairs, np.nan), np.float64)


def _add(total: Rows, rows: Rows, label: Labels) -> None:
    """Add rows, those of one label standing together, to their labels' sums [K, D]."""
    for run in runs(label):
        total[label[run.start]] += rows[run].sum(0)


def _nearest(rows: Rows, centres: Rows) -> Labels:
    """The centre with the largest product, the first of equal ones, [n]."""
    parts = [(rows[begin : begin + PART] @ centres.T).argmax(1)
             for begin in range(0, len(rows), PART)]
    return np.concatenate(parts).astype(np.int32)


def _turned(
    store: GradientStore, places: NDArray[np.int64], sign: Floats
) -> Iterator[tuple[slice, Rows]]:
    """The directions of the pairs at ``places``, turned by ``sign``, some at a time."""
    step = max(min(PART, (1 << 22) // store.header.dim), 1)
    for begin in range(0, len(places), step):
        part = slice(begin, min(begin + step, len(places)))
        yield part, store.directions(places[part]) * _signs(sign[places[part]])


def _signs(sign: Floats) -> Rows:
    """-1 or 1, [n, 1]; pairs without a weight point where their sketch does."""
    return np.where(sign < 0, -1, 1).astype(np.float32)[:, None]
