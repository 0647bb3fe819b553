"""CPU time inside the hooks that a context sets; no script, ``cost.py`` uses it.

Two runs minutes apart meet different machines. A hook and the layer beside it meet the same one, so
the share of a pass that its hooks take is known far better than the ratio of two passes. What it
leaves out is what the hooks do to others: cache lines lost, memory kept.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
        """Hooks that are set inside are timed whenever they run."""
        places = [(torch.nn.Module, "register_forward_hook"),
                  (torch.nn.Module, "register_forward_pre_hook"),
                  (torch.Tensor, "register_hook")]
        before = [getattr(owner, name) for owner, name in places]
        for (owner, name), original in zip(places, before, strict=True):
            setattr(owner, name, self._setter(original))
        try:
            yield
        finally:
            for (owner, name), original in zip(places, before, strict=True):
                setattr(owner, name, original)

    def _setter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda owner, hook, *rest, **named: original(
            owner, self._wrap(hook), *rest, **named
        )
