"""Mixture-of-experts layers with fused weights, sorted by expert, so that tokens keep their pair.

transformers runs fused experts through a registered function, as it does attention. This one
sorts the choices of all tokens by expert, runs one product per expert, and tells whoever listens
which token stands behind every row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from congrad_cli.sketch.uses import watching

NAME = "congrad_sorted_experts"


def sorted_experts(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The experts' weighted sum: hidden_states [N, H], index and weights [N, K] -> [N, H]."""
    tokens, choices = top_k_index.shape
    expert, order = torch.sort(top_k_index.reshape(-1), stable=True)  # [N * K], by expert
    token = order // choices  # ascending within every expert
    counts = torch.bincount(expert, minlength=module.num_experts).tolist()
    name = "gate_up_proj" if module.has_gate else "up_proj"
    inner = _each_expert(module, name, hidden_states[token], token, counts)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    outer = _each_expert(module, "down_proj", inner, token, counts)
    if module.has_post_expert_norm:
        outer = module.post_expert_norm(outer)
    outer = outer * top_k_weights.reshape(-1)[order, None]
    sums = outer[torch.argsort(order)].view(tokens, choices, -1).sum(1)
    return sums.to(hidden_states.dtype)


def _each_expert(module: Any, name: str, x: Tensor, token: Tensor, counts: list[int]) -> Tensor:
    """x [S, in], sorted by expert -> [S, out]."""
    with torch._C.DisableTorchFunction():  # a weight is used here as our own code says
        weight = getattr(module, name)
        bias = getattr(module, f"{name}_bias") if module.has_bias else [None] * len(counts)
        output = torch.cat([
            F.linear(part, weight[e].T if module.is_transposed else weight[e], bias[e])
            for e, part in enumerate(torch.split(x, counts)) if len(part)
        ])  # fmt: skip
    uses = watching()
    layer = uses.layer_of(weight) if uses is not None else None
    if uses is not None and layer is not None:
        uses.tell_selection(layer, x, output, token, counts)
    return output


def use_sorted_experts(model: Any) -> None:
    """Route the model's fused experts, if it has any, through this module."""
    if model._can_set_experts_implementation():
        ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_experts)
        model.set_experts_implementation(NAME)
