"""The sketch command: read, tokenise, sketch, write. Running it again continues it."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from congrad_cli import __version__, checkpoint
from congrad_cli.directory import remove_store
from congrad_cli.errors import ModelError, ResourceError, StoreError, UsageError
from congrad_cli.header import OTHER_STORE, StoreHeader, check_same, read_header
from congrad_cli.locks import RankLock, live_ranks, remove_leftovers
from congrad_cli.model_source import ModelSource, find_model
from congrad_cli.progress import Progress
from congrad_cli.records.damage import BROKEN, DamageLimit
from congrad_cli.records.record import DataFile
from congrad_cli.settings import RecordSettings, SketchSettings, fingerprint_fields
from congrad_cli.sketch import model as models
from congrad_cli.sketch import projection
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.budget import batch_tokens
from congrad_cli.sketch.coverage import measure_coverage
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.index import (
    DataIndex,
    check_settings,
    index_data,
    optional_columns,
    tell_rejects,
)
from congrad_cli.sketch.job import Reference, SketchJob
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.ranks import Share, missing, wait_for_others
from congrad_cli.sketch.start import (
    find_start,
    forget_other_start,
    has_start,
    read_start,
    write_start,
)
from congrad_cli.sketch.token_report import store_bytes
from congrad_cli.sketch.tokens import TokenizedPair
from congrad_cli.store import GradientStore, open_shard, shard_files, stored_digests
from congrad_cli.store_index import NO_GROUP, Source, first_of_each, write_index
from congrad_cli.writer import ShardWriter, create_store, write_rejected

ALL = Share()


@dataclass(frozen=True)
class _Plan:
    """All that is known before the weights are loaded."""

    source: ModelSource
    judge: ModelSource | None  # the reference
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    header: StoreHeader
    share: Share

    def load(self, source: ModelSource, settings: SketchSettings, progress: Progress) -> Any:
        """The model of ``source``, on its device."""
        what = f"loading {source.name} ({self.dtype}, {self.device})"
        progress.step(what.replace("torch.", ""))
        return models.load_model(source, self.device, self.dtype, settings.device_map)


def run(
    index: DataIndex,
    store: Path,
    settings: SketchSettings,
    progress: Progress,
    share: Share = ALL,
) -> bool:
    """Sketch this process' share of the indexed data into ``store``; whether all of it is there.

    Everything that can be refused is refused before the weights are loaded. What is committed
    stays, whatever happens.
    """
    check_settings(settings)
    tell_rejects(settings, index, index.rejected, final=False)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    plan = _plan(index, settings, progress, share)
    with _told(index, store, settings, progress):
        with _writing(store, share) as lock:
            if settings.overwrite and len(live_ranks(store)) > 1:
                raise StoreError(f"{store} is being written by other ranks.", "stop them first")
            here = _goes_on(store, settings)
            if here:
                check_same(store, read_header(store), plan.header)
                _note_data(index, store, progress)
            if not here or not _done(store, index)[share.rows(index.rows)].all():
                _sketch(index, store, settings, progress, plan, lock)
        if share.waits and share.rank == 0:
            progress.step("waiting for the other ranks")
            wait_for_others(store)
    left = missing(store)
    if left:
        progress.note(f"{left:,} of {index.rows:,} pairs are still to come, from other ranks")
    tell_rejects(settings, index, GradientStore.open(store).skipped_entries().values())
    return not left


def run_files(
    files: Sequence[DataFile],
    fields: RecordSettings,
    store: Path,
    settings: SketchSettings,
    progress: Progress,
) -> None:
    """Read the files and sketch all their pairs into ``store``."""
    damage = DamageLimit(settings.bad_records == "stop", settings.max_bad)
    run(index_data(files, fields, damage, progress), store, settings, progress)


@contextmanager
def _writing(store: Path, share: Share) -> Iterator[RankLock]:
    """The right to write as this rank. Folders that nothing came into go again."""
    try:
        with RankLock(store, share.rank, share.world) as lock:
            remove_leftovers(store)
            yield lock
    finally:
        for folder in (store / "locks", store):
            with suppress(OSError):  # something is in it
                folder.rmdir()


@contextmanager
def _told(
    index: DataIndex, store: Path, settings: SketchSettings, progress: Progress
) -> Iterator[None]:
    """Say how much is safe where the run is stopped, and how much room it lacks."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if _is_there(store):
            there = index.rows - missing(store)
            progress.note(f"{there:,} of {index.rows:,} pairs are safe in {store}. "
                          "The same command continues.")
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        left = missing(store) if _is_there(store) else index.rows
        need = store_bytes(settings, left, optional_columns(settings, index))
        raise ResourceError(
            f"no space left for {store}: about {need / 1e6:,.1f} MB more are needed.",
            f"{index.rows - left:,} of {index.rows:,} pairs are safe; "
            "free space and run the same command",
        ) from error


def _is_there(store: Path) -> bool:
    return all((store / name).exists() for name in ("store.json", "index.safetensors"))


def _note_data(index: DataIndex, store: Path, progress: Progress) -> None:
    """Make the data the store's own, once nothing refuses it: what is refused changes nothing.

    It must have a pair in common with a store that has some, and what earlier runs left out of it
    counts against ``--max-bad``, too.
    """
    header = read_header(store)
    shards = [open_shard(file, header) for file in shard_files(store)]
    there = GradientStore(store, header, index.stored, shards)  # by the index that is to come
    stored = len(stored_digests(shards))
    if stored and not len(there):
        raise StoreError(
            f"{store} was made with other data: it holds {stored:,} pairs, none of these.",
            OTHER_STORE,
        )
    index.damage.codes.update(code for code in there.skipped().values() if code in BROKEN)
    index.damage.check(index.rows)
    if stored:
        usable = int((index.group != NO_GROUP).sum())
        progress.note(f"{len(there):,} of {usable:,} pairs are in the store already")
    _write_data(index, store)


def _write_data(index: DataIndex, store: Path) -> None:
    write_index(store, replace(index.stored, sources=[
        _placed(item, store) for item in index.stored.sources]))  # fmt: skip
    write_rejected(store, index.rejected)


def _goes_on(store: Path, settings: SketchSettings) -> bool:
    """Whether a store is there that is to be continued."""
    return (store / "store.json").exists() and not settings.overwrite


def _plan(
    index: DataIndex, settings: SketchSettings, progress: Progress, share: Share
) -> _Plan:
    source = find_model(settings.model, settings.revision, settings.adapter)
    tokenizer = checkpoint.load_tokenizer(source, settings.chat_template)
    if index.conversation:
        checkpoint.require_template(tokenizer, source, index.conversation)
    device, dtype = checkpoint.choose_place(source, settings.device, settings.dtype)
    judge = _reference(settings, index, tokenizer, progress)
    header = _header(index, settings, source.name, {
        "model": models.model_fingerprint(source, tokenizer),
        "dtype": str(dtype).removeprefix("torch."),
        "reference": judge and models.model_fingerprint(judge, tokenizer)["weights"],
    })  # fmt: skip
    return _Plan(source, judge, tokenizer, device, dtype, header, share)


def _sketch(
    index: DataIndex,
    store: Path,
    settings: SketchSettings,
    progress: Progress,
    plan: _Plan,
    lock: RankLock,
) -> None:
    """Load the model, make or continue the store, and sketch what is missing."""
    model = plan.load(plan.source, settings, progress)
    models.check_positions(model, settings.max_length)
    everything = all_layers(model, settings.adapter is not None)
    layers = choose_layers(everything, settings.layers)
    reference = None if plan.judge is None else Reference(
        plan.load(plan.judge, settings, progress), settings.share_prompt
    )  # fmt: skip
    can_share = use_shared_rows(model)
    if not _goes_on(store, settings):
        forget_other_start(store, plan.header.fingerprint)
    keeps = has_start(store) and not settings.overwrite
    found = None if keeps else find_start(model, layers, settings, can_share)
    if settings.overwrite:
        # Not before: what cannot be sketched replaces nothing.
        remove_store(store, keep=[file.path for file in index.files])
    if found is not None:
        store.mkdir(parents=True, exist_ok=True)
        write_start(store, found, plan.header.fingerprint)
    start = read_start(store, layers)
    if not (store / "store.json").exists():
        _write_data(index, store)  # first: whoever finds the store finds its index
        create_store(store, replace(plan.header, width=start.width))
        _note_data(index, store, progress)
    shared = settings.share_prompt and start.layout.agree
    if settings.share_prompt and not shared:
        progress.warn(start.why_apart())
    scheme = projection.Projection(settings.dim, start.width, settings.seed, start.leading)

    def tell_coverage(pairs: list[TokenizedPair]) -> None:
        progress.note(str(measure_coverage(model, everything, layers, pairs)))

    with PairSketcher(model, layers, scheme, settings.gradient_checkpointing) as sketcher:
        job = SketchJob(
            settings, sketcher, reference, plan.tokenizer,
            ShardWriter(store, read_header(store), plan.share.rank, lock.check), index, plan.share,
            _done(store, index), settings.batch_tokens or batch_tokens(sketcher, shared),
            progress, tell_coverage,
        )  # fmt: skip
        job.work(index.records(), shared)


def _header(
    index: DataIndex, settings: SketchSettings, model: str, numbers: dict[str, Any]
) -> StoreHeader:
    """The store's header; ``numbers`` is what changes the sketches beside the settings."""
    optional = optional_columns(settings, index)
    return StoreHeader(
        model=model,
        dim=settings.dim,
        width=settings.width or 1,  # the real one is known once the model is
        fingerprint={
            "model": numbers["model"],
            "settings": {
                **fingerprint_fields(settings),
                "dtype": numbers["dtype"],
                "projection": projection.VERSION,
                "reference": numbers["reference"],
                "columns": optional,
            },
        },
        token_weighting=settings.token_weighting,
        optional=optional,
        versions={
            "congrad": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def _done(store: Path, index: DataIndex) -> NDArray[np.bool_]:
    """Which rows need no work, [N]: their pair is stored, has no sketch, or comes before them."""
    existing = GradientStore.open(store)
    done = ~first_of_each(index.digest)
    done[existing.row] = True
    done[list(existing.skipped())] = True
    return done


def _placed(source: Source, store: Path) -> Source:
    """A source inside the store is named from there, so that the store may move."""
    path = Path(source.path)
    inside = path.is_relative_to(store.resolve())
    return replace(source, path=str(path.relative_to(store.resolve()))) if inside else source


def _reference(
    settings: SketchSettings, index: DataIndex, tokenizer: Any, progress: Progress
) -> ModelSource | None:
    """The model that gives reference log-probabilities; None where the data does, or nothing."""
    if settings.reference is None:
        if index.ref_logp is not None and settings.token_weighting.startswith("ld:"):
            raise UsageError(
                "the data's reference log-probabilities are sums over whole answers, which "
                f"--token-weighting {settings.token_weighting} cannot use.",
                "pass --reference MODEL",
            )
        return None
    if index.ref_logp is not None:
        progress.warn("--reference is used; the data's own reference log-probabilities are not")
    judge = find_model(settings.reference)
    theirs = checkpoint.load_tokenizer(judge, None)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"--reference {judge.name} has another vocabulary than {settings.model}.",
            "a reference must read the same tokens: the model before training, or its base",
        )
    return judge
