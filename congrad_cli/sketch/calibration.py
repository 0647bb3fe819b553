"""The leading input directions of every layer: what its inputs have in common.

A model's activations share a few strong directions whatever the text is: their mean, and the
outlier channels that large models grow. A short run over random tokens shows them as well as
real text does, so no data is needed and the result depends on the model alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from congrad_cli.sketch.experts import use_sorted_experts
from congrad_cli.sketch.layers import Layer
from congrad_cli.sketch.projection import random_signs, random_words
from congrad_cli.sketch.uses import Rows, WeightUses

SEQUENCES, LENGTH = 8, 64
POWER_STEPS = 8


def leading_directions(
    model: Any, layers: Mapping[str, Layer], count: int
) -> dict[str, Tensor]:
    """U [in, ``count``] of every matrix: orthonormal, the strongest directions of its inputs.

    Subspace iteration on the inputs X of ``SEQUENCES`` x ``LENGTH`` random tokens: the leading
    eigenvectors of X^T X, not centred. A layer that sees no input, or fewer numbers than
    ``count``, gets none.
    """
    if not count:
        return {}
    wide = [layer for layer in layers.values() if layer.kind != "vector" and layer.inputs > count]
    use_sorted_experts(model)
    found = _Directions(count)
    uses = WeightUses(wide, found)
    vocabulary = model.config.get_text_config().vocab_size
    words = random_words(0, "calibration", "tokens", SEQUENCES * LENGTH) % np.uint64(vocabulary)
    tokens = torch.from_numpy(words.astype(np.int64).reshape(SEQUENCES, LENGTH))
    try:
        with torch.no_grad(), uses.watch():
            model(input_ids=tokens.to(model.device), use_cache=False, logits_to_keep=LENGTH // 4)
    finally:
        uses.close()
    return found.basis


class _Directions:
    """Keeps the directions of whatever inputs it hears of."""

    def __init__(self, count: int) -> None:
        self.rows = Rows(SEQUENCES, SEQUENCES * LENGTH)
        self.basis: dict[str, Tensor] = {}
        self._count = count

    def used(self, layer: Layer, x: Tensor, output: Tensor, tokens_last: bool = False) -> None:
        """Of a linear map's inputs; the first use counts."""
        x = x.reshape(-1, x.shape[-1]).float()  # [T, in]
        if layer.name in self.basis or not len(x):
            return
        start = random_signs(0, "calibration", layer.name, (x.shape[1], self._count))
        basis = torch.from_numpy(start).to(x)
        for _ in range(POWER_STEPS):
            basis = torch.linalg.qr(x.T @ (x @ basis))[0]
        self.basis[layer.name] = basis.cpu()

    def selected(
        self, layer: Layer, x: Tensor, output: Tensor, token: Tensor, counts: list[int]
    ) -> None:
        """Of all experts' inputs together."""
        self.used(layer, x, output)

    def looked_up(self, layer: Layer, ids: Tensor, output: Tensor, padding: int | None) -> None:
        """Tokens are no directions."""

    def row_vector(self, layer: Layer) -> Tensor:
        """Vectors are not watched here."""
        raise AssertionError(layer.name)
