"""bergson's gradient collector on preference pairs; no script, ``cost.py --bergson`` and
``peers.py`` use it.

bergson knows no pairs: each one becomes two rows with the prompt's labels masked, weighed by an
``advantage`` of +1 and -1, and the two rows of a pair are added at the end. Measured with 2.5.1,
which runs on a CPU where torchvision and torchaudio are not installed.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from bergson.collector import collector as engine
from bergson.collector.in_memory_collector import InMemoryCollector
from bergson.config import IndexConfig
from bergson.data import allocate_batches
from bergson.gradients import GradientProcessor
from datasets import Dataset

from congrad_cli.sketch.tokens import TokenizedPair

SIDE = 16


@cache  # kept: it holds the projections
def _processor(side: int, seed: int | None) -> GradientProcessor:
    return GradientProcessor(projection_dim=side, projection_seed=seed)


def rows_of(pairs: list[TokenizedPair]) -> Dataset:
    """Two rows a pair, chosen before rejected."""
    rows = [
        {
            "input_ids": pair.prompt + answer,
            "labels": [-100] * len(pair.prompt) + answer,
            "length": len(pair.prompt) + len(answer),
            "advantage": sign,
        }
        for pair in pairs
        for answer, sign in ((pair.chosen, 1.0), (pair.rejected, -1.0))
    ]
    return Dataset.from_list(rows)


@contextmanager
def collector(
    model: Any, pairs: list[TokenizedPair], budget: int, side: int = SIDE, seed: int | None = None
) -> Iterator[Callable[[], torch.Tensor]]:
    """Gives the work of sketching the pairs: [n, layers * side * side]."""
    logging.disable(logging.INFO)
    engine.tqdm = lambda batches, **_: batches
    data = rows_of(pairs)
    batches = allocate_batches(data["length"], budget)
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)  # as bergson does: gradients must flow
    with tempfile.TemporaryDirectory() as folder:
        config = IndexConfig(run_path=f"{folder}/run", projection_dim=side)
        config.partial_run_path.mkdir(parents=True)

        def work() -> torch.Tensor:
            taker = InMemoryCollector(
                model=model.base_model, processor=_processor(side, seed), data=data, cfg=config
            )
            computer = engine.CollectorComputer(
                model, data, collector=taker, batches=batches, cfg=config
            )
            computer.run_with_collector_hooks()
            rows = torch.cat(list(taker.gradients.values()), dim=1)
            return rows.view(len(pairs), 2, -1).sum(1)

        yield work
    model.requires_grad_(False)
    logging.disable(logging.NOTSET)
