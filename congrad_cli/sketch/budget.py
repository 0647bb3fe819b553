"""How many tokens a batch may hold."""

from collections.abc import Callable

import torch

from congrad_cli.errors import out_of_memory
from congrad_cli.sketch.check import probe
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.pairs import batch_pairs
from congrad_cli.sketch.uses import MixedRowsError

CPU_TOKENS = 2048
"""On a CPU more gains nothing: the products are large enough, and caches are not."""

LEAST, MOST = 1024, 65536
SHARE = 0.8
"""Of the device's free memory: batches differ, and allocators leave gaps."""

ROWS = (2, 8)
"""The probe runs with so many rows."""


def batch_tokens(sketcher: PairSketcher, shared: bool) -> int:
    """The budget for this model on its device: measured on CUDA, fixed elsewhere."""
    device = sketcher.device
    if device.type != "cuda":
        return CPU_TOKENS
    pair = probe(sketcher.vocabulary)

    def peak(rows: int) -> int:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        sketcher.sketch(batch_pairs([pair] * rows, 0, shared).to(device))
        return torch.cuda.max_memory_allocated(device) - before

    try:
        peak(ROWS[0])  # the first run also pays for what stays: projections, workspaces
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
        return fit_tokens(peak, pair.length if shared else 2 * pair.length, free)
    except MixedRowsError:
        return LEAST  # the job finds it too, and goes on one pair at a time
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return LEAST


def fit_tokens(peak: Callable[[int], int], tokens: int, free: int) -> int:
    """The largest power of two of tokens that fits into ``SHARE`` of ``free`` bytes.

    ``peak(rows)`` is the memory of a batch of rows with ``tokens`` tokens each, a line in the
    number of rows.
    """
    few, many = (peak(rows) for rows in ROWS)
    slope = max((many - few) / (ROWS[1] - ROWS[0]) / tokens, 1.0)  # bytes a token
    fixed = max(few - ROWS[0] * tokens * slope, 0.0)
    fitting = (SHARE * free - fixed) / slope
    budget = LEAST
    while budget * 2 <= min(fitting, MOST):
        budget *= 2
    return budget
