"""What ``filter`` shows: per group, and why pairs were dropped."""

import math
from typing import TYPE_CHECKING

from congrad_cli.console import say, table
from congrad_cli.display.blocks import blocks, roomy

if TYPE_CHECKING:
    from congrad_cli.filter.summary import FilterSummary


def show_filter(summary: "FilterSummary") -> None:
    """Per group: pairs, kept, median score; then why pairs were dropped."""
    ranked = summary.settings.rank_by
    title = "filter" if ranked == "score" else f"filter by {ranked}: {summary.about}"
    columns = ["group", "pairs", "kept", "share",
               "median score" if ranked == "score" else f"median {ranked}"]
    rows = [
        [name, f"{pairs:,}", f"{kept:,}", f"{kept / pairs:.0%}" if pairs else "-",
         "-" if math.isnan(median) else f"{median:+.3f}" if "score" in ranked else f"{median:.4g}"]
        for name, pairs, kept, median in zip(
            summary.names, summary.pairs, summary.kept, summary.median, strict=True)
    ]
    pictures = roomy(76)
    if pictures:
        columns.append(f"{summary.span[0]:.2g} to {summary.span[1]:.2g}")
        for row, counts in zip(rows, summary.histogram, strict=True):
            row.append(blocks(counts))
    table(title, columns, rows, pictures=pictures)
    dropped = sum(summary.reasons.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(summary.reasons.items()))
    borderline = "" if summary.borderline is None else (
        f" Borderline, within one error of the threshold: {summary.borderline:,}.")
    say("filter", f"kept {sum(summary.kept):,}, dropped {dropped:,}"
        + (f" ({reasons})." if reasons else ".") + borderline)
