"""What the training's process tells and is told: progress, metrics, checkpoints, the wish to stop.

Events are lines of stdout, read by :mod:`congrad_cli.loop.train_process`. All processes of one
training stop after the same step: they ask each other.
"""

import json
import math
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from congrad_cli.errors import NumericsError
from congrad_cli.loop.train_checkpoints import mark_complete
from congrad_cli.loop.train_process import EVENT, TERMINATED, WATCHED

NOTES = 10
"""So often a training says how it goes; every step is in the metrics."""


def tell(event: str, **fields: Any) -> None:
    """Send one event. A line of its own, in one write: other processes share the pipe."""
    line = json.dumps({"event": event, **fields})
    os.write(1, b"\n" + EVENT + line.encode() + b"\n")


class Stop:
    """Whether this process was asked to stop, by a signal or through stdin.

    Before and after the steps there is nothing to save, and it ends at once. It also ends where
    whoever started it is gone: nobody would collect its work, and the next run would meet it.
    """

    def __init__(self) -> None:
        self.asked = False
        self.in_steps = False

    def install(self) -> None:
        """Begin to listen."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if os.environ.get(WATCHED):
            threading.Thread(target=self._watch, daemon=True).start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._ask()

    def _watch(self) -> None:
        while os.read(0, 1):
            self._ask()
        os._exit(TERMINATED)

    def _ask(self) -> None:
        if not self.in_steps:
            os._exit(TERMINATED)
        self.asked = True


class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Follows the trainer step by step. ``pairs`` are shown in all, over all epochs."""

    def __init__(self, pairs: int, metrics: Path, stop: Stop) -> None:
        self._pairs = pairs
        self._metrics = metrics
        self._stop = stop
        self._told = 0
        self._first: float | None = None
        self._last = math.nan
        self._speaks = PartialState().is_main_process

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Counting begins, at the checkpoint's step."""
        self._stop.in_steps = True
        self._told = self._done(state)
        if self._speaks:
            tell("start", what="training", total=self._pairs, done=self._told)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """One optimiser step is done; end here where any process was asked to."""
        done = self._done(state)
        if self._speaks:
            tell("advance", count=done - self._told)
        self._told = done
        asked = _anywhere(self._stop.asked, args.device)
        if state.global_step >= state.max_steps:
            control.should_save = False  # the model comes next; going on from here would overstep
        elif asked:
            control.should_save = control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        """One line of metrics. Raises :class:`NumericsError` where the loss is no number."""
        if logs is None or "loss" not in logs:
            return
        if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise NumericsError(
                f"the training diverged: at step {state.global_step} the loss is {logs['loss']}, "
                f"the gradient's norm {logs.get('grad_norm')}.",
                f"lower train.learning_rate, which is {args.learning_rate:g}",
            )
        self._last = logs["loss"]
        self._first = self._last if self._first is None else self._first
        if self._speaks:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
            if state.global_step % max(1, state.max_steps // NOTES) == 0:
                tell("note", message=f"step {state.global_step:,} of {state.max_steps:,}: "
                     f"loss {logs['loss']:.4f}, "
                     f"margin {logs.get('rewards/margins', math.nan):+.4f}")  # fmt: skip

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The checkpoint is whole once every process has written its part."""
        place = PartialState()
        place.wait_for_everyone()
        if place.is_main_process:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Counting ends."""
        if self._speaks:
            tell("finish")

    def _done(self, state: TrainerState) -> int:
        return round(self._pairs * int(state.global_step) / max(1, int(state.max_steps)))


def _anywhere(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set in any process: all must leave after the same step."""
    if PartialState().num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=device), "sum").item())
