"""Counted multiply-adds of one run over given batches; no script, ``cost.py`` prints them.

Every place of a row counts, padding included, for that is what is computed. Forward and
activation-only backward: 2 per weight and place in the blocks; 2 (forward) and 5 (backward, the
probabilities computed anew) per two places and channel in attention; 2 per entry of the head and
place where it runs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.pairs import PairBatch


def plain_parts(model: Any, batches: Sequence[PairBatch], full_logits: bool) -> dict[str, int]:
    """Forward and activation-only backward."""
    config = model.config.get_text_config()
    weights = sum(layer.size for layer in choose_layers(all_layers(model), "blocks").values())
    places = sum(batch.input_ids.numel() for batch in batches)
    square = sum(batch.input_ids.numel() * batch.input_ids.shape[1] for batch in batches)
    heads = sum(batch.input_ids.numel() if full_logits else len(batch.targets)
                for batch in batches)
    channels = config.num_attention_heads * config.head_dim
    return {
        "linears": 2 * weights * places,
        "attention": 7 * square * channels * config.num_hidden_layers,
        "head": 2 * config.vocab_size * config.hidden_size * heads,
    }


def sketch_parts(model: Any, batches: Sequence[PairBatch], lines: int) -> dict[str, int]:
    """The sketch with k + r = ``lines``, every layer on its own."""
    places = sum(batch.input_ids.numel() for batch in batches)
    rows = sum(len(batch.input_ids) for batch in batches)
    layers = choose_layers(all_layers(model), "blocks")
    shapes = [(layer.inputs, layer.outputs) for layer in layers.values()]
    return {
        "a R": lines * places * sum(inputs for inputs, _ in shapes),
        "(a R)^T delta": lines * places * sum(outputs for _, outputs in shapes),
        "fold": lines * rows * sum(outputs for _, outputs in shapes),
    }


def counted(
    model: Any, shared: Sequence[PairBatch], separate: Sequence[PairBatch], k: int, r: int
) -> str:
    """The counts in words, and the ratios that time should follow."""
    rows, floor = plain_parts(model, shared, False), plain_parts(model, separate, True)
    sketch = sketch_parts(model, shared, k + r)
    total, extra, whole = (sum(parts.values()) for parts in (rows, sketch, floor))
    return "\n".join([
        f"counted multiply-adds, k = {k}, r = {r}:",
        f"  floor  {_list(floor)}",
        f"  rows   {_list(rows)}",
        f"  sketch {_list(sketch)}",
        f"  sketch over rows: 1 + {extra / total:.4f}; "
        f"rows with sketch over floor: {(total + extra) / whole:.3f}",
    ])


def _list(parts: dict[str, int]) -> str:
    each = ", ".join(f"{name} {value / 1e9:.3f}" for name, value in parts.items())
    return f"{sum(parts.values()) / 1e9:.2f} G: {each}"


def executed(work: Callable[[], object]) -> float:
    """Multiply-adds of the matrix products that ``work`` calls, attention's fused ones left out."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2
