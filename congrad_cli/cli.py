"""The command line: options, exit codes, what goes to which stream. No numerics, no torch."""

import errno
import os
import signal
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from congrad_cli import __version__, console
from congrad_cli.commands.consensus import consensus
from congrad_cli.commands.demo import demo
from congrad_cli.commands.filter import filter_pairs
from congrad_cli.commands.loop import loop
from congrad_cli.commands.report import report
from congrad_cli.commands.show import show
from congrad_cli.commands.sketch import sketch
from congrad_cli.commands.verify import verify
from congrad_cli.errors import CongradError, out_of_memory

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


for name, command in (
    ("sketch", sketch), ("consensus", consensus), ("filter", filter_pairs), ("report", report),
    ("show", show), ("verify", verify), ("demo", demo),
):  # fmt: skip
    app.command(name)(command)
app.add_typer(loop, name="loop")


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)


def main() -> None:
    """Entry point of ``congrad`` and ``python -m congrad_cli``."""
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="congrad")
