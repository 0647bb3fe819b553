"""What a sketch costs on a device, for a model of given shape with random weights.

Prints, for the same pairs in the same run: the device's matmul rate in the model's precision;
seconds for the shared rows' forward and activation-only backward without any sketch; seconds with
the sketch; pairs/s, tokens/s, peak memory; and the share of the matmul rate, counting 4 operations
per parameter of the blocks and real token (2 forward, 2 for the activations' gradient).

    python tests/benchmarks/device_cost.py --shape llama-3-8b --device cuda --dtype bfloat16
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from congrad_cli.records.record import Record
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.pairs import batch_pairs, cut_batches
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.tokens import TokenizedPair

SHAPES = {
    "llama-3-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "llama-30m": {
        "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8192,
    },
}  # fmt: skip


def synthetic_pairs(count: int, vocabulary: int, prompt: int, answer: int) -> list[TokenizedPair]:
    """Pairs of random tokens; lengths spread by +-50 %."""
    generator = torch.Generator().manual_seed(0)

    def ids(mean: int) -> list[int]:
        length = int(torch.randint(mean // 2, mean + mean // 2, (1,), generator=generator))
        return torch.randint(0, vocabulary, (length,), generator=generator).tolist()

    return [
        TokenizedPair(
            Record(row, "synthetic", row, b"", "", "", "", "en", None),
            ids(prompt), ids(answer), ids(answer),
        )
        for row in range(count)
    ]  # fmt: skip


Clock = Callable[[], float]


def matmul_rate(
    device: torch.device, dtype: torch.dtype, clock: Clock = time.perf_counter
) -> float:
    """Operations per second of a large square product."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, device, clock) for _ in range(6)]
    return 2 * side**3 / statistics.median(seconds[1:])


def timed(work: Any, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-30m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--answer", type=int, default=150)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--widths", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    config = LlamaConfig(**SHAPES[args.shape], max_position_embeddings=8192)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    use_shared_rows(model)
    layers = choose_layers(all_layers(model), "blocks")
    parameters = sum(layer.weight.numel() for layer in layers.values())
    pairs = synthetic_pairs(args.pairs, config.vocab_size, args.prompt, args.answer)
    tokens = sum(pair.length for pair in pairs)
    cut = cut_batches(pairs, args.budget, shared=True)
    batches = [batch_pairs(batch, 0, shared=True).to(device) for batch in cut]
    rate = matmul_rate(device, dtype)
    print(f"{args.shape} {args.dtype} on {args.device}: {parameters / 1e9:.2f} G block parameters, "
          f"{len(pairs)} pairs, {tokens} tokens, {len(batches)} batches; "
          f"matmul {rate / 1e12:.1f} T/s", flush=True)
    for width in [0, *args.widths]:
        chosen = layers if width else {}
        with PairSketcher(model, chosen, Projection(8192, width or 8, 0)) as sketcher:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()

            def work(sketcher: PairSketcher = sketcher) -> None:
                for batch in batches:
                    sketcher.sketch(batch)

            timed(work, device)
            seconds = statistics.median(timed(work, device) for _ in range(args.repeat))
            peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0
            share = 4 * parameters * tokens / seconds / rate
            print(f"width {width:3d}: {seconds:.3f} s, {len(pairs) / seconds:.1f} pairs/s, "
                  f"{tokens / seconds:.0f} tokens/s, peak {peak:.1f} GiB, "
                  f"{share:.0%} of the matmul rate", flush=True)


if __name__ == "__main__":
    main()
