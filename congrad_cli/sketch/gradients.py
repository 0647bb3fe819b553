"""Per-pair gradients of a batch in one forward and one backward, sketched layer by layer.

For pair i the objective is ``log pi(chosen | prompt) - log pi(rejected | prompt)``, its tokens
weighted as the batch says; the gradient of that is u_i. The
weights are frozen; gradients flow through activations only. At every sketched layer a forward
hook keeps ``a R`` (k + r numbers a token, the layer's input is not kept) and a hook on the output's
gradient forms the pair's ``Y = (a R)^T delta`` and folds it at once. Rows of a batch do not mix,
so one batched product separates the pairs exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from congrad_cli.sketch.forward import PairForward
from congrad_cli.sketch.pairs import PairBatch
from congrad_cli.sketch.projection import LayerProjection, Projection


@dataclass(frozen=True, slots=True)
class BatchSketch:
    """What one batch of n pairs yields, on the model's device."""

    sketch: Tensor  # [n, D] float32, unnormalised
    logp: Tensor  # [n, 2] float32: chosen, rejected, summed over the response
    weighted_logp: Tensor  # [n, 2] float32: the same with the batch's token weights


class LayerTap:
    """Turns the inputs and output gradients of one layer into the batch's sketch."""

    def __init__(self, name: str, projection: LayerProjection, total: "SketchTotal") -> None:
        self._name, self._projection, self._total = name, projection, total

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        """The forward hook."""
        if not (output.requires_grad and self._total.open):
            return
        with torch.no_grad():
            projected = self._projection.project_inputs(arguments[0].detach())  # [B, T, k + r]

        def take(gradient: Tensor) -> None:
            rows = self._total.rows  # some layers see [B * T, in]
            y = _pair_product(  # [B, k + r, out]
                projected.view(rows, -1, projected.shape[-1]),
                gradient.reshape(rows, -1, gradient.shape[-1]),
            )
            self._total.add(self._name, self._projection.fold(y))

        output.register_hook(take)  # type: ignore[no-untyped-call]


def _pair_product(projected: Tensor, gradient: Tensor) -> Tensor:
    """``(a R)^T delta`` of every row: [B, T, q], [B, T, out] -> [B, q, out], summed in float32."""
    left = projected.transpose(1, 2)
    if gradient.is_cuda and gradient.dtype != torch.float32:
        return torch.bmm(left, gradient, out_dtype=torch.float32)  # no float32 copy of delta
    return torch.bmm(left.float(), gradient.float())


class SketchTotal:
    """The running sum over layers, [B, D] float32."""

    def __init__(self) -> None:
        self.open = False
        self.rows = 0  # B
        self.heard: set[str] = set()  # layers that have given something
        self._sum: Tensor | None = None

    def start(self, rows: int) -> None:
        """Forget the last batch."""
        self.open, self.rows, self._sum = True, rows, None

    def add(self, name: str, part: Tensor) -> None:
        """Add one layer's share."""
        self.heard.add(name)
        self._sum = part if self._sum is None else self._sum.add_(part.to(self._sum.device))

    def finish(self) -> Tensor:
        """The sketch of every row, [B, D]; [B, 0] where no layer is sketched."""
        total, self.open, self._sum = self._sum, False, None
        return torch.zeros(self.rows, 0) if total is None else total


class PairSketcher:
    """Sketches batches of pairs on one model. A context manager: it owns hooks on the model."""

    def __init__(self, model: Any, layers: Mapping[str, nn.Module], projection: Projection) -> None:
        self._model, self._layers, self._projection = model, layers, projection
        self._forward = PairForward(model)
        self._total = SketchTotal()
        self._hooks: list[Any] = []

    @property
    def device(self) -> torch.device:
        """Where batches must lie."""
        return torch.device(self._model.device)

    @property
    def dtype(self) -> torch.dtype:
        """The model's precision."""
        return next(self._model.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self._model.config.get_text_config().vocab_size)

    @property
    def silent(self) -> set[str]:
        """Layers that have given nothing in any batch so far."""
        return set(self._layers) - self._total.heard

    def __enter__(self) -> "PairSketcher":
        self._model.requires_grad_(False)
        for name, layer in self._layers.items():
            inputs, outputs = layer_shape(layer)
            weight = next(layer.parameters())
            projection = self._projection.layer(name, inputs, outputs, weight.device, weight.dtype)
            self._hooks.append(layer.register_forward_hook(LayerTap(name, projection, self._total)))
        embedding = self._model.get_input_embeddings()
        self._hooks.append(embedding.register_forward_hook(_require_gradient))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def sketch(self, batch: PairBatch) -> BatchSketch:
        """One forward and one backward of ``sum_i u_i``; the sketch and log-probs of each pair."""
        self._total.start(len(batch.input_ids))
        states = self._forward.states(batch)  # [S, H]
        logp, gradient = self._forward.score(states.detach(), batch)
        torch.autograd.backward(states, gradient)
        rows = self._total.finish()
        sketch = rows if batch.shared else rows.view(len(batch.pairs), 2, -1).sum(1)
        return BatchSketch(sketch, batch.sum_sides(logp), batch.sum_sides(logp * batch.weights))


def _require_gradient(module: nn.Module, arguments: Any, output: Tensor) -> None:
    output.requires_grad_(True)


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, GPT-2's transposed Conv1D included."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    inputs, outputs = layer.weight.shape  # type: ignore[misc]
    return int(inputs), int(outputs)
