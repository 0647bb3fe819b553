"""What ``consensus`` shows: its groups, and where they conflict."""

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from congrad_cli.console import OPEN_WIDTH, on_terminal, say, table
from congrad_cli.display.grouping import show_grouping

if TYPE_CHECKING:
    from congrad_cli.consensus.run import ConsensusSummary

WORST_SHOWN = 12


def show_consensus(summary: "ConsensusSummary", method: str) -> None:
    """Per group: pairs, norm, cosine to the consensus; then the conflicts between groups."""
    order = range(len(summary.names))
    table(
        f"consensus ({method})",
        ("group", "pairs", "norm", "cos to consensus", "coefficient"),
        [
            (summary.names[i], f"{summary.pairs[i]:,}", f"{summary.norm[i]:.3g}",
             f"{summary.cosine[i]:+.3f}", f"{summary.coefficient[i]:.4g}")
            for i in order
        ],
    )
    show_grouping(summary.grouping)
    if len(summary.names) > 1:
        _show_conflicts(summary)
    found = summary.certificate
    say("consensus", f"{found.conflicts} of {found.pairs} pairs of groups conflict; the least "
        f"cosine to the consensus is {found.least:+.3f} ({found.least_group}).",
        "no group that takes part gets worse" if not found.worse else
        f"groups that get worse (cosine below 0): {_some(found.worse)}",
        *(f"takes no part: {name}, which {why}" for name, why in
          list(summary.left_out.items())[:WORST_SHOWN]),
        *([f"and {len(summary.left_out) - WORST_SHOWN} more take no part"]
          if len(summary.left_out) > WORST_SHOWN else []),
        *([] if found.gap is None else [f"the solver is within {found.gap:.1g} of the optimum"]))


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
