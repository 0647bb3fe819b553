"""Per-pair gradients of a batch in one forward and one backward, sketched layer by layer.

For pair i the objective is ``u_i = log pi(chosen | prompt) - log pi(rejected | prompt)``. The
weights are frozen; gradients flow through activations only. At every sketched layer a forward
hook keeps ``a R`` (k + r numbers a token, the layer's input is not kept) and a hook on the output's
gradient forms the pair's ``Y = (a R)^T delta`` and folds it at once. Rows of a batch do not mix,
so one batched product separates the pairs exactly.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from congrad_cli.sketch.attention import shared_rows
from congrad_cli.sketch.pairs import PairBatch
from congrad_cli.sketch.projection import LayerProjection, Projection

HEAD_ELEMENTS = 1 << 25
"""The head is run on chunks of at most this many logits."""


@dataclass(frozen=True, slots=True)
class BatchSketch:
    """What one batch of n pairs yields, on the model's device."""

    sketch: Tensor  # [n, D] float32, unnormalised
    logp: Tensor  # [n, 2] float32: chosen, rejected, summed over the response


class LayerTap:
    """Turns the inputs and output gradients of one layer into the batch's sketch."""

    def __init__(self, projection: LayerProjection, total: "SketchTotal") -> None:
        self._projection, self._total = projection, total

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        """The forward hook."""
        if not (output.requires_grad and self._total.open):
            return
        with torch.no_grad():
            projected = self._projection.project_inputs(arguments[0].detach())  # [B, T, k + r]

        def take(gradient: Tensor) -> None:
            y = _pair_product(projected, gradient)  # [B, k + r, out]
            self._total.add(self._projection.fold(y))

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
        self._sum: Tensor | None = None

    def start(self) -> None:
        """Forget the last batch."""
        self.open, self._sum = True, None

    def add(self, part: Tensor) -> None:
        """Add one layer's share."""
        self._sum = part if self._sum is None else self._sum.add_(part.to(self._sum.device))

    def finish(self, rows: int) -> Tensor:
        """The sketch of every row, [B, D]; [B, 0] where no layer is sketched."""
        total, self.open, self._sum = self._sum, False, None
        return torch.zeros(rows, 0) if total is None else total


class PairSketcher:
    """Sketches batches of pairs on one model. A context manager: it owns hooks on the model."""

    def __init__(self, model: Any, layers: dict[str, nn.Module], projection: Projection) -> None:
        self._model, self._layers, self._projection = model, layers, projection
        self._body: nn.Module = getattr(model, model.base_model_prefix)
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

    def __enter__(self) -> "PairSketcher":
        self._model.requires_grad_(False)
        for name, layer in self._layers.items():
            inputs, outputs = layer_shape(layer)
            weight = next(layer.parameters())
            projection = self._projection.layer(name, inputs, outputs, weight.device, weight.dtype)
            self._hooks.append(layer.register_forward_hook(LayerTap(projection, self._total)))
        embedding = self._model.get_input_embeddings()
        self._hooks.append(embedding.register_forward_hook(_require_gradient))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def sketch(self, batch: PairBatch) -> BatchSketch:
        """One forward and one backward of ``sum_i u_i``; the sketch and log-probs of each pair."""
        self._total.start()
        states = self._states(batch)  # [S, H]
        logp, gradient = self._score(states.detach(), batch)
        torch.autograd.backward(states, gradient)
        rows = self._total.finish(len(batch.input_ids))
        sketch = rows if batch.shared else rows.view(len(batch.pairs), 2, -1).sum(1)
        sums = torch.zeros(2 * len(batch.pairs), device=logp.device)
        return BatchSketch(sketch, sums.index_add_(0, batch.sides, logp).view(-1, 2))

    def _states(self, batch: PairBatch) -> Tensor:
        """The last hidden states that predict the response tokens, [S, H]."""
        arguments: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "attention_mask": (batch.segments < 3).long(),
        }
        layout: AbstractContextManager[None] = nullcontext()
        if batch.shared:
            arguments["position_ids"] = batch.positions
            layout = shared_rows(batch.positions, batch.segments)
        with layout:
            hidden: Tensor = self._body(**arguments, use_cache=False)[0]  # [B, T, H]
        return hidden.flatten(0, 1)[batch.predictors]

    def _score(self, states: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Log-probability of each response token [S], and d(sum_i u_i)/d(states) [S, H].

        The head runs on response positions only, in chunks, so that no [B, T, V] table exists.
        """
        logp = torch.empty(len(states), device=states.device)
        gradient = torch.empty_like(states)
        sign = 1.0 - 2.0 * (batch.sides % 2)  # chosen +1, rejected -1
        step = max(1, HEAD_ELEMENTS // self._model.config.get_text_config().vocab_size)
        with self._head() as head:
            for begin in range(0, len(states), step):
                part = slice(begin, begin + step)
                chunk = states[part].requires_grad_()
                table = torch.log_softmax(head(chunk).float(), dim=-1)  # [s, V]
                value = table.gather(1, batch.targets[part, None]).squeeze(1)
                (gradient[part],) = torch.autograd.grad(value @ sign[part], chunk)
                logp[part] = value.detach()
        return logp, gradient

    @contextmanager
    def _head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """The model's own way from hidden states [s, H] to logits [s, V].

        The model's forward is run with its body replaced by one that returns the given states:
        scales, soft caps and biases are then the model's, in every architecture.
        """
        stand_in = _StandIn()
        token = torch.zeros(1, 1, dtype=torch.long)

        def head(states: Tensor) -> Tensor:
            stand_in.states = states[None]
            logits: Tensor = self._model(input_ids=token, use_cache=False).logits
            return logits[0]

        prefix = self._model.base_model_prefix
        setattr(self._model, prefix, stand_in)
        try:
            yield head
        finally:
            setattr(self._model, prefix, self._body)


class _StandIn(nn.Module):
    """Stands in for the model's body and answers with the states it was given."""

    states: Tensor

    def forward(self, *_: Any, **__: Any) -> "_BodyOutput":
        return _BodyOutput(self.states)


class _BodyOutput(tuple[Tensor]):
    """A body's output with hidden states alone; whatever else a head may ask for is None."""

    def __new__(cls, states: Tensor) -> "_BodyOutput":
        return super().__new__(cls, (states,))

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


def _require_gradient(module: nn.Module, arguments: Any, output: Tensor) -> None:
    output.requires_grad_(True)


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, GPT-2's transposed Conv1D included."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    inputs, outputs = layer.weight.shape  # type: ignore[misc]
    return int(inputs), int(outputs)
