"""``congrad filter``: options -> settings, and kept lines on stdout."""

from congrad_cli import arguments, console, options
from congrad_cli.settings import FilterSettings


def filter_pairs(
    store: options.StoreArgument = None,
    min_score: options.MinScore = None,
    keep_ratio: options.KeepRatio = None,
    keep: options.Keep = None,
    per_group: options.PerGroup = False,
    leave_one_out: options.LeaveOneOut = True,
    loss: options.FilterLoss = None,
    beta: options.FilterBeta = None,
    length_penalty: options.FilterLengthPenalty = None,
    label_smoothing: options.FilterLabelSmoothing = None,
    consensus_name: options.WhichConsensus = "default",
    allow_partial: options.AllowPartial = False,
    data: options.FilterData = None,
    output: options.Output = None,
    dropped: options.Dropped = None,
    scores: options.Scores = None,
    quiet: options.Quiet = False,
) -> None:
    """Print the pairs that agree with the consensus, byte for byte."""
    out = console.reserve_stdout()
    if output is not None and str(output) in ("-", "/dev/stdout"):
        output = None  # file descriptor 1 is stderr by now
    arguments.check_loss(loss, length_penalty)
    settings = FilterSettings(
        min_score=min_score, keep_ratio=keep_ratio, keep=keep, per_group=per_group,
        leave_one_out=leave_one_out, allow_partial=allow_partial,
        loss=loss, beta=beta, length_penalty=length_penalty,
        label_smoothing=label_smoothing, consensus=consensus_name,
        data=tuple(data or ()), output=output, dropped=dropped, scores=scores,
    )  # fmt: skip
    from congrad_cli.filter.policy import check_rule

    check_rule(settings)
    path = arguments.store_from(store)
    from congrad_cli.filter.run import run

    summary = run(path, settings, out, console.TerminalProgress(quiet))
    if not quiet:
        console.show_filter(summary)
