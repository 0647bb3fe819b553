"""The command line: options, exit codes, what goes to which stream. No numerics, no torch."""

import errno
import json
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn

import typer
from typer.core import TyperGroup

from congrad_cli import __version__, arguments, console, options
from congrad_cli.errors import CongradError, InputError, UsageError, out_of_memory
from congrad_cli.settings import (
    ConsensusSettings,
    FilterSettings,
    RecordSettings,
    SketchSettings,
)

if TYPE_CHECKING:
    from congrad_cli.sketch.index import DataIndex

INTERRUPTED, TERMINATED, READER_GONE, NO_RESOURCES = 130, 143, 141, 7

EPILOG = (
    "Exit codes: 0 done, 1 bug, 2 usage, 3 input data, 4 store, 5 numerics, 6 gate not met, "
    "7 disk or memory, 8 model, 130 Ctrl-C, 143 SIGTERM, 141 reader gone."
)


class Commands(TyperGroup):
    """Every command runs inside this: the one place where errors become exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; translate what it raises."""
        try:
            return super().invoke(ctx)
        except CongradError as error:
            _debug()
            console.say("error", error.message, *error.hints)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            console.say("error", "interrupted; what was committed is safe.")
            raise typer.Exit(INTERRUPTED) from error
        except OSError as error:
            _debug()
            raise typer.Exit(_system_error(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            _debug()
            console.say("error", f"out of memory ({str(error).splitlines()[0][:150]}).",
                        "try a smaller --batch-tokens or --max-length")
            raise typer.Exit(NO_RESOURCES) from error


def _system_error(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        # the interpreter flushes once more at exit; that must not fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return READER_GONE
    console.say("error", f"{error.filename or 'output'}: {error.strerror or error}.")
    return NO_RESOURCES if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1


def _debug() -> None:
    if os.environ.get("CONGRAD_DEBUG"):
        import traceback

        traceback.print_exc()


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"congrad {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep the preference pairs whose own gradients agree across languages.

    congrad sketch data.jsonl --model MODEL | congrad consensus | congrad filter > kept.jsonl
    """


@app.command()
def sketch(
    data: options.SketchData = None,
    model: options.Model = "",
    store: options.Store = None,
    revision: options.Revision = None,
    chat_template: options.ChatTemplate = None,
    max_length: options.MaxLength = 1024,
    overlong: options.Overlong = "truncate",
    row_size: options.RowSize = None,
    dim: options.Dim = None,
    width: options.Width = "auto",
    leading: options.Leading = 8,
    seed: options.SketchSeed = 0,
    store_dtype: options.StoreDtype = None,
    reference: options.Reference = None,
    token_weighting: options.TokenWeighting = "sum",
    layers: options.Layers = "blocks",
    adapter: options.Adapter = None,
    dtype: options.Dtype = "auto",
    share_prompt: options.SharePrompt = True,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    batch_tokens: options.BatchTokens = "auto",
    gradient_checkpointing: options.GradientCheckpointing = False,
    bad_records: options.BadRecords = "stop",
    max_bad: options.MaxBad = None,
    rejects: options.Rejects = None,
    shard: options.Shard = None,
    threads: options.SketchThreads = None,
    overwrite: options.Overwrite = False,
    prompt_field: options.PromptField = None,
    chosen_field: options.ChosenField = None,
    rejected_field: options.RejectedField = None,
    id_field: options.IdField = "id",
    shape: options.ShapeName = None,
    group_by: options.GroupBy = "language",
    language_field: options.LanguageField = None,
    language: options.Language = None,
    languages: options.Languages = None,
    detect_language: options.DetectLanguage = False,
    min_confidence: options.MinConfidence = 0.8,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress the gradient of every pair into a store; print the store's path."""
    out = console.reserve_stdout()
    if not model:
        raise UsageError("--model is missing.", "congrad sketch data.jsonl --model MODEL")
    if as_json and not dry_run:
        raise UsageError("--json needs --dry-run.")
    best_dim, best_dtype = arguments.row_size(row_size, dim, store_dtype)
    arguments.one_of("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    arguments.one_of("--bad-records", bad_records, ("stop", "skip"))
    arguments.one_of("--overlong", overlong, ("truncate", "skip", "stop"))
    settings = SketchSettings(
        model=model, revision=revision, chat_template=chat_template, max_length=max_length,
        overlong=overlong, dim=dim or best_dim, width=arguments.auto("--width", width),
        leading=leading, seed=seed, store_dtype=store_dtype or best_dtype, reference=reference,
        token_weighting=token_weighting, layers=layers, adapter=adapter, dtype=dtype,
        share_prompt=share_prompt, device=device, device_map=device_map,
        batch_tokens=arguments.auto("--batch-tokens", batch_tokens),
        gradient_checkpointing=gradient_checkpointing, bad_records=bad_records,
        max_bad=arguments.most_bad(max_bad, bad_records), rejects=rejects,
        threads=threads, overwrite=overwrite,
    )  # fmt: skip
    fields = RecordSettings(
        prompt_field=prompt_field, chosen_field=chosen_field, rejected_field=rejected_field,
        id_field=id_field, shape=arguments.shape(shape),
        group_by=arguments.parts("--group-by", group_by), language_field=language_field,
        language=arguments.language(language), languages=arguments.languages(languages),
        detect_language=detect_language, min_confidence=min_confidence,
    )  # fmt: skip
    arguments.check_grouping(fields)
    names = arguments.data_names(data)
    rank, world, waits = arguments.share(shard, os.environ)
    if world > 1 and (names == ["-"] or overwrite):
        what = "--overwrite" if overwrite else "stdin"
        raise UsageError(f"{what} and more than one rank.",
                         "remove the store first" if overwrite else "name a file that all can read")
    progress = console.TerminalProgress(quiet or rank > 0)
    _be_calm()
    if dry_run:
        _dry_run(names, fields, settings, out if as_json else None, progress)
        return
    path = arguments.store_for(names, store)
    from congrad_cli.directory import check_directory, piped_data

    check_directory(path)
    piped = piped_data(path, sys.stdin.buffer) if names == ["-"] else nullcontext(None)
    with piped as file:
        index = _read(names, file, fields, settings, progress)
        from congrad_cli.sketch.ranks import Share
        from congrad_cli.sketch.run import run

        complete = run(index, path, settings, progress, Share(rank, world, waits))
    if complete and rank == 0:
        _print_path(path, out)


def _read(
    names: list[str],
    piped: Path | None,
    fields: RecordSettings,
    settings: SketchSettings,
    progress: console.TerminalProgress,
) -> "DataIndex":
    """The data's index. What needs no torch comes first: a typo should not cost its import."""
    from congrad_cli.records.damage import DamageLimit
    from congrad_cli.records.files import find_files
    from congrad_cli.records.record import DataFile
    from congrad_cli.sketch.index import check_settings, index_data
    from congrad_cli.sketch.source import find_model

    check_settings(settings)
    find_model(settings.model, settings.revision, settings.adapter)
    if settings.reference is not None:
        find_model(settings.reference)
    files = find_files(names) if piped is None else [DataFile("stdin", piped)]
    progress.step(f"reading {', '.join(file.name for file in files[:3])}"
                  + (f" and {len(files) - 3} more" if len(files) > 3 else ""))
    damage = DamageLimit(settings.bad_records == "stop", settings.max_bad)
    return index_data(files, fields, damage, progress)


def _dry_run(
    names: list[str],
    fields: RecordSettings,
    settings: SketchSettings,
    out: BinaryIO | None,
    progress: console.TerminalProgress,
) -> None:
    """Everything of ``sketch`` that needs no weights; nothing is stored."""
    from tempfile import TemporaryDirectory

    from congrad_cli.directory import piped_data

    with TemporaryDirectory(prefix="congrad-") as folder:
        piped = (piped_data(Path(folder), sys.stdin.buffer) if names == ["-"]
                 else nullcontext(None))
        with piped as file:
            patient = replace(settings, bad_records="skip", max_bad=None)
            index = _read(names, file, fields, patient, progress)
            from congrad_cli.sketch.dry_run import dry_run

            report = dry_run(index, settings, progress)
    if out is not None:
        text = json.dumps(report.to_json(), ensure_ascii=False)
        out.write(text.encode(errors="backslashreplace") + b"\n")  # names need not be UTF-8
        out.flush()
    console.show_dry_run(report)
    if report.refusal:
        raise InputError(f"a sketch would stop: {report.refusal}")


def _be_calm() -> None:
    """No warnings of libraries, no telemetry, no bars that are not ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # windows are tokenised in one call
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


@app.command()
def consensus(
    store: options.StoreArgument = None,
    method: options.Method = "pcgrad",
    orders: options.Orders = 32,
    seed: options.ConsensusSeed = 0,
    average: options.Average = "mean",
    ema_decay: options.EmaDecay = 0.9,
    ema_batch: options.EmaBatch = 8,
    pair_norm: options.PairNorm = "raw",
    loss: options.Loss = "dpo",
    beta: options.Beta = 0.1,
    length_penalty: options.LengthPenalty = 0.01,
    label_smoothing: options.LabelSmoothing = 0.1,
    name: options.Name = "default",
    allow_partial: options.AllowPartial = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the direction that is good for every group; print the store's path."""
    out = console.reserve_stdout()
    arguments.one_of("--method", method, ("pcgrad", "mean"))
    arguments.one_of("--average", average, ("mean", "ema"))
    arguments.one_of("--pair-norm", pair_norm, ("raw", "unit"))
    arguments.check_loss(loss, length_penalty)
    path = arguments.store_from(store)
    settings = ConsensusSettings(
        method=method, orders=orders, seed=seed, average=average, ema_decay=ema_decay,
        ema_batch=ema_batch, pair_norm=pair_norm, loss=loss, beta=beta,
        length_penalty=length_penalty, label_smoothing=label_smoothing,
        allow_partial=allow_partial, name=name,
    )  # fmt: skip
    from congrad_cli.consensus.run import run

    summary = run(path, settings, console.TerminalProgress(quiet))
    if not quiet:
        console.show_consensus(summary, method)
    _print_path(path, out)


@app.command("filter")
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


@app.command()
def demo(
    pairs: options.Pairs = 180,
    threads: options.DemoThreads = 1,
    quiet: options.Quiet = False,
) -> None:
    """Run all three steps on bundled pairs and a bundled model, offline; show what was dropped."""
    console.reserve_stdout()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from congrad_cli.demo import run

    result = run(pairs, threads, console.TerminalProgress(quiet))
    if not quiet:
        console.show_demo(result)


def _print_path(path: Path, out: BinaryIO) -> None:
    out.write(os.fsencode(path) + b"\n")
    out.flush()


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)


def main() -> None:
    """Entry point of ``congrad`` and ``python -m congrad_cli``."""
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="congrad")
