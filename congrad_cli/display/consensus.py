"""What ``consensus`` shows: its groups, and where they conflict."""

import math
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from congrad_cli.console import OPEN_WIDTH, counted, on_terminal, say, table
from congrad_cli.display.blocks import blocks, roomy
from congrad_cli.display.grouping import show_grouping

if TYPE_CHECKING:
    from congrad_cli.consensus.summary import ConsensusSummary

WORST_SHOWN = 12
OUTLIERS_SHOWN = 5


def show_consensus(summary: "ConsensusSummary", method: str) -> None:
    """Per group: pairs, norm, cosine to the consensus; then the conflicts between groups."""
    columns = ["group", "pairs", "norm", "cos to consensus", "95 % interval", "coefficient"]
    rows = [
        [summary.names[i], f"{summary.pairs[i]:,}", f"{summary.norm[i]:.3g}",
         f"{summary.cosine[i]:+.3f}", _ends(summary.intervals.along_range[i].tolist()),
         f"{summary.coefficient[i]:.4g}"]
        for i in range(len(summary.names))
    ]
    pictures = roomy(100)
    if pictures:
        columns.append(f"lengths {summary.span[0]:.2g} to {summary.span[1]:.2g}")
        for row, counts in zip(rows, summary.lengths, strict=True):
            row.append(blocks(counts))
    table(f"consensus ({method})", columns, rows, pictures=pictures)
    if summary.grouping is not None:
        show_grouping(summary.grouping)
    if len(summary.names) > 1:
        _show_conflicts(summary)
    found = summary.certificate
    unresolved = (f" ({found.unresolved} unresolved: the 95 % interval holds 0)"
                  if found.unresolved else "")
    say("consensus", f"{found.conflicts} of {found.pairs} pairs of groups conflict{unresolved}; "
        f"the least cosine to the consensus is {found.least:+.3f} ({found.least_group}).",
        "no group that takes part gets worse" if not found.worse else
        f"groups that get worse (cosine below 0): {_some(found.worse)}",
        *(f"takes no part: {name}, which {why}" for name, why in
          list(summary.left_out.items())[:WORST_SHOWN]),
        *([f"and {len(summary.left_out) - WORST_SHOWN} more take no part"]
          if len(summary.left_out) > WORST_SHOWN else []),
        *([f"the data cannot tell yet whether these get better: {_some(found.unsure)}"]
          if found.unsure else []),
        *([] if found.gap is None else [f"the solver is within {found.gap:.1g} of the optimum"]))
    if summary.outliers:
        _show_outliers(summary)


def _show_outliers(summary: "ConsensusSummary") -> None:
    """The pairs that rule their groups by their length, the worst first."""
    found = summary.outliers
    more = len(found) - OUTLIERS_SHOWN
    say("consensus",
        f"{counted(len(found), 'pair')} with an extreme share of the group's average; all of them "
        "count (--json lists them, --pair-norm clip:0.9 or --average trimmed holds them back).",
        *(f"row {one.row}, {one.group}: {one.times_median:.1f} times the median length, "
          f"{one.share:.0%} of the group's squares" for one in found[:OUTLIERS_SHOWN]),
        *([f"and {more} more"] if more > 0 else []))


def _ends(ends: Sequence[float]) -> str:
    """An interval; nothing where it is not known."""
    return "" if math.isnan(ends[0]) else f"{ends[0]:+.2f} .. {ends[1]:+.2f}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - WORST_SHOWN
    return ", ".join(names[:WORST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _show_conflicts(summary: "ConsensusSummary") -> None:
    """The cosines between groups: as a matrix where it fits, else the worst conflicts."""
    names, cosines = summary.names, summary.conflict.tolist()
    room = shutil.get_terminal_size().columns if on_terminal() else OPEN_WIDTH
    label = max(map(len, names)) + 3
    if label + sum(max(len(name), 5) + 2 for name in names) <= room:
        cells = [[f"{value:+.2f}" for value in row] for row in cosines]
        unit = ""
    elif label + sum(max(len(name), 3) + 1 for name in names) <= room:
        cells = [[f"{100 * value:+.0f}" for value in row] for row in cosines]
        unit = " in hundredths"
    else:
        pairs = sorted((cosines[i][j], names[i], names[j])
                       for i in range(len(names)) for j in range(i))
        table("the groups that conflict most", ("groups", "cosine"),
              [(f"{one} - {other}", f"{value:+.2f}") for value, one, other in pairs[:WORST_SHOWN]])
        return
    rows = [(name, *row) for name, row in zip(names, cells, strict=True)]
    table(f"cosine between groups{unit} (negative: they conflict)", ("", *names), rows,
          padding=0 if unit else 1)
