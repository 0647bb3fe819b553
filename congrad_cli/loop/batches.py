"""Rows in batches that memory allows."""

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
                self._halve(len(batch), cost(batch[0]), error)
                continue
            yield batch, made
            rows = rows[len(batch) :]

    def _halve(self, rows: int, cost: int, error: BaseException) -> None:
        if rows == 1:
            raise ResourceError(
                "out of memory with a single text at a time.",
                f"use a larger device, {KEYS.dtype} bfloat16, or shorter texts",
            ) from error
        _free()
        self._budget = cost * (rows // 2)
        self._note(f"out of memory with {rows} texts at a time: going on with {rows // 2}")


def _free() -> None:
    """Give back what the allocator holds for blocks that are gone."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
