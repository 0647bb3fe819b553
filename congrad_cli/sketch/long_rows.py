"""Attention over rows too long for a table of T x T: each row is taken apart by its segments.

[prompt | chosen] is one causal sequence, [prompt | rejected] another of which the rejected queries
count, padding gives zeros. Plain causal attention is then one fused call without a mask. Windows
shorter than the sequence, soft caps and sinks go by blocks of queries against the keys that these
can see; a block is computed again in the backward pass, so that one block's table is alive at a
time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import repeat_kv

LONG_ROW = 2048
"""Rows of more tokens than this never see a table of T x T, where the model's rule allows it."""

QUERY_BLOCK = 512
"""Queries a block, where attention goes by blocks."""

PROBED_QUERIES = 64
"""How many queries the rule is asked about with every key."""


@dataclass(frozen=True, slots=True)
class SegmentMask:
    """What models pass on in a mask's place: the rows' segments and how far a query sees."""

    rows: tuple[tuple[int, int, int], ...]  # B times the tokens of prompt, chosen, rejected
    window: int  # a query sees that many keys, its own included


@dataclass(frozen=True, slots=True)
class Steps:
    """What a layer does between its products."""

    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None  # [H], a logit per head that takes part in the softmax only

    @property
    def fused(self) -> bool:
        """Whether kernels know these steps."""
        return self.softcap is None and self.sinks is None


def find_window(
    mask_function: Callable[..., Tensor], batch: int, length: int, device: torch.device
) -> int | None:
    """The w for which a query sees exactly the w keys up to its own; None for any other rule.

    ``length`` where the rule is plain causal among that many positions. The rule is asked, not
    named: the last query's keys give w, and it must then hold for all keys of many queries and
    along the whole diagonals beside the edges.
    """
    places = torch.arange(length, device=device)
    row = torch.arange(batch, device=device)[:, None, None, None]

    def sees(query: Tensor, key: Tensor) -> Tensor:
        return mask_function(row, torch.zeros_like(row), query[None, None], key[None, None])

    last = sees(places[-1:, None], places[None]).expand(batch, 1, 1, length)
    window = int(last[0].sum())

    def holds(query: Tensor, key: Tensor) -> bool:
        expected = (key <= query) & (key > query - window)
        return bool((sees(query, key) == expected).all())

    spread = torch.linspace(0, length - 1, PROBED_QUERIES, device=device).long()
    edges = torch.arange(window - 2, window + 2, device=device).clamp(0, length - 1)
    offsets = torch.tensor([-1, 0, 1, window - 1, window, window + 1], device=device)
    diagonals = (places[:, None] - offsets).clamp(0, length - 1)  # [n, 6]
    queries = torch.cat([spread, edges])[:, None]
    agrees = holds(queries, places[None]) and holds(places[:, None], diagonals)
    return window if window and agrees else None


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: SegmentMask, steps: Steps
) -> Tensor:
    """query [B, H, T, d], key and value [B, H_kv, T, d] -> [B, T, H, d]; rows one by one."""
    if key.shape[2] != query.shape[2]:
        raise ValueError("segments describe attention of a row over itself only")
    rows = []
    for row, lengths in enumerate(mask.rows):
        one = slice(row, row + 1)
        rows.append(_row(query[one], key[one], value[one], lengths, mask.window, steps))
    return torch.cat(rows).transpose(1, 2).contiguous()


def _row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, int, int],
    window: int,
    steps: Steps,
) -> Tensor:
    """One row, [1, H, T, d]."""
    prompt, chosen, rejected = lengths
    begin, end = prompt + chosen, prompt + chosen + rejected  # of rejected
    parts = [
        causal_attention(
            query[:, :, :begin], key[:, :, :begin], value[:, :, :begin], window, steps
        )
    ]
    if rejected:  # follows the prompt as if chosen were not there
        key, value = (
            torch.cat([table[:, :, :prompt], table[:, :, begin:end]], 2) for table in (key, value)
        )
        parts.append(causal_attention(query[:, :, begin:end], key, value, window, steps))
    padding = query.shape[2] - end
    parts.append(value.new_zeros(1, query.shape[1], padding, value.shape[3]))
    return torch.cat(parts, 2)


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, window: int, steps: Steps
) -> Tensor:
    """Attention of the last Q of K tokens over all of them, [1, H, Q, d]."""
    queries, keys = query.shape[2], key.shape[2]
    before = keys - queries
    # A kernel's causal pass wants as many queries as keys. Empty ones in front cost less than
    # blocks do up to about that many.
    if steps.fused and window >= keys and before <= 3 * queries:
        return _fused(pad(query, (0, 0, before, 0)), key, value, steps.scale)[:, :, before:]
    blocks = []
    for begin in range(0, queries, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, queries)
        seen = slice(max(0, before + begin - window + 1), before + end)
        blocks.append(
            checkpoint(
                _block,
                query[:, :, begin:end], key[:, :, seen], value[:, :, seen], window, steps,
                use_reentrant=False, preserve_rng_state=False,
            )
        )  # fmt: skip
    return torch.cat(blocks, 2)


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention of a sequence over itself without a table, where a kernel exists."""
    if key.is_cuda and (key.dtype == torch.float32 or key.shape[3] > 256):
        groups = query.shape[1] // key.shape[1]  # those kernels want as many keys as queries
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    size, width = value.shape[3], max(value.shape[3], key.shape[3])
    query, key, value = (  # and heads of one width
        table if table.shape[3] == width else pad(table, (0, width - table.shape[3]))
        for table in (query, key, value)
    )
    grouped = query.shape[1] != key.shape[1]
    result = scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
    )
    return result[..., :size]


def _block(query: Tensor, key: Tensor, value: Tensor, window: int, steps: Steps) -> Tensor:
    """The last Q of K tokens over all of them, with a table of Q x K."""
    queries, keys = query.shape[2], key.shape[2]
    places = torch.arange(keys, device=query.device)
    distance = places[keys - queries :, None] - places  # [Q, K]
    mask = (distance >= 0) & (distance < window)
    if steps.fused:
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=steps.scale)
    return plain_attention(query, key, value, mask, steps)[0]


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, steps: Steps
) -> tuple[Tensor, Tensor]:
    """Attention step by step, as the models write it: [B, H, Q, d] and the weights [B, H, Q, K].

    ``mask`` is boolean, or a number to add where a model has mask code of its own.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    logits = query @ key.transpose(2, 3) * steps.scale  # [B, H, Q, K]
    if steps.softcap is not None:
        logits = torch.tanh(logits / steps.softcap) * steps.softcap
    if mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    else:
        logits = logits + mask
    if steps.sinks is not None:
        sinks = steps.sinks.reshape(1, -1, 1, 1).expand(len(query), -1, query.shape[2], 1)
        logits = torch.cat([logits, sinks.to(logits.dtype)], dim=-1)  # [B, H, Q, K + 1]
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = weights[..., : key.shape[2]]
    return weights @ value, weights
