"""What a round came to: numbers of its stages by language, and what its model is worth."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from congrad_cli.loop.evaluate import table
from congrad_cli.loop.job import Job
from congrad_cli.loop.plan import (
    CANDIDATES,
    CONSENSUS,
    EVALUATION,
    FILTER,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    TRAIN,
)
from congrad_cli.tensors import replace_file

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class RoundMetrics:
    """A complete round; round 0 is the initial model."""

    number: int
    model: Path | None  # what the round made
    stages: dict[str, dict[str, Any]]  # the counts of its stages
    measured: list[dict[str, Any]]  # language, measure, value, n, seen

    def to_json(self) -> dict[str, Any]:
        """One line of ``metrics.jsonl``; it says nothing of time, so it is the same each time."""
        return {"round": self.number, "model": None if self.model is None else str(self.model),
                "stages": self.stages, "evaluation": self.measured}

    def measures(self) -> dict[str, dict[str, float]]:
        """Each measure by language; means over languages come first."""
        return table(self.measured)


def round_metrics(job: Job, number: int) -> RoundMetrics:
    """The numbers of a round whose stages are done."""
    stages = {}
    for name in (PROMPTS, CANDIDATES, JUDGEMENTS, PAIRS, CONSENSUS, FILTER):
        if done := job.stage(number, name).done():
            stages[name] = done.counts
    evaluation = job.stage(number, EVALUATION)
    rows = []
    if evaluation.done():
        for line in evaluation.results.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append({name: row[name] for name in ("language", "measure", "value", "n", "seen")})
    trained = job.stage(number, TRAIN).done()
    model = job.trained(number).relative_to(job.folder) if trained else None
    return RoundMetrics(number, model, stages, rows)


def write_metrics(job: Job) -> None:
    """Write ``metrics.jsonl`` of all rounds of which there is a model or an evaluation."""
    lines = []
    for number in job.rounds():
        if job.evaluated(number) or (number and job.stage(number, TRAIN).done()):
            text = json.dumps(round_metrics(job, number).to_json(), ensure_ascii=False)
            lines.append(text + "\n")
    replace_file(job.folder / METRICS, "".join(lines).encode())
