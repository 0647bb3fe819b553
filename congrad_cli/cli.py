"""The command line: options, exit codes, what goes to which stream. No numerics, no torch."""

import errno
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn

import typer
from typer.core import TyperGroup

from congrad_cli import __version__, console
from congrad_cli.errors import CongradError, StoreError, UsageError
from congrad_cli.settings import (
    ConsensusSettings,
    FilterSettings,
    RecordSettings,
    SketchSettings,
)

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
            if not _out_of_memory(error):
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


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


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


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")]
StoreArgument = Annotated[
    Path | None, typer.Argument(help="The store; without it, its path is read from the pipe.")
]


@app.command()
def sketch(
    data: Annotated[
        str, typer.Argument(help="A JSONL file of preference pairs, or - for stdin.")
    ] = "-",
    model: Annotated[
        str,
        typer.Option("--model", "-m", envvar="CONGRAD_MODEL",
                     help="A folder, a .gguf file, or a name on the Hugging Face hub."),
    ] = "",
    store: Annotated[
        Path | None,
        typer.Option("--store", "-s", help="Where the gradients go; DATA.congrad if not given."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit of a model on the hub.")
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="FILE|plain",
                     help="Use this Jinja chat template instead of the tokenizer's own."),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=2, help="Cut prompt + answer at this many tokens, as TRL does.")
    ] = 1024,
    dim: Annotated[int, typer.Option(min=1, help="Numbers kept of each gradient.")] = 8192,
    width: Annotated[
        int, typer.Option(min=1, help="Random directions that stand for a layer's input side.")
    ] = 32,
    leading: Annotated[
        int, typer.Option(min=0, help="Leading directions of each layer's inputs kept exactly.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random projection.")] = 0,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Add this model's log-probabilities, for margins."),
    ] = None,
    token_weighting: Annotated[
        str,
        typer.Option(metavar="sum|mean|ld:A",
                     help="How tokens add up to an answer: sum (DPO), mean (IPO), LD-DPO's."),
    ] = "sum",
    dtype: Annotated[
        str,
        typer.Option(metavar="auto|float32|bfloat16",
                     help="Precision; auto: the checkpoint's on CUDA, float32 on the CPU."),
    ] = "auto",
    share_prompt: Annotated[
        bool,
        typer.Option("--share-prompt/--no-share-prompt",
                     help="Run each prompt once for its two answers (checked at start)."),
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens per batch; 2048 on the CPU, 16384 on CUDA.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; without it, torch decides.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a store made with other settings.")
    ] = False,
    prompt_field: Annotated[str, typer.Option(help="Field with the prompt.")] = "prompt",
    chosen_field: Annotated[str, typer.Option(help="Field with the better answer.")] = "chosen",
    rejected_field: Annotated[str, typer.Option(help="Field with the worse answer.")] = "rejected",
    language_field: Annotated[
        str | None, typer.Option(help="Field with the language; 'language', else 'lang'.")
    ] = None,
    id_field: Annotated[str, typer.Option(help="Field with the pair's id, if any.")] = "id",
    language: Annotated[
        str | None, typer.Option(help="The language of every pair, where no field says it.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compress the gradient of every pair into a store; print the store's path."""
    out = console.reserve_stdout()
    if not model:
        raise UsageError("--model is missing.", "congrad sketch data.jsonl --model MODEL")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"--dtype {dtype}: pass auto, float32 or bfloat16.")
    path = _store_for(data, store)
    settings = SketchSettings(
        model=model, revision=revision, chat_template=chat_template, max_length=max_length,
        dim=dim, width=width, leading=leading, seed=seed, reference=reference,
        token_weighting=token_weighting, dtype=dtype, share_prompt=share_prompt, device=device,
        batch_tokens=batch_tokens, threads=threads, overwrite=overwrite,
    )  # fmt: skip
    fields = RecordSettings(
        prompt_field=prompt_field, chosen_field=chosen_field, rejected_field=rejected_field,
        language_field=language_field, id_field=id_field, language=language,
    )  # fmt: skip
    progress = console.TerminalProgress(quiet)
    from congrad_cli.directory import check_directory, piped_data

    check_directory(path)
    progress.step(f"sketching {'stdin' if data == '-' else data} with {model}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    piped = piped_data(path, sys.stdin.buffer) if data == "-" else nullcontext(Path(data))
    with piped as file:
        from congrad_cli.sketch.run import run

        source = ("stdin" if data == "-" else data, file)
        run([source], path, settings, fields, progress)
    _print_path(path, out)


@app.command()
def consensus(
    store: StoreArgument = None,
    method: Annotated[
        str,
        typer.Option(metavar="pcgrad|mean",
                     help="How groups are reconciled: gradient surgery, or their plain mean."),
    ] = "pcgrad",
    orders: Annotated[
        int, typer.Option(min=1, help="Random orders that pcgrad is averaged over.")
    ] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of these orders.")] = 0,
    average: Annotated[
        str,
        typer.Option(metavar="mean|ema",
                     help="Average inside a group: all pairs alike, or the paper's moving one."),
    ] = "mean",
    ema_decay: Annotated[
        float, typer.Option(min=0.0, max=0.999999, help="Decay of the moving average.")
    ] = 0.9,
    ema_batch: Annotated[
        int, typer.Option(min=1, help="Pairs per mini-batch of the moving average.")
    ] = 8,
    pair_norm: Annotated[
        str,
        typer.Option(metavar="raw|unit",
                     help="raw: gradients as they are; unit: every pair pulls equally."),
    ] = "raw",
    loss: Annotated[
        str,
        typer.Option(metavar="dpo|lp-dpo|ipo|hinge|robust", help="The loss that weighs the pairs."),
    ] = "dpo",
    beta: Annotated[float, typer.Option(min=1e-9, help="beta of the loss.")] = 0.1,
    length_penalty: Annotated[
        float, typer.Option(help="lp-dpo: alpha, per token that chosen is longer than rejected.")
    ] = 0.01,
    label_smoothing: Annotated[
        float, typer.Option(min=0.0, max=0.499999, help="robust: share of wrong labels assumed.")
    ] = 0.1,
    name: Annotated[str, typer.Option(help="Name of the result inside the store.")] = "default",
    quiet: Quiet = False,
) -> None:
    """Find the direction that is good for every group; print the store's path."""
    out = console.reserve_stdout()
    _one_of("--method", method, ("pcgrad", "mean"))
    _one_of("--average", average, ("mean", "ema"))
    _one_of("--pair-norm", pair_norm, ("raw", "unit"))
    _one_of("--loss", loss, ("dpo", "lp-dpo", "ipo", "hinge", "robust"))
    path = _store_from(store)
    settings = ConsensusSettings(
        method=method, orders=orders, seed=seed, average=average, ema_decay=ema_decay,
        ema_batch=ema_batch, pair_norm=pair_norm, loss=loss, beta=beta,
        length_penalty=length_penalty, label_smoothing=label_smoothing, name=name,
    )  # fmt: skip
    from congrad_cli.consensus.run import run

    summary = run(path, settings, console.TerminalProgress(quiet))
    if not quiet:
        console.show_consensus(summary, method)
    _print_path(path, out)


@app.command("filter")
def filter_pairs(
    store: StoreArgument = None,
    min_score: Annotated[
        float | None, typer.Option(help="Keep pairs with at least this score; 0 if no rule given.")
    ] = None,
    keep_ratio: Annotated[
        float | None, typer.Option(help="Keep this share of the pairs, the best ones.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Keep this many pairs, the best ones.")] = None,
    per_group: Annotated[
        bool, typer.Option("--per-group", help="Apply the rule inside each group.")
    ] = False,
    leave_one_out: Annotated[
        bool,
        typer.Option("--leave-one-out/--no-leave-one-out",
                     help="Score each pair against the consensus of the others."),
    ] = True,
    consensus_name: Annotated[
        str, typer.Option("--consensus", metavar="NAME", help="Which consensus of the store.")
    ] = "default",
    data: Annotated[
        Path | None, typer.Option(help="The data that was sketched, if it lies elsewhere now.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write kept lines here, not to stdout.")
    ] = None,
    dropped: Annotated[
        Path | None, typer.Option(help="Write the other lines here, as they were.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write one JSON object per pair here: score and reason.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Print the pairs that agree with the consensus, byte for byte."""
    out = console.reserve_stdout()
    settings = FilterSettings(
        min_score=min_score, keep_ratio=keep_ratio, keep=keep, per_group=per_group,
        leave_one_out=leave_one_out, consensus=consensus_name, data=(data,) if data else (),
        output=output, dropped=dropped, scores=scores,
    )  # fmt: skip
    from congrad_cli.filter.policy import check_rule

    check_rule(settings)
    path = _store_from(store)
    from congrad_cli.filter.run import run

    summary = run(path, settings, out, console.TerminalProgress(quiet))
    if not quiet:
        console.show_filter(summary)


@app.command()
def demo(
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    store: Annotated[
        Path | None, typer.Option("--store", "-s", help="Keep the demo's store here.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run all three steps on the bundled pairs and model, offline, and show what was dropped."""
    console.reserve_stdout()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from congrad_cli.demo import run

    console.show_demo(run(store, threads, console.TerminalProgress(quiet)))


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} {value}: pass one of {', '.join(allowed)}.")


def _store_for(data: str, store: Path | None) -> Path:
    """Where ``sketch`` writes: --store, else DATA.congrad beside the file."""
    if data == "-":
        if sys.stdin.isatty():
            raise UsageError("no data: name a file, or pipe pairs in.",
                             "congrad sketch data.jsonl --model MODEL")
        if store is None:
            raise UsageError("data from stdin needs --store DIR.",
                             "cat data.jsonl | congrad sketch - --model MODEL --store DIR")
        return store.absolute()
    if store is None and not Path(data).name:
        raise UsageError(f"'{data}' is no file of pairs.", "name a JSONL file, or - for stdin")
    return (store or Path(data).with_suffix(".congrad")).absolute()


def _store_from(store: Path | None) -> Path:
    """The store a command works on: named, or printed by the command before it in the pipe."""
    if store is not None:
        return store
    if sys.stdin.isatty():
        raise UsageError("no store: name it, or pipe its path in.",
                         "congrad sketch data.jsonl --model MODEL | congrad consensus")
    line = sys.stdin.buffer.readline().rstrip(b"\r\n")
    if not line.strip():
        raise StoreError("no store path arrived on stdin; the command before this one failed.")
    return Path(os.fsdecode(line))  # any bytes that sketch can print


def _print_path(path: Path, out: BinaryIO) -> None:
    out.write(os.fsencode(path) + b"\n")
    out.flush()


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)


def main() -> None:
    """Entry point of ``congrad`` and ``python -m congrad_cli``."""
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="congrad")
