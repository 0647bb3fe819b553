"""Options of ``congrad verify`` and ``congrad show``."""

from typing import Annotated

import typer

Repair = Annotated[
    bool,
    typer.Option("--repair",
                 help="Move what is damaged to STORE/quarantine, for sketch to make again; "
                      "remove temporary files of killed runs."),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Headers and sizes only, not every byte and row.")
]
ReportJson = Annotated[
    bool, typer.Option("--json", help="The result as one JSON object on stdout.")
]
Compare = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="A B",
                 help="Two consensus results, NAME or STORE[:NAME]: what each would keep of the "
                      "store's pairs."),
]
Exact = Annotated[
    int | None,
    typer.Option(min=3, max=4096, metavar="K",
                 help="Compare K stored pairs with materialised gradients; needs --model."),
]
ExactSeed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the choice of K.")]
ExactModel = Annotated[
    str | None,
    typer.Option("--model", "-m", envvar="CONGRAD_MODEL", help="The model that was sketched."),
]
