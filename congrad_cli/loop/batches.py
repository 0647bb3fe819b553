"""Rows in batches that memory allows."""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from congrad_cli.errors import ResourceError, out_of_memory
from congrad_cli.loop.loading import KEYS

Row = TypeVar("Row")
Result = TypeVar("Result")


class Batches:
    """Cuts rows into batches of a budget; where memory runs out, the budget is halved for good."""

    def __init__(self, budget: int, note: Callable[[str], None]) -> None:
        self._budget = budget
        self._note = note

    def work(
        self,
        rows: Sequence[Row],
        cost: Callable[[Row], int],
        do: Callable[[Sequence[Row]], Result],
    ) -> Iterator[tuple[Sequence[Row], Result]]:
        """Each batch and what ``do`` makes of it, in order.

        Rows come longest first: a batch costs its first row's cost times its rows.
        """
        while rows:
            batch = rows[: max(1, self._budget // cost(rows[0]))]
            try:
                made = do(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ResourceError(
                        "out of memory with a single text at a time.",
                        f"use a larger device, {KEYS.dtype} bfloat16, or shorter texts",
                    ) from error
            else:
                yield batch, made
                rows = rows[len(batch) :]
                continue
            release_memory()  # only here: the error holds on to the batch
            fewer = len(batch) // 2
            self._budget = cost(batch[0]) * fewer
            self._note(f"out of memory with {len(batch)} texts at a time: going on with {fewer}")


def release_memory() -> None:
    """Give back what is held for a model or a batch that is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
