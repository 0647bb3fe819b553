"""The sketch command: read, tokenise, sketch, write. Running it again continues it."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from congrad_cli import __version__
from congrad_cli.errors import InputError, NumericsError, UsageError
from congrad_cli.progress import Progress
from congrad_cli.records import Record, read_records
from congrad_cli.settings import WINDOW, RecordSettings, SketchSettings, fingerprint_fields
from congrad_cli.sketch import model as models
from congrad_cli.sketch import projection
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.calibration import stored_directions
from congrad_cli.sketch.check import compare_layouts
from congrad_cli.sketch.gradients import BatchSketch, PairSketcher
from congrad_cli.sketch.pairs import TokenizedPair, batch_pairs, cut_batches, tokenize
from congrad_cli.store import (
    SHARD_ROWS,
    SHARD_SECONDS,
    GradientStore,
    ShardWriter,
    Source,
    StoreHeader,
    create_store,
)
from congrad_cli.tensors import Arrays

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Default token budget of a batch, by device type."""


@dataclass(frozen=True)
class DataIndex:
    """What the first pass over the data finds out."""

    sources: list[Source]
    groups: list[str]
    group: NDArray[np.int32]  # [N] index into groups
    digest: NDArray[np.uint8]  # [N, 16]
    conversation: str | None  # FILE:LINE of the first conversational record

    @property
    def rows(self) -> int:
        """N, the number of records."""
        return len(self.group)

    def fingerprint(self) -> str:
        """One digest of all records; file names are not in it."""
        return hashlib.sha256(self.digest.tobytes()).hexdigest()[:16]


def index_data(sources: list[tuple[str, Path]], settings: RecordSettings) -> DataIndex:
    """Validate every record and note groups and digests. Raises :class:`InputError`."""
    digests, labels = bytearray(), []
    counts = dict.fromkeys((name for name, _ in sources), 0)
    conversation = None
    for record in read_records(sources, settings):
        digests += record.digest()
        labels.append(record.group)
        counts[record.source] += 1
        if conversation is None and record.conversational:
            conversation = f"{record.source}:{record.line}"
    if not labels:
        raise InputError(f"{', '.join(counts)}: no records.", "each line holds one pair, as JSON")
    groups = sorted(set(labels))
    number = {label: index for index, label in enumerate(groups)}
    return DataIndex(
        sources=[Source(name, str(path.resolve()), counts[name]) for name, path in sources],
        groups=groups,
        group=np.array([number[label] for label in labels], np.int32),
        digest=np.frombuffer(bytes(digests), np.uint8).reshape(-1, 16),
        conversation=conversation,
    )


def run(
    sources: list[tuple[str, Path]],
    store: Path,
    settings: SketchSettings,
    fields: RecordSettings,
    progress: Progress,
) -> Path:
    """Sketch every pair of the data into ``store``; returns its path once all is committed.

    ``sources`` holds (name to show, path) of every data file. Everything that can be refused is
    refused before the weights are loaded.
    """
    if settings.dim % settings.width:
        raise UsageError(f"--dim {settings.dim} is not a multiple of --width {settings.width}.")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    source = models.find_model(settings)
    tokenizer = models.load_tokenizer(source, settings.chat_template)
    progress.step("reading the data")
    index = index_data(sources, fields)
    if index.conversation:
        models.require_template(tokenizer, source, index.conversation)
    device = models.choose_device(settings.device)
    dtype = models.choose_dtype(source, settings.dtype, device)
    header = StoreHeader(
        model=source.name,
        dim=settings.dim,
        width=settings.width,
        rows=index.rows,
        groups=index.groups,
        sources=index.sources,
        record_settings=asdict(fields),
        fingerprint={
            "data": index.fingerprint(),
            "model": models.model_fingerprint(source, tokenizer),
            "settings": {
                **fingerprint_fields(settings),
                "dtype": str(dtype).removeprefix("torch."),
                "projection": projection.VERSION,
            },
        },
        versions={
            "congrad": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
    create_store(store, header)
    existing = GradientStore.open(store)
    done = np.zeros(index.rows, bool)
    done[existing.row] = True
    done[[entry["row"] for entry in existing.skipped()]] = True
    if not done.all():
        progress.step(f"loading {source.name} ({dtype}, {device})".replace("torch.", ""))
        model = models.load_model(source, device, dtype)
        shared = settings.share_prompt and use_shared_rows(model)
        layers = models.block_linears(model)
        leading = stored_directions(store, model, layers, settings.leading)
        scheme = projection.Projection(settings.dim, settings.width, settings.seed, leading)
        with PairSketcher(model, layers, scheme) as sketcher:
            job = SketchJob(settings, sketcher, tokenizer, ShardWriter(store, header), index)
            job.work(read_records(sources, fields), done, shared, progress)
    return store


@dataclass
class SketchJob:
    """The loop over batches: tokenise, sketch, check, write."""

    settings: SketchSettings
    sketcher: PairSketcher
    tokenizer: Any
    writer: ShardWriter
    index: DataIndex

    def work(
        self, records: Iterator[Record], done: NDArray[np.bool_], shared: bool, progress: Progress
    ) -> None:
        """Sketch the records that are not done; what is finished is durable even on an error."""
        progress.start("sketch", len(done), int(done.sum()))
        committed = time.monotonic()
        checked = False
        try:
            for window in windows(records):
                pairs = self._tokenize(window, done, progress)
                if pairs and shared and not checked:
                    shared, checked = self._can_share(pairs, progress), True
                for batch in cut_batches(pairs, self._budget(), shared):
                    # Batches are cut from whole windows, so that a resumed run cuts the same.
                    if all(done[pair.record.row] for pair in batch):
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

    def _budget(self) -> int:
        device = self.sketcher.device.type
        return self.settings.batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"])

    def _tokenize(
        self, window: list[Record], done: NDArray[np.bool_], progress: Progress
    ) -> list[TokenizedPair]:
        """The window's pairs; those without a sketch are noted. Done windows are passed over."""
        if all(done[record.row] for record in window):
            return []
        pairs = []
        for record in window:
            result = tokenize(record, self.tokenizer, self.settings.max_length)
            if isinstance(result, TokenizedPair):
                pairs.append(result)
            elif not done[record.row]:
                self.writer.skip(record.row, record.source, record.line, result.code,
                                 result.message)
                progress.warn(f"{record.source}:{record.line}: skipped ({result.code}): "
                              f"{result.message}")
                progress.advance(1)
        return pairs

    def _can_share(self, pairs: list[TokenizedPair], progress: Progress) -> bool:
        check = compare_layouts(self.sketcher, pairs[:2], self._pad())
        if not check.agree:
            progress.warn(
                "this model gives other numbers for a row with a shared prompt "
                f"(difference {check.difference:.1e}, tolerance {check.tolerance:.1e}); "
                "every answer gets a row of its own instead"
            )
        return check.agree

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def _append(self, batch: list[TokenizedPair], shared: bool) -> None:
        laid_out = batch_pairs(batch, self._pad(), shared).to(self.sketcher.device)
        arrays = self._rows(batch, self.sketcher.sketch(laid_out))
        self.writer.append(arrays)

    def _rows(self, batch: list[TokenizedPair], result: BatchSketch) -> Arrays:
        """The shard columns of one batch. Nothing that is not finite gets further."""
        norm = torch.linalg.vector_norm(result.sketch, dim=1)  # [n]
        bad = ~(norm.isfinite() & (norm > 0) & result.logp.isfinite().all(1))
        if bad.any():
            record = batch[int(bad.nonzero()[0])].record
            raise NumericsError(
                f"{record.source}:{record.line}: the gradient of this pair is zero or not finite.",
                "pairs before it are safe; the same command comes back to this one",
                "a half-precision model overflows here? try --dtype float32",
            )
        rows = np.array([pair.record.row for pair in batch])
        tokens = [[len(p.prompt), len(p.chosen), len(p.rejected)] for p in batch]
        return {
            "row": rows.astype(np.int64),
            "direction": (result.sketch / norm[:, None]).half().cpu().numpy(),
            "norm": norm.cpu().numpy(),
            "logp": result.logp.cpu().numpy(),
            "tokens": np.array(tokens, np.int32),
            "group": self.index.group[rows],
            "digest": self.index.digest[rows],
        }


def windows(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Cut the records into windows of consecutive rows."""
    for _, window in groupby(records, key=lambda record: record.row // WINDOW):
        yield list(window)
