"""``congrad consensus``: options -> settings, and the store's path on stdout."""

from congrad_cli import arguments, console
from congrad_cli.display.consensus import show_consensus
from congrad_cli.display.progress import TerminalProgress
from congrad_cli.options import consensus as options
from congrad_cli.options import shared
from congrad_cli.settings import AVERAGES, METHODS, ConsensusSettings


def consensus(
    store: shared.StoreArgument = None,
    method: options.Method = "pcgrad",
    orders: options.Orders = 32,
    seed: options.ConsensusSeed = 0,
    average: options.Average = "mean",
    trim: options.Trim = 0.05,
    ema_decay: options.EmaDecay = 0.9,
    ema_batch: options.EmaBatch = 8,
    pair_norm: options.PairNorm = "unit",
    normalize_groups: options.NormalizeGroups = "none",
    weights: options.Weights = "uniform",
    min_pairs: options.MinPairs = 1,
    groups: options.Groups = "data",
    merge_groups: options.MergeGroups = 0.0,
    require_descent: options.RequireDescent = False,
    loss: options.Loss = "dpo",
    beta: options.Beta = 0.1,
    length_penalty: options.LengthPenalty = 0.01,
    label_smoothing: options.LabelSmoothing = 0.1,
    name: options.Name = "default",
    allow_partial: shared.AllowPartial = False,
    as_json: options.AsJson = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Find the direction that is good for every group; print the store's path."""
    out = console.reserve_stdout()
    arguments.one_of("--method", method, METHODS)
    arguments.one_of("--average", average, AVERAGES)
    arguments.one_of("--normalize-groups", normalize_groups, ("none", "unit"))
    arguments.check_loss(loss, length_penalty)
    path = arguments.store_from(store)
    settings = ConsensusSettings(
        method=method, orders=orders, seed=seed, average=average, trim=trim,
        ema_decay=ema_decay, ema_batch=ema_batch, pair_norm=pair_norm,
        normalize_groups=normalize_groups,
        weights=arguments.group_weights(weights, method), min_pairs=min_pairs,
        groups=arguments.groups(groups), merge_groups=merge_groups,
        require_descent=require_descent, loss=loss, beta=beta,
        length_penalty=length_penalty, label_smoothing=label_smoothing,
        allow_partial=allow_partial, name=name,
    )  # fmt: skip
    arguments.check_used(settings)
    from congrad_cli.consensus.run import run

    progress = TerminalProgress(quiet, verbose)
    summary = run(path, settings, progress)
    progress.done()
    if not quiet:
        show_consensus(summary, method)
    if as_json:
        console.print_json(summary.to_json(), out)
    if require_descent:
        summary.certificate.require_descent(f"{path}, as '{name}'")
    if not as_json:
        console.print_path(path, out)
