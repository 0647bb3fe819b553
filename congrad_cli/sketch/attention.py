"""Attention over shared rows: [prompt | chosen | rejected], where rejected does not see chosen.

transformers builds every mask through a registered function that receives the model's own mask
rule (causal, sliding window, chunked) as a function of query and key *positions*. We register one
that asks this rule about the tokens' positions in their own sequence instead of their places in
the row, and adds that an answer sees its prompt and itself only. The rule stays the model's, so
windows stay right in every architecture.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "congrad_shared_rows"
PROMPT, CHOSEN, REJECTED, PADDING = 0, 1, 2, 3

_layout: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("shared_row_layout", default=None)


@contextmanager
def shared_rows(positions: Tensor, segments: Tensor) -> Iterator[None]:
    """Inside, masks are built for rows with these positions and segments, both [B, T]."""
    token = _layout.set((positions, segments))
    try:
        yield
    finally:
        _layout.reset(token)


def shared_row_mask(*, mask_function: Callable[..., Tensor], **arguments: Any) -> Tensor | None:
    """The boolean mask [B, 1, T, T]: True where a query may see a key."""
    layout = _layout.get()
    if layout is None:
        plain: Tensor | None = sdpa_mask(mask_function=mask_function, **arguments)
        return plain
    positions, segments = layout
    batch = torch.arange(len(positions), device=positions.device)[:, None, None, None]
    head = torch.zeros_like(batch)
    allowed = mask_function(batch, head, positions[:, None, :, None], positions[:, None, None, :])
    of_query, of_key = segments[:, None, :, None], segments[:, None, None, :]
    return allowed & ((of_key == PROMPT) | (of_key == of_query))


def masked_attention(  # noqa: PLR0913 (transformers fixes the signature)
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with a boolean mask: fused where possible, in plain steps for caps and sinks.

    query [B, H, T, d]; key and value [B, H_kv, T, d]; result [B, T, H, d].
    """
    if softcap is None and s_aux is None:
        fused: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **arguments
        )
        return fused
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query @ key.transpose(2, 3) * scale  # [B, H, T, T]
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if attention_mask is None:
        length = query.shape[2]
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if attention_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
    else:  # a model with mask code of its own adds
        logits = logits + attention_mask
    if s_aux is not None:  # a learned logit per head that takes part in the softmax only
        sinks = s_aux.reshape(1, -1, 1, 1).expand(len(query), -1, query.shape[2], 1)
        logits = torch.cat([logits, sinks.to(logits.dtype)], dim=-1)
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    if s_aux is not None:
        weights = weights[..., :-1]
    return (weights @ value).transpose(1, 2).contiguous(), weights


def use_shared_rows(model: Any) -> bool:
    """Route the model's attention through this module; False where the model has none to route."""
    AttentionInterface.register(NAME, masked_attention)
    AttentionMaskInterface.register(NAME, shared_row_mask)
    if not model._can_set_attn_implementation():
        return False
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)
