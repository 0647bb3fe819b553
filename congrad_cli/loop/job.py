"""One run as its stages see it: the configuration, the models of its rounds, and what is done."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from congrad_cli.errors import StoreError
from congrad_cli.loop.changes import values_of
from congrad_cli.loop.digests import digest_files, digest_model
from congrad_cli.loop.items import Items
from congrad_cli.loop.opening import Models
from congrad_cli.loop.plan import EVALUATION, TRAIN, step_of
from congrad_cli.loop.seeds import seed_of
from congrad_cli.loop.settings import LoopConfig, ModelSection
from congrad_cli.loop.stage import RESULTS, Done, Stage, digest_of
from congrad_cli.progress import Progress

MODEL = "model"
"""The folder in a training's folder, and its digest's name."""


@dataclass(frozen=True)
class Job:
    """A run. ``check`` raises where it is another process' by now."""

    config: LoopConfig
    progress: Progress
    check: Callable[[], None] = lambda: None
    _initial: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.run.folder)

    def stage(self, number: int, stage: str) -> Stage:
        """A stage of a round."""
        step = step_of(number, stage)
        return Stage(step.folder(self.folder), step.name, self.check)

    def done(self, number: int, stage: str) -> Done:
        """What a stage says that must be finished before another one."""
        found = self.stage(number, stage)
        done = found.done()
        if done is None:
            raise StoreError(f"{found.folder} is not finished.",
                             f"--restart-from {found.name} makes it again")
        return done

    def items(self, number: int, stage: str, name: str = RESULTS) -> Items:
        """A file of items of a stage that is finished."""
        return Items(self.stage(number, stage).folder / name)

    def models(self, stage: Stage) -> Models:
        """What opens models for a stage."""
        return Models(self.config, stage.folder, self.progress.note)

    def seed(self, number: int, stage: str) -> int:
        """The seed of a stage of a round."""
        return seed_of(self.config.run.seed, number, stage)

    def about(self, number: int) -> ModelSection:
        """The model that writes, judges and is trained in a round; it is 0's and 1's alike."""
        if number <= 1:
            return self.config.model
        return replace(self.config.model, path=str(self.trained(number - 1)), revision=None)

    def trained(self, number: int) -> Path:
        """The folder of the model that a round makes."""
        return self.stage(number, TRAIN).folder / MODEL

    def reference(self, number: int) -> str:
        """The model that a round's training starts from, or the first one of all."""
        return self.about(number if self.config.train.reference == "previous" else 1).path

    def model_digest(self, number: int) -> str:
        """Of the model that a round starts from."""
        if number > 1:
            return self.done(number - 1, TRAIN).outputs[MODEL]
        return self.digest_of_model(self.config.model.path, self.config.model.revision)

    def digest_of_model(self, model: str, revision: str | None = None) -> str:
        """Of another model; each is read once."""
        key = f"{model}@{revision}"
        if key not in self._initial:
            self._initial[key] = digest_model(model, revision)
        return self._initial[key]

    def made_of(self, number: int, stage: str) -> dict[str, str]:
        """The inputs that every stage has: the sections it uses, the model, its template."""
        inputs = {f"[{section}]": digest_of(values)
                  for section, values in values_of(self.config, stage).items()
                  if number > 0 or not section.startswith("judge")}  # 0 is compared to nothing
        inputs["the model"] = self.model_digest(number)
        template = self.config.model.chat_template
        if template not in (None, "plain"):
            inputs["model.chat_template"] = digest_files([Path(str(template))])
        return inputs

    def output_of(self, number: int, stage: str, name: str = RESULTS) -> dict[str, str]:
        """An input that is the output of another stage."""
        step = step_of(number, stage)
        return {f"{step.name} ({name})": self.done(number, stage).outputs[name]}

    def rounds(self) -> range:
        """The rounds whose models or evaluations there may be, the initial one's first."""
        return range(self.config.run.rounds + 1)

    def last_model(self) -> Path | None:
        """The folder of the newest model that was trained."""
        for number in reversed(self.rounds()):
            if number and self.stage(number, TRAIN).done():
                return self.trained(number)
        return None

    def evaluated(self, number: int) -> Done | None:
        """What a round's evaluation says."""
        return self.stage(number, EVALUATION).done()
