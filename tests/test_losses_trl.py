"""Every loss where policy and reference differ: -dL/dtheta = w_i u_i, against installed TRL."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_parity_trl import BETA, PLAIN, relative, tokenized, trainer_for
from transformers import AutoTokenizer
from zoo import build, zoo

from congrad_cli.settings import ConsensusSettings
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.exact import as_matrices, sketch_gradient
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.job import Reference
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.pairs import batch_pairs
from congrad_cli.sketch.projection import Projection
from congrad_cli.weights import loss_weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a policy and of another reference, same architecture and tokenizer."""
    root = tmp_path_factory.mktemp("models")
    sample_data = Path(__file__).parent.parent / "sample_data"
    tokenizer = AutoTokenizer.from_pretrained(sample_data / "tiny-model")
    policy = build(zoo(len(tokenizer))["llama"])
    for name, change in (("policy", 0.0), ("reference", 0.3)):
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for weight in policy.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(change * weight.std(correction=0) * noise)
        policy.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root / "policy", root / "reference"


@pytest.mark.parametrize(
    ("loss", "weighting", "trl"),
    [
        ("dpo", "sum", {"loss_type": ["sigmoid"]}),
        ("hinge", "sum", {"loss_type": ["hinge"]}),
        ("robust", "sum", {"loss_type": ["robust"], "label_smoothing": 0.2}),
        ("ipo", "mean", {"loss_type": ["ipo"]}),
        ("dpo", "mean", {"loss_type": ["sigmoid_norm"]}),
        ("dpo", "ld:0.3", {"loss_type": ["sigmoid"], "ld_alpha": 0.3}),
    ],
)
def test_weight_times_sketch_is_trls_gradient(
    loss: str, weighting: str, trl: dict[str, Any], models: tuple[Path, Path], tmp_path: Path
) -> None:
    policy_path, reference_path = models
    trainer = trainer_for(policy_path, PLAIN, tmp_path, reference=load(reference_path), **trl)
    layers = choose_layers(all_layers(trainer.model), "blocks")
    projection = Projection(dim=256, width=8, seed=1)

    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    pairs = tokenized(PLAIN, tokenizer)
    policy, reference = (load(path) for path in models)
    assert use_shared_rows(policy)
    batch = batch_pairs(pairs, 0, shared=True, weighting=weighting)
    with PairSketcher(policy, choose_layers(all_layers(policy), "blocks"), projection) as sketcher:
        ours = sketcher.sketch(batch)
    against = Reference(reference, share_prompt=True).log_probs(batch)
    ratio = (ours.weighted_logp - against).double().numpy()
    margin = ratio[:, 0] - ratio[:, 1]
    assert (np.abs(margin) > (0.01 if weighting == "mean" else 0.05)).all(), "Delta must matter"
    gap = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs], np.float64)
    settings = ConsensusSettings(loss=loss, beta=BETA, label_smoothing=0.2)
    weight = loss_weights(margin, gap, settings)

    for row in range(len(PLAIN)):
        trainer.model.zero_grad()
        batch_of_one = trainer.data_collator([trainer.train_dataset[row]])
        trainer.compute_loss(trainer.model, batch_of_one).backward()
        truth = sketch_gradient(
            {name: as_matrices(-layer.weight.grad, layer) for name, layer in layers.items()},
            projection,
        )
        assert relative(weight[row] * ours.sketch[row].double(), truth.double()) < 1e-4


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.mark.parametrize("loss", ["dpo", "lp-dpo", "ipo", "hinge", "robust"])
def test_weights_are_the_derivative_of_the_loss(loss: str) -> None:
    """By autograd through the margin alone; lp-dpo is the one that TRL does not have."""
    margin = torch.linspace(-60, 60, 25, dtype=torch.float64).requires_grad_()
    gap = torch.linspace(-40, 35, 25, dtype=torch.float64)
    settings = ConsensusSettings(loss=loss, beta=0.3, length_penalty=0.05, label_smoothing=0.1)
    inside = settings.beta * margin
    value = {
        "dpo": lambda: -torch.nn.functional.logsigmoid(inside),
        "lp-dpo": lambda: -torch.nn.functional.logsigmoid(inside + 0.05 * gap),
        "ipo": lambda: (margin - 1 / (2 * settings.beta)) ** 2,
        "hinge": lambda: torch.relu(1 - inside),
        "robust": lambda: (
            -0.9 * torch.nn.functional.logsigmoid(inside)
            + 0.1 * torch.nn.functional.logsigmoid(-inside)
        ) / 0.8,
    }[loss]()
    (gradient,) = torch.autograd.grad(value.sum(), margin)
    ours = loss_weights(margin.detach().numpy(), gap.numpy(), settings)
    np.testing.assert_allclose(ours, -gradient.numpy(), rtol=1e-9, atol=1e-12)


def test_a_length_penalty_weighs_long_winners_less() -> None:
    settings = ConsensusSettings(loss="lp-dpo", length_penalty=0.05)
    longer, shorter = loss_weights(np.zeros(2), np.array([20.0, -20.0]), settings)
    assert longer < shorter
