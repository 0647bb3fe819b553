"""How far each pair's own gradient points along the consensus of the others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import Consensus
from congrad_cli.filter.items import Items
from congrad_cli.filter.without import (
    Remainder,
    count_pulling,
    read_in_parts,
    without_item,
)
from congrad_cli.jackknife import jackknife_error
from congrad_cli.products import (
    GroupProducts,
    PairProducts,
    Rows,
    Targets,
    exact_targets,
    fast_targets,
    group_products,
    pair_products,
    with_copies,
)
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, Members

CANCELLED = 1e-12
"""A squared length this small beside its parts' counts as zero; G is summed in float32."""

WEAK = 0.1
"""Where a squared length is less of its parts', they cancel, and products are taken in float64."""


@dataclass(frozen=True)
class PairScores:
    """Of every pair, [N]: its score, and the standard error that sketching gives the score.

    A score is NaN where there is no direction; its error is NaN there, and everywhere in a sketch
    of one sub-sketch only.
    """

    score: Floats
    error: Floats


@dataclass(frozen=True)
class _Terms:
    """What a cosine is made of, by sub-sketch, [n, r]; ``parts`` [n] is what |d|^2 is made of."""

    dot: Floats
    own: Floats
    other: Floats
    parts: Floats

    def cosines(self) -> PairScores:
        """The cosines and their errors."""
        square = self.other.sum(1)
        # where the parts cancel, what is left is rounding and points nowhere
        square = np.where(square > CANCELLED * self.parts, square, 0)
        score = _cosine(self.dot.sum(1), self.own.sum(1), square)
        error = jackknife_error(self.dot, self.own, self.other)
        return PairScores(score, np.where(np.isnan(score), np.nan, error))


def pair_scores(
    store: GradientStore,
    consensus: Consensus,
    members: Members,
    leave_one_out: bool,
    items: Items | None = None,
    leave_group_out: bool = False,
) -> PairScores:
    """cos(g_i, d_-i) of every pair; undefined where one of the two is zero.

    With ``leave_group_out`` d_-i = d - a_l G_l, the consensus without the pair's group l.

    All that is needed follows from <g_i, d>, <g_i, G_l> and |g_i|^2, so the store is read once.
    The pairs of each of ``items`` are taken out of d together.
    """
    consensus, members = scaled(consensus, members)
    scale, share, a = members.scale, members.share, consensus.coefficients
    away = np.ones_like(share) if leave_group_out else share  # what of its group leaves with it
    codec, fixed = store.header.codec, group_products(consensus)
    fast, exact = (make(consensus, codec.width) for make in (fast_targets, exact_targets))
    inside = with_copies(store, members.label, scale * share)  # of each row in its group

    def terms(place: NDArray[np.int64], direction: Rows, targets: Targets) -> _Terms:
        silent, label = scale[place] == 0, members.label[place]
        # a zero weight leaves the score on the sketch itself
        factor = np.where(silent, 1.0, scale[place])
        pairs = pair_products(direction, label, factor, inside[place], targets, codec)
        if leave_one_out or leave_group_out:
            own_group = GroupProducts(
                fixed.d_square, fixed.d_group[label], fixed.group_square[label]
            )
            return _without_the_pair(pairs, own_group, a[label], away[place], silent)
        length = np.broadcast_to(fixed.d_square, pairs.square.shape)
        return _Terms(pairs.with_d, pairs.square, length, np.abs(length).sum(1))

    score, error = np.empty(len(store)), np.empty(len(store))
    alone = None if items is None else np.flatnonzero(items.single)
    for block in store.blocks(label=members.label, places=alone):
        found = terms(block.place, block.direction, fast)
        cosines = found.cosines()
        score[block.place], error[block.place] = cosines.score, cosines.error
        weak = np.flatnonzero(~(found.other.sum(1) > WEAK * found.parts))
        if len(weak):
            place, rows = block.place[weak], block.direction[weak].astype(np.float64)
            cosines = terms(place, rows, exact).cosines()
            score[place], error[place] = cosines.score, cosines.error
    scores = PairScores(score, error)
    if items is not None:
        _score_items(store, consensus, members, items, inside, scores)
    return scores


def scaled(consensus: Consensus, members: Members) -> tuple[Consensus, Members]:
    """Both divided by the pairs' largest scale, which keeps squares of tiny gradients away from
    underflow and changes no cosine."""
    unit = np.abs(members.scale).max(initial=0) or 1.0
    smaller = Consensus(consensus.direction / unit, consensus.gradients / unit,
                        consensus.coefficients, consensus.excess / unit**2)
    return smaller, Members(members.label, members.scale / unit, members.share)


def _score_items(
    store: GradientStore,
    consensus: Consensus,
    members: Members,
    items: Items,
    inside: Floats,
    scores: PairScores,
) -> None:
    """Fill in the scores of the items' pairs, each against the consensus without its item."""
    codec = store.header.codec
    pulling = count_pulling(members, len(consensus.coefficients))
    for places, item in read_in_parts(store, items):
        left = Remainder.of(places, members, pulling, inside)
        without = without_item(consensus, left, item())
        d = without.direction.reshape(codec.width, -1)
        for rows in item():
            factor = members.scale[rows.places][:, None]
            factor = np.where(factor == 0, 1.0, factor)
            blocks = rows.direction.reshape(len(rows.places), codec.width, -1)
            own = factor**2 * rows.squares.true
            terms = _Terms(
                dot=factor * np.vecdot(blocks, d), own=own,
                other=np.broadcast_to(without.square, own.shape),
                parts=np.full(len(own), without.parts),
            )  # fmt: skip
            found = terms.cosines()
            scores.score[rows.places] = found.score
            scores.error[rows.places] = found.error


def _without_the_pair(
    pairs: PairProducts, fixed: GroupProducts, a: Floats, share: Floats, silent: NDArray[np.bool_]
) -> _Terms:
    """Products with d_-i, the consensus without pair i in the average of its group l.

    ``fixed`` holds every pair's own group, [n, r]; ``a`` and ``share`` are a_l and c_i, [n].

    With the solver's coefficients a fixed,

        d_-i = d + b G_l - e g_i,   b = e = a_l c_i / (1 - c_i);

    a pair of weight 0 (``silent``) has no share that could be taken out: e = 0. A pair that is
    its whole group takes the group with it: d_-i = d - a_l G_l.
    """
    alone = share > 1 - 1e-12
    k = np.divide(share, 1 - share, out=np.zeros_like(share), where=~alone)
    b = (a * np.where(alone, -1.0, k))[:, None]
    e = (a * np.where(silent, 0.0, k))[:, None]
    parts = fixed.d_square + b**2 * fixed.group_square + e**2 * pairs.square
    crossed = b * fixed.d_group - e * pairs.with_d - b * e * pairs.with_group
    return _Terms(
        dot=pairs.with_d + b * pairs.with_group - e * pairs.square,
        own=pairs.square,
        other=parts + 2 * crossed,
        parts=parts.sum(1),
    )


def _cosine(dot: Floats, square: Floats, other: Floats) -> Floats:
    scale = np.sqrt(square * other)
    return np.clip(np.divide(dot, scale, out=np.full_like(dot, np.nan), where=scale > 0), -1, 1)


def turn_scores(scores: PairScores, weight: Floats, other: Floats) -> PairScores:
    """The scores of pairs that another loss weighs by ``other`` [N] instead of ``weight`` [N].

    A cosine knows of a weight's sign only. A weight of zero leaves the score on the sketch itself,
    as if it were positive.
    """
    turned = np.where((weight < 0) == (other < 0), 1.0, -1.0)
    return PairScores(scores.score * turned, scores.error)
