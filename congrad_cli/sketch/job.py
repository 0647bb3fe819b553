"""The loop of the sketch command: windows of records -> batches -> rows in the store."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from congrad_cli.errors import NumericsError
from congrad_cli.progress import Progress
from congrad_cli.records import Record
from congrad_cli.settings import WINDOW, SketchSettings
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.forward import PairForward
from congrad_cli.sketch.gradients import BatchSketch, PairSketcher
from congrad_cli.sketch.index import DataIndex
from congrad_cli.sketch.pairs import PairBatch, TokenizedPair, batch_pairs, cut_batches, tokenize
from congrad_cli.store import SHARD_ROWS, SHARD_SECONDS, ShardWriter
from congrad_cli.tensors import Arrays

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Default token budget of a batch, by device type."""


@dataclass
class SketchJob:
    """The loop over batches: tokenise, sketch, check, write."""

    settings: SketchSettings
    sketcher: PairSketcher
    reference: "Reference | None"
    tokenizer: Any
    writer: ShardWriter
    index: DataIndex
    done: NDArray[np.bool_]  # [N]: rows that need no work
    skipped: Counter[str] = field(default_factory=Counter)  # by code, in this run

    def work(self, records: Iterator[Record], shared: bool, progress: Progress) -> None:
        """Sketch the records that are not done; what is finished is durable even on an error."""
        progress.start("sketch", len(self.done), int(self.done.sum()))
        committed = time.monotonic()
        try:
            for window in windows(records):
                pairs = self._tokenize(window, progress)
                for batch in cut_batches(pairs, self._budget(), shared):
                    # Batches are cut from whole windows, so that a resumed run cuts the same.
                    if all(self.done[pair.record.row] for pair in batch):
                        continue
                    self._append(batch, shared)
                    progress.advance(len(batch))
                    if (
                        len(self.writer) >= SHARD_ROWS
                        or time.monotonic() - committed > SHARD_SECONDS
                    ):
                        self.writer.commit()
                        committed = time.monotonic()
        finally:
            self.writer.commit()
            progress.finish()
            if self.skipped:
                codes = ", ".join(f"{code} {count:,}" for code, count in self.skipped.items())
                progress.step(f"pairs without a sketch: {codes}; the store's skipped/ has them")

    def _budget(self) -> int:
        device = self.sketcher.device.type
        return self.settings.batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"])

    def _tokenize(self, window: list[Record], progress: Progress) -> list[TokenizedPair]:
        """The window's pairs; those without a sketch are noted. Done windows are passed over."""
        if all(self.done[record.row] for record in window):
            return []
        pairs = []
        for record in window:
            result = tokenize(record, self.tokenizer, self.settings.max_length)
            if isinstance(result, TokenizedPair):
                pairs.append(result)
            elif not self.done[record.row]:
                self.writer.skip(record.row, record.source, record.line, result.code,
                                 result.message)
                progress.warn(f"{record.source}:{record.line}: skipped ({result.code}): "
                              f"{result.message}")
                progress.advance(1)
                self.skipped[result.code] += 1
        return pairs

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def _append(self, batch: list[TokenizedPair], shared: bool) -> None:
        """Sketch one batch and hand its rows to the writer."""
        result = self.sketcher.sketch(self._lay_out(batch, shared))
        arrays = self._rows(batch, result)
        if self.writer.header.optional:
            arrays |= self._optional(batch, result, shared)
        # A run with another token budget cuts other batches; rows that are there stay single.
        new = ~self.done[arrays["row"]]
        self.writer.append({name: array[new] for name, array in arrays.items()})

    def _lay_out(self, batch: list[TokenizedPair], shared: bool) -> PairBatch:
        weighting = self.settings.token_weighting
        return batch_pairs(batch, self._pad(), shared, weighting=weighting).to(
            self.sketcher.device
        )

    def _rows(self, batch: list[TokenizedPair], result: BatchSketch) -> Arrays:
        """The shard columns of one batch. Nothing that is not finite gets further."""
        norm = torch.linalg.vector_norm(result.sketch, dim=1)  # [n]
        bad = ~(norm.isfinite() & (norm > 0) & result.logp.isfinite().all(1))
        if bad.any():
            record = batch[int(bad.nonzero()[0])].record
            raise NumericsError(
                f"{record.source}:{record.line}: the gradient of this pair is zero or not finite.",
                "a half-precision model may overflow here: try --dtype float32",
                "or leave the line out; the data is then another, and is sketched anew",
            )
        rows = np.array([pair.record.row for pair in batch])
        tokens = [[len(p.prompt), len(p.chosen), len(p.rejected)] for p in batch]
        return {
            "row": rows.astype(np.int64),
            **self.writer.header.codec.encode((result.sketch / norm[:, None]).cpu().numpy()),
            "norm": norm.cpu().numpy(),
            "logp": result.logp.cpu().numpy(),
            "tokens": np.array(tokens, np.int32),
            "group": self.index.group[rows],
            "digest": self.index.digest[rows],
        }

    def _optional(self, batch: list[TokenizedPair], result: BatchSketch, shared: bool) -> Arrays:
        """Weighted and reference log-probabilities, as far as this store has them."""
        arrays: Arrays = {}
        if "weighted_logp" in self.writer.header.optional:
            arrays["weighted_logp"] = result.weighted_logp.cpu().numpy()
        if self.reference is not None:
            layout = self._lay_out(batch, shared and self.reference.shares)
            arrays["ref_logp"] = self.reference.log_probs(layout).cpu().numpy()
        elif self.index.ref_logp is not None:
            given = self.index.ref_logp[[pair.record.row for pair in batch]]
            lengths = np.array([[len(p.chosen), len(p.rejected)] for p in batch], np.float32)
            mean = self.settings.token_weighting == "mean"
            arrays["ref_logp"] = given / lengths if mean else given
        return arrays


class Reference:
    """A frozen model that gives the log-probabilities a margin is measured against."""

    def __init__(self, model: Any, share_prompt: bool) -> None:
        self._forward = PairForward(model)
        self.shares = share_prompt and use_shared_rows(model)

    def log_probs(self, batch: PairBatch) -> Tensor:
        """Of chosen and rejected with the batch's token weights, [n, 2]."""
        return self._forward.log_probs(batch)[1]


def windows(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Cut the records into windows of consecutive rows."""
    for _, window in groupby(records, key=lambda record: record.row // WINDOW):
        yield list(window)
