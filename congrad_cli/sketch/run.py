"""The sketch command: read, tokenise, sketch, write. Running it again continues it."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import transformers

from congrad_cli import __version__
from congrad_cli.directory import remove_store
from congrad_cli.errors import UsageError
from congrad_cli.progress import Progress
from congrad_cli.records import read_records
from congrad_cli.settings import RecordSettings, SketchSettings, fingerprint_fields
from congrad_cli.sketch import model as models
from congrad_cli.sketch import projection
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.calibration import stored_directions
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.index import DataIndex, index_data
from congrad_cli.sketch.job import Reference, SketchJob
from congrad_cli.store import GradientStore, ShardWriter, Source, StoreHeader, create_store


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
    _check_settings(settings)
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
    judge = _reference(settings, index, progress)
    header = StoreHeader(
        model=source.name,
        dim=settings.dim,
        width=settings.width,
        rows=index.rows,
        groups=index.groups,
        sources=[_placed(item, store) for item in index.sources],
        record_settings=asdict(fields),
        fingerprint={
            "data": index.fingerprint(),
            "model": models.model_fingerprint(source, tokenizer),
            "settings": {
                **fingerprint_fields(settings),
                "dtype": str(dtype).removeprefix("torch."),
                "projection": projection.VERSION,
                "reference": judge and models.model_fingerprint(judge, tokenizer)["weights"],
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
    if settings.overwrite:
        # Not before: what cannot be sketched replaces nothing.
        remove_store(store, keep=sources[0][1])
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
        reference = None
        if judge:
            progress.step(f"loading the reference {judge.name}")
            reference = Reference(models.load_model(judge, device, dtype), settings.share_prompt)
        with PairSketcher(model, layers, scheme) as sketcher:
            writer = ShardWriter(store, header)
            job = SketchJob(settings, sketcher, reference, tokenizer, writer, index, done)
            job.work(read_records(sources, fields), shared, progress)
    return store


def _placed(source: Source, store: Path) -> Source:
    """A source inside the store is named from there, so that the store may move."""
    path = Path(source.path)
    inside = path.is_relative_to(store.resolve())
    return replace(source, path=str(path.relative_to(store.resolve()))) if inside else source


def _check_settings(settings: SketchSettings) -> None:
    if settings.dim % settings.width:
        raise UsageError(f"--dim {settings.dim} is not a multiple of --width {settings.width}.")
    kind, colon, share = settings.token_weighting.partition(":")
    try:
        fine = kind == "ld" and 0 <= float(share) <= 1 if colon else kind in ("sum", "mean")
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(
            f"--token-weighting {settings.token_weighting}: pass sum, mean or ld:A.",
            "A, between 0 and 1, is the weight of tokens beyond the shorter answer's length",
        )


def _reference(
    settings: SketchSettings, index: DataIndex, progress: Progress
) -> models.ModelSource | None:
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
    return models.find_model(replace(settings, model=settings.reference, revision=None))


def _optional_columns(settings: SketchSettings, index: DataIndex) -> list[str]:
    columns = [] if settings.token_weighting == "sum" else ["weighted_logp"]
    if settings.reference is not None or index.ref_logp is not None:
        columns.append("ref_logp")
    return columns
