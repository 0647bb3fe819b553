"""Which weights of a model are sketched, and what each of them is.

A layer is one parameter. What it does with the model's activations decides how its gradient is
captured:

========  ================================================================================
matrix    used as ``x W^T`` (linear layers, Conv1D, routers, heads) or looked up (embeddings)
vector    broadcast over tokens: biases, norm scales
experts   a stack of matrices, one per expert, of which every token uses some
packed    a quantised linear layer: its weight is no tensor of numbers, its inputs are
other     anything else (convolutions, states): can be left out, not sketched
========  ================================================================================
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from congrad_cli.errors import ModelError, UsageError

Kind = Literal["matrix", "vector", "experts", "packed", "other"]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One weight: its gradient is [outputs, inputs], or [experts, outputs, inputs]."""

    name: str
    kind: Kind
    module: nn.Module
    attribute: str  # the module's parameter
    outputs: int
    inputs: int = 1
    experts: int = 1
    in_block: bool = False
    owners: tuple[tuple[nn.Module, str], ...] = ()  # all modules and names that hold it

    @property
    def weight(self) -> Tensor:
        """The parameter itself."""
        weight: Tensor = getattr(self.module, self.attribute)
        return weight

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.outputs * self.inputs * self.experts

    @property
    def transposed(self) -> bool:
        """Whether the parameter is stored as [inputs, outputs]."""
        return isinstance(self.module, Conv1D) or bool(getattr(self.module, "is_transposed", False))


def all_layers(model: nn.Module, adapter: bool = False) -> dict[str, Layer]:
    """Every weight of the model by its full name, once; of an adapter, its own weights only."""
    blocks = [f"{name}." for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    tuned = {id(weight) for weight in model.parameters() if weight.requires_grad}
    found = {}
    for layer in _every_layer(model, blocks):
        if not adapter or (layer.kind != "packed" and id(layer.weight) in tuned):
            found[layer.name] = layer
    return found


def _every_layer(model: nn.Module, blocks: list[str]) -> Iterator[Layer]:
    packed: set[str] = set()
    for prefix, module in model.named_modules():
        if _is_packed(module):
            packed.add(prefix)
            inside = any(prefix.startswith(block) for block in blocks)
            yield Layer(f"{prefix}.weight", "packed", module, "weight",
                        int(module.out_features), int(module.in_features), in_block=inside)
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        prefix, _, attribute = name.rpartition(".")
        owners.setdefault(id(weight), []).append((model.get_submodule(prefix), attribute))
    for name, weight in model.named_parameters():
        prefix, _, attribute = name.rpartition(".")
        if prefix in packed and attribute == "weight":
            continue
        inside = any(name.startswith(block) for block in blocks)
        layer = _layer(name, model.get_submodule(prefix), attribute, weight, inside)
        yield replace(layer, owners=tuple(owners[id(weight)]))


def _is_packed(module: nn.Module) -> bool:
    """A layer that says it is linear but has no weight matrix of that shape."""
    shape = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    if not all(isinstance(size, int) for size in shape) or list(module.children()):
        return False
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.shape == shape
    return not plain


def _layer(
    name: str, module: nn.Module, attribute: str, weight: Tensor, inside: bool
) -> Layer:
    shape = tuple(weight.shape)
    if not weight.is_floating_point():
        return Layer(name, "other", module, attribute, weight.numel(), in_block=inside)
    beside = getattr(module, "weight", None)
    of_convolution = isinstance(beside, Tensor) and beside.dim() > 2
    if len(shape) == 1 and not of_convolution:
        return Layer(name, "vector", module, attribute, shape[0], in_block=inside)
    stack = hasattr(module, "is_transposed") and hasattr(module, "_apply_gate")  # fused experts
    if len(shape) == 2 and not stack:
        outputs, inputs = reversed(shape) if isinstance(module, Conv1D) else shape
        return Layer(name, "matrix", module, attribute, outputs, inputs, in_block=inside)
    if len(shape) == 3 and stack:
        experts = shape[0]
        outputs, inputs = reversed(shape[1:]) if module.is_transposed else shape[1:]
        return Layer(name, "experts", module, attribute, outputs, inputs, experts, inside)
    return Layer(name, "other", module, attribute, weight.numel(), in_block=inside)


def is_block_linear(layer: Layer) -> bool:
    """Whether ``blocks`` means this layer: a linear map inside a member of a module list."""
    plain = layer.kind == "matrix" and layer.attribute == "weight"
    norm = "norm" in type(layer.module).__name__.lower()  # some hold one scale per head
    linear = plain and not norm and not isinstance(layer.module, nn.Embedding)
    return layer.in_block and (linear or layer.kind in ("experts", "packed"))


def choose_layers(everything: Mapping[str, Layer], terms: str) -> dict[str, Layer]:
    """The layers that ``terms`` names, in the model's order.

    ``terms`` is a list with commas, read from the left: ``blocks`` (every linear layer of the
    blocks), ``all``, a glob over parameter or module names (``*.mlp.*``), and with ``!`` in front
    what is left out again (``all,!*.conv1d``). A list that begins with ``!`` starts from
    ``blocks``.
    """
    wanted = terms if not terms.startswith("!") else f"blocks,{terms}"
    chosen: set[str] = set()
    for term in (part.strip() for part in wanted.split(",")):
        glob = term.removeprefix("!")
        hits = {name for name, layer in everything.items() if _matches(layer, glob)}
        if not hits and glob != "blocks":
            raise UsageError(
                f"--layers {term}: the model has no such weight.",
                f"its weights have names like {', '.join(_examples(everything))}",
            )
        chosen = chosen - hits if term.startswith("!") else chosen | hits
    if not chosen:
        raise ModelError(
            f"--layers {terms} leaves no weight of the model.",
            f"its weights have names like {', '.join(_examples(everything))}",
        )
    layers = {name: layer for name, layer in everything.items() if name in chosen}
    refuse_other(layers)
    return layers


def refuse_other(layers: dict[str, Layer]) -> None:
    """Raise :class:`ModelError` naming the first layer that cannot be sketched."""
    other = [layer for layer in layers.values() if layer.kind == "other"]
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        raise cannot_sketch(
            other[0].name, f"its shape is {tuple(other[0].weight.shape)}{more}"
        )


def cannot_sketch(name: str, reason: str) -> ModelError:
    """The error for a layer that is used in a way that is not understood."""
    pattern = re.sub(r"\.\d+(?=\.)", ".*", name)
    return ModelError(
        f"{name} cannot be sketched: {reason}.",
        f"leave it and its like out: --layers 'blocks,!{pattern}', or with all in place of blocks",
    )


def _matches(layer: Layer, glob: str) -> bool:
    if glob == "all":
        return True
    if glob == "blocks":
        return is_block_linear(layer)
    parts = layer.name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), glob) for end in range(1, len(parts) + 1))


def _examples(layers: Mapping[str, Layer]) -> list[str]:
    names = list(layers)
    return [names[index] for index in sorted({0, len(names) // 2, len(names) - 1})]


def dtype_of(model: Any) -> torch.dtype:
    """The precision the model computes in: that of most of its floating-point numbers."""
    sizes: dict[torch.dtype, int] = {}
    for weight in model.parameters():
        if weight.is_floating_point():
            sizes[weight.dtype] = sizes.get(weight.dtype, 0) + weight.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else torch.float32
