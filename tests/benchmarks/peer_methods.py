"""Ways from tokenised pairs to rows that can be scored; no script, ``peers.py`` compares them.

A method is made for a model and a number of pairs (which is its start), takes the pairs portion by
portion, and has their rows then. All of them see the linear layers of the blocks, in float32.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from fidelity import ExactRows

from congrad_cli.codec import Codec
from congrad_cli.settings import ROW_SIZES, SketchSettings
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.budget import batch_tokens
from congrad_cli.sketch.exact import exact_gradient
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import Layer
from congrad_cli.sketch.pairs import batch_pairs, cut_batches
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.start import find_start
from congrad_cli.sketch.tokens import TokenizedPair

Pairs = Sequence[TokenizedPair]
NUMBERS = 8192
"""That LESS keeps of a gradient."""
SLICE = 20_000
"""Weights of the piece that stands for all where a dense projection takes too long."""


@dataclass(frozen=True)
class Case:
    """The model, what is sketched of it, how many pairs there will be, and room for large rows."""

    model: Any
    layers: Mapping[str, Layer]
    pairs: int
    folder: Path

    @property
    def weights(self) -> int:
        """Numbers of a whole gradient."""
        return sum(layer.size for layer in self.layers.values())


class Method(Protocol):
    """How rows are made; ``codes`` says what they are called and how congrad's scores read them."""

    codes: Mapping[str, str]
    width: int

    def take(self, pairs: Pairs, first: int) -> None:
        """Keep the rows of ``pairs``, the first of which is pair number ``first``."""

    def rows(self) -> np.ndarray:
        """Those of all pairs, [pairs, any], or others with the same inner products."""

    def bytes(self, code: str) -> int:
        """Of a pair on disk."""


class Sketch:
    """congrad, as ``congrad sketch`` runs it; the rows of ``--row-size 4k`` are the same."""

    codes: Mapping[str, str] = {f"congrad {size}": ROW_SIZES[size][1] for size in ("16k", "4k")}

    def __init__(self, case: Case, seed: int) -> None:
        self.shared = use_shared_rows(case.model)
        settings = SketchSettings("", seed=seed)
        start = find_start(case.model, case.layers, settings, self.shared)
        scheme = Projection(settings.dim, start.width, seed, start.leading)
        self.width, self._model = start.width, case.model
        self._sketcher = PairSketcher(case.model, case.layers, scheme)
        self._budget = batch_tokens(self._sketcher, self.shared)
        self._codec = Codec(settings.store_dtype, settings.dim, start.width)
        self._rows = np.zeros((case.pairs, settings.dim), np.float32)

    def take(self, pairs: Pairs, first: int) -> None:
        """In batches as the command cuts them; coded as it writes them."""
        use_shared_rows(self._model)
        place = {id(pair): first + number for number, pair in enumerate(pairs)}
        with self._sketcher as sketcher:
            for batch in cut_batches(pairs, self._budget, self.shared):
                rows = sketcher.sketch(batch_pairs(batch, 0, self.shared)).sketch.numpy()
                self._codec.encode(rows / np.linalg.norm(rows, axis=1, keepdims=True))
                self._rows[[place[id(pair)] for pair in batch]] = rows

    def rows(self) -> np.ndarray:
        """Before they are coded."""
        return self._rows

    def bytes(self, code: str) -> int:
        """The coded row."""
        columns = Codec(code, self._rows.shape[1], self.width).columns().values()
        return sum(math.prod(tail) * np.dtype(kind).itemsize for kind, tail in columns)


class Bergson:
    """bergson, ``side`` x ``side`` numbers a layer. Rows of a pair are added when they are read."""

    width = 1

    def __init__(self, case: Case, seed: int, side: int) -> None:
        self.codes: Mapping[str, str] = {f"bergson {side} x {side}": "float16"}
        self._model, self._side, self._seed = case.model, side, seed
        self._rows = np.zeros((case.pairs, len(case.layers) * side**2), np.float32)

    def take(self, pairs: Pairs, first: int) -> None:
        """With the budget of tokens that both tools have by default."""
        from peer_bergson import collector

        self._model.set_attn_implementation("sdpa")
        with collector(self._model, list(pairs), 2048, self._side, self._seed) as work:
            self._rows[first : first + len(pairs)] = work().numpy()

    def rows(self) -> np.ndarray:
        """One a pair."""
        return self._rows

    def bytes(self, code: str) -> int:
        """Two rows of float32, as ``bergson build`` writes them."""
        return 2 * 4 * self._rows.shape[1]


class Dense:
    """TRAK's plain projector, drawn again for each call, to the numbers that LESS keeps."""

    codes: Mapping[str, str] = {f"dense {NUMBERS:,}": "float16"}
    width = 1

    def __init__(self, case: Case, seed: int) -> None:
        self._model, self._layers = case.model, case.layers
        self._projector = projector(case.weights, seed)
        self._rows = np.zeros((case.pairs, NUMBERS), np.float32)

    def take(self, pairs: Pairs, first: int) -> None:
        """Whole gradients one by one, and their projection together."""
        self._model.set_attn_implementation("sdpa")
        gradients = torch.stack([
            torch.cat([part.flatten() for part in
                       exact_gradient(self._model, self._layers, pair).layers.values()])
            for pair in pairs
        ])
        rows = self._projector.project(gradients, model_id=0).numpy()
        self._rows[first : first + len(pairs)] = rows

    def rows(self) -> np.ndarray:
        """As projected."""
        return self._rows

    def bytes(self, code: str) -> int:
        """LESS keeps float16."""
        return 2 * NUMBERS


class Exact:
    """Autograd, one pair at a time, with the whole gradient kept: what the others stand for."""

    codes: Mapping[str, str] = {"autograd": "float16"}
    width = 1

    def __init__(self, case: Case, seed: int) -> None:
        self._model, self._layers, self._weights = case.model, case.layers, case.weights
        self._rows = ExactRows(str(case.folder), case.pairs, case.weights)

    def take(self, pairs: Pairs, first: int) -> None:
        """Into a file of float16, which costs no accuracy that matters here."""
        self._model.set_attn_implementation("sdpa")
        for number, pair in enumerate(pairs, first):
            self._rows.put(number, exact_gradient(self._model, self._layers, pair).layers)

    def rows(self) -> np.ndarray:
        """Rows of n numbers with the same inner products."""
        return self._rows.isometric()

    def bytes(self, code: str) -> int:
        """As autograd gives it: float32."""
        return 4 * self._weights


Factory = Callable[[Case, int], Method]
METHODS: dict[str, Factory] = {
    "congrad": Sketch,
    "bergson": partial(Bergson, side=16),
    "bergson-32": partial(Bergson, side=32),
    "dense": Dense,
    "autograd": Exact,
}
NEEDS = {"bergson": "bergson", "bergson-32": "bergson", "dense": "trak"}
"""Modules that a method, or a script, cannot do without."""


def lacking(name: str) -> str | None:
    """The module that ``name`` needs and that is not installed."""
    needed = NEEDS.get(name)
    return None if needed is None or find_spec(needed) else needed


def projector(weights: int, seed: int) -> Any:
    """TRAK's, with normal entries: on a CPU they are drawn three times as fast as signs."""
    from trak.projectors import BasicProjector

    return BasicProjector(weights, NUMBERS, seed, "normal", "cpu")


def dense_seconds(weights: int, together: int) -> float:
    """CPU-seconds of projecting ``together`` gradients, computed from those of a slice."""
    size = min(SLICE, weights)
    slice_projector, gradients = projector(size, 0), torch.randn(together, size)
    begun = time.process_time()
    slice_projector.project(gradients, model_id=0)
    return (time.process_time() - begun) * weights / size
