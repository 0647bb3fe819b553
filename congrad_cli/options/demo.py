"""Options of ``congrad demo``."""

from typing import Annotated

import typer

Pairs = Annotated[int, typer.Option(min=18, help="How many of the bundled pairs.")]
DemoThreads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
