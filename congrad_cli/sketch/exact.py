"""The reference: one pair's gradient, materialised, from plain separate sequences.

Slow and large on purpose: it shares nothing with the fast path but the model and the tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from congrad_cli.sketch.layers import Layer
from congrad_cli.sketch.pairs import token_weights
from congrad_cli.sketch.projection import FoldedSums, Projection
from congrad_cli.sketch.tokens import TokenizedPair


@dataclass(frozen=True, slots=True)
class ExactGradient:
    """u_i of one pair: the gradient [experts, out, in] of every layer, and both log-probs [2].

    Log-probabilities are sums over the answers, whatever the weighting of the gradient is.
    """

    layers: dict[str, Tensor]
    logp: Tensor


def exact_gradient(
    model: Any, layers: Mapping[str, Layer], pair: TokenizedPair, weighting: str = "sum"
) -> ExactGradient:
    """d/dtheta [log pi(chosen | prompt) - log pi(rejected | prompt)] by autograd.

    ``weighting`` says how tokens add up to an answer's log pi; see ``--token-weighting``.
    """
    weights: list[Any] = [layer.weight for layer in layers.values()]
    frozen = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        chosen = _token_log_probs(model, pair.prompt, pair.chosen)
        rejected = _token_log_probs(model, pair.prompt, pair.rejected)
        margin = (_weighted(chosen, weighting, pair.chosen, pair.rejected)
                  - _weighted(rejected, weighting, pair.rejected, pair.chosen))
        gradients = torch.autograd.grad(margin, weights, materialize_grads=True)
    finally:
        for weight, before in zip(weights, frozen, strict=True):
            weight.requires_grad_(before)
    return ExactGradient(
        {
            layer.name: as_matrices(gradient, layer)
            for layer, gradient in zip(layers.values(), gradients, strict=True)
        },
        torch.stack([chosen.sum(), rejected.sum()]).detach(),
    )


def _weighted(values: Tensor, weighting: str, answer: list[int], other: list[int]) -> Tensor:
    """The weighted sum of an answer's log-probabilities; its first token may have none."""
    weights = torch.tensor(token_weights(weighting, len(answer), len(other))[-len(values):])
    return (values * weights.to(values)).sum()


def as_matrices(gradient: Tensor, layer: Layer) -> Tensor:
    """A parameter's gradient as [experts, out, in], whatever way the parameter is stored."""
    if layer.transposed and gradient.dim() > 1:
        gradient = gradient.transpose(-1, -2)
    return gradient.reshape(layer.experts, layer.outputs, layer.inputs)


def pair_objective(model: Any, pair: TokenizedPair) -> tuple[Tensor, Tensor]:
    """log pi of the chosen and of the rejected answer, from two plain sequences."""
    return (_token_log_probs(model, pair.prompt, pair.chosen).sum(),
            _token_log_probs(model, pair.prompt, pair.rejected).sum())


def _token_log_probs(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """log pi of the answer's tokens, [T]; a first token of all has no probability."""
    ids = torch.tensor([prompt + answer], device=model.device)
    table = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), dim=-1)
    first = max(len(prompt), 1)
    return table[first - 1 : -1].gather(1, ids[0, first:, None])[:, 0]


def sketch_gradient(gradient: Mapping[str, Tensor], projection: Projection) -> Tensor:
    """The definition: s = sum over layers of fold((G R)^T), [D]."""
    sums = FoldedSums.zeros(1, projection, torch.device("cpu"))
    for name, stack in gradient.items():
        experts, outputs, inputs = stack.shape
        layer = projection.layer(
            name, inputs, outputs, torch.device("cpu"), torch.float32, experts
        )
        for expert, matrix in enumerate(stack):
            layer.fold_into(sums, layer.project_inputs(matrix.float()).T[None], expert)
    return sums.total()[0]
