"""One point of ``scaling.py``: what the sketch of a random Llama costs, in a process of its own.

Prints one JSON object: CPU seconds a pair of the shared rows alone, with the sketch, and of coding
the sketched row; the matmul rate of the same process, measured between them; counted operations;
and the peak memory beyond the model. The argument is the JSON of a :class:`SketchPoint`.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from counting import plain_parts, sketch_parts
from device_cost import matmul_rate
from expected import SIZES, batch_bytes, operations
from memory import resident
from transformers import AutoModelForCausalLM, LlamaConfig

from congrad_cli.codec import Codec
from congrad_cli.records.record import Record
from congrad_cli.settings import SketchSettings
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import Layer, all_layers, choose_layers
from congrad_cli.sketch.pairs import PairBatch, batch_pairs, cut_batches
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.start import find_start
from congrad_cli.sketch.tokens import TokenizedPair

LEADING = 8
BUDGET = 2048


@dataclass(frozen=True)
class SketchPoint:
    """A model of ``expected.SIZES``, its pairs, all of one length, and the row they become."""

    model: str
    prompt: int = 100
    answer: int = 100
    pairs: int = 6
    dim: int = 32768
    width: int = 32
    code: str = "int4"
    repeat: int = 2
    start: bool = False  # also what a store settles before its first row


def measure_point(point: SketchPoint) -> dict[str, float]:
    """All of it, in this process."""
    torch.set_num_threads(1)
    shape = SIZES[point.model]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config())).eval()
    model.requires_grad_(False)
    can_share = use_shared_rows(model)
    layers = choose_layers(all_layers(model), "blocks")
    batches = [batch_pairs(batch, 0, shared=True)
               for batch in cut_batches(pairs_of(point, shape.vocabulary), BUDGET, shared=True)]
    plain = PairSketcher(model, {}, Projection(point.dim, point.width, 0))
    ours = PairSketcher(model, layers, projection(layers, point))
    found = {"peak_bytes": float(peak_of(lambda: sketch_all(ours, batches)))}
    found |= clocked(point, plain, ours, batches)
    counts = sum(sum(parts.values()) for parts in (
        plain_parts(model, batches, full_logits=False),
        sketch_parts(model, batches, LEADING + point.width)))
    tokens = point.prompt + 2 * point.answer
    most = max(batches, key=lambda batch: batch.input_ids.numel())
    found |= {
        "parameters": shape.parameters, "blocks": shape.blocks, "tokens": tokens,
        "operations": 2 * counts / point.pairs,
        "by_shape": sum(operations(
            shape, tokens, 2 * point.answer, LEADING + point.width).values()),
        "batch_tokens": most.input_ids.numel(),
        "batch_bytes": batch_bytes(shape, most.input_ids.numel(), len(most.targets), half=False),
    }  # fmt: skip
    if point.start:
        began = time.process_time()
        find_start(model, layers, SketchSettings(model="random", dim=point.dim), can_share)
        found["start"] = time.process_time() - began
    return found


def pairs_of(point: SketchPoint, vocabulary: int) -> list[TokenizedPair]:
    """Random tokens, all pairs of the same lengths."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(0, vocabulary, (length,), generator=generator).tolist()

    return [
        TokenizedPair(Record(row, "synthetic", row, b"", "", "", "", "en", None),
                      ids(point.prompt), ids(point.answer), ids(point.answer))
        for row in range(point.pairs)
    ]  # fmt: skip


def projection(layers: dict[str, Layer], point: SketchPoint) -> Projection:
    """That of the point, with random leading directions: which ones they are costs the same."""
    return Projection(point.dim, point.width, 0, {
        name: torch.linalg.qr(torch.randn(layer.inputs, LEADING))[0]
        for name, layer in layers.items()
    })  # fmt: skip


def sketch_all(sketcher: PairSketcher, batches: list[PairBatch]) -> list[torch.Tensor]:
    """Unit rows of every batch."""
    with sketcher:
        return [torch.nn.functional.normalize(sketcher.sketch(batch).sketch, dim=1)
                for batch in batches]


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes beyond what is resident now that ``work`` takes at its peak, done once (Linux)."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    work()
    return resident("VmHWM") - before


def clocked(
    point: SketchPoint, plain: PairSketcher, ours: PairSketcher, batches: list[PairBatch]
) -> dict[str, float]:
    """Medians of CPU seconds a pair, and of operations a second, by turns."""
    codec = Codec(point.code, point.dim, point.width)
    taken: dict[str, list[float]] = {name: [] for name in ("rows", "sketch", "code", "rate")}
    for _ in range(point.repeat):
        rate = matmul_rate(torch.device("cpu"), torch.float32, time.process_time)
        taken["rate"].append(rate)
        for name, sketcher in (("rows", plain), ("sketch", ours)):
            began = time.process_time()
            units = sketch_all(sketcher, batches)
            taken[name].append((time.process_time() - began) / point.pairs)
        began = time.process_time()
        for unit in units:
            codec.encode(unit.numpy())
        taken["code"].append((time.process_time() - began) / point.pairs)
    return {name: statistics.median(values) for name, values in taken.items()}


def arguments(point: SketchPoint) -> list[str]:
    """Of the process that measures ``point``."""
    return [__file__, json.dumps(asdict(point))]


if __name__ == "__main__":
    print(json.dumps(measure_point(SketchPoint(**json.loads(sys.argv[1])))))
