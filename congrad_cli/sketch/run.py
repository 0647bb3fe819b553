"""The sketch command: read, tokenise, sketch, write. Running it again continues it."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from congrad_cli import __version__
from congrad_cli.directory import remove_store
from congrad_cli.errors import ModelError, UsageError
from congrad_cli.header import Source, StoreHeader, check_same, read_header
from congrad_cli.progress import Progress
from congrad_cli.records.rejects import write_rejects
from congrad_cli.settings import SketchSettings, fingerprint_fields
from congrad_cli.sketch import model as models
from congrad_cli.sketch import projection
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.budget import batch_tokens
from congrad_cli.sketch.coverage import measure_coverage
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.index import DataIndex, check_settings
from congrad_cli.sketch.job import Reference, SketchJob
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.pairs import TokenizedPair
from congrad_cli.sketch.source import ModelSource, find_model
from congrad_cli.sketch.start import find_start, has_start, read_start, write_start
from congrad_cli.store import GradientStore
from congrad_cli.writer import ShardWriter, create_store, write_rejected


def run(index: DataIndex, store: Path, settings: SketchSettings, progress: Progress) -> Path:
    """Sketch every pair of the indexed data into ``store``; its path once all is committed.

    Everything that can be refused is refused before the weights are loaded.
    """
    check_settings(settings)
    _tell_rejects(settings, index, index.rejected)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    source = find_model(settings.model, settings.revision, settings.adapter)
    tokenizer = models.load_tokenizer(source, settings.chat_template)
    if index.conversation:
        models.require_template(tokenizer, source, index.conversation)
    device, dtype = models.choose_place(source, settings.device, settings.dtype)
    judge = _reference(settings, index, tokenizer, progress)
    header = _header(index, store, settings, source.name, {
        "model": models.model_fingerprint(source, tokenizer),
        "dtype": str(dtype).removeprefix("torch."),
        "reference": judge and models.model_fingerprint(judge, tokenizer)["weights"],
    })  # fmt: skip
    here = (store / "store.json").exists() and not settings.overwrite
    if here:
        check_same(store, read_header(store), header)
        write_rejected(store, index.rejected)
        if _done(store, index).all():
            _tell_rejects(settings, index, GradientStore.open(store).skipped_entries())
            return store
    progress.step(f"loading {source.name} ({dtype}, {device})".replace("torch.", ""))
    model = models.load_model(source, device, dtype, settings.device_map)
    models.check_positions(model, settings.max_length)
    everything = all_layers(model, settings.adapter is not None)
    layers = choose_layers(everything, settings.layers)
    if judge:
        progress.step(f"loading the reference {judge.name}")
    reference = None if judge is None else Reference(
        models.load_model(judge, device, dtype, settings.device_map), settings.share_prompt
    )  # fmt: skip
    can_share = use_shared_rows(model)
    found = None if here and has_start(store) else find_start(model, layers, settings, can_share)
    if settings.overwrite:
        # Not before: what cannot be sketched replaces nothing.
        remove_store(store, keep=Path(index.sources[0].path))
    if found is not None:
        create_store(store, replace(header, width=found.width))
        write_rejected(store, index.rejected)
        write_start(store, found)
    start = read_start(store, layers, read_header(store).width)
    shared = settings.share_prompt and start.layout.agree
    if settings.share_prompt and not shared:
        progress.warn(start.why_apart())
    scheme = projection.Projection(settings.dim, start.width, settings.seed, start.leading)

    def tell_coverage(pairs: list[TokenizedPair]) -> None:
        progress.step(str(measure_coverage(model, everything, layers, pairs)))

    with PairSketcher(model, layers, scheme, settings.gradient_checkpointing) as sketcher:
        job = SketchJob(
            settings, sketcher, reference, tokenizer, ShardWriter(store, read_header(store)),
            index, _done(store, index), settings.batch_tokens or batch_tokens(sketcher, shared),
            progress, tell_coverage,
        )  # fmt: skip
        job.work(index.records(), shared)
    _tell_rejects(settings, index, GradientStore.open(store).skipped_entries())
    return store


def _header(
    index: DataIndex, store: Path, settings: SketchSettings, model: str, numbers: dict[str, Any]
) -> StoreHeader:
    """The store's header; ``numbers`` is what changes the sketches beside settings and data."""
    return StoreHeader(
        model=model,
        dim=settings.dim,
        width=settings.width or 1,  # the real one is known once the model is
        rows=index.rows,
        groups=index.groups,
        sources=[_placed(item, store) for item in index.sources],
        record_settings=asdict(index.fields),
        fingerprint={
            "data": index.fingerprint(),
            "model": numbers["model"],
            "settings": {
                **fingerprint_fields(settings),
                "dtype": numbers["dtype"],
                "projection": projection.VERSION,
                "reference": numbers["reference"],
            },
        },
        token_weighting=settings.token_weighting,
        optional=_optional_columns(settings, index),
        versions={
            "congrad": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def _tell_rejects(
    settings: SketchSettings, index: DataIndex, entries: Iterable[dict[str, Any]]
) -> None:
    """Write ``--rejects``, where it is asked for."""
    if settings.rejects is not None:
        write_rejects(settings.rejects, index.files, {entry["row"]: entry for entry in entries})


def _done(store: Path, index: DataIndex) -> NDArray[np.bool_]:
    """Which rows need no work: they are in a shard, or known to have no sketch."""
    existing = GradientStore.open(store)
    done = np.zeros(index.rows, bool)
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
    theirs = models.load_tokenizer(judge, None)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"--reference {judge.name} has another vocabulary than {settings.model}.",
            "a reference must read the same tokens: the model before training, or its base",
        )
    return judge


def _optional_columns(settings: SketchSettings, index: DataIndex) -> list[str]:
    columns = [] if settings.token_weighting == "sum" else ["weighted_logp"]
    if settings.reference is not None or index.ref_logp is not None:
        columns.append("ref_logp")
    return columns
