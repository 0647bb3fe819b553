"""Models of a training: loaded so that small steps count, and written as a plain folder."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from congrad_cli import checkpoint
from congrad_cli.checkpoint import DTYPES, choose_dtype
from congrad_cli.errors import ModelError
from congrad_cli.loop.loading import KEYS
from congrad_cli.loop.train_spec import TrainSpec
from congrad_cli.model_source import ModelSource, find_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EVERY_FILE = ("config.json", "generation_config.json", "tokenizer_config.json")


def policy_source(spec: TrainSpec) -> ModelSource:
    """Where the model to train comes from."""
    return find_model(spec.model, spec.about.revision, options=KEYS)


def reference_source(spec: TrainSpec) -> ModelSource:
    """Where the model comes from that the trained one is measured against."""
    return find_model(spec.reference, spec.reference_revision, options=KEYS)


def load_tokenizer(spec: TrainSpec, pairs: Any) -> Any:
    """The tokenizer of the model to train, fit for the form of ``pairs``."""
    source = policy_source(spec)
    tokenizer = checkpoint.load_tokenizer(source, spec.about.chat_template)
    if not isinstance(pairs[0]["prompt"], str):
        checkpoint.require_template(tokenizer, source, str(spec.pairs))
    return tokenizer


def load_model(source: ModelSource, dtype: torch.dtype) -> Any:
    """A model on the CPU, free to learn and without any dropout; the trainer moves it."""
    model = checkpoint.load_model(source, CPU, dtype).requires_grad_(True)
    _remove_dropout(model)
    return model


def _remove_dropout(model: nn.Module) -> None:
    """TRL zeroes the layers; attention and some others read a number that the config gave them."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def training_dtype(spec: TrainSpec, cpu: bool) -> torch.dtype:
    """float32 where all weights learn: a step is often smaller than half of a bfloat16's last bit.

    Under LoRA the frozen weights take model.dtype: on a GPU the checkpoint's unless it is said.
    """
    if spec.train.lora_rank == 0:
        return torch.float32
    return choose_dtype(policy_source(spec), spec.about.dtype, CPU if cpu else CUDA)


def final_dtype(spec: TrainSpec) -> torch.dtype:
    """The precision of the trained model's folder: ``auto`` is that of the model before.

    What a GGUF file holds has no precision of its own, and becomes float32.
    """
    source, name = policy_source(spec), spec.train.save_dtype
    if name != "auto":
        return DTYPES[name]
    return torch.float32 if source.gguf_file else choose_dtype(source, "auto", CUDA)


def merged_state(model: nn.Module, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights of the model with the adapter's changes added; the model itself stays."""
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(copy.deepcopy(model), adapter, use_safetensors=True)
    state: dict[str, torch.Tensor] = tuned.merge_and_unload().state_dict()
    return state


def write_model(
    model: Any, state: dict[str, torch.Tensor], dtype: torch.dtype, tokenizer: Any, folder: Path
) -> float:
    """Write the model with the weights of ``state``: a plain folder, there whole or not at all.

    ``model`` is as it was before the training, in float32, and is used up. Returns how much of
    what was learned ``dtype`` loses: |rounding error| / |change| over all weights.
    """
    lost = _replace(model, state, dtype)
    model = model.to(dtype)
    for config in (model.config, model.config.get_text_config()):
        config.dtype = dtype
        config.pad_token_id = tokenizer.pad_token_id
    if hasattr(model.config, "quantization_config"):  # a GGUF file's; the weights are plain now
        del model.config.quantization_config
    _sample(model.generation_config, tokenizer)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    _require_whole(temporary, tokenizer)
    rights = (temporary / "config.json").stat().st_mode
    for file in temporary.iterdir():
        file.chmod(rights)  # weights come readable by their owner alone, and servers differ
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    temporary.rename(folder)
    return lost


@torch.no_grad()
def _replace(model: nn.Module, state: dict[str, torch.Tensor], dtype: torch.dtype) -> float:
    """Give the model the trained weights; returns |rounding error| / |change|."""
    change = error = 0.0
    own = dict(model.named_parameters())
    if missing := own.keys() - state.keys():
        raise ModelError(f"the trained weights lack {', '.join(sorted(missing)[:3])}.")
    for name, weight in own.items():
        trained = state[name].to("cpu", torch.float32)
        change += float((trained - weight).double().square().sum())
        error += float((trained - trained.to(dtype).float()).double().square().sum())
        weight.copy_(trained)
    return float((error / change) ** 0.5) if change else 0.0


def _sample(config: Any, tokenizer: Any) -> None:
    """Sampling on: some servers ignore a request's temperature unless the model says so."""
    config.do_sample = True
    if config.temperature is not None and config.temperature <= 0:
        config.temperature = None
    config.pad_token_id = tokenizer.pad_token_id


def _require_whole(folder: Path, tokenizer: Any) -> None:
    missing = [name for name in EVERY_FILE if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("weights")
    again = AutoTokenizer.from_pretrained(folder)
    if again.chat_template != tokenizer.chat_template:
        missing.append("the chat template")
    if missing:
        raise ModelError(f"the trained model could not be written: {', '.join(missing)} missing.")
