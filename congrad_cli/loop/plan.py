"""The stages of a run: their names, order and folders, and what of them is there."""

import difflib
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from congrad_cli.errors import UsageError
from congrad_cli.loop.settings import LoopConfig
from congrad_cli.loop.stage import Stage

PROMPTS, CANDIDATES, JUDGEMENTS, PAIRS = "prompts", "candidates", "judgements", "pairs"
SKETCH, CONSENSUS, FILTER, TRAIN, EVALUATION = (
    "sketch", "consensus", "filter", "train", "evaluation")  # fmt: skip
STAGES = (PROMPTS, CANDIDATES, JUDGEMENTS, PAIRS, SKETCH, CONSENSUS, FILTER, TRAIN, EVALUATION)
"""The stages of a round in their order; the folder of the first is ``01-prompts``."""

GONE = ".gone"
"""The ending of a step's folder that is being removed."""


@dataclass(frozen=True, order=True, slots=True)
class Step:
    """A stage of a round; round 0 has an evaluation of the initial model alone."""

    number: int
    place: int  # in STAGES

    @property
    def stage(self) -> str:
        """Its stage's name."""
        return STAGES[self.place]

    @property
    def name(self) -> str:
        """What the user calls it: ``1/candidates``."""
        return f"{self.number}/{self.stage}"

    def folder(self, run: Path) -> Path:
        """Where it lies in a run."""
        return run / f"round-{self.number}" / f"{self.place + 1:02d}-{self.stage}"


def step_of(number: int, stage: str) -> Step:
    """The step of a round by its stage's name."""
    return Step(number, STAGES.index(stage))


def steps(config: LoopConfig) -> list[Step]:
    """All steps of a run in the order in which they are made."""
    evaluates = any((config.evaluate.prompts, config.evaluate.pairs, config.evaluate.text))
    result = [step_of(0, EVALUATION)] if evaluates else []
    for number in range(1, config.run.rounds + 1):
        for stage in STAGES:
            filters = stage in (SKETCH, CONSENSUS, FILTER)
            if (config.filter.enabled or not filters) and (evaluates or stage != EVALUATION):
                result.append(step_of(number, stage))
    return result


def find_step(
    text: str, option: str, config: LoopConfig, there: Collection[Step] = ()
) -> Step:
    """The step that ``ROUND/STAGE`` names; the stage may have its number in front.

    It must be a step of this configuration, or one of those that are ``there``.
    """
    match = re.fullmatch(r"(\d{1,6})/(?:\d\d-)?([a-z]+)", text)
    if match is None:
        raise UsageError(f"{option} {text}: ROUND/STAGE is needed, such as 1/pairs.",
                         f"stages: {', '.join(STAGES)}")
    if match[2] not in STAGES:
        near = difflib.get_close_matches(match[2], STAGES, 1)
        raise UsageError(f"{option} {text}: there is no stage {match[2]}.",
                         *([f"did you mean {near[0]}?"] if near else []),
                         f"stages: {', '.join(STAGES)}")
    step = step_of(int(match[1]), match[2])
    if step not in steps(config) and step not in there:
        raise UsageError(f"{option} {text}: this run has no such step.",
                         f"rounds: 1 to {config.run.rounds}; round 0 is the initial model's "
                         "evaluation; [filter] and [evaluate] say which stages there are")
    return step


def after(step: Step) -> Callable[[Step], bool]:
    """What is made anew with ``step``: all that follows. Nothing is made of an evaluation."""
    if step.stage == EVALUATION:
        return lambda other: other >= step and other.stage == EVALUATION
    return lambda other: other >= step


def begun_steps(run: Path) -> Iterator[Step]:
    """The steps of which there is anything in the run's folder."""
    for folder in sorted(run.glob("round-*")):
        match = re.fullmatch(r"round-(0|[1-9]\d{0,5})", folder.name)
        if match is None:
            continue
        for place in range(len(STAGES)):
            step = Step(int(match[1]), place)
            if Stage(step.folder(run), step.name).begun():
                yield step


def forget(run: Path, step: Step) -> None:
    """Remove what a step made. It is gone at once: half a model would pass for a whole one."""
    folder = step.folder(run)
    sweep(run)
    if folder.is_dir():
        gone = folder.with_name(f".{folder.name}{GONE}")
        folder.rename(gone)
        shutil.rmtree(gone)


def sweep(run: Path) -> None:
    """Remove what a process that was killed while it forgot a step has left."""
    for folder in run.glob(f"round-*/.*{GONE}"):
        shutil.rmtree(folder)
