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
of the r random ones folds into block j of W = D / r buckets; the k leading lines, which hold
more, fold into all D buckets and are spread over the blocks at the end. So a sketch is r
sub-sketches of equal standing. Nothing is added in an order that depends on the device: there
are no atomics.
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

VERSION = "leading+chunk-rotate/2"
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
    """Folds lines of entries into W buckets each.

    The sum is kept twice as wide, [B, lines, 2 W]: a chunk that is rotated by s is then one
    addition at s, and places W to 2 W are the same buckets as 0 to W.
    """

    signs: Tensor  # [lines, length] float32
    shifts: list[int]  # [C]: by how far every chunk is rotated, the same for all lines
    buckets: int  # W

    @staticmethod
    def draw(seed: int, role: str, layer: str, shape: tuple[int, int], buckets: int) -> "Fold":
        """The fold of ``shape`` = (lines, length) entries, keyed by seed, role and layer."""
        chunks = -(-shape[1] // buckets)  # C
        words = random_words(seed, f"{role}-shift", layer, chunks)
        signs = random_signs(seed, f"{role}-sign", layer, shape)
        shifts = (words % np.uint64(buckets)).astype(int).tolist()
        return Fold(torch.from_numpy(signs).float(), shifts, buckets)

    def to(self, device: torch.device) -> "Fold":
        """The same fold on another device."""
        return Fold(self.signs.to(device), self.shifts, self.buckets)

    def add(self, total: Tensor, y: Tensor, turn: int = 0) -> None:
        """Add y [B, lines, length] to ``total`` [B, lines, 2 W], rotated by ``turn`` more."""
        width = self.buckets
        for chunk, shift in enumerate(self.shifts):
            part = slice(chunk * width, (chunk + 1) * width)
            piece, begin = y[..., part], (shift + turn) % width
            total[..., begin : begin + piece.shape[-1]].addcmul_(piece, self.signs[:, part])

    def add_columns(self, total: Tensor, y: Tensor, columns: Tensor, begin: int = 0) -> None:
        """As :meth:`add` for single entries y [B, n, lines] at ``begin + columns``, [B, n].

        An entry that is named twice counts twice. Deterministic on every device.
        """
        place = begin + columns  # [B, n]
        shifts = torch.tensor(self.shifts, device=y.device)
        bucket = place % self.buckets + shifts[place // self.buckets]  # [B, n]
        row = torch.arange(len(y), device=y.device)[:, None, None]
        line = torch.arange(len(self.signs), device=y.device)
        values = (y * self.signs.T[place]).flatten()  # [B * n * lines]
        where = ((row * len(line) + line) * 2 * self.buckets + bucket[..., None]).flatten()
        if total.is_cuda:
            total.view(-1).index_put_((where,), values, accumulate=True)  # it sorts first
        else:
            total.view(-1).index_add_(0, where, values)  # one thread, in order


@dataclass(frozen=True, slots=True)
class Experts:
    """What tells the experts of one stack apart: they share R and folds, not places and signs."""

    signs: Tensor  # [E, out] +1 and -1
    turns: list[int]  # [E] by how many places an expert's share turns, inside every block

    @staticmethod
    def draw(seed: int, layer: str, count: int, outputs: int, buckets: int) -> "Experts":
        """For ``count`` experts of the layer, whose random lines have W = ``buckets``."""
        signs = random_signs(seed, "expert-sign", layer, (count, outputs))
        words = random_words(seed, "expert-turn", layer, count) % np.uint64(buckets)
        return Experts(torch.from_numpy(signs), words.astype(int).tolist())


@dataclass(frozen=True, slots=True)
class LayerProjection:
    """The projection of one layer, on the layer's device."""

    inputs: Tensor  # R, [in, q], in the layer's dtype
    exact: Fold | None  # of the lines that are kept exactly, laid end to end, into D buckets
    random: Fold | None  # of the r random lines into W = D / r buckets each
    experts: Experts | None

    def project_inputs(self, a: Tensor) -> Tensor:
        """a [..., in] -> a R [..., q]."""
        return a @ self.inputs.to(a)  # tied weights may be used on two devices

    def fold_into(
        self, sums: "FoldedSums", y: Tensor, expert: int = 0, rows: slice = slice(None)
    ) -> None:
        """Add the share of Y [B, q, out] float32 to the rows' sums."""
        turn = 0
        if self.experts is not None:
            y, turn = y * self.experts.signs[expert], self.experts.turns[expert]
        kept = self._exact_lines(y.shape[1])
        if self.random is not None:
            self.random.add(sums.random[rows], y[:, kept:], turn)
        if self.exact is not None:
            self.exact.add(sums.exact[rows], y[:, :kept].flatten(1)[:, None], turn)

    def fold_columns_into(self, sums: "FoldedSums", y: Tensor, columns: Tensor) -> None:
        """As :meth:`fold_into` where Y [B, q, out] is zero but for some columns.

        y [B, n, q] holds the columns ``columns`` [B, n] of every Y.
        """
        kept = self._exact_lines(y.shape[2])
        if self.random is not None:
            self.random.add_columns(sums.random, y[:, :, kept:], columns)
        if self.exact is not None:
            outputs = self.exact.signs.shape[1] // kept
            for line in range(kept):
                self.exact.add_columns(
                    sums.exact, y[:, :, line : line + 1], columns, line * outputs
                )

    def _exact_lines(self, lines: int) -> int:
        return lines - (len(self.random.signs) if self.random is not None else 0)


@dataclass(frozen=True, slots=True)
class FoldedSums:
    """The sketches of B rows while layers are added to them: random and exact lines apart."""

    random: Tensor  # [B, r, 2 W] float32, see Fold
    exact: Tensor  # [B, 1, 2 D] float32

    @staticmethod
    def zeros(rows: int, projection: "Projection", device: torch.device) -> "FoldedSums":
        """Nothing yet."""
        double, blocks = 2 * projection.dim, projection.width
        return FoldedSums(
            torch.zeros(rows, blocks, double // blocks, device=device),
            torch.zeros(rows, 1, double, device=device),
        )

    def total(self) -> Tensor:
        """The sketches, [B, D].

        What exact lines hold lies unevenly in the r blocks of D / r numbers. An orthonormal
        transform across the blocks (Hartley's) gives every block an equal share, which keeps all
        products and lets the blocks speak for the sketch's error.
        """
        random, exact = (
            sums[..., : sums.shape[2] // 2] + sums[..., sums.shape[2] // 2 :]
            for sums in (self.random, self.exact)
        )
        blocks = random.shape[1]
        turn = torch.arange(blocks, device=exact.device, dtype=torch.float64)
        angle = 2 * torch.pi / blocks * (turn[:, None] * turn % blocks)
        hartley = ((angle.cos() + angle.sin()) / blocks**0.5).float()  # [r, r]
        total: Tensor = random + hartley @ exact.view(random.shape)  # [B, r, W]
        return total.flatten(1)


@dataclass(frozen=True, slots=True)
class Projection:
    """What all layers share.

    ``dim`` (D) must be a multiple of ``width`` (r). ``leading`` maps a layer's name to its U
    [in, k]; a layer without one has k = 0. Where a layer has no more than k + r inputs, all of
    them are kept exactly.
    """

    dim: int
    width: int
    seed: int
    leading: Mapping[str, Tensor] = field(default_factory=dict)

    def layer(
        self, name: str, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype,
        experts: int = 1,
    ) -> LayerProjection:  # fmt: skip
        """The projection of the layer called ``name`` with ``outputs`` x ``inputs`` weights."""
        basis = self.leading.get(name, torch.zeros(inputs, 0)).double()
        random, buckets = None, self.dim // self.width
        if inputs <= basis.shape[1] + self.width:
            basis = r = torch.eye(inputs, dtype=torch.float64)
        else:
            r = torch.cat([basis, self._random_basis(name, basis)], dim=1)
            random = Fold.draw(self.seed, "fold", name, (self.width, outputs), buckets).to(device)
        exact = None
        if basis.shape[1]:
            shape = (1, basis.shape[1] * outputs)
            exact = Fold.draw(self.seed, "leading", name, shape, self.dim).to(device)
        apart = None
        if experts > 1:
            apart = Experts.draw(self.seed, name, experts, outputs, buckets)
            apart = Experts(apart.signs.to(device), apart.turns)
        return LayerProjection(r.to(device, dtype), exact, random, apart)

    def _random_basis(self, name: str, leading: Tensor) -> Tensor:
        """sqrt((in - k) / r) Q, [in, r] float64: orthonormal, orthogonal to ``leading``."""
        inputs, kept = leading.shape
        inside = torch.from_numpy(random_normals(self.seed, "input", name, (inputs, self.width)))
        for _ in range(2):  # twice: the second removes what rounding left of the first
            inside = inside - leading @ (leading.T @ inside)
        basis: Tensor = torch.linalg.qr(inside)[0]
        return basis * math.sqrt((inputs - kept) / self.width)
