"""The reference: one pair's gradient, materialised, from plain separate sequences.

Slow and large on purpose: it shares nothing with the fast path but the model and the tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from congrad_cli.sketch.pairs import TokenizedPair


@dataclass(frozen=True, slots=True)
class ExactGradient:
    """u_i of one pair: the weight gradient [out, in] of every layer, and both log-probs [2]."""

    layers: dict[str, Tensor]
    logp: Tensor


def exact_gradient(
    model: Any, layers: dict[str, nn.Module], pair: TokenizedPair
) -> ExactGradient:
    """d/dtheta [log pi(chosen | prompt) - log pi(rejected | prompt)] by autograd."""
    weights: list[Any] = [layer.weight for layer in layers.values()]
    frozen = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        logp = torch.stack([_log_prob(model, pair.prompt, answer)
                            for answer in (pair.chosen, pair.rejected)])
        gradients = torch.autograd.grad(logp[0] - logp[1], weights)
    finally:
        for weight, before in zip(weights, frozen, strict=True):
            weight.requires_grad_(before)
    return ExactGradient(
        {
            name: gradient if isinstance(layer, nn.Linear) else gradient.T  # Conv1D is [in, out]
            for (name, layer), gradient in zip(layers.items(), gradients, strict=True)
        },
        logp.detach(),
    )


def _log_prob(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """log pi(answer | prompt), summed over the answer; a first token of all has no probability."""
    ids = torch.tensor([prompt + answer], device=model.device)
    table = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), dim=-1)
    first = max(len(prompt), 1)
    return table[first - 1 : -1].gather(1, ids[0, first:, None]).sum()
