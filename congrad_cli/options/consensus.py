"""Options of ``congrad consensus``."""

from typing import Annotated

import typer

from congrad_cli.options.choice import choice

Method = Annotated[
    str,
    choice("pcgrad|mean|mgda|upgrad|dualproj|cagrad|imtl-g|aligned-mtl|nash-mtl",
           help="How groups are reconciled; docs/commands.md says what each promises."),
]
Orders = Annotated[
    int, typer.Option(min=1, help="Random orders that pcgrad is averaged over.")
]
ConsensusSeed = Annotated[
    int,
    typer.Option(min=0, max=2**63 - 1, help="Seed of these orders, of clusters and of intervals."),
]
Average = Annotated[
    str,
    choice("mean|ema|trimmed|median-of-means",
           help="Average inside a group: all pairs alike, the paper's moving one, without "
                "the longest gradients, or the median of random blocks' means."),
]
Trim = Annotated[
    float,
    typer.Option(min=0.0, max=0.499999,
                 help="trimmed: the share of each group's pairs that is left out."),
]
EmaDecay = Annotated[
    float, typer.Option(min=0.0, max=0.999999, help="Decay of the moving average.")
]
EmaBatch = Annotated[
    int, typer.Option(min=1, help="Pairs per mini-batch of the moving average.")
]
PairNorm = Annotated[
    str,
    choice("raw|unit|clip:Q",
           help="raw: gradients as they are; unit: every pair pulls equally; clip:Q: none "
                "is longer than the Q-quantile of all lengths."),
]
NormalizeGroups = Annotated[
    str,
    choice("none|unit",
           help="unit: each group's gradient is divided by its length first."),
]
Weights = Annotated[
    str,
    choice("uniform|size|FILE",
           help="Each group's gradient is multiplied by this first: 1, its number of pairs, "
                "or a JSON object's number for it (1 where it names none)."),
]
Groups = Annotated[
    str,
    typer.Option(metavar="data|cluster:K",
                 help="What is averaged over: the data's groups, or K clusters of the pairs' own "
                      "gradients."),
]
MergeGroups = Annotated[
    float,
    typer.Option(metavar="COS", min=0.0, max=1.0,
                 help="Groups whose gradients all have this cosine or more become one; 0: none."),
]
MinPairs = Annotated[
    int, typer.Option(min=1, help="Groups with fewer pairs take no part; they are still scored.")
]
RequireDescent = Annotated[
    bool,
    typer.Option("--require-descent",
                 help="Exit with code 5 if a group that takes part would get worse."),
]
Loss = Annotated[
    str,
    choice("dpo|lp-dpo|ipo|hinge|robust", help="The loss that weighs the pairs."),
]
Beta = Annotated[float, typer.Option(min=1e-9, help="beta of the loss.")]
LengthPenalty = Annotated[
    float, typer.Option(help="lp-dpo: alpha, per token that chosen is longer than rejected.")
]
LabelSmoothing = Annotated[
    float, typer.Option(min=0.0, max=0.499999, help="robust: share of wrong labels assumed.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout instead of the store's path.")
]
Name = Annotated[str, typer.Option(help="Name of the result inside the store.")]
