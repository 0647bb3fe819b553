"""Other layouts of a sketch, made from materialised gradients; no script, ``fidelity.py`` uses it.

Both draw from torch's own generator, for they are compared with and never stored.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, int]]
"""(outputs, inputs) by layer."""


class TwoSided:
    """Per layer ``L G R`` with Rademacher L [side, out] and R [in, side], laid end to end."""

    def __init__(self, shapes: Shapes, side: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.numbers = len(shapes) * side * side
        self._sides = {
            name: (_signs((side, outputs), generator) / side**0.5,
                   _signs((inputs, side), generator) / side**0.5)
            for name, (outputs, inputs) in shapes.items()
        }

    def __call__(self, gradient: Mapping[str, Tensor]) -> np.ndarray:
        """The row of one pair, [numbers]."""
        blocks = [left @ gradient[name] @ right for name, (left, right) in self._sides.items()]
        return torch.stack(blocks).flatten().numpy()


class CountSketch:
    """Every entry of the flat gradient into one of D buckets, with a random sign."""

    def __init__(self, shapes: Shapes, dim: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.numbers = dim
        self._bucket = {  # the upper half of 2 D buckets is subtracted
            name: torch.randint(0, 2 * dim, (outputs * inputs,), generator=generator,
                                dtype=torch.int32)
            for name, (outputs, inputs) in shapes.items()
        }

    def __call__(self, gradient: Mapping[str, Tensor]) -> np.ndarray:
        """The row of one pair, [dim]; sums in float64."""
        total = np.zeros(2 * self.numbers)
        for name, bucket in self._bucket.items():
            entries = gradient[name].flatten().numpy()
            total += np.bincount(bucket.numpy(), weights=entries, minlength=len(total))
        return (total[: self.numbers] - total[self.numbers :]).astype(np.float32)


def _signs(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
