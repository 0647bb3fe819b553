"""The order of groups in the heat map, and their places on the map: both from cosines alone."""

import numpy as np

from congrad_cli.report.content import Floats


def cluster_order(cosine: Floats) -> list[int]:
    """Groups that pull the same way come next to each other.

    Average linkage on the cosines [L, L]; of the two ways to join two rows of groups end to end,
    and their mirror images, the one whose neighbours agree best.
    """
    rows = [[label] for label in range(len(cosine))]
    likeness = cosine.astype(np.float64).copy()
    np.fill_diagonal(likeness, -np.inf)
    size = np.ones(len(cosine))
    while len(rows) > 1:
        one, two = divmod(int(np.argmax(likeness)), len(rows))
        one, two = min(one, two), max(one, two)
        rows[one] = _joined(rows[one], rows[two], cosine)
        mean = (size[one] * likeness[one] + size[two] * likeness[two]) / (size[one] + size[two])
        mean[one] = -np.inf
        likeness[one], likeness[:, one] = mean, mean
        size[one] += size[two]
        likeness = np.delete(np.delete(likeness, two, 0), two, 1)
        size = np.delete(size, two)
        del rows[two]
    return rows[0] if rows else []


def _joined(one: list[int], two: list[int], cosine: Floats) -> list[int]:
    ways = [one + two, one + two[::-1], one[::-1] + two, one[::-1] + two[::-1]]
    return max(ways, key=lambda way: float(cosine[way[len(one) - 1], way[len(one)]]))


def plane(cosine: Floats) -> tuple[Floats, float]:
    """Points [n, 2] for unit vectors with these cosines [n, n], and the share they explain.

    Classical scaling (Torgerson 1952): the two main axes of the centred Gramian. Signs are chosen
    so that the last point, the consensus, lies to the right and the first one above.
    """
    count = len(cosine)
    if count < 2:
        return np.zeros((count, 2)), 1.0
    centre = np.eye(count) - 1.0 / count
    values, vectors = np.linalg.eigh(centre @ cosine @ centre)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    points = np.zeros((count, 2))
    axes = min(2, count)
    points[:, :axes] = vectors[:, :axes] * np.sqrt(values[:axes])
    points *= np.where(np.array([points[-1, 0], points[0, 1]]) < 0, -1.0, 1.0)
    whole = float(values.sum())
    return points, float(values[:2].sum() / whole) if whole > 0 else 1.0
