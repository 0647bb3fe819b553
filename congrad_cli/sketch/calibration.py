"""The leading input directions of every layer: what its inputs have in common.

A model's activations share a few strong directions whatever the text is: their mean, and the
outlier channels that large models grow. A short run over random tokens shows them as well as
real text does, so no data is needed and the result depends on the model alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from congrad_cli.sketch.projection import random_signs, random_words

SEQUENCES, LENGTH = 8, 64
POWER_STEPS = 8


def leading_directions(
    model: Any, layers: Mapping[str, nn.Module], count: int
) -> dict[str, Tensor]:
    """U [in, ``count``] of every layer: orthonormal, the strongest directions of its inputs.

    Subspace iteration on the inputs X of ``SEQUENCES`` x ``LENGTH`` random tokens: the leading
    eigenvectors of X^T X, not centred. A layer that sees no input gets none.
    """
    found: dict[str, Tensor] = {}
    if not count:
        return found

    def keep(name: str, inputs: Tensor) -> None:
        x = inputs.flatten(0, -2).float()  # [T, in]
        size = min(count, x.shape[1])
        start = random_signs(0, "calibration", name, (x.shape[1], size))
        basis = torch.from_numpy(start).to(x)
        for _ in range(POWER_STEPS):
            basis = torch.linalg.qr(x.T @ (x @ basis))[0]
        found[name] = basis.cpu()

    vocabulary = model.config.get_text_config().vocab_size
    words = random_words(0, "calibration", "tokens", SEQUENCES * LENGTH) % np.uint64(vocabulary)
    tokens = torch.from_numpy(words.astype(np.int64).reshape(SEQUENCES, LENGTH))
    with torch.no_grad(), _watched(layers, keep):
        model(input_ids=tokens.to(model.device), use_cache=False, logits_to_keep=1)
    return found


@contextmanager
def _watched(layers: Mapping[str, nn.Module], keep: Any) -> Iterator[None]:
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
