"""Train one round's model: TRL's DPOTrainer in a process of its own, which may be stopped.

In ``output`` lie ``spec.json`` (what the process is told), ``train.log`` (all it printed),
``metrics.jsonl`` (a line for each optimiser step), with LoRA ``adapter/``, and at the end
``model/``, which appears whole or not at all. ``checkpoints/`` and ``cache/`` go once it is there.
"""

import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from congrad_cli.errors import ModelError, UsageError
from congrad_cli.loop.settings import TrainSection
from congrad_cli.loop.train_checkpoints import newest_complete, step_of
from congrad_cli.loop.train_process import run_worker
from congrad_cli.loop.train_spec import TrainSpec, check, identity, write_spec
from congrad_cli.loop.training_pairs import write_training_pairs
from congrad_cli.progress import Progress
from congrad_cli.tensors import replace_file

__all__ = ["TrainSpec", "require_packages", "train"]


def train(spec: TrainSpec, progress: Progress) -> Path:
    """Train and return the folder of the model: plain, whatever was trained.

    A model that is there already is returned at once, and a training that was stopped goes on
    from its newest whole checkpoint; where either was made from other pairs, models or settings,
    a :class:`UsageError` names what differs. SIGINT and SIGTERM end the training after the step
    in hand, with a checkpoint; then KeyboardInterrupt or SystemExit(143) is raised. Failures of
    the process come as :class:`ModelError`, ResourceError, InputError or NumericsError.
    """
    check(spec)
    require_packages(spec.train)
    spec.output.mkdir(parents=True, exist_ok=True)
    _claim(spec)
    model = spec.output / "model"
    if model.is_dir():
        progress.note(f"{model} is there already")
        _tidy(spec.output)
        return model
    checkpoints = spec.output / "checkpoints"
    resume = newest_complete(checkpoints)
    if resume is not None:
        progress.note(f"training goes on from step {step_of(resume):,}")
    _cut_metrics(spec.output / "metrics.jsonl", 0 if resume is None else step_of(resume))
    rows = write_training_pairs(spec.pairs, spec.output / "pairs.jsonl")
    write_spec(spec, spec.output / "spec.json", rows, resume)
    run_worker(spec, progress)
    if not model.is_dir():
        raise ModelError(
            "the training ended without a model.", f"its log: {spec.output / 'train.log'}"
        )
    _tidy(spec.output)
    return model


def require_packages(train: TrainSection) -> None:
    """Raise :class:`ModelError` where packages are missing that such a training needs."""
    needed = ["trl", "datasets", "accelerate", *(["peft"] if train.lora_rank else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"training needs packages that are not installed: {', '.join(missing)}.",
            "pip install 'congrad-cli[train]'",
        )


def _claim(spec: TrainSpec) -> None:
    """The folder belongs to one training: that of the first spec."""
    path = spec.output / "identity.json"
    wanted = identity(spec)
    if not path.exists():
        if (spec.output / "model").exists():
            raise UsageError(
                f"{spec.output / 'model'} is there, and was not made by a training in this folder.",
                "move it away, or take another folder",
            )
        replace_file(path, json.dumps(wanted, indent=1, sort_keys=True).encode())
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    if there != wanted:
        names = sorted(name for name in wanted.keys() | there.keys()
                       if wanted.get(name) != there.get(name))  # fmt: skip
        raise UsageError(
            f"{spec.output} holds a training that differs in {', '.join(names)}.",
            *_changes(names, there, wanted),
            "remove that folder to train anew, or take the former settings back",
        )


def _changes(names: list[str], there: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Old and new value of each setting; digests would tell nobody anything."""
    return [f"{name}: {there.get(name)} there, {wanted.get(name)} now"
            for name in names if "." in name or name == "seed"]  # fmt: skip


def _cut_metrics(path: Path, steps: int) -> None:
    """Leave the lines up to step ``steps``; those after it will come again.

    Nobody waits for the lines to reach the disk: what a power failure made of them is left out.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            step = json.loads(line)["step"] if line.endswith(b"\n") else math.inf
        except ValueError:
            break
        if step > steps:
            break
        kept.append(line)
    path.write_bytes(b"".join(kept))


def _tidy(output: Path) -> None:
    """Remove what only an unfinished training needs: optimiser states are large."""
    for name in ("checkpoints", "cache"):
        shutil.rmtree(output / name, ignore_errors=True)
    (output / "pairs.jsonl").unlink(missing_ok=True)
