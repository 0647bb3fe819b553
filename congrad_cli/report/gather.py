"""A store, its consensus and what the filter decides -> what the report says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli import __version__
from congrad_cli.consensus.certificate import holds_zero
from congrad_cli.consensus.groups import cosines
from congrad_cli.errors import UsageError
from congrad_cli.filter.policy import KEPT
from congrad_cli.filter.run import judge
from congrad_cli.filter.target import Target
from congrad_cli.filter.verdicts import Outcome, number
from congrad_cli.filter.writing import data_files
from congrad_cli.products import gramian, group_products
from congrad_cli.progress import Progress
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import DataFile, Record, Text
from congrad_cli.report.content import (
    Example,
    Floats,
    GroupFacts,
    GroupScores,
    LeftOut,
    Report,
)
from congrad_cli.report.order import cluster_order, plane
from congrad_cli.report.telling import commands, facts, verdict
from congrad_cli.settings import FilterSettings
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


def geometry(target: Target) -> Geometry:
    """Products of d and the group gradients, free of what coarse rows add."""
    consensus = target.consensus
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
    target: Target, outcome: Outcome, shape: Geometry, order: Order
) -> list[GroupFacts]:
    """The rows of the table."""
    label, keep = target.label, outcome.decisions.keep
    score = outcome.ranking.scores.score
    count = len(target.names)
    pairs = np.bincount(label, minlength=count)
    kept = np.bincount(label[keep], minlength=count)
    rows = []
    for place in order:
        told = _told(target, target.names[place])
        own = score[(label == place) & ~np.isnan(score)]
        rows.append(GroupFacts(
            name=target.names[place], pairs=int(pairs[place]), kept=int(kept[place]),
            norm=float(shape.norm[place]), cosine=float(np.nan_to_num(shape.cosine[place])),
            others=number(float(shape.others[place])), share=float(shape.share[place]),
            coefficient=float(target.consensus.coefficients[place]),
            median=float(np.median(own)) if len(own) else None,
            interval=_interval(told.get("interval")),
            left_out=str(told["why_not"]) if "why_not" in told else None,
        ))  # fmt: skip
    return rows


def _told(target: Target, name: str) -> dict[str, Any]:
    """What the consensus command said of a group; a file may say anything."""
    groups = target.findings.get("groups")
    found = groups.get(name) if isinstance(groups, dict) else None
    return found if isinstance(found, dict) else {}


def _interval(ends: Any) -> tuple[float, float] | None:
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    low, high = ends
    known = isinstance(low, float | int) and isinstance(high, float | int)
    return (float(low), float(high)) if known else None


def group_scores(target: Target, outcome: Outcome, order: Order) -> list[GroupScores]:
    """Scores by group; of very many groups the largest."""
    label, decisions = target.label, outcome.decisions
    pairs = np.bincount(label, minlength=len(target.names))
    large = set(np.argsort(-pairs, kind="stable")[:LARGEST_HISTOGRAM].tolist())
    views = []
    for place in order:
        inside = label == place
        if place in large and inside.any():
            limits = decisions.threshold[inside]
            one = bool(np.ptp(limits) < 1e-12) if len(limits) else False  # NaN: no
            views.append(GroupScores(
                target.names[place], outcome.ranking.scores.score[inside], decisions.keep[inside],
                float(limits[0]) if one else None,
            ))  # fmt: skip
    return views


def examples(
    store: GradientStore, target: Target, outcome: Outcome, files: Sequence[DataFile],
    count: int,
) -> dict[str, list[Example]]:
    """``count`` of each kind: strongest kept, strongest dropped, nearest to the threshold."""
    decisions, score = outcome.decisions, outcome.ranking.scores.score
    label = target.label
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
        title: [_example(place, records[place], target, outcome)
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


def _example(place: int, record: Record, target: Target, outcome: Outcome) -> Example:
    scores, decisions = outcome.ranking.scores, outcome.decisions
    reason = decisions.reason[place]
    return Example(
        group=target.names[target.label[place]],
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


def store_report(
    path: Path, settings: FilterSettings, shown: int, progress: Progress
) -> Report:
    """The report of a store, its consensus and what the filter would keep; ``shown`` examples."""
    judged = judge(path, settings, progress)
    store, target, outcome = judged.store, judged.target, judged.outcome
    if target.released:
        raise UsageError("a report shows a consensus of the store's own pairs.",
                         "leave --consensus out, or name one that `congrad show` lists")
    shape = geometry(target)
    order = group_order(shape)
    pick = np.ix_(order, order)
    points, explained = group_map(shape, order)
    groups = group_facts(target, outcome, shape, order)
    lines, good = verdict(judged, groups)
    files = data_files(store, settings) if shown else []
    skipped, counts = left_out(store, with_text=shown > 0)
    after, ends = target.matrices.get("after"), target.matrices.get("conflict_range")
    return Report(
        title=f"{path.name}: {sum(judged.summary.kept):,} of {sum(judged.summary.pairs):,} pairs",
        made=f"congrad {__version__}, {date.today().isoformat()}",
        verdict=lines, good=good, groups=groups,
        conflict=shape.conflict[pick],
        after=None if after is None else after[pick],
        unresolved=None if ends is None else holds_zero(ends)[pick],
        points=points, explained=explained,
        scores=group_scores(target, outcome, order),
        score_name=outcome.ranking.about[:1].upper() + outcome.ranking.about[1:],
        examples=examples(store, target, outcome, files, shown) if shown else {},
        reasons=reasons(outcome), left_out=skipped, left_out_counts=counts,
        commands=commands(store, target.settings, settings), facts=facts(judged),
    )  # fmt: skip
