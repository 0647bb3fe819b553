"""Pairs whose gradients are nearly one: an exact search among the rows kept so far.

Two rows x, y of unit length, cut into some of their numbers (A) and the rest (B), have

    <x, y> = <x_A, y_A> + <x_B, y_B>  <=  <x_A, y_A> + |x_B| |y_B|,

which is the inner product of the shorter unit vectors (x_A, |x_B|) and (y_A, |y_B|). faiss
searches these flat, and whatever reaches the threshold there is compared in full: nothing is
missed. Unrelated rows share next to nothing, so for a threshold COS it is enough that A has the
share (1 - COS) / (1 - BASE) of the numbers.

Codes. Identical rows have identical bytes whatever the code is, and a cosine of 1. Others come
out lower than they are, since what decoding adds to a row is not the same in both: with 1bit a
cosine of 0.98 reads as 0.87, with int4 as 0.97. The threshold is lowered accordingly, see
:func:`decoded_cosine`.

Cost, for K rows kept of C that are looked at: C K / 2 products of so many numbers, and K of them
in a temporary file. Memory holds a few times ``BATCH`` rows, a slab of that file and its hits.
"""

import math
import tempfile

import numpy as np
from numpy.typing import NDArray

from congrad_cli.codec import LEVELS
from congrad_cli.filter.items import Places
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats

Rows = NDArray[np.float32]

BATCH = 1024
"""So many rows are compared with the others at a time."""
SLAB, SLAB_ROWS = 1 << 28, 1 << 14
"""So many bytes, and rows, of the shortened rows are searched at a time: all may be hits."""
BASE = 0.4
"""Rows whose shortened parts have a smaller cosine than this are told apart by them alone."""
FEWEST = 256
"""Shortened rows have at least so many numbers."""
ROUNDING, SEARCHED = 1e-6, 1e-4
"""By so much a cosine of float32 rows may be off, and one that float32 summed."""
COLUMNS = 4096
"""So many numbers of rows are turned into float64 at a time."""
STEPS = 1000


def decoded_cosine(cosine: float, code: str) -> float:
    """The cosine of two decoded rows, one of another length each, that have ``cosine`` before.

    The numbers of a rotated row are nearly Gaussian (see the module ``codec``). For quantised
    ones Q(z), Q(z') of correlation rho, Q having the steps s_j at t_j, Price's theorem gives

        d E[Q Q'] / d rho = sum_jk s_j s_k phi2(t_j, t_k; rho),

    integrated from 1 down with rho = cos(theta), where the integrand is smooth.
    """
    if code not in LEVELS or cosine == 1:
        return cosine
    levels = LEVELS[code].astype(np.float64)
    at, step = (levels[1:] + levels[:-1]) / 2, np.diff(levels)  # t_j, s_j
    below = np.array([0.0, *(0.5 * (1 + math.erf(t / math.sqrt(2))) for t in at), 1.0])
    square = levels**2 @ np.diff(below)  # E[Q^2]
    end = math.acos(cosine)
    theta = (np.arange(STEPS) + 0.5) * (end / STEPS)
    t, u = at[:, None, None], at[None, :, None]
    power = (t**2 - 2 * t * u * np.cos(theta) + u**2) / (2 * np.sin(theta) ** 2)
    density = np.exp(-power) / (2 * math.pi)  # phi2 times sin(theta)
    lost = np.einsum("j,jkn,k->", step, density, step) * (end / STEPS)
    return float(1 - lost / square)


class NearDuplicates:
    """The rows kept so far, in the order in which they came, and the search among them."""

    def __init__(self, store: GradientStore, weight: Floats, cosine: float) -> None:
        """``weight`` [N] turns rows round where it is negative; ``cosine`` counts as equal."""
        codec = store.header.codec
        self._store, self._sign = store, np.where(weight < 0, -1, 1).astype(np.float32)
        self._least = decoded_cosine(cosine, codec.name) - ROUNDING
        part = (1 - self._least + SEARCHED) / (1 - BASE)
        count = min(max(math.ceil(part * codec.dim), FEWEST), codec.dim)
        # spread over all sub-sketches, which differ in energy
        self._columns = np.unique(np.linspace(0, codec.dim - 1, count).astype(np.int64))
        self._size = len(self._columns) + 1
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (see close)
        self._places = np.zeros(0, np.int64)  # of the rows kept
        self._batch: tuple[Places, Rows] = self._places, np.zeros((0, self._size), np.float32)

    def compare(self, places: Places) -> tuple[Places, NDArray[np.bool_]]:
        """Which of the rows at ``places`` [n] repeat others.

        Returns the place of the first row kept that each repeats, -1 for none, [n], and which of
        the n repeat one another, [n, n].
        """
        rows = self._read(places)
        short = self._shorten(rows)
        self._batch = places, short
        earlier = np.full(len(places), -1, np.int64)
        for begin, kept in self._slabs():
            asked, hit = _search(short, kept, self._least - SEARCHED)
            open_still = earlier[asked] < 0
            self._confirm(rows, asked[open_still], begin + hit[open_still], earlier)
        asked, hit = np.nonzero(short @ short.T >= self._least - SEARCHED)
        asked, hit = asked[asked != hit], hit[asked != hit]
        among = np.zeros((len(places), len(places)), bool)
        if len(asked):
            both = np.unique(asked)
            among[np.ix_(both, both)] = _products(rows[both], rows[both]) >= self._least
        return earlier, among

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Add those ``chosen`` [n] of the rows last compared."""
        places, short = self._batch
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(short[chosen]).data)
        self._file.flush()
        self._places = np.concatenate([self._places, places[chosen]])

    def close(self) -> None:
        """Give the temporary file back."""
        self._file.close()

    def _confirm(self, rows: Rows, asked: Places, hit: Places, earlier: Places) -> None:
        """Compare rows ``asked`` for in full with those kept that may be ``hit``; the first kept
        one that is close enough goes to ``earlier``."""
        for begin in range(0, len(self._places) if len(hit) else 0, BATCH):
            inside = (hit >= begin) & (hit < begin + BATCH) & (earlier[asked] < 0)
            if not inside.any():
                continue
            ask, there = np.unique(asked[inside]), np.unique(hit[inside])
            close = _products(rows[ask], self._read(self._places[there])) >= self._least
            found = close.any(1)
            earlier[ask[found]] = self._places[there[close[found].argmax(1)]]

    def _read(self, places: Places) -> Rows:
        """Rows as unit vectors that point as the pairs' gradients do, [n, D]."""
        rows = self._store.directions(places)
        square = np.zeros(len(rows))
        for begin in range(0, rows.shape[1], COLUMNS):
            part = rows[:, begin : begin + COLUMNS].astype(np.float64)
            square += np.vecdot(part, part)
        turned = self._sign[places] / np.sqrt(np.where(square > 0, square, 1))
        return np.asarray(rows * turned[:, None], np.float32)

    def _shorten(self, rows: Rows) -> Rows:
        """(x_A, |x_B|) of rows, [n, d]."""
        part = rows[:, self._columns]
        rest = 1 - np.vecdot(part, part) if self._size <= rows.shape[1] else np.zeros(len(rows))
        return np.column_stack([part, np.sqrt(np.maximum(rest, 0))]).astype(np.float32)

    def _slabs(self) -> "list[tuple[int, Rows]]":
        """The shortened rows kept, in parts: where each begins, and a map of it."""
        count = min(max(SLAB // (4 * self._size), BATCH), SLAB_ROWS)
        return [
            (begin, np.memmap(self._file, np.float32, "r", offset=begin * self._size * 4,
                              shape=(min(count, len(self._places) - begin), self._size)))
            for begin in range(0, len(self._places), count)
        ]


def _products(a: Rows, b: Rows) -> Floats:
    """a b^T, summed in float64: many equal numbers, as 1bit has, round the same way."""
    result = np.zeros((len(a), len(b)))
    for begin in range(0, a.shape[1], COLUMNS):
        part = slice(begin, begin + COLUMNS)
        result += a[:, part].astype(np.float64) @ b[:, part].astype(np.float64).T
    return result


def _search(asked: Rows, kept: Rows, least: float) -> tuple[Places, Places]:
    """The pairs of rows, one of each, whose product is at least ``least``."""
    import faiss

    index = faiss.IndexFlatIP(kept.shape[1])
    index.add(np.ascontiguousarray(kept))
    limits, _, found = index.range_search(asked, least)
    return np.repeat(np.arange(len(asked)), (limits[1:] - limits[:-1]).astype(np.int64)), found
