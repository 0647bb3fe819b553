"""How the unit rows of a store are coded: from two bytes a number down to one bit.

A row is x in R^D, |x| = 1, made of ``width`` sub-sketches: blocks of W = D / width consecutive
numbers. Bytes per row, and the error that coding adds to the cosine of two rows (measured on the
bundled data), beside the 1/sqrt(D) that the sketch itself has:

=======  ===================  =======================
code     bytes                added error of a cosine
=======  ===================  =======================
float16  2 D                  under 0.001 / sqrt(D)
int8     D + 4                0.03 / sqrt(D)
int4     D / 2 + 2 width      0.15 / sqrt(D)
1bit     D / 8 + 2 width      1.3 / sqrt(D)
=======  ===================  =======================

*float16, int8* round to nearest (int8 in steps of the row's largest number / 127): products of
rows are unbiased.

*int4, 1bit* first rotate every block by an orthonormal Walsh-Hadamard transform. Sketches have
heavy tails and these quantisers want numbers that look Gaussian. Rotations leave all products of
rows as they are, so nothing is ever turned back: the group gradients and the consensus of such a
store are rotated too. Blocks stay apart because the error of a score is measured by leaving out
one block at a time, and because they differ in energy.

Each number z of a block, in units of the block's root mean square, becomes its sign (1bit) or the
nearest of the 16 levels that are optimal for Gaussian numbers (int4): q = Q(z), [W]. The decoded
block is

    x^ = s q,   s = |x|^2 / <q, x>,   so that <x^, x> = |x|^2:

the error e = x^ - x is orthogonal to x. For Gaussian numbers s is the block's root mean square
divided by the quantiser's first Hermite coefficient (E|z| = sqrt(2 / pi) for the sign), and the
product of two *different* rows is right to first order in their cosine c, whatever the energies
of the blocks. The next order of 1bit is that of (2 / pi) arcsin(c): 1 % too high at c = 0.25,
4.7 % at c = 0.5; int4 has next to none. Tails that the rotation of a short block (W < 64) cannot
spread leave an error of a few per cent of c.

The product of a decoded row with *itself* is |x|^2 + |e|^2, which is about pi / 2 for 1bit
and 1.01 for int4. The module ``products`` takes it out.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.settings import STORE_DTYPES
from congrad_cli.tensors import Arrays

Rows = NDArray[np.float32]

LLOYD_MAX = (
    0.12839502985114687, 0.38804829949029, 0.6567591185324636, 0.9423404564869607,
    1.256231197347176, 1.6180463860218808, 2.0690172265313915, 2.73258957099515,
)  # fmt: skip
"""The positive half of the 16 levels with the least square error for a standard normal number."""

LEVELS = {
    "int4": np.array([*(-level for level in reversed(LLOYD_MAX)), *LLOYD_MAX], np.float32),
    "1bit": np.array([-1, 1], np.float32),
}
"""Q's values by code; a number belongs to the nearest one."""

CACHED = 1 << 17
"""So many numbers are decoded at a time: all steps on them happen inside the processor's cache."""

INFINITE_HALF = 0x7C00
"""The bits of an infinite float16; those of nan are larger."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Codes rows of ``dim`` numbers in ``width`` blocks; ``width`` divides ``dim``."""

    name: str
    dim: int
    width: int

    def __post_init__(self) -> None:
        if self.name not in STORE_DTYPES:
            raise ValueError(f"unknown code of rows: {self.name!r}")

    @property
    def exact(self) -> bool:
        """Whether a decoded row stands for itself: its own length is the one that counts."""
        return self.name == "float16"

    def columns(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The arrays of coded rows: type, and shape behind the leading n rows."""
        if self.name == "float16":
            return {"direction": (np.float16, (self.dim,))}
        if self.name == "int8":
            return {"direction": (np.int8, (self.dim,)), "scale": (np.float32, ())}
        size = -(-self.dim // self._per_byte)
        return {"direction": (np.uint8, (size,)), "scale": (np.float16, (self.width,))}

    def encode(self, rows: Rows) -> Arrays:
        """Unit rows [n, D] -> the arrays of :meth:`columns`. A row of zeros stays one."""
        if self.name == "float16":
            return {"direction": rows.astype(np.float16)}
        if self.name == "int8":
            scale = np.abs(rows).max(1) / np.float32(127)
            step = np.where(scale > 0, scale, 1)[:, None]
            return {"direction": np.rint(rows / step).astype(np.int8), "scale": scale}
        codes, scale = self._quantise(rows)
        return {"direction": self._pack(codes), "scale": scale}

    def decode(self, arrays: Arrays) -> Rows:
        """The rows [n, D] that :meth:`encode`'s arrays stand for, rotated for int4 and 1bit."""
        coded = arrays["direction"]
        rows = np.empty((len(coded), self.dim), np.float32)
        step = max(CACHED // self.dim, 1)
        for begin in range(0, len(coded), step):
            part = slice(begin, begin + step)
            if self.name == "float16":
                _widen(coded[part], rows[part])
                continue
            scale = arrays["scale"][part].astype(np.float32)
            if self.name == "int8":
                rows[part] = coded[part]
                rows[part] *= scale[:, None]
                continue
            self._look_up(coded[part], rows[part])
            blocks = rows[part].reshape(-1, self.width, self.dim // self.width)
            blocks *= scale[:, :, None]
        return rows

    def squares(self, arrays: Arrays) -> NDArray[np.float64]:
        """|x^|^2 of every decoded row, [n], mostly without decoding it."""
        coded, size = arrays["direction"], self.dim // self.width  # W
        if self.name == "float16" or (self.name == "int4" and size % 2):  # a byte of two blocks
            rows = self.decode(arrays)
            return np.asarray(np.vecdot(rows, rows), np.float64)
        scale = arrays["scale"].astype(np.float64)
        if self.name == "int8":
            rows = coded.astype(np.float32)
            return np.asarray(np.vecdot(rows, rows) * scale**2, np.float64)
        sums = np.full((len(coded), self.width), size, np.float64)  # of signs, all squares are 1
        if self.name == "int4":
            byte = np.vecdot(self._table(), self._table())  # [256]
            found = np.take(byte, coded).reshape(len(coded), self.width, -1)
            sums = (found @ np.ones(size // 2, np.float32)).astype(np.float64)
        return np.asarray(np.vecdot(sums, scale**2), np.float64)

    @property
    def _per_byte(self) -> int:
        return 2 if self.name == "int4" else 8

    def _quantise(self, rows: Rows) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Codes [n, D] of the rotated numbers, and s of every block [n, width]."""
        levels = LEVELS[self.name]
        size = self.dim // self.width  # W
        blocks = rotate(rows, size).reshape(len(rows), self.width, size)
        square = np.vecdot(blocks, blocks)  # [n, width]
        unit = np.sqrt(np.where(square > 0, square, 1) / size)
        numbers = blocks / unit[:, :, None]  # z
        codes = np.zeros(blocks.shape, np.uint8)
        for edge in (levels[1:] + levels[:-1]) / 2:
            codes += numbers >= edge
        along = np.vecdot(levels[codes], blocks)
        scale = np.divide(square, along, out=np.zeros_like(square), where=along > 0)
        return codes.reshape(rows.shape), scale.astype(np.float16)

    def _pack(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[n, D] codes -> [n, ceil(D / per byte)] bytes, the first number in the lowest bits."""
        if self.name == "1bit":
            return np.packbits(codes, axis=1, bitorder="little")
        codes = np.pad(codes, ((0, 0), (0, self.dim % 2)))
        return np.asarray(codes[:, 0::2] | codes[:, 1::2] << 4, np.uint8)

    def _look_up(self, coded: NDArray[np.uint8], rows: Rows) -> None:
        """Write the levels [n, D] of packed codes to ``rows``."""
        table = self._table()
        if self.dim % self._per_byte:
            rows[:] = table[coded].reshape(len(coded), -1)[:, : self.dim]
            return
        # a byte's numbers are moved as one; "clip" looks up straight into ``rows``
        whole = np.dtype((np.void, table[0].nbytes))
        np.take(table.view(whole)[:, 0], coded, out=rows.view(whole), mode="clip")

    def _table(self) -> Rows:
        """The numbers that each of the 256 bytes holds, [256, per byte]."""
        bits = 8 // self._per_byte
        shifts = np.arange(self._per_byte) * bits
        codes = np.arange(256)[:, None] >> shifts & (1 << bits) - 1
        return np.asarray(LEVELS[self.name][codes], np.float32)


def _widen(coded: NDArray[np.float16], rows: Rows) -> None:
    """Write float16 numbers to float32 ``rows``: what a cast does, in a third of the time.

    The 15 bits below the sign, moved to where float32 has its exponent and the first bits of its
    fraction, are the number times 2^-112: the two formats count exponents from 15 and 127.
    """
    stored = coded.view(np.int16)
    if (stored & 0x7FFF).max(initial=0) >= INFINITE_HALF:
        rows[:] = coded
        return
    bits = rows.view(np.int32)
    bits[:] = stored
    bits <<= 13
    bits &= ~0x70000000  # copies of the sign
    rows *= np.float32(2.0**112)


def rotate(rows: Rows, size: int) -> Rows:
    """An orthonormal rotation of every block of ``size`` numbers that spreads each over many.

    [n, D] -> [n, D]. It is the Walsh-Hadamard transform where ``size`` is a power of two. Else
    that runs over the first p numbers of a block and then, some signs changed, over the last p,
    p the largest power of two below ``size``: together they cover it.
    """
    blocks = rows.reshape(-1, size)
    run = 1 << size.bit_length() - 1  # p
    if run == size:
        return _hadamard(blocks).reshape(rows.shape)
    words = np.random.Philox(key=size).random_raw(size)  # the same on any machine
    blocks = np.hstack([_hadamard(blocks[:, :run]), blocks[:, run:]])
    blocks *= np.where(words & np.uint64(1), 1, -1).astype(np.float32)
    left = size - run
    return np.hstack([blocks[:, :left], _hadamard(blocks[:, left:])]).reshape(rows.shape)


def _hadamard(blocks: Rows) -> Rows:
    """The orthonormal Walsh-Hadamard transform of [n, p], p a power of two."""
    count, size = blocks.shape
    now = np.array(blocks.T, order="C")  # the n blocks lie side by side: long runs to add
    after = np.empty_like(now)
    half = 1
    while half < size:
        pairs = now.reshape(size // (2 * half), 2, half, count)
        sums = after.reshape(pairs.shape)
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        now, after = after, now
        half *= 2
    return np.ascontiguousarray(now.T) / np.float32(math.sqrt(size))
