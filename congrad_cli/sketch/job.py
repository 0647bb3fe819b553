"""The loop of the sketch command: windows of records -> batches -> rows in the store."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from congrad_cli.errors import NumericsError, out_of_memory
from congrad_cli.progress import Progress
from congrad_cli.records.damage import BROKEN
from congrad_cli.records.record import Record
from congrad_cli.settings import SketchSettings
from congrad_cli.sketch.ahead import ahead
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.forward import PairForward
from congrad_cli.sketch.gradients import BatchSketch, PairSketcher
from congrad_cli.sketch.index import DataIndex
from congrad_cli.sketch.pairs import (
    PairBatch,
    batch_pairs,
    cut_batches,
    padded_tokens,
)
from congrad_cli.sketch.ranks import Share
from congrad_cli.sketch.stopping import Stopping
from congrad_cli.sketch.tokens import Skip, TokenizedPair, tokenize_all, windows
from congrad_cli.sketch.uses import MixedRowsError
from congrad_cli.tensors import Arrays
from congrad_cli.writer import SHARD_SECONDS, ShardWriter


@dataclass
class Window:
    """One window of the data, tokenised: pairs, and those that get no sketch."""

    pairs: list[TokenizedPair]
    skips: list[Skip]


@dataclass
class SketchJob:
    """The loop over batches: tokenise, sketch, check, write."""

    settings: SketchSettings
    sketcher: PairSketcher
    reference: "Reference | None"
    tokenizer: Any
    writer: ShardWriter
    index: DataIndex
    share: Share
    done: NDArray[np.bool_]  # [N]: rows that need no work
    budget: int  # tokens of a batch; halved where they do not fit
    progress: Progress
    on_first_window: Callable[[list[TokenizedPair]], None]
    skipped: Counter[str] = field(default_factory=Counter)  # by code, in this run
    truncated: int = 0  # pairs, in this run
    longest: int = 0  # tokens of the longest of their sequences
    committed: float = field(default_factory=time.monotonic)  # when the last shard was closed

    def work(self, records: Iterator[Record], shared: bool) -> None:
        """Sketch the records that are not done; what is finished is durable even on an error."""
        own = self.share.rows(len(self.done))
        self.progress.start("sketch", int(own.sum()), int(self.done[own].sum()))
        with Stopping(self.progress.stopping) as stopping:
            self._work_windows(records, shared, stopping)

    def _work_windows(self, records: Iterator[Record], shared: bool, stopping: Stopping) -> None:
        budget = self.budget  # batches are cut by the budget at the start, whatever happens later
        fresh = True
        try:
            for window in ahead(self._tokenized(windows(records))):
                for skip in window.skips:
                    self._skip(skip)
                if fresh and window.pairs:
                    self.on_first_window(window.pairs)
                    fresh = False
                for batch in cut_batches(window.pairs, budget, shared):
                    # Batches are cut from whole windows, so that a resumed run cuts the same.
                    new = sum(not self.done[pair.record.row] for pair in batch)
                    if not new:
                        continue
                    self._work_batch(batch, shared)
                    self.progress.advance(new)
                    self._count_truncated(batch)
                    self._commit_when_due()
                    stopping.check()
        finally:
            self.writer.commit()
            self.progress.finish()
            if self.truncated:
                self.progress.warn(self._truncation())
            if self.skipped:
                codes = ", ".join(f"{code} {count:,}" for code, count in self.skipped.items())
                self.progress.note(f"pairs without a sketch: {codes}; see the store's skipped/")

    def _count_truncated(self, batch: list[TokenizedPair]) -> None:
        for pair in batch:
            if pair.truncated and not self.done[pair.record.row]:
                self.truncated += 1
                self.longest = max(self.longest, *pair.whole_lengths)

    def _truncation(self) -> str:
        pairs, were = ("pair", "was") if self.truncated == 1 else ("pairs", "were")
        return (
            f"{self.truncated:,} {pairs} longer than {self.settings.max_length:,} tokens {were} "
            f"truncated (longest {self.longest:,}). --max-length raises the limit; "
            "--overlong skip drops them."
        )

    def _commit_when_due(self) -> None:
        if self.writer.full or time.monotonic() - self.committed > SHARD_SECONDS:
            self.writer.commit()
            self.committed = time.monotonic()

    def _tokenized(self, records: Iterator[list[Record]]) -> Iterator[Window]:
        """The windows that need work. Runs in a thread: it changes nothing of the job's state.

        Raises the :class:`BadRecord` of the first pair that must stop the run.
        """
        settings = self.settings
        for window in records:
            if not self.share.has(window[0].row) or all(self.done[item.row] for item in window):
                continue
            found = tokenize_all(window, self.tokenizer, settings.max_length, settings.overlong)
            skips = [item for item in found if isinstance(item, Skip)]
            for skip in skips:
                stops = skip.stops(settings.bad_records) and not self.done[skip.record.row]
                if skip.error is not None and stops:
                    raise skip.error
            yield Window([item for item in found if isinstance(item, TokenizedPair)], skips)

    def _skip(self, skip: Skip) -> None:
        record = skip.record
        if self.done[record.row]:
            return
        digest = self.index.digest[record.row].tobytes()
        self.writer.skip(digest, record.source, record.line, skip.code, skip.message)
        self.progress.warn(
            f"{record.source}:{record.line}: skipped ({skip.code}): {skip.message}", skip.code
        )
        self.progress.advance(1)
        self.skipped[skip.code] += 1
        if skip.code in BROKEN:
            self.index.damage.codes[skip.code] += 1
            self.index.damage.check(self.index.rows)

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def _work_batch(self, batch: list[TokenizedPair], shared: bool) -> None:
        """Sketch one batch; in pieces where it does not go in one."""
        waiting = [batch]
        while waiting:
            piece, *others = [*cut_batches(waiting.pop(0), self.budget, shared), *waiting]
            waiting = others
            found = None
            try:
                found = self._arrays(piece, shared)
            except MixedRowsError as error:
                self._one_by_one(str(error))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                self._halve(piece, shared, error)
            if found is None:  # outside the handlers: an error keeps its tensors alive
                if self.sketcher.device.type == "cuda":
                    torch.cuda.empty_cache()
                waiting.insert(0, piece)
                continue
            rows, arrays = found
            # A run with another token budget cuts other batches; rows that are there stay single.
            new = ~self.done[rows]
            self.writer.append({name: array[new] for name, array in arrays.items()})

    def _one_by_one(self, layer: str) -> None:
        self.budget = 1
        self.progress.warn(
            f"{layer} sees tokens of all pairs together: one pair at a time from here"
        )

    def _halve(self, piece: list[TokenizedPair], shared: bool, error: Exception) -> None:
        tokens = padded_tokens(piece, shared)
        if len(piece) == 1:
            raise MemoryError(
                f"one pair of {tokens:,} tokens does not fit: {str(error).splitlines()[0][:120]}"
            ) from error
        self.budget = min(self.budget, tokens) // 2
        self.progress.warn(
            f"out of memory with {tokens:,} tokens in a batch: going on with {self.budget:,}"
        )

    def _arrays(
        self, batch: list[TokenizedPair], shared: bool
    ) -> tuple[NDArray[np.int64], Arrays]:
        """The pairs of one batch that have a sketch: their rows, and the shard's columns."""
        result = self.sketcher.sketch(self._lay_out(batch, shared))
        optional = self._optional(batch, result, shared)
        fine = self._without_broken(batch, result, shared)
        rows = np.array([pair.record.row for pair in batch], np.int64)[fine]
        return rows, {
            **self._columns(batch, result, fine),
            **{name: array[fine] for name, array in optional.items()},
        }

    def _lay_out(self, batch: list[TokenizedPair], shared: bool) -> PairBatch:
        weighting = self.settings.token_weighting
        return batch_pairs(batch, self._pad(), shared, weighting=weighting).to(
            self.sketcher.device
        )

    def _without_broken(
        self, batch: list[TokenizedPair], result: BatchSketch, shared: bool
    ) -> NDArray[np.bool_]:
        """Which pairs have a finite gradient that is not zero, [n]; the others stop or are skipped.

        Nothing that is not finite gets any further.
        """
        norm = torch.linalg.vector_norm(result.sketch, dim=1)
        finite = (norm.isfinite() & result.logp.isfinite().all(1)).cpu().numpy()
        zero = finite & (norm == 0).cpu().numpy()
        skips = []
        for place in np.flatnonzero(~finite | zero).tolist():
            pair = batch[place]
            if zero[place]:
                skip = Skip(pair.record, "zero-gradient", "the gradient is zero in every layer")
            else:
                layer = self.sketcher.find_broken(self._lay_out([pair], shared))
                where = f"first in {layer}" if layer else "not found again when run alone"
                skip = Skip(pair.record, "not-finite", f"the gradient is not finite ({where})")
            if self.settings.bad_records == "stop":
                record = pair.record
                raise NumericsError(
                    f"{record.source}:{record.line}: {skip.message}.",
                    "a half-precision model may overflow here: try --dtype float32",
                    "or pass --bad-records skip: such pairs are counted and left out",
                )
            skips.append(skip)
        for skip in skips:  # now that nothing can fail any more: a batch that fails comes again
            if not self.done[skip.record.row]:
                self._skip(skip)
                self.progress.advance(-1)  # the batch counts it as well
        fine: NDArray[np.bool_] = finite & ~zero
        return fine

    def _columns(
        self, batch: list[TokenizedPair], result: BatchSketch, fine: NDArray[np.bool_]
    ) -> Arrays:
        """The columns that every shard has, of the ``fine`` pairs, [n]."""
        sketch = result.sketch.cpu()[torch.from_numpy(fine)]
        norm = torch.linalg.vector_norm(sketch, dim=1)
        pairs = [batch[place] for place in np.flatnonzero(fine)]
        rows = np.array([pair.record.row for pair in pairs], np.int64)
        tokens = [[len(p.prompt), len(p.chosen), len(p.rejected)] for p in pairs]
        return {
            **self.writer.header.codec.encode((sketch / norm[:, None]).numpy()),
            "norm": norm.numpy(),
            "logp": result.logp.cpu().numpy()[fine],
            "tokens": np.array(tokens, np.int32).reshape(-1, 3),
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
        can_share = use_shared_rows(model)  # not only to share: long rows need it too
        self.shares = share_prompt and can_share

    def log_probs(self, batch: PairBatch) -> Tensor:
        """Of chosen and rejected with the batch's token weights, [n, 2]."""
        return self._forward.log_probs(batch)[1]
