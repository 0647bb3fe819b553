"""How many random input directions a model needs: r, from a few random pairs.

A cosine between two sketches of D numbers is off by about 1/sqrt(D) because of the fold, and by
sqrt(E / r) because of the input side, where E depends on the model. A large sketch of a few pairs
shows E: it is the sum of r sub-sketches, so their spread is the error, and the fold's part of it
is known.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from congrad_cli.sketch.check import probe
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import Layer
from congrad_cli.sketch.pairs import batch_pairs
from congrad_cli.sketch.projection import Projection

WIDTHS = (8, 16, 32, 64)
TOLERANCE = 1.5
"""The error may be this multiple of 1/sqrt(D) on random tokens. On text it is then about 1.15:
there the inputs of two pairs have less in common that the leading directions do not hold."""

PAIRS = 6
PROBE_DIM, PROBE_WIDTH = 1 << 16, 32


def choose_width(
    model: Any, layers: Mapping[str, Layer], leading: Mapping[str, Tensor], dim: int
) -> int:
    """The smallest of ``WIDTHS`` that keeps the error within ``TOLERANCE`` / sqrt(D)."""
    possible = possible_widths(dim)
    if len(possible) == 1:
        return possible[0]
    scheme = Projection(PROBE_DIM, PROBE_WIDTH, 0, leading)
    with PairSketcher(model, layers, scheme) as sketcher:
        pairs = [probe(sketcher.vocabulary, f"width-{index}") for index in range(PAIRS)]
        rows = torch.cat([
            sketcher.sketch(batch_pairs([pair], 0, shared=False).to(sketcher.device)).sketch
            for pair in pairs
        ])
    noise = input_side_error(rows, PROBE_WIDTH)
    for width in possible:
        if 1 / dim + noise / width <= TOLERANCE**2 / dim:
            return width
    return possible[-1]


def possible_widths(dim: int) -> list[int]:
    """Those of ``WIDTHS`` that divide D, ascending; where none does, D's largest power of two."""
    return [width for width in WIDTHS if dim % width == 0] or [dim & -dim]


def input_side_error(rows: Tensor, width: int) -> float:
    """E from sketches [n, D] of n pairs: the mean variance of a cosine is ``1/D + E / width``."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    parts = unit.view(len(unit), width, -1)
    upper = torch.triu_indices(len(unit), len(unit), 1)
    each = torch.einsum("ijw,kjw->ikj", parts, parts)[upper[0], upper[1]] * width  # [pairs, r]
    variance = each.var(dim=1).mean() / width
    return max(float(variance - 1 / rows.shape[1]) * width, 0.0)
