"""Two consensus results on the same pairs: what each would keep, and for whom that differs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.filter.items import make_items
from congrad_cli.filter.policy import decide
from congrad_cli.filter.ranking import rank_pairs
from congrad_cli.filter.target import Target, find_target
from congrad_cli.filter.verdicts import number
from congrad_cli.products import group_products, row_squares, with_copies
from congrad_cli.progress import Progress
from congrad_cli.settings import FilterSettings
from congrad_cli.store import GradientStore, require_complete
from congrad_cli.weights import Floats

SCHEMA = "congrad.compare/1"


@dataclass(frozen=True)
class Kept:
    """How many pairs there are, and how many A, B and both would keep."""

    pairs: int
    a: int
    b: int
    both: int


@dataclass(frozen=True)
class Comparison:
    """A and B as they were named, what they would keep in all and by group, and how alike they
    are: NaN where that is not defined."""

    store: Path
    a: str
    b: str
    targets: tuple[Target, Target]
    whole: Kept
    groups: dict[str, Kept]
    rank_correlation: float
    direction_cosine: float

    @property
    def overlap(self) -> float:
        """The share of the pairs that either would keep, which both would."""
        either = self.whole.a + self.whole.b - self.whole.both
        return self.whole.both / either if either else float("nan")

    def to_json(self) -> dict[str, Any]:
        """One object; new keys may come, these stay."""
        named = zip((self.a, self.b), self.targets, strict=True)
        a, b = (
            {"consensus": name, "store": str(target.store), "sha256": target.sha256,
             "method": target.settings.method, "pair_norm": target.settings.pair_norm,
             "groups": len(target.groups)}
            for name, target in named
        )  # fmt: skip
        return {
            "schema": SCHEMA,
            "store": str(self.store),
            "a": a,
            "b": b,
            "kept": asdict(self.whole),
            "overlap": number(self.overlap),
            "rank_correlation": number(self.rank_correlation),
            "direction_cosine": number(self.direction_cosine),
            "groups": {name: asdict(kept) for name, kept in self.groups.items()},
        }


def compare(path: Path, a: str, b: str, progress: Progress) -> Comparison:
    """Compare two consensus results on the pairs of the store at ``path``.

    Each scores them as ``filter`` does by itself: pairs that a consensus was made of are left out
    of it, and those with a score of at least 0 are kept.
    """
    store = GradientStore.open(path)
    require_complete(store, True, progress)
    one, two = (find_target(store, text, progress) for text in (a, b))
    progress.step(f"scoring {len(store):,} pairs twice")
    (score, kept), (other, also) = (_judge(store, target) for target in (one, two))
    group = store.column("group")
    return Comparison(
        store=path, a=a, b=b, targets=(one, two),
        whole=_count(kept, also, np.ones(len(store), bool)),
        groups={name: _count(kept, also, group == label)
                for label, name in enumerate(store.groups)},
        rank_correlation=rank_correlation(score, other),
        direction_cosine=_direction_cosine(store, one, two),
    )  # fmt: skip


def _judge(store: GradientStore, target: Target) -> tuple[Floats, NDArray[np.bool_]]:
    """The scores of all pairs [N], and which the default rule keeps."""
    settings = FilterSettings()
    items = None if target.released else make_items(store.column("digest"))
    score = rank_pairs(store, target, settings, items).scores.score
    return score, decide(score, target.label, settings).keep


def _count(a: NDArray[np.bool_], b: NDArray[np.bool_], where: NDArray[np.bool_]) -> Kept:
    return Kept(*(int(which.sum()) for which in (where, a & where, b & where, a & b & where)))


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's, over the pairs that have both numbers; equal numbers share their ranks."""
    there = ~(np.isnan(a) | np.isnan(b))
    if not there.any():
        return float("nan")
    one, two = (_ranks(part[there]) for part in (a, b))
    one, two = one - one.mean(), two - two.mean()
    scale = np.sqrt((one @ one) * (two @ two))
    return float(one @ two / scale) if scale > 0 else float("nan")


def _ranks(value: Floats) -> Floats:
    _, inverse, count = np.unique(value, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[inverse], np.float64)


def _direction_cosine(store: GradientStore, one: Target, two: Target) -> float:
    """cos(d, d'), without what decoding adds where both hold the same rows."""
    if one.sha256 == two.sha256:
        return 1.0
    squares = [max(group_products(part.consensus).d_square.sum(), 0) for part in (one, two)]
    dot = one.consensus.direction @ two.consensus.direction
    if not (one.released or two.released or store.header.codec.exact):
        dot -= _shared_excess(store, one, two)
    scale = np.sqrt(squares[0]) * np.sqrt(squares[1])
    return float(np.clip(dot / scale, -1, 1)) if scale > 0 else float("nan")


def _shared_excess(store: GradientStore, one: Target, two: Target) -> float:
    """sum_i u_i u'_i E_i over the rows, which stand in d with u_i and in d' with u'_i."""
    u, other = (
        target.consensus.coefficients[target.members.label]
        * target.members.scale * target.members.share
        for target in (one, two)
    )  # fmt: skip
    anywhere = np.zeros(len(store), np.int32)  # a row stands in d whatever its copies' groups are
    other = with_copies(store, anywhere, other)
    total = 0.0
    for block in store.blocks():
        part = block.place
        excess = row_squares(block.direction.astype(np.float64), store.header.codec).excess
        total += float((u[part] * other[part]) @ excess.sum(1))
    return total
