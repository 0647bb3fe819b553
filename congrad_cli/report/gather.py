"""A store, its consensus and what the filter decides -> what the report says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.consensus.groups import cosines
from congrad_cli.direction import StoredConsensus
from congrad_cli.filter.policy import KEPT
from congrad_cli.filter.verdicts import Outcome, number
from congrad_cli.products import gramian, group_products
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import DataFile, Record, Text
from congrad_cli.report.content import Example, Floats, GroupFacts, GroupScores, LeftOut
from congrad_cli.report.order import cluster_order, plane
from congrad_cli.store import GradientStore

LONGEST_TEXT = 1200
"""Characters of a text that are shown."""
LEFT_OUT_SHOWN = 50
LARGEST_HISTOGRAM = 60
"""Groups with a histogram of their own; of more, those with the most pairs."""

Order = list[int]


@dataclass(frozen=True)
class Geometry:
    """All that the Gramian says of the groups and d: cosines [L, L], and with d [L]."""

    conflict: Floats
    cosine: Floats
    others: Floats  # NaN where the others leave no direction
    share: Floats
    norm: Floats


def geometry(found: StoredConsensus) -> Geometry:
    """Products of d and the group gradients, free of what coarse rows add."""
    consensus = found.consensus
    products, a = group_products(consensus), consensus.coefficients
    table = gramian(consensus.gradients, consensus.excess)
    along = products.d_group.sum(1)  # [L] <d, G_l>
    square = np.diagonal(table)
    d_square = max(float(products.d_square.sum()), 0.0)
    norm = np.sqrt(square)
    # d without l is d - a_l G_l
    rest_square = d_square - 2 * a * along + a**2 * square
    rest = np.where(rest_square > 1e-12 * d_square, rest_square, np.nan)
    return Geometry(
        conflict=cosines(table),
        cosine=_ratio(along, norm * np.sqrt(d_square)),
        others=_ratio(along - a * square, norm * np.sqrt(rest)),
        share=a * along / d_square if d_square else np.zeros_like(a),
        norm=norm,
    )


def _ratio(one: Floats, two: Floats) -> Floats:
    result = np.divide(one, two, out=np.full_like(one, np.nan), where=np.abs(two) > 0)
    return np.asarray(np.clip(result, -1, 1), np.float64)


def group_order(shape: Geometry) -> Order:
    """Groups that pull the same way next to each other."""
    return cluster_order(shape.conflict)


def group_map(shape: Geometry, order: Order) -> tuple[Floats, float]:
    """Points of the groups in this order, and of the consensus, [L + 1, 2]."""
    count = len(order)
    table = np.ones((count + 1, count + 1))
    table[:count, :count] = shape.conflict[np.ix_(order, order)]
    table[:count, count] = table[count, :count] = np.nan_to_num(shape.cosine[order])
    return plane(table)


def group_facts(
    found: StoredConsensus, outcome: Outcome, shape: Geometry, order: Order,
    left_out: dict[str, str],
) -> list[GroupFacts]:
    """The rows of the table."""
    label, keep = found.members.label, outcome.decisions.keep
    score = outcome.ranking.scores.score
    count = len(found.names)
    pairs = np.bincount(label, minlength=count)
    kept = np.bincount(label[keep], minlength=count)
    facts = []
    for place in order:
        own = score[(label == place) & ~np.isnan(score)]
        facts.append(GroupFacts(
            name=found.names[place], pairs=int(pairs[place]), kept=int(kept[place]),
            norm=float(shape.norm[place]), cosine=float(np.nan_to_num(shape.cosine[place])),
            others=number(float(shape.others[place])), share=float(shape.share[place]),
            coefficient=float(found.consensus.coefficients[place]),
            median=float(np.median(own)) if len(own) else None,
            left_out=left_out.get(found.names[place]),
        ))  # fmt: skip
    return facts


def group_scores(found: StoredConsensus, outcome: Outcome, order: Order) -> list[GroupScores]:
    """Scores by group; of very many groups the largest."""
    label, decisions = found.members.label, outcome.decisions
    pairs = np.bincount(label, minlength=len(found.names))
    large = set(np.argsort(-pairs, kind="stable")[:LARGEST_HISTOGRAM].tolist())
    views = []
    for place in order:
        inside = label == place
        if place in large and inside.any():
            limits = decisions.threshold[inside]
            one = bool(np.ptp(limits) < 1e-12) if len(limits) else False  # NaN: no
            views.append(GroupScores(
                found.names[place], outcome.ranking.scores.score[inside], decisions.keep[inside],
                float(limits[0]) if one else None,
            ))  # fmt: skip
    return views


def examples(
    store: GradientStore, found: StoredConsensus, outcome: Outcome, files: Sequence[DataFile],
    count: int,
) -> dict[str, list[Example]]:
    """``count`` of each kind: strongest kept, strongest dropped, nearest to the threshold."""
    decisions, score = outcome.decisions, outcome.ranking.scores.score
    label = found.members.label
    away = np.abs(score - decisions.threshold)
    chosen = {
        "Strongest kept": _spread(-score, decisions.keep, label, count),
        "Strongest dropped": _spread(score, ~decisions.keep, label, count),
        "Nearest to the threshold": _spread(away, np.isfinite(away), label, count),
    }
    wanted = {int(store.row[place]): place for places in chosen.values() for place in places}
    records: dict[int, Record] = {}
    if wanted:
        for record in read_records(files, store.index.fields, grouped=False):
            if record.row in wanted and isinstance(record, Record) and store.index.knows(record):
                records[wanted[record.row]] = record
    return {
        title: [_example(place, records[place], found, outcome)
                for place in places if place in records]
        for title, places in chosen.items()
    }


def _spread(
    value: Floats, among: NDArray[np.bool_], label: NDArray[np.int32], count: int
) -> list[int]:
    """The places of the least values; at first no group twice, so that people see several."""
    places = np.flatnonzero(among & np.isfinite(value))
    places = places[np.argsort(value[places], kind="stable")]
    firsts = places[np.sort(np.unique(label[places], return_index=True)[1])]
    ranked = dict.fromkeys([*firsts.tolist(), *places.tolist()])
    best = list(ranked)[:count]
    return sorted(best, key=lambda place: float(value[place]))


def _example(place: int, record: Record, found: StoredConsensus, outcome: Outcome) -> Example:
    scores, decisions = outcome.ranking.scores, outcome.decisions
    reason = decisions.reason[place]
    return Example(
        group=found.names[found.members.label[place]],
        score=number(scores.score[place]), error=number(scores.error[place]),
        keep=bool(decisions.keep[place]), reason=reason,
        place=f"{record.source}:{record.line}" + (f", id {record.id}" if record.id else ""),
        prompt=plain_text(record.prompt), chosen=plain_text(record.chosen),
        rejected=plain_text(record.rejected),
    )  # fmt: skip


def plain_text(text: Text) -> str:
    """A text, or a conversation with its roles where it has several turns, cut to what is shown."""
    if isinstance(text, str):
        whole = text
    elif len(text) == 1:
        whole = _content(text[0])
    else:
        whole = "\n\n".join(f"[{turn.get('role', '?')}] {_content(turn)}" for turn in text)
    if len(whole) <= LONGEST_TEXT:
        return whole
    return f"{whole[:LONGEST_TEXT]} ... ({len(whole) - LONGEST_TEXT:,} more characters)"


def _content(turn: dict[str, Any]) -> str:
    content = turn.get("content")
    return content if isinstance(content, str) else "" if content is None else str(content)


def left_out(
    store: GradientStore, with_text: bool
) -> tuple[list[LeftOut], dict[str, int]]:
    """The first records without a sketch, and counts of all; messages may quote the data."""
    entries = store.skipped_entries()
    shown = [
        LeftOut(f"{entry.get('source', '?')}:{entry.get('line', '?')}", str(entry["code"]),
                str(entry.get("message", "")))
        for _, entry in sorted(entries.items())[:LEFT_OUT_SHOWN]
    ] if with_text else []  # fmt: skip
    return shown, dict(Counter(str(entry["code"]) for entry in entries.values()).most_common())


def reasons(outcome: Outcome) -> dict[str, int]:
    """Why pairs were dropped, the commonest first."""
    return dict(Counter(
        reason for reason in outcome.decisions.reason if reason != KEPT).most_common())
