"""Options of ``congrad filter``."""

from pathlib import Path
from typing import Annotated

import typer

from congrad_cli.options.choice import choice

RankBy = Annotated[
    str,
    choice("score|mean-score|score-and-margin|margin|margin-per-token|norm|random",
           help="What rules apply to: the score, or a baseline to compare it with."),
]
RankSeed = Annotated[
    int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of --rank-by random; 0.")
]
MinScore = Annotated[
    float | None, typer.Option(help="Keep pairs with at least this score; 0 if no rule given.")
]
KeepRatio = Annotated[
    float | None, typer.Option(help="Keep this share of the pairs, the best ones.")
]
Keep = Annotated[int | None, typer.Option(help="Keep this many pairs, the best ones.")]
PerGroup = Annotated[
    bool, typer.Option("--per-group", help="Apply the rule inside each group.")
]
KeepAtLeast = Annotated[
    int | None,
    typer.Option(help="Keep at least the best N pairs of every group, whatever the rule says.",
                 metavar="N"),
]
QuotasFile = Annotated[
    Path | None,
    typer.Option("--quotas", metavar="FILE",
                 help='Keep the best pairs by group: {"de": 500, "sw": 0.8, "*": 0.5}, in pairs '
                      "or shares below 1; * stands for all other groups."),
]
Confidence = Annotated[
    float | None,
    typer.Option(metavar="K",
                 help="Drop only pairs that are below --min-score by more than K standard errors."),
]
LeaveOneOut = Annotated[
    bool,
    typer.Option("--leave-one-out/--no-leave-one-out",
                 help="Score each pair against the consensus of the others."),
]
LeaveGroupOut = Annotated[
    bool,
    typer.Option("--leave-group-out",
                 help="Score each pair against the consensus of the other groups alone: finds "
                      "groups, or annotators, that are wrong as a whole."),
]
LeaveOutBy = Annotated[
    str | None,
    typer.Option(metavar="FIELD",
                 help="Score each pair against the consensus without all pairs whose record has "
                      "the same value in this field, such as translations of one text."),
]
Dedup = Annotated[
    float | None,
    typer.Option(metavar="COS",
                 help="Keep no pair whose gradient has at least this cosine with a better one "
                      "that is kept; the next best has its place."),
]
FilterLoss = Annotated[
    str | None,
    choice("dpo|lp-dpo|ipo|hinge|robust",
           help="Score pairs as this loss weighs them; else the consensus' own."),
]
FilterBeta = Annotated[float | None, typer.Option(min=1e-9, help="Its beta.")]
FilterLengthPenalty = Annotated[float | None, typer.Option(help="Its alpha, for lp-dpo.")]
FilterLabelSmoothing = Annotated[
    float | None, typer.Option(min=0.0, max=0.499999, help="Its share of wrong labels, for robust.")
]
WhichConsensus = Annotated[
    str,
    typer.Option("--consensus", metavar="NAME|STORE[:NAME]",
                 help="Which consensus of the store, or of another store: its pairs are compared "
                      "with a direction that was released before."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write kept lines here, not to stdout (-).")
]
Dropped = Annotated[
    Path | None, typer.Option(help="Write the other lines here, as they were.")
]
Scores = Annotated[
    Path | None, typer.Option(help="Write one JSON object per pair here: score and reason.")
]
GroupCosines = Annotated[
    bool,
    typer.Option("--group-cosines",
                 help="With --scores: each pair's cosine with every group's gradient, too."),
]
Annotate = Annotated[
    bool,
    typer.Option("--annotate",
                 help='Add "congrad": {"score": ..., "keep": ..., ...} to every record written.'),
]
SummaryFile = Annotated[
    Path | None,
    typer.Option("--summary", metavar="FILE",
                 help="Write counts, groups, gates and settings here, as one JSON object."),
]
SummaryAsJson = Annotated[
    bool, typer.Option("--json", help="With --output FILE: the summary's object on stdout.")
]
MaxDropRate = Annotated[
    float | None,
    typer.Option(metavar="R",
                 help="Exit 6, with everything written, if more than this share is dropped."),
]
MinPerGroup = Annotated[
    int | None,
    typer.Option(metavar="N",
                 help="Exit 6, with everything written, if a group keeps fewer pairs."),
]
MaxConflict = Annotated[
    float | None,
    typer.Option(metavar="R",
                 help="Exit 6, with everything written, if more than this share of the pairs of "
                      "groups pull in conflicting directions."),
]
