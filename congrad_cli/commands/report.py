"""``congrad report``: one HTML file for people, and its path on stdout."""

from pathlib import Path

from congrad_cli import arguments, console
from congrad_cli.display.progress import TerminalProgress
from congrad_cli.errors import UsageError
from congrad_cli.options import filter as rules
from congrad_cli.options import report as options
from congrad_cli.options import shared
from congrad_cli.settings import RANKINGS, FilterSettings


def report(
    place: options.Place = None,
    output: options.Output = Path("report.html"),
    summary: options.Summary = None,
    examples: options.Examples = 5,
    consensus_name: rules.WhichConsensus = "default",
    rank_by: rules.RankBy = "score",
    min_score: rules.MinScore = None,
    keep_ratio: rules.KeepRatio = None,
    keep: rules.Keep = None,
    per_group: rules.PerGroup = False,
    allow_partial: shared.AllowPartial = False,
    data: shared.FilterData = None,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Write one HTML file: what is kept and dropped, why, and where groups conflict."""
    out = console.reserve_stdout()
    arguments.one_of("--rank-by", rank_by, RANKINGS)
    settings = FilterSettings(
        rank_by=rank_by, min_score=min_score, keep_ratio=keep_ratio, keep=keep,
        per_group=per_group, consensus=consensus_name, allow_partial=allow_partial,
        data=tuple(data or ()),
    )  # fmt: skip
    path = arguments.store_from(place)
    from congrad_cli.report.run import settings_of, write_report

    if summary is not None:
        if settings != FilterSettings(data=settings.data, allow_partial=allow_partial):
            raise UsageError("--summary has the filter's options, and here are others.",
                             "give --summary FILE or the options")
        settings = settings_of(summary)
    progress = TerminalProgress(quiet, verbose)
    write_report(path, output, settings, examples, progress)
    progress.done()
    console.print_path(output, out)
