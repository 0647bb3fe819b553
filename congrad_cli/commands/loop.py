"""``congrad loop``: rounds from a configuration file, or one stage from files to a file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from congrad_cli import console
from congrad_cli.display.loop import show_preview, show_round
from congrad_cli.display.progress import TerminalProgress
from congrad_cli.errors import UsageError
from congrad_cli.options import loop as options
from congrad_cli.options import shared

if TYPE_CHECKING:
    from congrad_cli.loop.settings import LoopConfig

RUN = "run"
EPILOG = (
    "congrad loop CONFIG.toml runs all rounds, and continues them ('congrad loop run --help' "
    "lists its options). The other commands run one stage alone; each continues what it began. "
    "Their settings are those of the configuration: --config FILE, --set generate.candidates=8."
)


class LoopCommands(TyperGroup):
    """A first word that is no command is the configuration of ``run``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``run`` in front where no command is named."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


loop = typer.Typer(
    cls=LoopCommands,
    rich_markup_mode=None,
    no_args_is_help=True,
    subcommand_metavar="CONFIG.toml [OPTIONS] | COMMAND [ARGS]...",
    help="Rounds of generating, judging, filtering and training; or one stage alone.",
    epilog=EPILOG,
)


@loop.command(RUN)
def run_rounds(
    config: options.Config,
    changes: options.Set = None,
    until: options.Until = None,
    restart_from: options.RestartFrom = None,
    dry_run: options.LoopDryRun = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Run the rounds that CONFIG.toml describes; print the last model's folder."""
    out = console.reserve_stdout()
    from congrad_cli.loop.config import read_config

    settings = read_config(config, changes or ())
    _be_calm()
    from congrad_cli.loop.run import Request, preview, run

    progress = TerminalProgress(quiet, verbose)
    request = Request(until, restart_from)
    if dry_run:
        show_preview(preview(settings, request, progress))
        return
    model = run(settings, request, progress, (lambda _: None) if quiet else show_round)
    if model is not None:
        console.print_path(model, out)


@loop.command("generate")
def generate(
    prompts: options.Prompts,
    output: options.Output,
    model: options.LoopModel = None,
    config: options.SectionsOf = None,
    changes: options.Set = None,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Write several candidate answers to every prompt; print the file's path."""
    out = console.reserve_stdout()
    settings = _settings(config, changes, model)
    from congrad_cli.loop.alone import run_generate

    run_generate(prompts, output, settings, TerminalProgress(quiet, verbose))
    console.print_path(output, out)


@loop.command("judge")
def judge(
    candidates: options.Candidates,
    output: options.Output,
    model: options.LoopModel = None,
    config: options.SectionsOf = None,
    changes: options.Set = None,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Score every candidate; print the file's path."""
    out = console.reserve_stdout()
    settings = _settings(config, changes, model)
    from congrad_cli.loop.alone import run_judge

    run_judge(candidates, output, settings, TerminalProgress(quiet, verbose))
    console.print_path(output, out)


@loop.command("pairs")
def pairs(
    candidates: options.Candidates,
    judgements: options.Judgements,
    output: options.Output,
    config: options.SectionsOf = None,
    changes: options.Set = None,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Make pairs of the best and the worst candidates; print the file's path."""
    out = console.reserve_stdout()
    settings = _settings(config, changes, None, needs_model=False)
    from congrad_cli.loop.alone import run_pairs

    run_pairs(candidates, judgements, output, settings, TerminalProgress(quiet, verbose))
    console.print_path(output, out)


@loop.command("train")
def train(
    pairs: options.Pairs,
    output: options.OutputFolder,
    model: options.LoopModel = None,
    reference: options.TrainReference = None,
    config: options.SectionsOf = None,
    changes: options.Set = None,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Train on pairs with TRL's DPO; print the model's folder."""
    out = console.reserve_stdout()
    settings = _settings(config, changes, model)
    from congrad_cli.loop.alone import run_train

    made = run_train(pairs, reference, output, settings, TerminalProgress(quiet, verbose))
    console.print_path(made, out)


def _settings(
    file: Path | None, changes: Sequence[str] | None, model: str | None, needs_model: bool = True
) -> "LoopConfig":
    from congrad_cli.loop.alone import stage_config

    _be_calm()
    config = stage_config(file, changes or (), {"model.path": model})
    asks_server = config.judge.kind == "endpoint" or config.backend.model is not None
    if needs_model and not config.model.path and not asks_server:
        raise UsageError("--model is missing.", "or name a configuration with --config FILE")
    return config


def _be_calm() -> None:
    """No warnings of libraries, no telemetry, no bars that are not ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
