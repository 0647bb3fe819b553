"""``--group-cosines``: how far each pair's gradient points along every group's."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import Consensus
from congrad_cli.filter.items import Items
from congrad_cli.filter.scores import CANCELLED, scaled
from congrad_cli.filter.without import ROWS, Remainder, Rows, count_pulling, read_in_parts
from congrad_cli.products import row_squares, with_copies
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, Members


def group_cosines(
    store: GradientStore,
    consensus: Consensus,
    members: Members,
    weight: Floats,
    items: Items | None,
) -> Floats:
    """cos(g_i, G_l) of every pair and group, [N, L]; g_i has the sign of ``weight`` [N].

    With ``items`` a group's gradient is that of the pairs outside the item, a single pair being
    an item; without, it is whole. NaN where one of the two is zero. The store is read once, and
    the result lies in a temporary file: memory does not grow with N.
    """
    consensus, members = scaled(consensus, members)
    result = _spool(len(store), len(consensus.gradients))
    sign = np.where(weight < 0, -1.0, 1.0)[:, None]
    square = np.vecdot(consensus.gradients, consensus.gradients) - consensus.excess.sum(1)  # [L]
    pulling = count_pulling(members, len(square))
    inside = with_copies(store, members.label, members.scale * members.share)
    for block in store.blocks(ROWS):
        part, direction = block.place, block.direction.astype(np.float64)
        squares = row_squares(direction, store.header.codec)
        own = squares.true.sum(1)
        dot = direction @ consensus.gradients.T  # [n, L]
        other = np.broadcast_to(square, dot.shape).copy()
        label, factor = members.label[part], members.scale[part] * members.share[part]
        if items is None:  # the group holds the row with its error, which is no agreement
            dot[np.arange(len(part)), label] -= inside[part] * squares.excess.sum(1)
        else:
            term = Term(label, factor, pulling[label] == (factor != 0))
            _leave_out(dot, other, term, own, squares.excess.sum(1))
        result[part] = sign[part] * _cosines(dot, own, other)
    for places, item in read_in_parts(store, items) if items is not None else ():
        left = Remainder.of(places, members, pulling, inside)
        rest, length = _rest(consensus, left, item())
        for rows in item():
            dot = rows.direction @ rest.T
            found = _cosines(dot, rows.squares.true.sum(1), np.broadcast_to(length, dot.shape))
            result[rows.places[:, None], left.groups] = sign[rows.places] * found
    return result


@dataclass(frozen=True)
class Term:
    """Of n pairs: their groups, their c_i f_i, and whether the groups are empty without them."""

    label: NDArray[np.int32]
    factor: Floats
    alone: NDArray[np.bool_]


def _leave_out(dot: Floats, other: Floats, term: Term, own: Floats, excess: Floats) -> None:
    """Take pairs out of their groups, in <x_i, G_l> and |G_l|^2, both [n, L].

    ``own`` and ``excess`` are |x_i|^2 and what decoding adds to it, [n].
    """
    at, t = (np.arange(len(own)), term.label), term.factor
    along, whole = dot[at] - t * excess, other[at]
    rest = whole - 2 * t * along + t**2 * own
    dot[at] = along - t * own
    other[at] = np.where(term.alone | (rest <= CANCELLED * (whole + t**2 * own)), 0, rest)


def _rest(
    consensus: Consensus, left: Remainder, item: Iterable[Rows]
) -> tuple[Floats, Floats]:
    """What an item leaves of the groups it touches, but for their lengths, [T, D], and |.|^2."""
    gradients = consensus.gradients[left.groups]
    excess = consensus.excess[left.groups].sum(1)
    parts = np.vecdot(gradients, gradients)
    begin = 0
    for rows in item:
        part = slice(begin, begin := begin + len(rows.places))
        picks = np.zeros((len(left.groups), len(rows.places)))
        picks[left.inverse[part], np.arange(len(rows.places))] = left.term[part]
        gradients -= picks @ rows.direction
        excess -= (picks * left.inside[part]) @ rows.squares.excess.sum(1)
        parts += picks**2 @ rows.squares.true.sum(1)
    square = np.vecdot(gradients, gradients) - excess
    return gradients, np.where(left.alone | (square <= CANCELLED * parts), 0, square)


def _cosines(dot: Floats, own: Floats, other: Floats) -> Floats:
    """From products [n, L], |x_i|^2 [n] and |G_l|^2 [n, L]; NaN where one of these is 0."""
    scale = np.sqrt(own[:, None] * np.maximum(other, 0))
    return np.clip(np.divide(dot, scale, out=np.full_like(dot, np.nan), where=scale > 0), -1, 1)


def _spool(rows: int, columns: int) -> Floats:
    """Room for so many numbers, on the disk."""
    if not rows * columns:
        return np.empty((rows, columns))
    with tempfile.TemporaryFile() as file:
        # a full disk is an error here; met while the map is written it would kill the process
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 8 * rows * columns)
        return np.memmap(file, np.float64, "w+", shape=(rows, columns))
