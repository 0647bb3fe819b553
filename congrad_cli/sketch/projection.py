"""The seeded projection of a pair's gradient: R^P -> R^D, unbiased for inner products.

For a linear layer m with inputs a_t and output gradients delta_t, the gradient of pair i is
``sum_t delta_t a_t^T``, [out, in]. Its input side is projected, its output side kept whole, and
the result folded into D buckets that all layers share::

    Y_i = sum_t (a_t R)^T delta_t        [k + r, out]
    s_i = sum_m fold_m(Y_i)              [D]

*Input side.* ``R = [U, sqrt((in - k) / r) Q]``. U [in, k] holds the layer's leading input
directions, an orthonormal basis of what its inputs have in common (their mean above all). They
carry most of the energy and are shared by all pairs, so squeezing them is what costs accuracy;
they are kept exactly. Q [in, r] is a random orthonormal basis inside the rest, uniformly
distributed (of normal numbers, so that no direction of the rest is preferred). For any fixed U,
``E[R R^T] = I``: inner products stay unbiased whatever U is.

*Output side.* A fold is a count sketch in structured form: a line of entries is cut into chunks
of W, every entry gets a random sign, every chunk is rotated by a random shift, and the chunks are
added. Two entries meet in a bucket with probability 1/W at most, with independent signs. Line j
of the r random ones folds into block j of W = D / r buckets, so a sketch is r sub-sketches of
equal standing; the k leading lines, which hold more, fold into all D buckets. Nothing is added in
an order that depends on the device: there are no atomics.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Doubles = NDArray[np.float64]

VERSION = "leading+chunk-rotate/1"
"""Part of the fingerprint: sketches of different versions must not meet."""


def random_words(seed: int, role: str, layer: str, count: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit words of a counter-based generator keyed by seed, role and layer.

    Philox4x64 with a BLAKE2b key: a fixed function of its arguments on every machine.
    """
    key = hashlib.blake2b(f"{seed}|{role}|{layer}".encode(), digest_size=16).digest()
    generator = np.random.Philox(key=int.from_bytes(key, "little"))
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def random_signs(seed: int, role: str, layer: str, shape: tuple[int, int]) -> NDArray[np.int8]:
    """A matrix of +1 and -1."""
    count = math.prod(shape)
    words = random_words(seed, role, layer, -(-count // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    return (bits.astype(np.int8) * 2 - 1).reshape(shape)


def random_normals(seed: int, role: str, layer: str, shape: tuple[int, int]) -> Doubles:
    """Independent standard normal numbers, float64, by Box and Muller's transform."""
    count = math.prod(shape)
    words = random_words(seed, role, layer, 2 * count)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # inside (0, 1)
    radius = np.sqrt(-2.0 * np.log(uniform[:count]))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform[count:]), np.float64).reshape(shape)


@dataclass(frozen=True, slots=True)
class Fold:
    """Folds lines of entries into W buckets each; tensors on the layer's device."""

    signs: Tensor  # [lines, length] float32
    take: Tensor  # [lines * C * W]: where the rotated chunks come from
    buckets: int  # W

    @staticmethod
    def draw(seed: int, role: str, layer: str, shape: tuple[int, int], buckets: int) -> "Fold":
        """The fold of ``shape`` = (lines, length) entries, keyed by seed, role and layer."""
        lines, length = shape
        chunks = -(-length // buckets)  # C
        words = random_words(seed, f"{role}-shift", layer, lines * chunks)
        shift = (words % np.uint64(buckets)).astype(np.int64).reshape(lines, chunks, 1)
        start = np.arange(lines * chunks).reshape(lines, chunks, 1) * buckets
        take = start + (np.arange(buckets) - shift) % buckets  # [lines, C, W]
        signs = random_signs(seed, f"{role}-sign", layer, shape)
        return Fold(
            torch.from_numpy(signs).float(), torch.from_numpy(take.reshape(-1)), buckets
        )

    def to(self, device: torch.device) -> "Fold":
        """The same fold on another device."""
        return Fold(self.signs.to(device), self.take.to(device), self.buckets)

    def __call__(self, y: Tensor) -> Tensor:
        """y [B, lines, length] -> [B, lines, W]."""
        rows, lines, length = y.shape
        chunks = self.take.numel() // (lines * self.buckets)
        signed = torch.nn.functional.pad(y * self.signs, (0, chunks * self.buckets - length))
        turned = signed.flatten(1).index_select(1, self.take)  # [B, lines * C * W]
        return turned.view(rows, lines, chunks, self.buckets).sum(2)


@dataclass(frozen=True, slots=True)
class LayerProjection:
    """The projection of one layer, on the layer's device."""

    inputs: Tensor  # R, [in, k + r], in the layer's dtype
    leading: Fold | None  # of the k leading lines, laid end to end, into D buckets
    random: Fold  # of the r random lines into W buckets each

    def project_inputs(self, a: Tensor) -> Tensor:
        """a [..., in] -> a R [..., k + r]."""
        return a @ self.inputs

    def fold(self, y: Tensor) -> Tensor:
        """Y [B, k + r, out] float32 -> its share of the sketch [B, D]."""
        lines = len(self.random.signs)
        total = self.random(y[:, -lines:]).flatten(1)
        if self.leading is not None:
            total += self.leading(y[:, :-lines].flatten(1)[:, None]).flatten(1)
        return total


@dataclass(frozen=True, slots=True)
class Projection:
    """What all layers share.

    ``dim`` (D) must be a multiple of ``width`` (r). ``leading`` maps a layer's name to its U
    [in, k]; a layer without one has k = 0.
    """

    dim: int
    width: int
    seed: int
    leading: Mapping[str, Tensor] = field(default_factory=dict)

    def layer(
        self, name: str, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype
    ) -> LayerProjection:
        """The projection of the layer called ``name`` with ``inputs`` x ``outputs`` weights."""
        basis = self.leading.get(name, torch.zeros(inputs, 0)).double()
        random = Fold.draw(
            self.seed, "fold", name, (self.width, outputs), self.dim // self.width
        )
        leading = None
        if basis.shape[1]:
            shape = (1, basis.shape[1] * outputs)
            leading = Fold.draw(self.seed, "leading", name, shape, self.dim).to(device)
        r = torch.cat([basis, self._random_basis(name, basis)], dim=1)
        return LayerProjection(r.to(device, dtype), leading, random.to(device))

    def _random_basis(self, name: str, leading: Tensor) -> Tensor:
        """sqrt((in - k) / r) Q, [in, r] float64: orthonormal, orthogonal to ``leading``.

        Where fewer than r directions are left, all of them are kept and the rest of Q is zero.
        """
        inputs, kept = leading.shape
        lines = min(self.width, inputs - kept)
        inside = torch.from_numpy(random_normals(self.seed, "input", name, (inputs, lines)))
        for _ in range(2):  # twice: the second removes what rounding left of the first
            inside = inside - leading @ (leading.T @ inside)
        basis = torch.linalg.qr(inside)[0] * math.sqrt((inputs - kept) / max(lines, 1))
        return torch.nn.functional.pad(basis, (0, self.width - lines))
