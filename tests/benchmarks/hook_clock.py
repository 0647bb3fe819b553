"""CPU time of the sketch inside the pass it belongs to; no script, ``cost.py`` uses it.

Two runs minutes apart meet different machines. A hook and the layer beside it meet the same one, so
the share of a pass that its hooks take is known far better than the ratio of two passes. What it
leaves out is what the hooks do to others: cache lines lost, memory kept.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from congrad_cli.sketch.gradients import SketchCapture


class HookClock:
    """Adds up process CPU-seconds inside hooks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def _wrap(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.process_time()
            try:
                return hook(*arguments, **named)
            finally:
                self.seconds += time.process_time() - begin

        return timed

    @contextmanager
    def watch(self) -> Iterator[None]:
        """What the sketch does inside a pass is timed: hearing of uses, and its hooks."""
        places = [(SketchCapture, "used"), (torch.Tensor, "register_hook")]
        before = [getattr(owner, name) for owner, name in places]
        SketchCapture.used = self._wrap(before[0])
        torch.Tensor.register_hook = lambda tensor, hook: before[1](tensor, self._wrap(hook))
        try:
            yield
        finally:
            for (owner, name), original in zip(places, before, strict=True):
                setattr(owner, name, original)
