"""The sketch of a pair against the gradient that installed TRL's DPOTrainer computes for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from synthetic import parse_line
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
from zoo import ARCHITECTURES, build, zoo

from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.exact import as_matrices, exact_gradient, sketch_gradient
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import Layer, all_layers
from congrad_cli.sketch.pairs import batch_pairs
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.tokens import Skip, TokenizedPair, tokenize

BETA = 0.1
MAX_LENGTH = 48
PLAIN = [
    {"prompt": "The sky is", "chosen": " blue today.", "rejected": " a very old kind of cheese."},
    {"prompt": "Der Hund", "chosen": " bellt laut im Garten.", "rejected": " Hund Hund"},
    {"prompt": "猫は", "chosen": "窓のそばで寝ています。", "rejected": "。いまて寝"},
    # longer than MAX_LENGTH: both answers are cut
    {"prompt": "Count:", "chosen": " one two three four" * 9, "rejected": " four three" * 20},
]


def conversational(row: dict[str, str]) -> dict[str, Any]:
    """The same pair as message lists."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": roles[name], "content": text.strip()}] for name, text in row.items()}


def trainer_for(
    folder: Path, rows: list[dict[str, Any]], out: Path, reference: Any = None, **more: Any
) -> DPOTrainer:
    """A DPOTrainer; without a reference the policy is its own, as at the start of training."""
    args = DPOConfig(
        output_dir=str(out), beta=BETA, max_length=MAX_LENGTH, bf16=False, fp16=False, use_cpu=True,
        gradient_checkpointing=False, report_to="none", per_device_train_batch_size=1,
        disable_tqdm=True, dataloader_pin_memory=False, **more,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return DPOTrainer(
        model=str(folder), args=args, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, ref_model=reference,
    )  # fmt: skip


def trl_gradient(
    trainer: DPOTrainer, row: int, layers: dict[str, Layer]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """u_i and both log-probs from TRL: its gradient is -(beta / 2) u_i where Delta = 0."""
    trainer.model.train()  # TRL files its metrics by mode; dropout is switched off either way
    trainer.model.zero_grad()
    batch = trainer.data_collator([trainer.train_dataset[row]])
    trainer.compute_loss(trainer.model, batch).backward()
    gradients = {
        name: as_matrices(layer.weight.grad * (-2 / BETA), layer) for name, layer in layers.items()
    }
    metrics = trainer._metrics["train"]
    return gradients, torch.tensor([metrics["logps/chosen"][-1], metrics["logps/rejected"][-1]])


def tokenized(rows: list[dict[str, Any]], tokenizer: Any) -> list[TokenizedPair]:
    """The same rows through congrad's own reader and tokenisation."""
    pairs = []
    for index, row in enumerate(rows):
        raw = json.dumps(row | {"language": "x"}).encode()
        pair = tokenize(parse_line(raw, 1, index), tokenizer, MAX_LENGTH)
        assert isinstance(pair, TokenizedPair)
        pairs.append(pair)
    return pairs


@pytest.mark.parametrize("style", ["plain", "conversational"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_sketch_and_log_probs_equal_trls(
    name: str, style: str, tmp_path: Path, sample_data: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sample_data / "tiny-model")
    model = build(zoo(len(tokenizer))[name])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = PLAIN if style == "plain" else [conversational(row) for row in PLAIN]
    trainer = trainer_for(tmp_path / "model", rows, tmp_path / "out")
    trl_layers = all_layers(trainer.model)

    pairs = tokenized(rows, tokenizer)
    layers = all_layers(model)
    projection = Projection(dim=256, width=8, seed=3)
    exact = [exact_gradient(model, layers, pair) for pair in pairs]
    assert use_shared_rows(model)
    with PairSketcher(model, layers, projection) as sketcher:
        result = sketcher.sketch(batch_pairs(pairs, 0, shared=True))

    for row in range(len(rows)):
        truth, logp = trl_gradient(trainer, row, trl_layers)
        torch.testing.assert_close(result.logp[row], logp, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(exact[row].logp, logp, rtol=1e-4, atol=1e-4)
        for layer, gradient in truth.items():
            assert relative(exact[row].layers[layer], gradient) < 1e-4
        assert relative(result.sketch[row], sketch_gradient(truth, projection)) < 1e-4


def relative(value: torch.Tensor, truth: torch.Tensor) -> float:
    """|value - truth| / |truth|."""
    return float((value - truth).norm() / truth.norm())


@pytest.mark.parametrize("style", ["plain", "conversational"])
def test_tokens_equal_trls(style: str, tmp_path: Path, sample_data: Path) -> None:
    rows = [json.loads(line) for line in (sample_data / "preferences.jsonl").open("rb")][:60]
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    if style == "conversational":
        rows = [conversational(row) for row in rows]
    trainer = trainer_for(sample_data / "tiny-model", rows, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(sample_data / "tiny-model")
    kept = iter(trainer.train_dataset)
    compared = 0
    for index, row in enumerate(rows):
        raw = json.dumps(row | {"language": "x"}).encode()
        pair = tokenize(
            parse_line(raw, 1, index), tokenizer, MAX_LENGTH
        )
        if isinstance(pair, Skip) and pair.code == "no-room":
            continue  # TRL has filtered it out as well
        chosen, rejected = sides(trainer.data_collator([next(kept)]))
        if isinstance(pair, Skip):
            # TRL would train on two equal sides, whose gradient is zero
            assert pair.code == "same-tokens" and chosen == rejected
            continue
        assert chosen == (pair.prompt, pair.chosen)
        assert rejected == (pair.prompt, pair.rejected)
        compared += 1
    assert compared > 20 and next(kept, None) is None


def sides(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of chosen and of rejected in TRL's collated batch of one pair."""
    result = []
    for ids, mask, answer in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        ids, answer = ids[mask.bool()], answer[mask.bool()].bool()
        result.append((ids[~answer].tolist(), ids[answer].tolist()))
    return result
