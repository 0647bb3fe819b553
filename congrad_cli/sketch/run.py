"""The sketch command: read, tokenise, sketch, write. Running it again continues it."""

from dataclasses import asdict, dataclass, replace
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
from congrad_cli.settings import SketchSettings, fingerprint_fields
from congrad_cli.sketch import model as models
from congrad_cli.sketch import projection
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.budget import batch_tokens
from congrad_cli.sketch.coverage import measure_coverage
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.index import DataIndex, check_settings, optional_columns, tell_rejects
from congrad_cli.sketch.job import BROKEN, Reference, SketchJob
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.source import ModelSource, find_model
from congrad_cli.sketch.start import find_start, has_start, read_start, write_start
from congrad_cli.sketch.tokens import TokenizedPair
from congrad_cli.store import GradientStore
from congrad_cli.writer import ShardWriter, create_store, write_rejected


@dataclass(frozen=True)
class _Plan:
    """All that is known before the weights are loaded."""

    source: ModelSource
    judge: ModelSource | None  # the reference
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    header: StoreHeader

    def load(self, source: ModelSource, settings: SketchSettings, progress: Progress) -> Any:
        """The model of ``source``, on its device."""
        what = f"loading {source.name} ({self.dtype}, {self.device})"
        progress.step(what.replace("torch.", ""))
        return models.load_model(source, self.device, self.dtype, settings.device_map)


def run(index: DataIndex, store: Path, settings: SketchSettings, progress: Progress) -> Path:
    """Sketch every pair of the indexed data into ``store``; its path once all is committed.

    Everything that can be refused is refused before the weights are loaded.
    """
    check_settings(settings)
    tell_rejects(settings, index, index.rejected, final=False)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    plan = _plan(index, store, settings, progress)
    here = _goes_on(store, settings)
    if here:
        check_same(store, read_header(store), plan.header)
        write_rejected(store, index.rejected)
        before = GradientStore.open(store).skipped().values()
        index.damage.codes.update(code for code in before if code in BROKEN)
        index.damage.check(index.rows)
    if not here or not _done(store, index).all():
        _sketch(index, store, settings, progress, plan)
    tell_rejects(settings, index, GradientStore.open(store).skipped_entries())
    return store


def _goes_on(store: Path, settings: SketchSettings) -> bool:
    """Whether a store is there that is to be continued."""
    return (store / "store.json").exists() and not settings.overwrite


def _plan(
    index: DataIndex, store: Path, settings: SketchSettings, progress: Progress
) -> _Plan:
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
    return _Plan(source, judge, tokenizer, device, dtype, header)


def _sketch(
    index: DataIndex, store: Path, settings: SketchSettings, progress: Progress, plan: _Plan
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
    keeps = _goes_on(store, settings) and has_start(store)
    found = None if keeps else find_start(model, layers, settings, can_share)
    if settings.overwrite:
        # Not before: what cannot be sketched replaces nothing.
        remove_store(store, keep=Path(index.sources[0].path))
    if found is not None:
        create_store(store, replace(plan.header, width=found.width))
        write_rejected(store, index.rejected)
        write_start(store, found)
    start = read_start(store, layers, read_header(store).width)
    shared = settings.share_prompt and start.layout.agree
    if settings.share_prompt and not shared:
        progress.warn(start.why_apart())
    scheme = projection.Projection(settings.dim, start.width, settings.seed, start.leading)

    def tell_coverage(pairs: list[TokenizedPair]) -> None:
        progress.note(str(measure_coverage(model, everything, layers, pairs)))

    with PairSketcher(model, layers, scheme, settings.gradient_checkpointing) as sketcher:
        job = SketchJob(
            settings, sketcher, reference, plan.tokenizer, ShardWriter(store, read_header(store)),
            index, _done(store, index), settings.batch_tokens or batch_tokens(sketcher, shared),
            progress, tell_coverage,
        )  # fmt: skip
        job.work(index.records(), shared)


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
        optional=optional_columns(settings, index),
        versions={
            "congrad": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


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
