"""What one training is told, how that is written for its process, and what tells two apart.

Without torch: the loop imports it before it knows whether there is anything to train.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from congrad_cli.errors import UsageError
from congrad_cli.loop.digests import digest_model
from congrad_cli.loop.settings import LossSection, ModelSection, TrainSection

FREE = {
    "train": ("reference", "device_batch", "gradient_checkpointing", "precompute_reference",
              "save_steps", "launcher", "processes", "accelerate_config"),
    "about": ("path", "revision", "device", "threads"),
}  # fmt: skip
"""Settings that change how a training runs, not what it learns (up to the order of sums); a
model's name and revision count through its files."""


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """One training: ``model`` learns from ``pairs``, measured against ``reference``.

    Both models are a folder, a .gguf file or a hub name; ``output`` is the training's own folder.
    """

    pairs: Path
    model: str
    reference: str
    output: Path
    train: TrainSection
    loss: LossSection
    about: ModelSection
    seed: int
    reference_revision: str | None = None  # of a reference on the hub that is not the model

    @property
    def is_own_reference(self) -> bool:
        """Whether the reference is the model as it was before training."""
        return self.reference == self.model

    @property
    def accumulation(self) -> int:
        """Batches of a device that make one optimiser step."""
        return self.train.batch // (self.train.device_batch * self.train.processes)


def check(spec: TrainSpec) -> None:
    """Raise :class:`UsageError` where the settings contradict each other."""
    train = spec.train
    together = train.device_batch * train.processes
    if train.batch < 1 or together < 1 or train.batch % together:
        raise UsageError(
            f"train.batch = {train.batch} cannot be cut into {train.processes} processes with "
            f"train.device_batch = {train.device_batch} pairs each.",
            f"make it a multiple of {together}" if together > 0 else "take 1 or more of each",
        )
    if train.launcher == "none" and train.processes != 1:
        raise UsageError(
            f"train.processes = {train.processes} needs a launcher.",
            'set train.launcher = "torchrun", or "accelerate"',
        )
    if spec.loss.beta <= 0:
        raise UsageError(f"loss.beta = {spec.loss.beta}: it must be above 0.")


def write_spec(spec: TrainSpec, path: Path, rows: int, resume: Path | None) -> None:
    """The file that the training's process reads: the spec, how many pairs, where to go on."""
    fields = asdict(spec) | {"pairs": str(spec.pairs), "output": str(spec.output)}
    content = {"spec": fields, "rows": rows, "resume": None if resume is None else str(resume)}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_spec(path: Path) -> tuple[TrainSpec, int, Path | None]:
    """What :func:`write_spec` wrote: spec, number of pairs, checkpoint to go on from."""
    content = json.loads(path.read_text(encoding="utf-8"))
    fields = content["spec"]
    spec = TrainSpec(
        pairs=Path(fields["pairs"]), model=fields["model"], reference=fields["reference"],
        output=Path(fields["output"]), train=TrainSection(**fields["train"]),
        loss=LossSection(**fields["loss"]), about=ModelSection(**fields["about"]),
        seed=fields["seed"], reference_revision=fields["reference_revision"],
    )  # fmt: skip
    resume = content["resume"]
    return spec, content["rows"], None if resume is None else Path(resume)


def identity(spec: TrainSpec) -> dict[str, Any]:
    """All that decides what comes out, flat: digests of data and models, and settings by name."""
    revision = spec.about.revision if spec.is_own_reference else spec.reference_revision
    result: dict[str, Any] = {
        "pairs": hashlib.sha256(spec.pairs.read_bytes()).hexdigest(),
        "model": digest_model(spec.model, spec.about.revision),
        "reference": digest_model(spec.reference, revision),
        "seed": spec.seed,
    }
    for section in ("train", "loss", "about"):
        values = asdict(getattr(spec, section))
        for name in values.keys() - set(FREE.get(section, ())):
            result[f"{section}.{name}"] = values[name]
    if spec.loss.name != "lp-dpo":
        del result["loss.length_penalty"]
    template = spec.about.chat_template
    if template is not None and Path(template).is_file():
        result["about.chat_template"] = hashlib.sha256(Path(template).read_bytes()).hexdigest()
    return result
