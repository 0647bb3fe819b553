"""What ``sketch --dry-run`` shows."""

from typing import TYPE_CHECKING

from congrad_cli.console import say, table

if TYPE_CHECKING:
    from congrad_cli.sketch.dry_run import DryRun


def show_dry_run(report: "DryRun") -> None:
    """Per group: pairs and their lengths in tokens; then what would be left out."""
    tokens = report.tokens
    rows = []
    for group in (*tokens.groups, *([tokens.overall] if len(tokens.groups) > 1 else [])):
        lengths = [f"{group.row.get(name, 0):,}" for name in ("p50", "p95", "max")]
        middle = [f"{part.get('p50', 0):,}" for part in (group.prompt, group.chosen,
                                                         group.rejected)]
        share = f"{group.truncated / group.pairs:.1%}" if group.pairs else "-"
        rows.append((group.name, f"{group.pairs:,}", f"{sum(group.skipped.values()):,}", share,
                     *middle, *lengths))
    table("dry run (out: left out, cut: truncated; tokens: medians, and of rows 95 % and the most)",
          ("group", "pairs", "out", "cut", "prompt", "chosen", "rejected", "row", "95 %", "max"),
          rows)
    reasons = ", ".join(f"{code} {count:,}" for code, count in report.left_out.items())
    say("dry run", f"{tokens.overall.pairs:,} of {report.index.rows:,} records would be sketched, "
        f"{tokens.overall.tokens:,} tokens in all; the store would take "
        f"{report.store_bytes / 1e6:,.1f} MB.",
        *([f"left out: {reasons}"] if reasons else []),
        *(example for examples in tokens.examples.values() for example in examples))
