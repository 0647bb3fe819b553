"""What the tests of the loop's training share: small models, specs, and a worker that is forked.

A worker started as a process imports torch and TRL for seconds; a fork of this one has them.
"""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from test_parity_trl import PLAIN, conversational
from transformers import AutoTokenizer
from zoo import build, zoo

from congrad_cli.loop import dpo, dpo_events
from congrad_cli.loop.settings import LossSection, ModelSection, TrainSection
from congrad_cli.loop.train_checkpoints import newest_complete
from congrad_cli.loop.train_spec import TrainSpec, write_spec
from congrad_cli.loop.training_pairs import write_training_pairs
from congrad_cli.progress import Silent

BASE = TrainSection(
    learning_rate=1e-2, max_steps=6, batch=4, device_batch=2, max_length=48, save_steps=2,
    warmup_ratio=0.0, schedule="constant", save_dtype="float32",
)  # fmt: skip


ROWS = [conversational(row) | {"id": index, "meta": {"a": index}} if index % 2 else
        conversational(row) | {"id": str(index), "chosen_score": None}
        for index, row in enumerate(PLAIN)]  # fmt: skip
"""Message lists, and columns of no one type beside them."""


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self, on_step: Callable[[], None] = lambda: None) -> None:
        self.said: list[tuple[Any, ...]] = []
        self._on_step = on_step

    def step(self, what: str) -> None:
        self.said.append(("step", what))
        self._on_step()

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.said.append(("start", total, done))

    def advance(self, count: int) -> None:
        self.said.append(("advance", count))

    def note(self, message: str, kind: str = "") -> None:
        self.said.append(("note", message))

    def warn(self, message: str, kind: str = "") -> None:
        self.said.append(("warn", message))

    def stopping(self) -> None:
        self.said.append(("stopping",))

    def counted(self) -> int:
        """Pairs, those that were done at the start included."""
        return sum(entry[1] if entry[0] == "advance" else entry[2]
                   for entry in self.said if entry[0] in ("advance", "start"))  # fmt: skip


def save_models(root: Path, sample_data: Path, kind: str = "llama") -> tuple[str, str]:
    """Folders of a policy and of another reference, small, with the bundled tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(sample_data / "tiny-model")
    model = build(zoo(len(tokenizer))[kind])
    for name, change in (("policy", 0.0), ("reference", 0.3)):
        perturb(model, change)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return str(root / "policy"), str(root / "reference")


@torch.no_grad()
def perturb(model: Any, change: float) -> None:
    """Add noise to all that learns, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(9)
    for weight in model.parameters():
        if weight.requires_grad:
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(change * (float(weight.std(correction=0)) or 0.1) * noise)


def make_spec(
    output: Path, model: str, reference: str | None = None, loss: LossSection | None = None,
    rows: list[dict[str, Any]] | None = None, **train: Any,
) -> TrainSpec:  # fmt: skip
    """A spec whose pairs are in a file beside ``output``."""
    pairs = output.with_name(f"{output.name}.jsonl")
    output.parent.mkdir(parents=True, exist_ok=True)
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows or PLAIN))
    return TrainSpec(
        pairs=pairs, model=model, reference=reference or model, output=output,
        train=replace(BASE, **train), loss=loss or LossSection(), about=ModelSection(path=model,
        device="cpu"), seed=3,
    )  # fmt: skip


def written(spec: TrainSpec) -> Path:
    """Write what the worker reads, as :func:`congrad_cli.loop.train.train` does."""
    spec.output.mkdir(exist_ok=True)
    rows = write_training_pairs(spec.pairs, spec.output / "pairs.jsonl")
    path = spec.output / "spec.json"
    write_spec(spec, path, rows, newest_complete(spec.output / "checkpoints"))
    return path


def prepared(spec: TrainSpec) -> Any:
    """The trainer of a spec, in this process."""
    written(spec)
    return dpo.prepare(spec)[0]


def fork_worker(spec: TrainSpec, patch: Callable[[], None] = lambda: None) -> int:
    """Run the worker in a fork where ``patch`` was called first; its wait status."""
    return os.waitpid(_fork(spec, written(spec), patch), 0)[1]


def fork_ranks(spec: TrainSpec) -> list[int]:
    """As many workers as the spec has processes, as torchrun would start them; wait statuses."""
    path = written(spec)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = str(spec.train.processes)
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port)}  # fmt: skip

    def rank_patch(rank: str) -> Callable[[], None]:
        def patch() -> None:
            AcceleratorState._reset_state(reset_partial_state=True)  # this process has been alone
            os.environ.update(common | {"RANK": rank, "LOCAL_RANK": rank})

        return patch

    children = [_fork(spec, path, rank_patch(str(rank))) for rank in range(spec.train.processes)]
    return [os.waitpid(child, 0)[1] for child in children]


def _fork(spec: TrainSpec, path: Path, patch: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        log = os.open(spec.output / "train.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            patch()
            os._exit(dpo.main(str(path)))
        finally:
            os._exit(99)
    return child


def at_step(step: int, action: Callable[[], None]) -> Callable[[], None]:
    """A patch: ``action`` is called when that step is done, before anything is saved."""

    def patch() -> None:
        before = dpo_events.Reporter.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == step:
                action()
            before(self, args, state, control, **more)

        dpo_events.Reporter.on_step_end = on_step_end  # type: ignore[method-assign]

    return patch
