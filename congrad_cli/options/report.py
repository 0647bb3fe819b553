"""Options of ``congrad report``."""

from pathlib import Path
from typing import Annotated

import typer

Place = Annotated[
    Path | None,
    typer.Argument(metavar="STORE|RUN",
                   help="A store with a consensus, or the folder of a run of congrad loop; without "
                        "it, a store's path is read from the pipe."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")]
Summary = Annotated[
    Path | None,
    typer.Option(metavar="FILE",
                 help="Show what the filter decided that wrote this summary, by its options."),
]
Examples = Annotated[
    int,
    typer.Option(min=0, max=100,
                 help="Pairs shown of each kind; 0: no text of the data is in the report."),
]
