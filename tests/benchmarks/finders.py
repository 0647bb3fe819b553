"""What pairs are ranked by when bad labels are looked for: the score in its variants, and simpler
numbers; no script. All use of congrad's own functions is here.

Numbers are the higher the better. A draw of n pairs is scored in n coordinates that have the same
inner products as its sketches; congrad sees nothing but inner products, so its results are those
of the rows themselves, at a fraction of the cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from congrad_cli.codec import Codec
from congrad_cli.consensus.groups import group_gradients
from congrad_cli.consensus.part import take_part
from congrad_cli.consensus.solver import solve
from congrad_cli.direction import Consensus
from congrad_cli.errors import NumericsError
from congrad_cli.filter.scores import pair_scores
from congrad_cli.settings import METHODS, ConsensusSettings
from congrad_cli.store import Block, GradientStore
from congrad_cli.weights import Members, members

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sketches:
    """All pairs of a pool: cosines of their sketches [N, N], norms [N], log-probabilities of the
    two answers [N, 2], tokens of prompt and answers [N, 3]."""

    cosine: Floats
    norm: Floats
    logp: Floats
    tokens: NDArray[np.int32]

    def some(self, at: NDArray[np.int64]) -> "Sketches":
        """The pairs at these places."""
        return Sketches(self.cosine[np.ix_(at, at)], self.norm[at], self.logp[at],
                        self.tokens[at])


def read_sketches(store: GradientStore, fold: int = 1, code: str = "float16") -> Sketches:
    """From the store; ``fold`` adds up so many numbers to one, ``code`` stores rows coarser.

    Folded rows are what a smaller sketch of the same width would be. A row's product with itself
    is its true square, as congrad has it for coarse codes.
    """
    rows = np.concatenate([block.direction for block in store.blocks()])
    width = store.header.width
    rows = rows.reshape(len(rows), width, fold, -1).sum(2).reshape(len(rows), -1)
    length = np.linalg.norm(rows, axis=1)
    rows /= length[:, None]
    if code != "float16":
        codec = Codec(code, rows.shape[1], width)
        rows = codec.decode(codec.encode(rows))
    cosine = (rows @ rows.T).astype(np.float64)
    np.fill_diagonal(cosine, 1)
    return Sketches(cosine, store.column("norm") * length.astype(np.float64),
                    store.column("logp").astype(np.float64), store.column("tokens"))


class DrawnPairs:
    """Some pairs of a pool, labels turned round where wanted; looks like a store to congrad.

    ``label`` [n] are the groups' numbers, ``names`` their names.
    """

    def __init__(
        self, sketches: Sketches, place: list[int], turned: list[bool],
        label: NDArray[np.int32], names: list[str],
    ) -> None:  # fmt: skip
        at, sign = np.array(place), np.where(turned, -1.0, 1.0)
        self.coordinates = sign[:, None] * coordinates(sketches.cosine[np.ix_(at, at)])
        self.label, self.names = label, names
        turn = np.where(turned, 1, 0)[:, None]
        self._columns = {
            "norm": sketches.norm[at],
            "logp": np.where(turn, sketches.logp[at, ::-1], sketches.logp[at]),
            "tokens": np.where(turn, sketches.tokens[at][:, [0, 2, 1]], sketches.tokens[at]),
        }
        codec = Codec("float16", len(at), 1)  # exact: rows stand for themselves
        self.header = SimpleNamespace(codec=codec, dim=len(at), width=1, token_weighting="sum")

    def __len__(self) -> int:
        return len(self.label)

    def has(self, name: str) -> bool:
        """There is no reference."""
        return False

    def column(self, name: str) -> NDArray:
        """One column of all rows."""
        return self._columns[name]

    def blocks(
        self,
        rows: int | None = None,
        label: NDArray[np.int32] | None = None,
        places: NDArray[np.int64] | None = None,
    ) -> Iterator[Block]:
        """All rows, or those at ``places``, in one block; by ``label`` as a store has them."""
        place = np.arange(len(self)) if places is None else places
        if label is not None:
            place = place[np.argsort(label[place], kind="stable")]
        yield Block(place, place, self.coordinates[place], self._columns["norm"][place])


def coordinates(cosine: Floats) -> Floats:
    """n points [n, n] with these inner products; what rounding takes from them is put back."""
    try:
        return np.linalg.cholesky(cosine + 1e-9 * np.eye(len(cosine)))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(cosine)
        return vectors * np.sqrt(np.maximum(values, 0))


@dataclass(frozen=True)
class Spec:
    """One way to score: the consensus' options, what is left out of it for a pair (the ``pair``,
    its ``item``, its ``language``, or nothing), and whether there are groups."""

    settings: ConsensusSettings
    leave_out: str = "pair"
    grouped: bool = True


def _specs() -> dict[str, Spec]:
    plain = ConsensusSettings()
    found = {f"{method}, {norm}": Spec(replace(plain, method=method, pair_norm=norm))
             for norm in ("raw", "unit") for method in METHODS}
    for name in ("pcgrad, raw", "pcgrad, unit", "mean, raw", "mean, unit"):
        base = found[name].settings
        found |= {
            f"{name}, groups alike": Spec(replace(base, normalize_groups="unit")),
            f"{name}, no leave-one-out": Spec(base, leave_out=""),
            f"{name}, item left out": Spec(base, leave_out="item"),
            f"{name}, language left out": Spec(base, leave_out="language"),
        }
    found["pcgrad, raw, ema"] = Spec(replace(plain, average="ema", pair_norm="raw"))
    found["pcgrad, unit, ema"] = Spec(replace(plain, average="ema", pair_norm="unit"))
    for norm in ("raw", "unit"):
        found[f"no groups, {norm}"] = Spec(
            replace(plain, method="mean", pair_norm=norm), grouped=False)
    return found


SPECS = _specs()
REFERENCE = "pcgrad, raw"
RANKS_ADDED = {"pcgrad, unit + margin per token": ("pcgrad, unit", "margin per token")}
SIMPLE = ("own language, raw", "own language, unit", *RANKS_ADDED, "margin", "margin per token",
          "norm", "length", "random")
FINDERS = (*SPECS, *SIMPLE)


@dataclass(frozen=True)
class Found:
    """Of a finder: its numbers [n]; of a consensus, the direction [n] and the groups it hurts."""

    value: Floats
    direction: Floats | None = None
    hurt: float = float("nan")


def find(pairs: DrawnPairs, name: str, item: NDArray[np.int64], seed: int) -> Found:
    """The numbers of one finder; ``item`` [n] says which pairs are of one item.

    Raises :class:`NumericsError` where a solver finds no direction.
    """
    if name in SPECS:
        return _consensus_scores(pairs, SPECS[name], item)
    if name in RANKS_ADDED:
        parts = [find(pairs, one, item, seed).value for one in RANKS_ADDED[name]]
        return Found(sum(np.argsort(np.argsort(part)) for part in parts) / len(pairs))
    if name.startswith("own language"):
        return Found(_own_language(pairs, name.split(", ")[1]))
    logp, tokens = pairs.column("logp"), pairs.column("tokens").astype(np.float64)
    simple = {
        "margin": logp[:, 0] - logp[:, 1],
        "margin per token": logp[:, 0] / tokens[:, 1] - logp[:, 1] / tokens[:, 2],
        "norm": -pairs.column("norm"),
        "length": tokens[:, 1] - tokens[:, 2],
        "random": np.random.default_rng(seed).random(len(pairs)),
    }
    return Found(np.asarray(simple[name], np.float64))


def _consensus_scores(pairs: DrawnPairs, spec: Spec, item: NDArray[np.int64]) -> Found:
    label, names = pairs.label, pairs.names
    if not spec.grouped:
        label, names = np.zeros_like(label), ["all"]
    belong = members(pairs, label, len(names), spec.settings)
    groups = group_gradients(pairs, names, belong)
    factor = take_part(groups, spec.settings).factor
    inside = factor > 0
    a = np.zeros(len(names))
    a[inside] = factor[inside] * solve(
        groups.gramian[np.ix_(inside, inside)] * np.outer(factor[inside], factor[inside]),
        spec.settings).coefficients
    consensus = Consensus(a @ groups.gradients, groups.gradients, a, groups.excess)
    if spec.leave_out in ("item", "language"):
        kind = item if spec.leave_out == "item" else pairs.label
        value = _without_items(pairs, consensus, belong, kind)
    else:
        value = pair_scores(pairs, consensus, belong, spec.leave_out == "pair").score
    hurt = float((groups.gradients @ consensus.direction < 0).mean())
    return Found(value, consensus.direction, hurt)


def _without_items(
    pairs: DrawnPairs, consensus: Consensus, belong: Members, item: NDArray[np.int64]
) -> Floats:
    """Cosines with the consensus from which all pairs of the item are taken, coefficients fixed."""
    rows, result = belong.scale[:, None] * pairs.coordinates, np.empty(len(pairs))
    a, groups = consensus.coefficients, consensus.gradients
    for one in np.unique(item):
        inside = np.flatnonzero(item == one)
        taken = np.bincount(belong.label[inside], belong.share[inside], len(a))
        terms = belong.share[inside, None] * rows[inside]
        left = groups.copy()
        np.subtract.at(left, belong.label[inside], terms)
        weight = np.divide(a, 1 - taken, out=np.zeros_like(a), where=taken < 1 - 1e-12)
        d = weight @ left
        result[inside] = rows[inside] @ d / np.linalg.norm(rows[inside], axis=1) / (
            np.linalg.norm(d) or 1)
    return result


def _own_language(pairs: DrawnPairs, norm: str) -> Floats:
    """Cosine with the mean of the other pairs of the same language alone."""
    scale = pairs.column("norm") if norm == "raw" else np.ones(len(pairs))
    rows, result = scale[:, None] * pairs.coordinates, np.zeros(len(pairs))
    for one in np.unique(pairs.label):
        own = rows[pairs.label == one]
        others = own.sum(0) - own
        length = np.linalg.norm(own, axis=1) * np.linalg.norm(others, axis=1)
        result[pairs.label == one] = np.divide(
            np.vecdot(own, others), length, out=np.zeros_like(length), where=length > 0)
    return result


def try_find(
    pairs: DrawnPairs, name: str, item: NDArray[np.int64], seed: int
) -> Found | None:
    """As :func:`find`; None where a solver finds no direction."""
    try:
        return find(pairs, name, item, seed)
    except NumericsError:
        return None
