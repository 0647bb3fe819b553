"""Attention over shared rows: [prompt | chosen | rejected], where rejected does not see chosen.

transformers builds every mask through a registered function that receives the model's own mask
rule (causal, sliding window, chunked) as a function of query and key *positions*. We register one
that asks this rule about the tokens' positions in their own sequence instead of their places in
the row, and adds that an answer sees its prompt and itself only. The rule stays the model's, so
windows stay right in every architecture. In long rows the mask is not a table but a description,
which models pass on to their attention as they would the table (``long_rows``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from congrad_cli.sketch.long_rows import (
    SegmentMask,
    Steps,
    find_window,
    plain_attention,
    segment_attention,
)

NAME = "congrad_shared_rows"
PROMPT, CHOSEN, REJECTED, PADDING = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class _Layout:
    """The rows that masks are built for."""

    positions: Tensor  # [B, T]
    segments: Tensor  # [B, T]
    lengths: tuple[tuple[int, int, int], ...] | None  # of each row's segments; None: use a table


_layout: ContextVar[_Layout | None] = ContextVar("shared_row_layout", default=None)


@contextmanager
def shared_rows(positions: Tensor, segments: Tensor, by_segment: bool = False) -> Iterator[None]:
    """Inside, masks are built for rows with these positions and segments, both [B, T].

    ``by_segment`` asks for no table of T x T. Segments then follow one another in a row, each
    answer continuing the prompt's positions, and padding comes last.
    """
    lengths = None
    if by_segment:
        counts = [(segments == segment).sum(1) for segment in (PROMPT, CHOSEN, REJECTED)]
        lengths = tuple((row[0], row[1], row[2]) for row in torch.stack(counts, 1).tolist())
    token = _layout.set(_Layout(positions, segments, lengths))
    try:
        yield
    finally:
        _layout.reset(token)


def shared_row_mask(
    *, mask_function: Callable[..., Tensor], **arguments: Any
) -> Tensor | SegmentMask | None:
    """The boolean mask [B, 1, T, T]: True where a query may see a key; for long rows no table."""
    layout = _layout.get()
    if layout is None:
        plain: Tensor | None = sdpa_mask(mask_function=mask_function, **arguments)
        return plain
    positions, segments = layout.positions, layout.segments
    if layout.lengths is not None:
        longest = max(prompt + max(answers) for prompt, *answers in layout.lengths)
        window = find_window(mask_function, len(positions), longest, positions.device)
        if window is not None:
            return SegmentMask(layout.lengths, window)
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
    attention_mask: Tensor | SegmentMask | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with a boolean mask: fused where possible, in plain steps for caps and sinks.

    query [B, H, T, d]; key and value [B, H_kv, T, d]; result [B, T, H, d].
    """
    steps = Steps(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    if isinstance(attention_mask, SegmentMask):
        if arguments.get("position_bias") is not None:
            raise ValueError("a position bias is a table of T x T itself")
        return segment_attention(query, key, value, attention_mask, steps), None
    if steps.fused:
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            attention_mask = added_mask(attention_mask, query.dtype)
        fused: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **arguments
        )
        return fused
    if attention_mask is None:
        length = query.shape[2]
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    result, weights = plain_attention(query, key, value, attention_mask, steps)
    return result.transpose(1, 2).contiguous(), weights


def added_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What fused attention adds for a boolean mask: 0, and -inf where it is False.

    It would make this table itself, in every layer anew, and each keeps its own for the backward
    pass. All layers get one mask, so its table is kept with it.
    """
    made: Tensor | None = getattr(allowed, "congrad_added", None)
    if made is None or made.dtype != dtype:
        made = torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -torch.inf)
        allowed.congrad_added = made  # type: ignore[attr-defined]
    return made


def use_shared_rows(model: Any) -> bool:
    """Route the model's attention through this module; False where the model has none to route."""
    AttentionInterface.register(NAME, masked_attention)
    AttentionMaskInterface.register(NAME, shared_row_mask)
    if not model._can_set_attn_implementation():
        return False
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)
