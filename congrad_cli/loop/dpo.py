"""The training's process: ``python -m congrad_cli.loop.dpo SPEC.json``, alone or under a launcher.

:mod:`congrad_cli.loop.train` writes the file, starts this and listens.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PrinterCallback
from trl import DPOTrainer

from congrad_cli.errors import CongradError, UsageError, out_of_memory
from congrad_cli.loop import dpo_model
from congrad_cli.loop.dpo_events import Reporter, Stop, tell
from congrad_cli.loop.dpo_trainer import arguments, build_trainer, load_pairs
from congrad_cli.loop.train_process import TERMINATED
from congrad_cli.loop.train_spec import TrainSpec, read_spec

LOST = 0.3
"""A larger share of what was learned, lost in rounding, is worth a warning."""


def main(path: str) -> int:
    """Train what the file says; errors are told as events. Returns the exit code."""
    stop = Stop()
    stop.install()
    try:
        spec, rows, resume = read_spec(Path(path))
        if spec.about.threads is not None:
            torch.set_num_threads(spec.about.threads)
        return _run(spec, rows, resume, stop)
    except CongradError as error:
        _tell_error(type(error).__name__, error.message, error.hints)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        if out_of_memory(error):
            _tell_error("ResourceError", "memory ran out while training.", CURES)
        elif "No space left" in str(error):
            _tell_error("ResourceError", "no space is left for the training's files.", (ROOM,))
        else:
            first = (str(error).strip().splitlines() or [""])[0]
            _tell_error(None, f"{type(error).__name__}: {first[:300]}", ())
        return 1


CURES = (
    "lower train.device_batch or train.max_length, or set train.gradient_checkpointing = true",
    "with train.lora_rank = 16 only small adapters are trained",
)

ROOM = "free some, or train adapters: of all weights two checkpoints take 24 bytes a weight"


def _tell_error(kind: str | None, message: str, hints: tuple[str, ...]) -> None:
    tell("error", kind=kind, message=message, hints=list(hints))


def _run(spec: TrainSpec, rows: int, resume: Path | None, stop: Stop) -> int:
    main_process = PartialState(cpu=_on_cpu(spec)).is_main_process
    _check_processes(spec)
    if main_process:
        tell("step", what="loading the model to train")
    trainer, tokenizer = prepare(spec)
    left_out = rows - len(trainer.train_dataset)
    if main_process and left_out:
        tell("warn", message=f"{left_out:,} of {rows:,} pairs are not trained on: their prompts "
             f"have {spec.train.max_length:,} tokens or more")  # fmt: skip
    shown = _pairs_shown(spec, len(trainer.train_dataset))
    trainer.remove_callback(PrinterCallback)  # the log is for what else is said
    trainer.add_callback(Reporter(shown, spec.output / "metrics.jsonl", stop))
    steps(trainer, resume)
    if trainer.state.global_step < trainer.state.max_steps:
        return TERMINATED  # after a checkpoint
    stop.in_steps = False
    if main_process:
        tell("step", what="writing the trained model")
    finish(spec, trainer, tokenizer)
    return 0


def _on_cpu(spec: TrainSpec) -> bool:
    """Which GPU it is was said by what this process may see."""
    kind = spec.about.device.partition(":")[0]
    if kind not in ("auto", "cpu") and not (kind == "cuda" and torch.cuda.is_available()):
        raise UsageError(
            f"model.device = {spec.about.device}: there is none to train on.",
            'training runs on "cuda" or "cpu"',
        )
    return kind == "cpu" or not torch.cuda.is_available()


def _check_processes(spec: TrainSpec) -> None:
    """A launcher that quietly starts fewer would train on smaller batches."""
    found = PartialState().num_processes
    if found != spec.train.processes:
        raise UsageError(
            f"the launcher started {found} processes, not {spec.train.processes} as "
            "train.processes says.",
            'set that to what the launcher starts, or train.launcher = "torchrun"',
        )


def prepare(spec: TrainSpec) -> tuple[DPOTrainer, Any]:
    """The trainer, ready to step, and the tokenizer."""
    cpu = _on_cpu(spec)
    args = arguments(spec, cpu)  # before any model: DeepSpeed shards while models are loaded
    pairs = load_pairs(spec.output / "pairs.jsonl", spec.output / "cache")
    tokenizer = dpo_model.load_tokenizer(spec, pairs)
    dtype = dpo_model.training_dtype(spec, cpu)
    model = dpo_model.load_model(dpo_model.policy_source(spec), dtype)
    reference = None
    if needs_reference_model(spec):
        reference = dpo_model.load_model(dpo_model.reference_source(spec), dtype)
    return build_trainer(spec, args, pairs, model, tokenizer, reference), tokenizer


def needs_reference_model(spec: TrainSpec) -> bool:
    """Whether a second model is to be loaded. TRL would take it from wherever the first came.

    Not where the model is its own reference and can still say so: before its first step, or with
    its adapter off. FSDP cannot run it before the first step.
    """
    if not spec.is_own_reference:
        return True
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    return spec.train.lora_rank == 0 and (not spec.train.precompute_reference or sharded)


def _pairs_shown(spec: TrainSpec, pairs: int) -> int:
    """How many pairs the training sees, repetitions counted."""
    if spec.train.max_steps > 0:
        return spec.train.max_steps * spec.train.batch
    return round(pairs * spec.train.epochs)


def steps(trainer: DPOTrainer, resume: Path | None) -> None:
    """All optimiser steps that are still to be done."""
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))


def finish(spec: TrainSpec, trainer: DPOTrainer, tokenizer: Any) -> None:
    """Write the model folder; adapters are merged into the weights they were trained on."""
    place = PartialState()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if place.is_main_process:
        model = dpo_model.load_model(dpo_model.policy_source(spec), torch.float32)
        if spec.train.lora_rank:
            adapter = spec.output / "adapter"
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(
                adapter, state_dict=state
            )
            state = dpo_model.merged_state(model, adapter)
        dtype = dpo_model.final_dtype(spec)
        lost = dpo_model.write_model(model, state, dtype, tokenizer, spec.output / "model")
        if lost > LOST:
            tell("warn", message=f"{lost:.0%} of the weights' change is lost in the precision "
                 'they are stored in; train.save_dtype = "float32" keeps all')  # fmt: skip
    place.wait_for_everyone()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
