"""TRL's DPOTrainer with our settings, and the length penalty that it does not have.

LP-DPO is R-DPO's loss, ``-log sigmoid(beta Delta + alpha (|y_w| - |y_l|))``. With the reference's
log-probabilities lowered by ``alpha / beta`` for every token of an answer, TRL's own sigmoid loss
is that loss. They are shifted in every batch, after any cache of theirs was read: a shift that
went into the cache would be served to a training with another alpha.
"""

from glob import escape
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from trl import DPOConfig, DPOTrainer

from congrad_cli.errors import InputError
from congrad_cli.loop.train_spec import TrainSpec

Batch = dict[str, torch.Tensor]


class PairTrainer(DPOTrainer):  # type: ignore[misc]  # trl is not typed
    """DPOTrainer that refuses data of which TRL would leave nothing, and steps that learn nothing.

    The share of steps that are warm-up is rounded down: the first of them has the rate 0, and a
    training of one step would end with the weights it began with.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._warmup_ratio = self.args.warmup_steps

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The schedule of the learning rate; at least the last step is no warm-up."""
        share = int(self._warmup_ratio * num_training_steps)
        self.args.warmup_steps = min(share, num_training_steps - 1)
        return super().create_scheduler(num_training_steps, optimizer)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        prepared = super()._prepare_dataset(dataset, *args, **kwargs)
        if len(prepared) == 0:
            raise InputError(
                f"the prompts of all {len(dataset):,} pairs are longer than max_length tokens.",
                "raise train.max_length, or take shorter prompts",
            )
        return prepared


class LengthPenaltyTrainer(PairTrainer):
    """Plain DPO with alpha |y| added to the reward ``beta log(pi / pi_ref)`` of every answer.

    The rewards in the metrics are those: what r - alpha |y| is maximised for.
    """

    def __init__(self, *args: Any, length_penalty: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shift = length_penalty / self.beta
        self._reference_is_cached = bool(self.args.precompute_ref_log_probs)
        self.precompute_ref_logps = True  # to the loss: the batch holds them, which we see to

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:  # fmt: skip
        """The loss of a batch, whose lengths are those that truncation left."""
        chosen, rejected = self._reference(inputs)
        lengths = inputs["completion_mask"].sum(1)  # [2B]: chosen, then rejected
        chosen_length, rejected_length = lengths.chunk(2)
        shifted = inputs | {
            "ref_chosen_logps": chosen - self._shift * chosen_length,
            "ref_rejected_logps": rejected - self._shift * rejected_length,
        }
        return super().compute_loss(model, shifted, return_outputs, num_items_in_batch)

    def _reference(self, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if self._reference_is_cached:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        return chosen, rejected


def arguments(spec: TrainSpec, cpu: bool) -> DPOConfig:
    """What TRL is told. The batch is that of the settings, whatever the number of processes."""
    train = spec.train
    return DPOConfig(
        output_dir=str(spec.output / "checkpoints"),
        seed=spec.seed, data_seed=spec.seed,
        learning_rate=train.learning_rate, lr_scheduler_type=train.schedule,
        warmup_steps=train.warmup_ratio,  # PairTrainer makes steps of it
        num_train_epochs=train.epochs, max_steps=train.max_steps,
        per_device_train_batch_size=train.device_batch,
        gradient_accumulation_steps=spec.accumulation,
        max_length=train.max_length, beta=spec.loss.beta, loss_type=["sigmoid"],
        precompute_ref_log_probs=train.precompute_reference,
        router_aux_loss_coef=0.0,  # it is no part of the loss that pairs were chosen by
        disable_dropout=train.lora_dropout == 0.0,
        bf16=train.bf16, fp16=False, use_cpu=cpu, dataloader_pin_memory=not cpu,
        gradient_checkpointing=train.gradient_checkpointing,
        logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True, report_to="none",
        save_strategy="steps", save_steps=train.save_steps,
        save_total_limit=2,  # the newest may be half-written when the machine goes down
    )  # fmt: skip


def load_pairs(path: Path, cache: Path) -> Dataset:
    """The pairs of a file, by way of a file: TRL's processes find each other's results there."""
    name = escape(str(path))  # it would be taken for a pattern
    return load_dataset("json", data_files=name, split="train", cache_dir=str(cache))


def build_trainer(
    spec: TrainSpec, args: DPOConfig, pairs: Dataset, model: Any, tokenizer: Any,
    reference: Any | None,
) -> DPOTrainer:  # fmt: skip
    """The trainer of ``spec.loss``. ``reference`` None: the model as it is now, without adapter."""
    common: dict[str, Any] = {
        "model": model, "args": args, "train_dataset": pairs, "processing_class": tokenizer,
        "ref_model": reference, "peft_config": _lora(spec),
    }  # fmt: skip
    if spec.loss.name == "lp-dpo":
        trainer = LengthPenaltyTrainer(**common, length_penalty=spec.loss.length_penalty)
    else:
        trainer = PairTrainer(**common)
    if spec.train.precompute_reference:
        trainer.ref_model = None  # it has said all it knows
    return trainer


def _lora(spec: TrainSpec) -> Any | None:
    """Adapters for all linear layers but the head, whose weight TRL's loss reads directly."""
    if spec.train.lora_rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=spec.train.lora_rank, lora_alpha=spec.train.lora_alpha,
        lora_dropout=spec.train.lora_dropout, target_modules="all-linear",
    )  # fmt: skip
