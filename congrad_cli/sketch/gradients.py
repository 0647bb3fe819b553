"""Per-pair gradients of a batch in one forward and one backward, sketched layer by layer.

For pair i the objective is ``log pi(chosen | prompt) - log pi(rejected | prompt)``, its tokens
weighted as the batch says; the gradient of that is u_i. The weights are frozen; gradients flow
through activations only. Wherever a sketched weight is used, ``a R`` (q numbers a token, the
layer's input is not kept) is formed at once, and a hook on the output's gradient forms the pair's
``Y = (a R)^T delta`` and folds it. Rows of a batch do not mix, so one batched product separates
the pairs exactly.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from congrad_cli.sketch.checkpointing import checkpointed
from congrad_cli.sketch.experts import use_sorted_experts
from congrad_cli.sketch.forward import PairForward
from congrad_cli.sketch.layers import Layer, dtype_of
from congrad_cli.sketch.pairs import PairBatch
from congrad_cli.sketch.projection import FoldedSums, LayerProjection, Projection
from congrad_cli.sketch.uses import Rows, WeightUses


@dataclass(frozen=True, slots=True)
class BatchSketch:
    """What one batch of n pairs yields, on the model's device."""

    sketch: Tensor  # [n, D] float32, unnormalised
    logp: Tensor  # [n, 2] float32: chosen, rejected, summed over the response
    weighted_logp: Tensor  # [n, 2] float32: the same with the batch's token weights


class SketchCapture:
    """Hears of every use of the sketched weights and sums the rows' sketches, [B, D] float32."""

    def __init__(self, projection: Projection) -> None:
        self.rows = Rows(0, 0)
        self.heard: set[str] = set()  # layers that have given something
        self.broken: list[str] | None = None  # where asked for: layers with non-finite numbers
        self._projection = projection
        self._layers: dict[str, LayerProjection] = {}
        self._leaves: dict[str, Tensor] = {}
        self._sums = FoldedSums.zeros(0, projection, torch.device("cpu"))

    def start(self, rows: Rows, device: torch.device) -> None:
        """Forget the last batch."""
        self.rows, self._leaves = rows, {}
        self._sums = FoldedSums.zeros(rows.count, self._projection, device)

    def finish(self) -> Tensor:
        """The sketch of every row, [B, D]."""
        self._leaves = {}
        return self._sums.total()

    @contextmanager
    def selection(self, rows: Tensor) -> Iterator[None]:
        """Inside, tokens are a selection: token s is of row ``rows[s]``, ascending."""
        before = self.rows
        self.rows = Rows(before.count, before.tokens, rows)
        try:
            yield
        finally:
            self.rows = before

    def used(self, layer: Layer, x: Tensor, output: Tensor, tokens_last: bool = False) -> None:
        """A linear map: keep x R, and fold the product with the output's gradient."""
        self._check_finite(layer, output)
        if not output.requires_grad:
            return
        rows, scheme = self.rows, self._scheme(layer, x)
        projected = scheme.project_inputs(x.detach())  # [..., q]
        if rows.of_token is None:
            projected = rows.split(projected, layer.name)  # [B, n, q]

        def take(gradient: Tensor) -> None:
            delta = gradient.transpose(-1, -2) if tokens_last else gradient
            if rows.of_token is None:
                y = pair_product(projected, rows.split(delta, layer.name))  # [B, q, out]
                self._add(layer, scheme, y)
            else:
                self._take_selection(layer, projected, delta, rows.of_token)

        output.register_hook(take)  # type: ignore[no-untyped-call]

    def looked_up(self, layer: Layer, ids: Tensor, output: Tensor, padding: int | None) -> None:
        """An embedding: its gradient has one line per token, the output's gradient there."""
        if not output.requires_grad:
            return
        self._check_finite(layer, output)
        rows = self.rows
        scheme = self._scheme(layer, output)
        columns = rows.split(ids[..., None], layer.name)[..., 0]  # [B, n]

        def take(gradient: Tensor) -> None:
            projected = scheme.project_inputs(rows.split(gradient, layer.name))  # [B, n, q]
            if padding is not None:
                projected = projected * (columns != padding)[..., None]
            self.heard.add(layer.name)
            self._check_finite(layer, gradient)
            there = self._sums.random.device
            scheme.fold_columns_into(self._sums, projected.float().to(there), columns.to(there))

        output.register_hook(take)  # type: ignore[no-untyped-call]

    def selected(
        self, layer: Layer, x: Tensor, output: Tensor, token: Tensor, counts: list[int]
    ) -> None:
        """A stack of experts: x [S, in] sorted by expert, then by token."""
        self._check_finite(layer, output)
        if not output.requires_grad:
            return
        rows, scheme = self.rows, self._scheme(layer, x)
        projected = scheme.project_inputs(x.detach())  # [S, q]
        row = token // (rows.tokens // rows.count)  # [S]

        def take(gradient: Tensor) -> None:
            parts = (torch.split(each, counts) for each in (projected, gradient, row))
            for expert, (left, right, owner) in enumerate(zip(*parts, strict=True)):
                if len(owner):
                    y = pair_product(*_by_row(owner, rows.count, left, right))  # [B, q, out]
                    self._add(layer, scheme, y, expert)

        output.register_hook(take)  # type: ignore[no-untyped-call]

    def row_vector(self, layer: Layer) -> Tensor:
        """A copy of the vector for every row, whose gradient is the row's."""
        leaf = self._leaves.get(layer.name)
        if leaf is None:
            weight = layer.weight.detach()
            leaf = weight.expand(self.rows.count, -1).clone().requires_grad_()  # [B, d]
            scheme = self._scheme(layer, leaf)

            def take(gradient: Tensor) -> None:
                self._add(layer, scheme, gradient[:, None].float())

            leaf.register_hook(take)  # type: ignore[no-untyped-call]
            self._leaves[layer.name] = leaf
        return leaf

    def _take_selection(
        self, layer: Layer, projected: Tensor, gradient: Tensor, of_token: Tensor
    ) -> None:
        """Row by row: the head's outputs are too wide to be padded to one another's length."""
        counts = torch.bincount(of_token, minlength=self.rows.count).tolist()
        left = torch.split(projected.reshape(-1, projected.shape[-1]), counts)
        right = torch.split(gradient.reshape(-1, gradient.shape[-1]), counts)
        for row, (a, delta) in enumerate(zip(left, right, strict=True)):
            if len(a):
                y = pair_product(a[None], delta[None])
                self._add(layer, self._layers[layer.name], y, rows=slice(row, row + 1))

    def _scheme(self, layer: Layer, like: Tensor) -> LayerProjection:
        """The layer's projection, made where and when it is first needed."""
        if layer.name not in self._layers:
            scheme = self._projection.layer(
                layer.name, layer.inputs, layer.outputs, self._sums.random.device, like.dtype,
                layer.experts,
            )  # fmt: skip
            scheme = replace(scheme, inputs=scheme.inputs.to(like.device))
            self._layers[layer.name] = scheme
        return self._layers[layer.name]

    def _add(
        self, layer: Layer, scheme: LayerProjection, y: Tensor, expert: int = 0,
        rows: slice = slice(None),
    ) -> None:  # fmt: skip
        """Fold Y [B, q, out] of the layer into the sums of its rows."""
        self.heard.add(layer.name)
        self._check_finite(layer, y)
        scheme.fold_into(self._sums, y.to(self._sums.random.device), expert, rows)

    def _check_finite(self, layer: Layer, numbers: Tensor) -> None:
        if self.broken is not None and not numbers.isfinite().all():
            self.broken.append(layer.name)


def pair_product(projected: Tensor, gradient: Tensor) -> Tensor:
    """``(a R)^T delta`` of every row: [B, n, q], [B, n, out] -> [B, q, out], summed in float32."""
    left = projected.transpose(1, 2)
    if gradient.is_cuda and gradient.dtype != torch.float32 and gradient.dtype == left.dtype:
        return torch.bmm(left, gradient, out_dtype=torch.float32)  # no float32 copy of delta
    return torch.bmm(left.float(), gradient.float())


def _by_row(row: Tensor, count: int, *values: Tensor) -> list[Tensor]:
    """values [s, f] of the ascending rows ``row`` [s] -> [count, n, f], padded with zeros."""
    sizes = torch.bincount(row, minlength=count)
    place = torch.arange(len(row), device=row.device) - (sizes.cumsum(0) - sizes)[row]
    longest = int(sizes.max())
    padded = []
    for value in values:
        buffer = value.new_zeros(count, longest, value.shape[-1])
        buffer[row, place] = value
        padded.append(buffer)
    return padded


class PairSketcher:
    """Sketches batches of pairs on one model. A context manager: it owns hooks on the model."""

    def __init__(
        self,
        model: Any,
        layers: Mapping[str, Layer],
        projection: Projection,
        checkpointing: bool = False,
    ) -> None:
        self._model, self._layers, self._checkpointing = model, layers, checkpointing
        self._forward = PairForward(model)
        self._capture = SketchCapture(projection)
        self._hooks: list[Any] = []

    @property
    def device(self) -> torch.device:
        """Where batches must lie."""
        return torch.device(self._model.device)

    @property
    def dtype(self) -> torch.dtype:
        """The model's precision."""
        return dtype_of(self._model)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self._model.config.get_text_config().vocab_size)

    @property
    def heard(self) -> set[str]:
        """Layers that have given something in some batch."""
        return self._capture.heard

    @property
    def silent(self) -> set[str]:
        """Layers that have given nothing in any batch so far."""
        return set(self._layers) - self.heard

    def __enter__(self) -> "PairSketcher":
        use_sorted_experts(self._model)
        self._model.requires_grad_(False)
        self._uses = WeightUses(self._layers.values(), self._capture)
        embedding = self._model.get_input_embeddings()
        self._hooks.append(embedding.register_forward_hook(_require_gradient))
        return self

    def __exit__(self, *_: object) -> None:
        self._uses.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def sketch(self, batch: PairBatch) -> BatchSketch:
        """One forward and one backward of ``sum_i u_i``; the sketch and log-probs of each pair.

        Raises :class:`MixedRowsError` for more than one pair where a layer mixes their tokens.
        """
        one = len(batch.pairs) == 1  # then every token is the pair's, wherever it is
        count = 1 if one else len(batch.input_ids)
        self._capture.start(Rows(count, batch.input_ids.numel()), self.device)
        blocks = checkpointed(self._model, self._uses.replay) if self._checkpointing else None
        by_segment = self._forward.goes_by_segment(batch)  # may try the model: before we watch it
        with self._uses.watch(), blocks or nullcontext():
            states = self._forward.states(batch, by_segment)  # [S, H]
        of_token = torch.zeros_like(batch.sides) if one else batch.rows

        @contextmanager
        def watch(part: slice) -> Iterator[None]:
            with self._capture.selection(of_token[part]), self._uses.watch():
                yield

        logp, gradient = self._forward.score(states.detach(), batch, watch)
        torch.autograd.backward(states, gradient)
        rows = self._capture.finish()
        sketch = rows if one or batch.shared else rows.view(len(batch.pairs), 2, -1).sum(1)
        return BatchSketch(sketch, batch.sum_sides(logp), batch.sum_sides(logp * batch.weights))

    def find_broken(self, batch: PairBatch) -> str | None:
        """The first layer whose numbers are not finite when ``batch`` is sketched."""
        self._capture.broken = []
        try:
            self.sketch(batch)
            return next(iter(self._capture.broken), None)
        finally:
            self._capture.broken = None


def _require_gradient(module: torch.nn.Module, arguments: Any, output: Tensor) -> None:
    output.requires_grad_(True)
