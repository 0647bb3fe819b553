"""What one long row costs, with a table of T x T for its mask and without.

For a row [prompt | chosen | rejected] of T tokens, a half of them prompt, on a small model with
random weights: seconds and the peak of memory of one forward and one activation backward, in a
process of its own each, so that one peak does not hide another.

    OMP_NUM_THREADS=1 python tests/benchmarks/long_rows.py --tokens 4096

Gemma 2's table at 8,192 tokens would take over 20 GiB: there, --no-table.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig

from congrad_cli.records.record import Record
from congrad_cli.sketch import long_rows
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.pairs import batch_pairs
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.tokens import TokenizedPair

SIZES: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 16384,
}  # fmt: skip
MODELS = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=1024),
    "gemma2": Gemma2Config(**SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=1024),
}


def one_row(tokens: int, share: float) -> TokenizedPair:
    """A pair of random tokens whose shared row has that many, the given share of them prompt."""
    ids = torch.randint(0, 1024, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt = int(tokens * share)
    chosen = prompt + (tokens - prompt) // 2
    record = Record(0, "synthetic", 0, b"", "", "", "", "en", None)
    return TokenizedPair(record, ids[:prompt], ids[prompt:chosen], ids[chosen:])


def peak(device: str) -> float:
    """The most memory taken so far, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(args: argparse.Namespace, name: str, tokens: int, table: bool, answer: Any) -> None:
    """Seconds, and how much the peak grew by the work, in MiB."""
    if table:
        long_rows.LONG_ROW = sys.maxsize
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_config(MODELS[name], dtype=dtype).eval().to(args.device)
    use_shared_rows(model)

    def work(sketcher: PairSketcher, length: int) -> float:
        batch = batch_pairs([one_row(length, args.prompt)], 0, shared=True).to(sketcher.device)
        begin = time.perf_counter()
        float(sketcher.sketch(batch).logp.sum())  # waits for the device
        return time.perf_counter() - begin

    with PairSketcher(model, {}, Projection(8, 8, 0)) as sketcher:
        work(sketcher, 64)
        before = peak(args.device)
        seconds = [work(sketcher, tokens) for _ in range(args.repeat)]
        answer.put((statistics.median(seconds), peak(args.device) - before))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="*", default=[4096, 8192])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--prompt", type=float, default=0.5, help="the prompt's share of the row")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--no-table", action="store_true", help="where the table does not fit")
    args = parser.parse_args()
    for name in args.models:
        for tokens in args.tokens:
            fast, small = apart(args, name, tokens, False)
            line = f"{name:8} {tokens:6} tokens: without {fast:6.1f} s {small:6.0f} MiB"
            if not args.no_table:
                slow, large = apart(args, name, tokens, True)
                line += (f"; table {slow:6.1f} s ({slow / fast:.1f} x) {large:6.0f} MiB "
                         f"({large / small:.1f} x)")
            print(line, flush=True)


def apart(args: argparse.Namespace, name: str, tokens: int, table: bool) -> tuple[float, float]:
    """``measure`` in a process of its own; not a number where that was killed."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=measure, args=(args, name, tokens, table, answer))
    process.start()
    process.join()
    return answer.get() if process.exitcode == 0 else (float("nan"), float("nan"))


if __name__ == "__main__":
    main()
