"""Sees every use that a model's forward makes of the sketched weights.

Weights are watched where they are used, not by the modules that own them: a mode for torch
functions looks for them among the arguments of every call. So tied weights, layers whose weight
is used without calling them, and code that nobody here has read are either understood or refused
by name; nothing is passed over in silence.

Vectors (biases, norm scales) are replaced by one copy per row of the batch for the time of their
module's forward; autograd then separates the rows, whatever the module does with them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from congrad_cli.sketch.layers import Layer, cannot_sketch


class MixedRowsError(Exception):
    """A layer sees tokens of several pairs without saying whose they are."""


@dataclass
class Rows:
    """Which row of the batch every token belongs to, at the present place of the forward."""

    count: int  # B
    tokens: int  # B * T
    of_token: Tensor | None = None  # [s] ascending, where the tokens are a selection

    def split(self, x: Tensor, name: str) -> Tensor:
        """x [..., f] -> [B, n, f], the tokens of each row together."""
        if self.count == 1:
            return x.reshape(1, -1, x.shape[-1])
        if (x.dim() > 2 and x.shape[0] == self.count) or (
            x.dim() == 2 and x.shape[0] == self.tokens
        ):
            return x.reshape(self.count, -1, x.shape[-1])
        raise MixedRowsError(name)

    def spread(self, leaf: Tensor, x: Tensor, name: str) -> Tensor:
        """One vector per row, leaf [B, d] -> a shape that broadcasts with the tokens of x."""
        if self.of_token is not None:
            chosen = leaf[self.of_token.to(leaf.device)]  # [s, d]
            return chosen if x.dim() == 2 else chosen[None]
        if self.count > 1 and x.dim() == 2 and x.shape[0] == self.tokens:
            return leaf.repeat_interleave(self.tokens // self.count, 0)
        if self.count > 1 and (x.dim() < 3 or x.shape[0] != self.count):
            raise MixedRowsError(name)
        return leaf.view(self.count, *[1] * (x.dim() - 2), leaf.shape[-1])


class Listener(Protocol):
    """What is told about uses."""

    rows: Rows

    def used(self, layer: Layer, x: Tensor, output: Tensor, tokens_last: bool = False) -> None:
        """``output = x W^T``; with ``tokens_last`` the output's last two axes are swapped."""

    def looked_up(self, layer: Layer, ids: Tensor, output: Tensor, padding: int | None) -> None:
        """``output = W[ids]``; the line of the id ``padding`` has no gradient."""

    def selected(
        self, layer: Layer, x: Tensor, output: Tensor, token: Tensor, counts: list[int]
    ) -> None:
        """Row s of x went through the expert that ``counts`` says, for the token ``token[s]``."""

    def row_vector(self, layer: Layer) -> Tensor:
        """One copy of the vector per row, [B, d], whose gradient is wanted."""


_watching: ContextVar["WeightUses | None"] = ContextVar("weight_uses", default=None)

CASTS = (torch.Tensor.to, torch.Tensor.type, torch.Tensor.float, torch.Tensor.bfloat16,
         torch.Tensor.half, torch.Tensor.type_as, torch.Tensor.contiguous)
PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
GETTERS: Any = (torch.Tensor.T, torch.Tensor.mT)
TURNS = (torch.Tensor.t, torch.t, *(getter.__get__ for getter in GETTERS))


@dataclass(frozen=True, slots=True)
class Seen:
    """A weight as it was met: itself, a cast of it, or its transpose."""

    tensor: Tensor  # kept, so that no other tensor gets its id
    layer: Layer
    turned: bool = False


class WeightUses(TorchFunctionMode):
    """Tells ``listener`` of every use of ``layers``. It owns hooks on the model until closed."""

    def __init__(self, layers: Iterable[Layer], listener: Listener) -> None:
        super().__init__()
        self.listener = listener
        self._matrices: dict[int, Seen] = {}
        self._derived: dict[int, Seen] = {}  # casts and transposes, of this forward
        self._plain_vectors: dict[int, Layer] = {}
        self._hooks: list[Any] = []
        self._muted = False
        vectors: dict[nn.Module, list[tuple[str, Layer]]] = {}
        for layer in layers:
            if layer.kind == "vector":
                self._plain_vectors[id(layer.weight)] = layer
                for module, attribute in layer.owners:
                    vectors.setdefault(module, []).append((attribute, layer))
            elif layer.kind == "packed":
                self._hooks.append(layer.module.register_forward_hook(self._packed_hook(layer)))
            else:
                self._matrices[id(layer.weight)] = Seen(layer.weight, layer)
        for module, owned in vectors.items():
            before, after = self._vector_hooks(owned)
            self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(after, always_call=True))

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Listen to what is called inside."""
        token = _watching.set(self)
        try:
            with self:
                yield
        finally:
            _watching.reset(token)
            self._derived = {}

    @contextmanager
    def replay(self) -> Iterator[None]:
        """As :meth:`watch` for what is computed again: the same results, and nothing is told."""
        self._muted = True
        try:
            with self.watch():
                yield
        finally:
            self._muted = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called in place of every torch function."""
        kwargs = kwargs or {}
        self._refuse_plain_vectors(function, args, kwargs)
        special = SPECIAL.get(function)
        if special is not None:
            return special(self, function, args, kwargs)
        result = function(*args, **kwargs)
        if any(part.is_floating_point() for part in _tensors((result,))):
            self._check(function, args, kwargs, result)
        return result

    def layer_of(self, weight: Any) -> Layer | None:
        """The layer whose weight, or cast weight, this is; its transpose is refused."""
        seen = self._find(weight)
        if seen is not None and seen.turned:
            raise cannot_sketch(seen.layer.name, "the model uses it transposed")
        return None if seen is None else seen.layer

    def tell(self, layer: Layer, x: Tensor, output: Tensor, tokens_last: bool = False) -> None:
        """Tell the listener of a linear map."""
        want_gradient(output)
        if not self._muted:
            self.listener.used(layer, x, output, tokens_last)

    def tell_lookup(self, layer: Layer, ids: Tensor, output: Tensor, padding: int | None) -> None:
        """Tell the listener of an embedding."""
        if not self._muted:
            self.listener.looked_up(layer, ids, output, padding)

    def tell_selection(
        self, layer: Layer, x: Tensor, output: Tensor, token: Tensor, counts: list[int]
    ) -> None:
        """Tell the listener of a stack of experts."""
        want_gradient(output)
        if not self._muted:
            self.listener.selected(layer, x, output, token, counts)

    def _find(self, weight: Any) -> Seen | None:
        return self._matrices.get(id(weight)) or self._derived.get(id(weight))

    def _refuse_plain_vectors(self, function: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        """Inside its module a vector is replaced by copies; met as it is, it is used elsewhere."""
        if not self._plain_vectors:
            return
        for argument in _tensors((args, tuple(kwargs.values()))):
            layer = self._plain_vectors.get(id(argument))
            if layer is not None and not _is_question(function):
                raise cannot_sketch(layer.name, "it is used outside the module that owns it")

    def _check(self, function: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        """A use that nothing else here understands: casts are remembered, others are refused."""
        for position, argument in enumerate(_tensors((args, tuple(kwargs.values())))):
            seen = self._find(argument)
            if seen is None or result is argument:
                continue
            layer = seen.layer
            if function in CASTS and position == 0:
                self._derived[id(result)] = Seen(result, layer, seen.turned)
            elif function in TURNS:
                self._derived[id(result)] = Seen(result, layer, not seen.turned)
            elif function in PRODUCTS and layer.kind == "matrix" and position == seen.turned:
                if seen.turned:  # x W^T
                    self.tell(layer, args[0], result)
                else:  # W x^T
                    self.tell(layer, args[1].transpose(-1, -2), result, tokens_last=True)
            else:
                name = getattr(function, "__name__", str(function))
                raise cannot_sketch(layer.name, f"the model uses it in {name}()")

    def _packed_hook(self, layer: Layer) -> Callable[..., None]:
        def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if _watching.get() is self:
                self.tell(layer, args[0], output)

        return after

    def _vector_hooks(
        self, owned: list[tuple[str, Layer]]
    ) -> tuple[Callable[..., None], Callable[..., None]]:
        plain = {attribute: layer.weight for attribute, layer in owned}

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if _watching.get() is not self:
                return
            tensors = _tensors((args, tuple(kwargs.values())))
            x = next((x for x in tensors if x.is_floating_point() and x.dim() > 1), None)
            for attribute, layer in owned:
                if x is None:
                    raise cannot_sketch(layer.name, "its module is called without numbers")
                with torch._C.DisableTorchFunction():
                    leaf = self.listener.row_vector(layer)
                spread = self.listener.rows.spread(leaf, x, layer.name)
                module._parameters[attribute] = spread  # type: ignore[assignment]

        def after(module: nn.Module, *_: Any) -> None:
            module._parameters.update(plain)  # type: ignore[arg-type]

        return before, after


def want_gradient(output: Tensor) -> None:
    """A use on inputs that hang on nothing learned still has a gradient of its own."""
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among ``values``, lists and tuples inside included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _is_question(function: Any) -> bool:
    """Whether a function only asks a tensor something: its type, its place, its shape."""
    return getattr(function, "__name__", "") in QUESTIONS


QUESTIONS = {"__get__", "dim", "size", "numel", "is_floating_point", "element_size", "stride",
             "data_ptr", "is_contiguous", "__len__", "__hash__", "__repr__"}  # fmt: skip


def _linear(uses: WeightUses, function: Any, args: Any, kwargs: Any) -> Tensor:
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    many = bias is not None and bias.dim() > 1  # one bias per row
    output: Tensor = function(x, weight) + bias if many else function(x, weight, bias)
    layer = uses.layer_of(weight)
    if layer is not None:
        uses.tell(layer, x, output)
    return output


def _addmm(uses: WeightUses, function: Any, args: Any, kwargs: Any) -> Tensor:
    """GPT-2's Conv1D: bias + x W with W [in, out] and x [tokens, in]."""
    bias, x, weight = args
    output: Tensor
    if bias.dim() > 1:  # one bias per row: [B, 1, out]
        output = x @ weight
        output = (output.view(len(bias), -1, output.shape[-1]) + bias).view(output.shape)
    else:
        output = function(*args, **kwargs)
    layer = uses.layer_of(weight)
    if layer is not None:
        uses.tell(layer, x, output)
    return output


def _embedding(uses: WeightUses, function: Any, args: Any, kwargs: Any) -> Tensor:
    named = dict(zip(("input", "weight", "padding_idx"), args, strict=False)) | kwargs
    output: Tensor = function(*args, **kwargs)
    layer = uses.layer_of(named["weight"])
    if layer is not None:
        want_gradient(output)
        output = output.clone()  # the model may change it in place
        padding = named.get("padding_idx")
        size = len(named["weight"])
        uses.tell_lookup(layer, named["input"], output, padding and padding % size)
    return output


def _layer_norm(uses: WeightUses, function: Any, args: Any, kwargs: Any) -> Tensor:
    """Scale and shift apart from the norm, where there is one of them per row."""
    named = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False))
    named |= kwargs
    weight, bias = named.get("weight"), named.get("bias")
    if not any(isinstance(part, Tensor) and part.dim() > 1 for part in (weight, bias)):
        plain: Tensor = function(*args, **kwargs)
        return plain
    output: Tensor = function(**{**named, "weight": None, "bias": None})
    output = output if weight is None else output * weight
    return output if bias is None else output + bias


def _rms_norm(uses: WeightUses, function: Any, args: Any, kwargs: Any) -> Tensor:
    named = dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False)) | kwargs
    weight = named.get("weight")
    if weight is None or weight.dim() < 2:
        plain: Tensor = function(*args, **kwargs)
        return plain
    return function(**{**named, "weight": None}) * weight  # type: ignore[no-any-return]


SPECIAL: dict[Any, Callable[[WeightUses, Any, Any, Any], Tensor]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
}


def watching() -> WeightUses | None:
    """Who listens at present."""
    return _watching.get()
