"""Options of ``congrad loop``."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG.toml", help="What to run; docs/loop.md lists its keys.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE",
                 help="Another value for a key, as TOML writes it; text needs no quotes. Again "
                      "for each key; run=DIR is short for run.folder=DIR."),
]
Until = Annotated[
    str | None, typer.Option(metavar="ROUND/STAGE", help="Stop after this step, such as 1/pairs.")
]
RestartFrom = Annotated[
    str | None,
    typer.Option(metavar="ROUND/STAGE",
                 help="Remove this step and all that follow it, and make them again."),
]
LoopDryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would run and what is done; load no model."),
]
Prompts = Annotated[
    list[str],
    typer.Argument(help="Files of prompts (JSONL and the like), globs, or a path with {lang}."),
]
Candidates = Annotated[Path, typer.Argument(help="A file that 'loop generate' wrote.")]
Judgements = Annotated[Path, typer.Argument(help="The file that 'loop judge' made of it.")]
Pairs = Annotated[Path, typer.Argument(help="Preference pairs: lines of JSON as TRL reads them.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write; it must be new.")]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", help="The training's folder; the model is in model/.")
]
LoopModel = Annotated[
    str | None,
    typer.Option("--model", "-m", envvar="CONGRAD_MODEL",
                 help="A folder, a .gguf file, or a name on the Hugging Face hub."),
]
TrainReference = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="What the loss measures from; else --model itself."),
]
SectionsOf = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Take the sections of this configuration."),
]
