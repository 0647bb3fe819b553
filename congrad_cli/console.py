"""The terminal: stdout is kept for data alone; messages, progress and tables go to stderr."""

import json
import math
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from congrad_cli.consensus.run import ConsensusSummary
    from congrad_cli.demo import DemoResult
    from congrad_cli.filter.summary import FilterSummary
    from congrad_cli.loop.metrics import RoundMetrics
    from congrad_cli.loop.run import Preview
    from congrad_cli.sketch.dry_run import DryRun

OPEN_WIDTH = 400
WORST_SHOWN = 12
HEARTBEAT_SECONDS = 30.0
MESSAGES_SHOWN = 5
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor, ends lines, or turns the direction of what follows."""


def reserve_stdout() -> BinaryIO:
    """Hand out the real stdout and point everything else that prints there at stderr.

    Libraries, compiled code and child processes may print; none of it may reach a pipe that
    carries data.
    """
    sys.stdout.flush()
    data = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return data


def print_path(path: Path, out: BinaryIO) -> None:
    """The one line that goes to stdout; any bytes that a path can have."""
    out.write(os.fsencode(path) + b"\n")
    out.flush()


def print_json(value: dict[str, Any], out: BinaryIO) -> None:
    """One JSON object on stdout."""
    text = json.dumps(value, ensure_ascii=False)
    out.write(text.encode(errors="backslashreplace") + b"\n")  # names need not be UTF-8
    out.flush()


def say(kind: str, message: str, *hints: str) -> None:
    """One message on stderr: ``congrad: KIND: message`` and indented hints."""
    lines = [f"congrad: {kind}: {one_line(message)}", *(f"  {one_line(hint)}" for hint in hints)]
    sys.stderr.write("\n".join(lines).encode("utf-8", "replace").decode("utf-8") + "\n")
    sys.stderr.flush()


def one_line(text: str) -> str:
    """Text that may come from data: no control character of it reaches the terminal."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


def on_terminal(stream: IO[Any] | None = None) -> bool:
    """Whether a person watches the stream; stderr, where none is named."""
    return (stream or sys.stderr).isatty() and os.environ.get("TERM") != "dumb"


class TerminalProgress:
    """Shows a bar on a terminal, elsewhere a plain line every 30 seconds."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._shown: Counter[str] = Counter()  # notes and warnings, by kind
        self._total = self._done = self._new = 0
        self._began = self._spoke = 0.0
        self._what = self._unit = ""

    def step(self, what: str) -> None:
        """Say that a slow step begins."""
        if not self._quiet:
            sys.stderr.write(f"congrad: {what} ...\n")
            sys.stderr.flush()

    def start(self, what: str, total: int, done: int = 0, unit: str = "pairs") -> None:
        """Begin to count."""
        self._what, self._unit = what, unit
        self._total, self._done, self._new = total, done, 0
        self._began = self._spoke = time.monotonic()
        if self._quiet or not on_terminal():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        # rich's defaults would send what we print to stdout to the terminal instead of the pipe
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TextColumn("eta"), TimeRemainingColumn(),
            console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False,
        )
        self._task = self._bar.add_task(what, total=total, completed=done, rate="")
        self._bar.start()

    def advance(self, count: int) -> None:
        """Count on."""
        self._done, self._new = self._done + count, self._new + count
        now = time.monotonic()
        rate = self._new / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=f"{rate:.1f} {self._unit}/s")
        elif not self._quiet and now - self._spoke >= HEARTBEAT_SECONDS:
            self._spoke = now
            self._line(rate)

    def _line(self, rate: float) -> None:
        left = max(self._total - self._done, 0) / rate if rate else math.inf
        sys.stderr.write(
            f"{self._what} {self._done:,}/{self._total:,} ({self._done / self._total:.0%}) "
            f"{rate:.1f} {self._unit}/s eta {_clock(left)}\n"
        )
        sys.stderr.flush()

    def finish(self) -> None:
        """Stop counting and say how it went."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self.tell_hidden()
        seconds = time.monotonic() - self._began
        if not self._quiet:
            sys.stderr.write(
                f"congrad: {self._what}: {self._done:,} of {self._total:,} {self._unit}, "
                f"{self._new / max(seconds, 1e-9):.1f} {self._unit}/s, {_clock(seconds)}\n"
            )

    def stopping(self) -> None:
        """Say so at once, past ``sys.stderr``: the signal may have come in the midst of it."""
        os.write(2, b"\ncongrad: stopping; writing the rows in hand (Ctrl-C again to stop now)\n")

    def note(self, message: str, kind: str = "") -> None:
        """Show the first few notes of a kind; all are counted."""
        if self._may_show(f"note {kind}") and not self._quiet:
            sys.stderr.write(f"congrad: {one_line(message)}\n")
            sys.stderr.flush()

    def warn(self, message: str, kind: str = "") -> None:
        """Show the first few warnings of a kind; all are counted."""
        if self._may_show(f"warning {kind}"):
            say("warning", message)

    def _may_show(self, kind: str) -> bool:
        self._shown[kind] += 1
        return self._shown[kind] <= MESSAGES_SHOWN

    def tell_hidden(self) -> None:
        """Say how many messages of which kind were not shown."""
        for kind, count in self._shown.items():
            if count > MESSAGES_SHOWN and not self._quiet:
                what = kind.strip().replace(" ", "s of the kind ", 1)
                sys.stderr.write(f"congrad: {count - MESSAGES_SHOWN:,} more {what}\n")
        self._shown.clear()


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(count: int, what: str) -> str:
    """Such as "1 pair" or "2 pairs"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    padding: int = 1,
    stream: IO[str] | None = None,
) -> None:
    """A table on stderr, or on ``stream``: the first column to the left, numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    person = on_terminal(stream)
    grid = Table(box=box.SIMPLE_HEAD if person else None, padding=(0, padding))
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*map(one_line, row))
    # off a terminal nobody can scroll sideways: lines are as wide as they need to be
    width = None if person else OPEN_WIDTH
    target = Console(file=stream or sys.stderr, width=width, highlight=False, markup=False)
    target.print(title, style="bold" if person else None)  # a table's own title wraps to its width
    target.print(grid)



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


def show_filter(summary: "FilterSummary") -> None:
    """Per group: pairs, kept, median score; then why pairs were dropped."""
    ranked = summary.settings.rank_by
    title = "filter" if ranked == "score" else f"filter by {ranked}: {summary.about}"
    table(
        title,
        ("group", "pairs", "kept", "share",
         "median score" if ranked == "score" else f"median {ranked}"),
        [
            (name, f"{pairs:,}", f"{kept:,}", f"{kept / pairs:.0%}" if pairs else "-",
             "-" if math.isnan(median) else f"{median:+.3f}" if "score" in ranked
             else f"{median:.4g}")
            for name, pairs, kept, median in zip(
                summary.names, summary.pairs, summary.kept, summary.median, strict=True)
        ],
    )
    dropped = sum(summary.reasons.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(summary.reasons.items()))
    borderline = "" if summary.borderline is None else (
        f" Borderline, within one error of the threshold: {summary.borderline:,}.")
    say("filter", f"kept {sum(summary.kept):,}, dropped {dropped:,}"
        + (f" ({reasons})." if reasons else ".") + borderline)


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


def show_demo(result: "DemoResult") -> None:
    """What the demo kept and dropped, and one pair of each."""
    show_filter(result.filter)
    for title, pair in (("kept", result.best), ("dropped", result.worst)):
        say(f"most clearly {title}", f"{pair['group']}, score {pair['score']:+.3f}",
            f"prompt:   {pair['prompt']}", f"chosen:   {pair['chosen']}",
            f"rejected: {pair['rejected']}")
    say("demo", f"{result.planted_dropped} of {result.planted} pairs with swapped answers were "
        f"dropped, and {result.clean_dropped} of the {result.clean} others.",
        f"congrad never saw which were swapped; AUROC of its scores: {result.auroc:.2f}")


def show_round(metrics: "RoundMetrics") -> None:
    """Per language: prompts, pairs, kept; then what the round's model is worth."""
    made, kept = (metrics.stages.get(name, {}).get("languages", {}) for name in ("pairs", "filter"))
    prompts = metrics.stages.get("prompts", {}).get("languages", {})
    rows = []
    for name in prompts:
        found = kept.get(name, {"kept": 0, "median_score": None})
        score = found["median_score"]
        rows.append((name, f"{prompts[name]:,}", f"{made.get(name, 0):,}",
                     f"{found['kept']:,}" if kept else "-",
                     "-" if score is None else f"{score:+.3f}"))
    if rows:
        table(f"round {metrics.number}", ("language", "prompts", "pairs", "kept", "median score"),
              rows)
    if metrics.measured:
        measures = metrics.measures()
        names = sorted({name for values in measures.values() for name in values})
        title = f"round {metrics.number}" if metrics.number else "the initial model"
        table(f"{title}, on held-out data", ("language", *names), [
            (language, *(f"{values[name]:.3f}" if name in values else "-" for name in names))
            for language, values in measures.items()])


def show_preview(preview: "Preview") -> None:
    """The steps of a run and what is there of them; prompts; models."""
    table("dry run", ("step", "state"), preview.steps)
    table("prompts of the next round", ("language", "prompts"),
          [(name, f"{count:,}") for name, count in preview.prompts.items()])
    for what, model in preview.models.items():
        say(what, model)
    if preview.translated:
        say("translated", f"into {', '.join(preview.translated)}")
