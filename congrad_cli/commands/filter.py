"""``congrad filter``: options -> settings, and kept lines on stdout."""

from congrad_cli import arguments, console
from congrad_cli.display.filter import show_filter
from congrad_cli.display.progress import TerminalProgress
from congrad_cli.errors import UsageError
from congrad_cli.options import filter as options
from congrad_cli.options import shared
from congrad_cli.outputs import STDOUT
from congrad_cli.settings import RANKINGS, FilterSettings


def filter_pairs(
    store: shared.StoreArgument = None,
    rank_by: options.RankBy = "score",
    seed: options.RankSeed = None,
    min_score: options.MinScore = None,
    keep_ratio: options.KeepRatio = None,
    keep: options.Keep = None,
    quotas: options.QuotasFile = None,
    per_group: options.PerGroup = False,
    keep_at_least: options.KeepAtLeast = None,
    confidence: options.Confidence = None,
    leave_one_out: options.LeaveOneOut = True,
    leave_group_out: options.LeaveGroupOut = False,
    leave_out_by: options.LeaveOutBy = None,
    dedup: options.Dedup = None,
    loss: options.FilterLoss = None,
    beta: options.FilterBeta = None,
    length_penalty: options.FilterLengthPenalty = None,
    label_smoothing: options.FilterLabelSmoothing = None,
    consensus_name: options.WhichConsensus = "default",
    allow_partial: shared.AllowPartial = False,
    data: shared.FilterData = None,
    output: options.Output = None,
    dropped: options.Dropped = None,
    scores: options.Scores = None,
    group_cosines: options.GroupCosines = False,
    annotate: options.Annotate = False,
    summary_file: options.SummaryFile = None,
    as_json: options.SummaryAsJson = False,
    max_drop_rate: options.MaxDropRate = None,
    min_per_group: options.MinPerGroup = None,
    max_conflict: options.MaxConflict = None,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Print the pairs that agree with the consensus, byte for byte."""
    out = console.reserve_stdout()
    if output is not None and str(output) in STDOUT:
        output = None  # file descriptor 1 is stderr by now
    if as_json and output is None:
        raise UsageError("--json: stdout has the kept lines.",
                         "pass --output FILE as well, or write the object with --summary FILE")
    arguments.check_loss(loss, length_penalty)
    arguments.one_of("--rank-by", rank_by, RANKINGS)
    settings = FilterSettings(
        rank_by=rank_by, seed=seed,
        min_score=min_score, keep_ratio=keep_ratio, keep=keep, quotas=quotas,
        per_group=per_group, keep_at_least=keep_at_least, confidence=confidence,
        leave_one_out=leave_one_out, leave_group_out=leave_group_out,
        leave_out_by=leave_out_by, dedup=dedup,
        allow_partial=allow_partial,
        loss=loss, beta=beta, length_penalty=length_penalty,
        label_smoothing=label_smoothing, consensus=consensus_name,
        data=tuple(data or ()), output=output, dropped=dropped, scores=scores,
        group_cosines=group_cosines, annotate=annotate, summary=summary_file,
        max_drop_rate=max_drop_rate, min_per_group=min_per_group, max_conflict=max_conflict,
    )  # fmt: skip
    from congrad_cli.filter.gates import require_gates
    from congrad_cli.filter.run import check_settings, run

    check_settings(settings)
    path = arguments.store_from(store)
    progress = TerminalProgress(quiet, verbose)
    summary = run(path, settings, out, progress)
    progress.done()
    if not quiet:
        show_filter(summary)
    if as_json:
        from congrad_cli.filter.verdicts import as_json as to_text

        out.write(to_text(summary.to_json()).encode() + b"\n")
        out.flush()
    require_gates(summary.gates)
