"""``congrad demo``: the tour."""

import os

from congrad_cli import console
from congrad_cli.display.demo import show_demo
from congrad_cli.display.progress import TerminalProgress
from congrad_cli.options import demo as options
from congrad_cli.options import shared


def demo(
    pairs: options.Pairs = 180,
    threads: options.DemoThreads = 1,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Run all three steps on bundled pairs and a bundled model, offline; show what was dropped."""
    console.reserve_stdout()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from congrad_cli.demo import run

    progress = TerminalProgress(quiet, verbose)
    result = run(pairs, threads, progress)
    progress.done()
    if not quiet:
        show_demo(result)
