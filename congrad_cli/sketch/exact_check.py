"""Stored pairs against their materialised gradients: the records are read and run once more.

Nothing of the fast path is used but the model and the tokens. Gradients are materialised for a few
layers at a time, of all K pairs, and only their products [K, K] are kept: memory is ``CHUNK_BYTES``
(or K gradients of the largest layer, where that is more), and the time K passes a chunk.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from congrad_cli import checkpoint
from congrad_cli.errors import ModelError, StoreError
from congrad_cli.exactness import Agreement, Measured, compare_measured, stored_pairs
from congrad_cli.header import StoreHeader, check_same
from congrad_cli.model_source import ModelSource, find_model
from congrad_cli.progress import Progress
from congrad_cli.records.files import find_files
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import DataFile, Record
from congrad_cli.sketch import model as models
from congrad_cli.sketch.exact import exact_gradient
from congrad_cli.sketch.layers import Layer, all_layers, choose_layers
from congrad_cli.sketch.tokens import Skip, TokenizedPair, tokenize_all
from congrad_cli.store import GradientStore
from congrad_cli.store_index import first_of_each

CHUNK_BYTES = 1 << 30
COLUMNS = 1 << 20
"""So many numbers of the gradients are multiplied at a time, in float64."""
LEAST_PAIRS = 3

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExactSettings:
    """Options of ``verify --exact``; the others are the store's own."""

    pairs: int
    model: str
    revision: str | None = None
    adapter: str | None = None
    chat_template: str | None = None
    device: str = "auto"
    data: tuple[str, ...] = ()  # where the data is; empty: where it was
    seed: int = 0
    threads: int | None = None


def compare(path: Path, settings: ExactSettings, progress: Progress) -> Agreement:
    """Compare pairs of the store at ``path`` with gradients that the model gives them now.

    Raises :class:`StoreError` where it is another model, or other data.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    store = GradientStore.open(path)
    source = find_model(settings.model, settings.revision, settings.adapter)
    tokenizer = checkpoint.load_tokenizer(source, settings.chat_template)
    _check_model(store, source, tokenizer)
    places = choose_places(store, settings.pairs, settings.seed)
    pairs = _read_pairs(store, places, settings, tokenizer)
    how = _how(store.header)
    device = checkpoint.choose_device(settings.device)
    progress.step(f"loading {source.name} ({how.dtype}, {device})")
    model = models.load_model(source, device, checkpoint.DTYPES[how.dtype])
    layers = choose_layers(all_layers(model, settings.adapter is not None), how.layers)
    exact = materialise(model, layers, pairs, how.token_weighting, progress)
    stored = stored_pairs(
        store.directions(places).astype(np.float64), store.column("norm")[places].astype(float),
        store.column("logp")[places].astype(float), store.header.codec,
    )
    names = [f"{pair.record.source}:{pair.record.line}" for pair in pairs]
    return compare_measured(stored, exact, store.header.store_dtype, how.dtype != "float32", names)


@dataclass(frozen=True, slots=True)
class _How:
    """How the store's gradients were made: settings from its fingerprint."""

    max_length: int
    layers: str
    token_weighting: str
    dtype: str
    overlong: str


def _how(header: StoreHeader) -> _How:
    settings = header.fingerprint.get("settings")
    try:
        given: dict[str, Any] = dict(settings)  # type: ignore[arg-type]
        how = _How(given["max_length"], given["layers"], given["token_weighting"], given["dtype"],
                   given.get("overlong", "truncate"))
        if type(how.max_length) is not int or how.dtype not in checkpoint.DTYPES or not all(
                isinstance(text, str) for text in (how.layers, how.token_weighting, how.overlong)):
            raise TypeError(f"{how}")
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"store.json: these are not settings of a sketch ({error}).") from error
    return how


def _check_model(store: GradientStore, source: ModelSource, tokenizer: Any) -> None:
    """Raise :class:`StoreError` naming what is not the model that was sketched."""
    now = {**store.header.fingerprint, "model": models.model_fingerprint(source, tokenizer)}
    check_same(store.path, store.header, replace(store.header, fingerprint=now),
               "pass the --model, --adapter, --revision and --chat-template of the sketch")


def choose_places(store: GradientStore, count: int, seed: int) -> Places:
    """``count`` stored pairs, or all there are, of the groups in turn; ascending. No pair twice."""
    single = np.flatnonzero(first_of_each(store.column("digest")))
    if len(single) < LEAST_PAIRS:
        raise StoreError(f"{store.path} holds {len(single)} pairs, too few to compare.")
    order = np.random.default_rng(seed).permutation(single)
    group = store.column("group")[order]
    turn = np.zeros(len(order), np.int64)
    for label in np.unique(group):
        members = group == label
        turn[members] = np.arange(members.sum())
    return np.sort(order[np.argsort(turn, kind="stable")][:count])


def _read_pairs(
    store: GradientStore, places: Places, settings: ExactSettings, tokenizer: Any
) -> list[TokenizedPair]:
    """The records of these places, as they were tokenised then; else :class:`StoreError`."""
    how = _how(store.header)
    digests, tokens = store.column("digest"), store.column("tokens")
    wanted = {int(store.row[place]): int(place) for place in places}
    records = list(_records(store, settings, wanted.keys()))
    pairs = []
    for item in tokenize_all(records, tokenizer, how.max_length, how.overlong):
        place = wanted[item.record.row]
        same = digests[place].tobytes() == item.record.digest()
        if isinstance(item, Skip) or not same or tokens[place].tolist() != [
                len(item.prompt), len(item.chosen), len(item.rejected)]:
            what = "record" if not same else "tokens"
            raise StoreError(f"{item.record.source}:{item.record.line}: not the {what} that was "
                             f"sketched into {store.path}.",
                             "pass --data FILE with the data that was sketched")
        pairs.append(item)
    if len(pairs) < len(places):
        raise StoreError(f"the data has fewer usable records than {store.path} was made from.",
                         "pass --data FILE with the data that was sketched")
    return pairs


def _records(
    store: GradientStore, settings: ExactSettings, rows: Any
) -> Iterator[Record]:
    """The usable records of these rows, in order."""
    files = find_files(settings.data) if settings.data else [
        DataFile(source.name, store.path / source.path) for source in store.index.sources]
    for file in files:
        if not file.path.is_file():
            raise StoreError(f"{file.name}: the data that was sketched is not at {file.path} any "
                             "more.", "pass --data FILE with its new place")
    last = max(rows)
    for record in read_records(files, store.index.fields, grouped=False):
        if record.row > last:
            return
        if isinstance(record, Record) and record.row in rows:
            yield record


def materialise(
    model: Any, layers: Mapping[str, Layer], pairs: list[TokenizedPair], weighting: str,
    progress: Progress,
) -> Measured:  # fmt: skip
    """Gradients of the pairs, as products of every two: cosines [K, K], norms and log-probs."""
    packed = [layer.name for layer in layers.values() if layer.kind == "packed"]
    if packed:
        raise ModelError(f"{packed[0]} is quantised: it has no gradient to compare with.",
                         "pass the model that it was made from, sketched into a store of its own")
    chunks = list(_chunks(layers, len(pairs)))
    largest = max(sum(layer.size for layer in chunk.values()) for chunk in chunks)
    weights = sum(layer.size for layer in layers.values())
    progress.step(f"materialising {len(pairs)} gradients of {weights:,} weights, {largest:,} at a "
                  f"time: {4 * largest * len(pairs) / 2**20:,.0f} MiB, {len(chunks)} passes a pair")
    gram = np.zeros((len(pairs),) * 2)
    logp = np.zeros((len(pairs), 2))
    progress.start("materialise", len(pairs) * len(chunks))
    for chunk in chunks:
        rows = torch.empty(len(pairs), sum(layer.size for layer in chunk.values()))
        for place, pair in enumerate(pairs):
            found = exact_gradient(model, chunk, pair, weighting)
            torch.cat([part.flatten().float().cpu() for part in found.layers.values()],
                      out=rows[place])
            logp[place] = found.logp.double().cpu().numpy()
            progress.advance(1)
        for begin in range(0, rows.shape[1], COLUMNS):
            part = rows[:, begin : begin + COLUMNS].double()
            gram += (part @ part.T).numpy()
    progress.finish()
    norm = np.sqrt(np.diagonal(gram))
    return Measured(gram / np.outer(norm, norm), norm, logp)


def _chunks(layers: Mapping[str, Layer], pairs: int) -> Iterator[dict[str, Layer]]:
    """The layers in runs whose gradients, of all pairs in float32, fit into ``CHUNK_BYTES``."""
    room = CHUNK_BYTES // (4 * pairs)
    chunk: dict[str, Layer] = {}
    for name, layer in layers.items():
        if chunk and sum(item.size for item in chunk.values()) + layer.size > room:
            yield chunk
            chunk = {}
        chunk[name] = layer
    yield chunk
