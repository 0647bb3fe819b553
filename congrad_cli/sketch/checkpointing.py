"""Gradient checkpointing: keep the inputs of the blocks, compute what is inside once more.

transformers switches its own checkpointing on in training mode only, where dropout is active.
This one wraps the blocks of a frozen model in evaluation mode.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

Replay = Callable[[], AbstractContextManager[None]]


def outer_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the module lists that lie in no other module list."""
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [block for name in outer for block in model.get_submodule(name).children()]


@contextmanager
def checkpointed(model: nn.Module, replay: Replay) -> Iterator[None]:
    """Inside, every block is checkpointed; what is computed again is so inside ``replay``."""
    blocks = outer_blocks(model)
    before = [vars(block).get("forward") for block in blocks]  # accelerate puts its own there
    for block in blocks:
        block.forward = partial(_run, block.forward, replay)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _run(forward: Callable[..., Any], replay: Replay, *args: Any, **kwargs: Any) -> Any:
    before = copy_context()  # the masks' layout among others; the backward may be another thread's

    @contextmanager
    def again() -> Iterator[None]:
        tokens = [(variable, variable.set(value)) for variable, value in before.items()]
        try:
            with replay():
                yield
        finally:
            for variable, token in tokens:
                variable.reset(token)

    return checkpoint(
        forward, *args, use_reentrant=False, preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again()), **kwargs,
    )  # fmt: skip
