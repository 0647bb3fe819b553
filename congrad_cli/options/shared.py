"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v",
                 help="Say all of it: every note, and how long each step took."),
]
StoreArgument = Annotated[
    Path | None, typer.Argument(help="The store; without it, its path is read from the pipe.")
]
AllowPartial = Annotated[
    bool,
    typer.Option("--allow-partial",
                 help="Work on the pairs that are there, though the store is incomplete."),
]
FilterData = Annotated[
    list[str] | None,
    typer.Option(help="The data that was sketched, if it lies elsewhere now; may be repeated."),
]
