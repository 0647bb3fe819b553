"""The same promises on a real model. Slow, and the model is not in the repository:

    CONGRAD_TEST_MODEL=SmolLM2-135M-Instruct.Q4_1.gguf python -m pytest -m slow
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import read_all

from congrad_cli.checkpoint import load_tokenizer
from congrad_cli.model_source import find_model
from congrad_cli.settings import SketchSettings
from congrad_cli.sketch.exact import exact_gradient
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.model import load_model
from congrad_cli.sketch.tokens import tokenize
from congrad_cli.store import GradientStore

PAIRS = 24


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fidelity_and_log_probs_of_the_command(sample_data: Path, tmp_path: Path) -> None:
    """Cosines between stored rows against exact gradients: RMSE at most 1.4 / sqrt(D)."""
    model_path = os.environ["CONGRAD_TEST_MODEL"]
    data = tmp_path / "pairs.jsonl"
    lines = (sample_data / "preferences.jsonl").read_bytes().splitlines(keepends=True)
    data.write_bytes(b"".join(lines[:PAIRS]))
    store_path = tmp_path / "s.congrad"
    subprocess.run(
        [sys.executable, "-m", "congrad_cli", "sketch", str(data), "--model", model_path,
         "--store", str(store_path), "--threads", "1"],
        check=True,
    )  # fmt: skip
    store = GradientStore.open(store_path)
    rows = np.concatenate([block.direction for block in store.blocks()]).astype(np.float64)

    settings = SketchSettings(model=model_path)
    source = find_model(settings.model)
    tokenizer = load_tokenizer(source, None)
    model = load_model(source, torch.device("cpu"), torch.float32)
    layers = choose_layers(all_layers(model), "blocks")
    exact = []
    for record in read_all(data)[:PAIRS]:
        gradient = exact_gradient(model, layers, tokenize(record, tokenizer, 1024))
        logp = store.column("logp")[record.row]
        np.testing.assert_allclose(logp, gradient.logp.numpy(), rtol=1e-4, atol=1e-3)
        exact.append(torch.cat([part.flatten() for part in gradient.layers.values()]))
    errors = [
        rows[i] @ rows[j]
        - float(torch.cosine_similarity(exact[i], exact[j], dim=0))
        for i in range(PAIRS) for j in range(i)
    ]
    assert np.sqrt(np.mean(np.square(errors))) <= 1.4 / np.sqrt(settings.dim)
