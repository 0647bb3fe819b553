"""What a pair's sketch costs on the CPU, beside the ways there are without it.

Prints process CPU-seconds (not wall time: other work may keep the cores busy) of

    floor      forward and activation-only backward on separate sequences, full logits
    rows       the same objective on our shared rows, nothing sketched
    sketch k/r the same rows with the sketch
    loop       as a DPO trainer does it: policy and reference forward, full backward, one pair at
               a time, the gradients of the sketched layers (``loop-all``: of all weights) formed
    loop-head  the same with logits of the answers only
    bergson    bergson's collector on two rows a pair (``--bergson``, where it is installed)

for the same pairs in one process; and the counted multiply-adds. What else runs on the machine
slows memory for minutes at a time, so variants take turns in small portions of pairs, in a new
random order each time, and are compared portion by portion: given are medians, and medians of the
portions' ratios, each with a 95 % bootstrap interval. The share of a pass that the sketch's own
hooks take is measured inside the pass.

    OMP_NUM_THREADS=1 python tests/benchmarks/cost.py --vocabulary 8192 --rounds 7
"""

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counting import counted, executed
from hook_clock import HookClock
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from congrad_cli.records.record import Record
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.calibration import leading_directions
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.pairs import PairBatch, batch_pairs, cut_batches
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.tokens import TokenizedPair

BUDGET, BETA = 2048, 0.1
Work = Callable[[], object]


def random_model(vocabulary: int, dtype: torch.dtype = torch.float32) -> Any:
    """A Llama of 31.6 M parameters (8,192 tokens) with random weights."""
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=vocabulary, max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def random_pairs(count: int, vocabulary: int) -> list[TokenizedPair]:
    """Prompts of 32 to 160 random tokens, answers of 64 to 192."""
    source = np.random.default_rng(0)

    def ids(low: int, high: int) -> list[int]:
        return source.integers(0, vocabulary, source.integers(low, high + 1)).tolist()

    return [
        TokenizedPair(
            Record(row, "synthetic", row, b"", "", "", "", "en", None),
            ids(32, 160), ids(64, 192), ids(64, 192),
        )
        for row in range(count)
    ]  # fmt: skip


@cache
def sketcher(model: Any, leading: int, width: int) -> PairSketcher:
    """Our sketch with k = ``leading``, r = ``width``; with width 0 the rows alone.

    One for all rounds: it draws its projections when it first needs them.
    """
    if not width:
        return PairSketcher(model, {}, Projection(8192, 8, 0))
    layers = choose_layers(all_layers(model), "blocks")
    return PairSketcher(model, layers, Projection(8192, width, 0, directions(model, leading)))


@cache
def directions(model: Any, leading: int) -> dict[str, Tensor]:
    """The leading input directions of every layer, found once."""
    return leading_directions(model, choose_layers(all_layers(model), "blocks"), leading)


class Variants:
    """The ways to compare, each a context that is entered untimed and gives the timed work."""

    def __init__(self, model: Any, pairs: list[TokenizedPair]) -> None:
        self.model, self.pairs = model, pairs
        self.shared = self._batches(shared=True)
        self.separate = self._batches(shared=False)

    def _batches(self, shared: bool) -> list[PairBatch]:
        cut = cut_batches(self.pairs, BUDGET, shared)
        return [batch_pairs(batch, 0, shared) for batch in cut]

    @contextmanager
    def sketch(self, leading: int, width: int) -> Iterator[Work]:
        """Shared rows with the sketch, or with width 0 without."""
        use_shared_rows(self.model)
        with sketcher(self.model, leading, width) as one:
            yield lambda: [one.sketch(batch) for batch in self.shared]

    @contextmanager
    def floor(self) -> Iterator[Work]:
        """Separate sequences, full logits, frozen weights."""
        self.model.set_attn_implementation("sdpa")
        self.model.requires_grad_(False)

        def work() -> None:
            for batch in self.separate:
                embedded = self.model.get_input_embeddings()(batch.input_ids).requires_grad_()
                logits = self.model(inputs_embeds=embedded, use_cache=False).logits
                logp = answer_log_probs(logits.flatten(0, 1), batch)
                sign = 1.0 - 2.0 * (batch.sides % 2)
                torch.autograd.backward(logp @ sign, inputs=[embedded])

        yield work

    @contextmanager
    def loop(self, everything: bool, head: bool) -> Iterator[Work]:
        """One pair at a time against a reference, weight gradients formed."""
        self.model.set_attn_implementation("sdpa")
        self.model.requires_grad_(everything)
        for layer in choose_layers(all_layers(self.model), "blocks").values():
            layer.weight.requires_grad_(True)
        batches = [batch_pairs([pair], 0, False) for pair in self.pairs]

        def work() -> None:
            for batch in batches:
                prompt = len(batch.pairs[0].prompt)
                keep = batch.input_ids.shape[1] - prompt + 1 if head else 0
                forward = partial(self._margin, batch, keep)
                with torch.no_grad():
                    reference = forward()  # the reference is the model itself
                loss = -torch.nn.functional.logsigmoid(BETA * (forward() - reference))
                loss.backward()
                self.model.zero_grad()

        yield work
        self.model.requires_grad_(False)

    def _margin(self, batch: PairBatch, keep: int) -> Tensor:
        """log pi(chosen) - log pi(rejected) of one pair in two rows."""
        logits = self.model(
            input_ids=batch.input_ids, use_cache=False, logits_to_keep=keep
        ).logits
        length = batch.input_ids.shape[1]
        if keep:
            logits = torch.nn.functional.pad(logits, (0, 0, length - keep, 0))
        chosen, rejected = batch.sum_sides(answer_log_probs(logits.flatten(0, 1), batch))[0]
        return chosen - rejected

    def bergson(self) -> AbstractContextManager[Work]:
        """The peer's collector, where it is installed."""
        from peer_bergson import collector

        self.model.set_attn_implementation("sdpa")
        return collector(self.model, self.pairs, BUDGET)


def answer_log_probs(logits: Tensor, batch: PairBatch) -> Tensor:
    """log pi of every answer token [S] from the logits of all places [B * T, V]."""
    labels = torch.full(logits.shape[:1], -100)
    labels[batch.predictors] = batch.targets
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return -loss[batch.predictors]


Variant = Callable[[Variants], AbstractContextManager[Work]]


def measure(
    variants: dict[str, Variant], portions: list[Variants], rounds: int
) -> dict[str, np.ndarray]:
    """CPU-seconds a pair, [rounds * portions] by variant; one more round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds + 1):
        for portion in portions:
            random.shuffle(names)
            for name in names:
                with variants[name](portion) as work:
                    gc.collect()
                    begin = time.process_time()
                    work()
                    taken = time.process_time() - begin
                if number:
                    seconds[name].append(taken / len(portion.pairs))
    return {name: np.array(values) for name, values in seconds.items()}


def hook_shares(portions: list[Variants], rounds: int, leading: int, width: int) -> np.ndarray:
    """CPU time in the sketch's hooks over the rest of the same pass, [rounds * portions]."""
    shares = []
    for _ in range(rounds):
        for portion in portions:
            clock = HookClock()
            with clock.watch(), portion.sketch(leading, width) as work:
                begin = time.process_time()
                work()
                taken = time.process_time() - begin
            shares.append(clock.seconds / (taken - clock.seconds))
    return np.array(shares)


def median(
    values: np.ndarray, base: np.ndarray | None = None
) -> tuple[float, float, float]:
    """The median, or the median of ratios to ``base`` one by one, with its interval."""
    value = values if base is None else values / base
    picks = np.random.default_rng(0).integers(0, len(value), (4000, len(value)))
    low, high = np.percentile(np.median(value[picks], axis=1), [2.5, 97.5])
    return float(np.median(value)), float(low), float(high)


def interval(values: np.ndarray, base: np.ndarray | None = None) -> str:
    """:func:`median` as text."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*median(values, base))


def report(seconds: dict[str, np.ndarray], against: list[str]) -> None:
    """One line a variant; ``against``: whom to divide by."""
    there = [name for name in against if name in seconds]
    print(f"{'variant':14} {'CPU-seconds a pair':>22} {'pairs/s':>8} "
          + " ".join(f"{'/ ' + name:>22}" for name in there))
    for name, values in seconds.items():
        ratios = " ".join(f"{interval(values, seconds[base]):>22}" for base in there)
        print(f"{name:14} {interval(values):>22} {1 / np.median(values):8.2f} {ratios}")


def bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    place = Path("/proc/cpuinfo")
    flags = place.read_text() if place.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def compare(args: argparse.Namespace, dtype: torch.dtype) -> None:
    """One process, one model, all variants."""
    model = random_model(args.vocabulary, dtype)
    pairs = random_pairs(args.pairs, args.vocabulary)
    cuts = range(0, len(pairs), args.portion)
    portions = [Variants(model, pairs[begin : begin + args.portion]) for begin in cuts]
    widths = [tuple(int(part) for part in one.split(":")) for one in args.sketch]
    variants: dict[str, Variant] = {
        "floor": Variants.floor,
        "rows": lambda ways: ways.sketch(0, 0),
        **{f"sketch {k}/{r}": partial(Variants.sketch, leading=k, width=r) for k, r in widths},
        "loop": lambda ways: ways.loop(everything=False, head=False),
        "loop-all": lambda ways: ways.loop(everything=True, head=False),
        "loop-head": lambda ways: ways.loop(everything=False, head=True),
        "bergson": Variants.bergson,
    }
    for name in [*args.skip, *([] if args.bergson else ["bergson"])]:
        del variants[name]
    shared, separate = ([batch for ways in portions for batch in getattr(ways, layout)]
                        for layout in ("shared", "separate"))
    print(f"{dtype}, vocabulary {args.vocabulary}, {len(pairs)} pairs: "
          f"{sum(batch.input_ids.numel() for batch in shared)} places in {len(shared)} batches of "
          f"shared rows, {sum(batch.input_ids.numel() for batch in separate)} in {len(separate)} "
          "of separate")
    for k, r in widths:
        print(counted(model, shared, separate, k, r))
        with portions[0].sketch(0, 0) as work:
            without = executed(work)
        with portions[0].sketch(k, r) as work:
            print(f"  matrix products that torch counts in the first portion, attention left out: "
                  f"{without / 1e9:.2f} G without, {executed(work) / 1e9:.2f} G with the sketch")
        share = hook_shares(portions, args.rounds, k, r)
        print(f"  hooks of the sketch over the rest of the same pass, CPU time: {interval(share)}")
    first = "sketch {}/{}".format(*widths[0])
    report(measure(variants, portions, args.rounds), ["floor", "rows", first])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--portion", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sketch", nargs="+", default=["8:32"], help="k:r")
    parser.add_argument("--skip", nargs="*", default=[], help="variants to leave out")
    parser.add_argument("--bergson", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    compare(args, torch.float32)
    if bf16_instructions():
        compare(args, torch.bfloat16)
    else:
        print("bfloat16: skipped: this CPU has no bf16 instructions")


if __name__ == "__main__":
    main()
