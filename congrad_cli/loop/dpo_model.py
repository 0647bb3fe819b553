"""Models of a training: loaded so that small steps count, and written as a plain folder."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from congrad_cli.errors import ModelError, UsageError
from congrad_cli.loop.train_spec import TrainSpec

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
EVERY_FILE = ("config.json", "generation_config.json", "tokenizer_config.json")


def _arguments(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` takes for a folder, a .gguf file or a hub name."""
    arguments: dict[str, Any] = {"trust_remote_code": False}
    path = Path(name)
    if path.suffix == ".gguf":
        return str(path.parent), arguments | {"gguf_file": path.name}
    return name, arguments | ({} if revision is None else {"revision": revision})


def load_tokenizer(spec: TrainSpec) -> Any:
    """The tokenizer of the model to train, with the chat template that the settings name."""
    location, arguments = _arguments(spec.model, spec.revision(spec.model))
    tokenizer = AutoTokenizer.from_pretrained(location, **arguments)
    template = spec.about.chat_template
    if template is not None:
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    return tokenizer


def load_model(spec: TrainSpec, name: str, dtype: torch.dtype) -> Any:
    """A model on the CPU, without any dropout; the trainer moves it where it belongs."""
    location, arguments = _arguments(name, spec.revision(name))
    if "gguf_file" in arguments:
        from transformers import GgufConfig

        arguments["quantization_config"] = GgufConfig(dequantize=True)
    else:
        arguments["use_safetensors"] = True
    try:
        model = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{name} cannot be loaded: {str(error).strip().splitlines()[0][:200]}",
            "it must be a causal language model with safetensors weights and no code of its own",
        ) from error
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

    Under LoRA the frozen weights take [model] dtype: on a GPU the checkpoint's unless it is said.
    """
    if spec.train.lora_rank == 0:
        return torch.float32
    if spec.about.dtype != "auto":
        return DTYPES[spec.about.dtype]
    return torch.float32 if cpu else stored_dtype(spec)


def stored_dtype(spec: TrainSpec) -> torch.dtype:
    """The precision of the weights that training starts from; of GGUF files float32."""
    location, arguments = _arguments(spec.model, spec.revision(spec.model))
    if "gguf_file" in arguments:
        return torch.float32
    dtype = AutoConfig.from_pretrained(location, **arguments).get_text_config().dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def final_dtype(spec: TrainSpec) -> torch.dtype:
    """The precision that the trained model is written in."""
    name = spec.train.save_dtype
    return stored_dtype(spec) if name == "auto" else DTYPES[name]


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
    for file in temporary.iterdir():
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


def require_template(tokenizer: Any, pairs: Any, spec: TrainSpec) -> None:
    """Raise :class:`UsageError` where pairs are conversations and the model has no template."""
    if tokenizer.chat_template is None and not isinstance(pairs[0]["prompt"], str):
        raise UsageError(
            f"{spec.model} has no chat template, and the pairs are conversations.",
            "set [model] chat_template to a file (Jinja, as the model was trained)",
        )
