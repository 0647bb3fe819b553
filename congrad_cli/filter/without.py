"""The consensus without a whole item, and how the item's pairs stand to it.

With the solver's coefficients a fixed, an item T that has the share C_l = sum c_j of group l and
the part S_l = sum c_j g_j of its gradient leaves

    G_l' = (G_l - S_l) / (1 - C_l)     of every group it touches (nothing, where C_l is 1)
    d'   = sum_l a_l G_l'

d' is formed in full, so it holds no row of the item, and a product with one of them holds no row
twice: it is right for coarse codes as it stands. |d'|^2 holds the rows that are left twice; their
excess is E_l less that of the item's rows (see the module ``products``).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import Consensus
from congrad_cli.filter.items import Items, Places
from congrad_cli.products import RowSquares, row_squares
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, Members

ROWS = 512
"""So many rows are held at a time; items of more are read twice."""


@dataclass(frozen=True)
class Rows:
    """Some pairs, n of them: where they are [n], decoded [n, D], and their squares."""

    places: Places
    direction: Floats
    squares: RowSquares

    @staticmethod
    def read(store: GradientStore, places: Places) -> "Rows":
        """Read them from the store."""
        direction = store.directions(places).astype(np.float64)
        return Rows(places, direction, row_squares(direction, store.header.codec))

    def part(self, begin: int, end: int) -> "Rows":
        """Some of them, without a copy."""
        squares = RowSquares(self.squares.true[begin:end], self.squares.excess[begin:end])
        return Rows(self.places[begin:end], self.direction[begin:end], squares)


Item = Callable[[], Iterable[Rows]]
"""An item's rows in parts; what calls it again may read them again."""


def read_in_parts(store: GradientStore, items: Items) -> Iterator[tuple[Places, Item]]:
    """Every item: the places of its pairs, and its rows.

    Small items are read together, ``ROWS`` rows at a time, so nothing is read twice.
    """
    waiting: list[Places] = []
    for places in items:
        if sum(map(len, waiting)) + len(places) > ROWS:
            yield from _together(store, waiting)
            waiting = []
        if len(places) > ROWS:
            yield places, partial(_in_turn, store, places)
        else:
            waiting.append(places)
    yield from _together(store, waiting)


def _together(store: GradientStore, items: list[Places]) -> Iterator[tuple[Places, Item]]:
    if not items:
        return
    rows, begin = Rows.read(store, np.concatenate(items)), 0
    for places in items:
        part = rows.part(begin, begin := begin + len(places))
        yield places, partial(tuple, [part])


def _in_turn(store: GradientStore, places: Places) -> Iterator[Rows]:
    for begin in range(0, len(places), ROWS):
        yield Rows.read(store, places[begin : begin + ROWS])


@dataclass(frozen=True)
class Remainder:
    """What an item leaves of the T groups that it touches.

    ``groups`` [T] are their numbers, and ``inverse`` [M] says in which of them each pair of the
    item is. ``taken`` [T] is C_l; ``alone`` [T] marks groups of which nothing is left. ``term``
    [M] holds the pairs' c_j f_j, and ``inside`` [M] their sums over copies in the same group.
    """

    groups: NDArray[np.int64]
    inverse: NDArray[np.int64]
    taken: Floats
    alone: NDArray[np.bool_]
    term: Floats
    inside: Floats

    @staticmethod
    def of(places: Places, members: Members, pulling: Places, inside: Floats) -> "Remainder":
        """From what the item's pairs added; ``pulling`` is :func:`count_pulling`, and ``inside``
        [N] is :func:`congrad_cli.products.with_copies` of all pairs."""
        share = members.share[places]
        term = members.scale[places] * share
        groups, inverse = np.unique(members.label[places], return_inverse=True)
        taken = np.bincount(inverse, share, len(groups)).astype(np.float64)
        gone = np.bincount(inverse, term != 0, len(groups)).astype(np.int64)
        alone = (pulling[groups] == gone) | (taken > 1 - 1e-12)
        return Remainder(groups.astype(np.int64), inverse, taken, alone, term, inside[places])


def count_pulling(members: Members, groups: int) -> Places:
    """How many pairs of each group its gradient is made of, [L]; those of weight 0 are not.

    A group is empty without an item where it has no others: rounding would leave it a direction.
    """
    return np.bincount(members.label, members.scale * members.share != 0, groups).astype(np.int64)


@dataclass(frozen=True)
class WithoutItem:
    """d' [D], |d'|^2 by sub-sketch [r], and the sum of the squares that it is made of."""

    direction: Floats
    square: Floats
    parts: float


def without_item(consensus: Consensus, left: Remainder, item: Iterable[Rows]) -> WithoutItem:
    """The consensus without the item whose ``item`` rows are."""
    a = consensus.coefficients[left.groups]
    rest = np.where(left.alone, 1.0, 1 - left.taken)
    grown = np.where(left.alone, -a, a * left.taken / rest)  # of G_l, added to d
    weight = np.where(left.alone, 0.0, a / rest)  # of S_l, taken from it
    gradients = consensus.gradients[left.groups]
    square = _square(consensus.direction, consensus.excess.shape[1])
    direction = consensus.direction + grown @ gradients
    parts = square.sum() + grown**2 @ np.vecdot(gradients, gradients)
    excess = consensus.excess[left.groups].copy()
    begin = 0
    for rows in item:
        part = slice(begin, begin := begin + len(rows.places))
        term, group = left.term[part], left.inverse[part]
        factor = weight[group] * term
        direction -= factor @ rows.direction
        parts += factor**2 @ rows.squares.true.sum(1)
        twice = (term * left.inside[part])[:, None]
        np.subtract.at(excess, group, twice * rows.squares.excess)
    whole = consensus.coefficients**2 @ consensus.excess - a**2 @ consensus.excess[left.groups]
    square = _square(direction, len(whole)) - whole - weight**2 @ excess
    return WithoutItem(direction, square, float(parts))


def _square(vector: Floats, width: int) -> Floats:
    blocks = vector.reshape(width, -1)
    return np.asarray(np.vecdot(blocks, blocks), np.float64)
