"""What share of the model a sketch sees: of its numbers, and of a gradient's energy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from congrad_cli.errors import out_of_memory
from congrad_cli.sketch.exact import pair_objective
from congrad_cli.sketch.layers import Layer, is_block_linear
from congrad_cli.sketch.tokens import TokenizedPair

PAIRS = 4
"""The energy is measured on at most so many pairs of the first window, the shortest ones: all
weights want a gradient there, and memory must not run out for a message."""


@dataclass(frozen=True)
class Share:
    """Parts of the whole, 0 to 1; ``energy`` is None where it could not be measured."""

    numbers: float
    energy: float | None

    def __str__(self) -> str:
        energy = "" if self.energy is None else f" ({_percent(self.energy)})"
        return f"{_percent(self.numbers)}{energy}"


@dataclass(frozen=True)
class Coverage:
    """What is sketched, and what is left out by kind of weight."""

    layers: int
    covered: Share
    left_out: dict[str, Share]
    pairs: int

    def __str__(self) -> str:
        energy = self.covered.energy
        measured = (
            "the gradient's energy could not be measured (memory)" if energy is None
            else f"{_percent(energy)} of the gradient's energy, measured on "
            f"{self.pairs} pair{'s' * (self.pairs > 1)}"
        )
        kinds = ", ".join(f"{kind} {share}" for kind, share in self.left_out.items())
        return (
            f"{self.layers:,} weights hold {_percent(self.covered.numbers)} of the parameters "
            f"and {measured}; left out: {kinds or 'nothing'}"
        )


def measure_coverage(
    model: Any,
    everything: Mapping[str, Layer],
    chosen: Mapping[str, Layer],
    pairs: Sequence[TokenizedPair],
) -> Coverage:
    """Shares of ``chosen`` in ``everything``; |u_i|^2 is added up over ``PAIRS`` of the pairs.

    The energy comes from plain autograd over all weights, one at a time, so that it knows of
    what the sketch leaves out. Quantised weights have no gradient and count as numbers only.
    """
    sample = sorted(pairs, key=lambda pair: (pair.length, pair.record.row))[:PAIRS]
    energy = dict.fromkeys(everything, 0.0)
    try:
        for pair in sample:
            _add_energy(model, everything, pair, energy)
    except Exception as error:
        if not out_of_memory(error):
            raise
        energy = {}
    finally:
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)

    def share(names: list[str]) -> Share:
        numbers = sum(everything[name].size for name in names)
        whole = sum(layer.size for layer in everything.values())
        if not sum(energy.values()):
            return Share(numbers / whole, None)
        part = sum(energy[name] for name in names)
        return Share(numbers / whole, part / sum(energy.values()))

    kinds: dict[str, list[str]] = {}
    for name, layer in everything.items():
        if name not in chosen:
            kinds.setdefault(_kind(layer), []).append(name)
    return Coverage(
        layers=len(chosen),
        covered=share(list(chosen)),
        left_out={kind: share(names) for kind, names in kinds.items()},
        pairs=len(sample),
    )


def _add_energy(
    model: Any, everything: Mapping[str, Layer], pair: TokenizedPair, energy: dict[str, float]
) -> None:
    """Add |d objective / d weight|^2 of every weight; no two gradients are kept at a time."""
    hooks = []
    for name, layer in everything.items():
        if layer.kind == "packed" or not layer.weight.is_floating_point():
            continue

        def note(weight: Tensor, name: str = name) -> None:
            assert weight.grad is not None
            energy[name] += float(weight.grad.float().square().sum())
            weight.grad = None

        layer.weight.requires_grad_(True)
        hook = layer.weight.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
        hooks.append(hook)
    try:
        with torch.enable_grad():
            chosen, rejected = pair_objective(model, pair)
            torch.autograd.backward(chosen - rejected)
    finally:
        for hook in hooks:
            hook.remove()


def _kind(layer: Layer) -> str:
    if isinstance(layer.module, nn.Embedding):
        return "embeddings"
    if layer.kind == "vector":
        return "norms and biases"
    if is_block_linear(layer):
        return "other linears"
    return "head" if layer.kind == "matrix" and not layer.in_block else "others"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0995 or share == 0 else f"{share:.2%}"
