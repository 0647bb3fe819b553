"""Load a causal language model and its tokenizer, and explain why one cannot be had."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from congrad_cli.errors import ModelError, UsageError
from congrad_cli.model_source import SHELL, ModelSource

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""``--chat-template plain``: "User: ...", a blank line, "Assistant: ..." and the end token."""

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


@contextmanager
def explained(source: ModelSource) -> Iterator[None]:
    """Turn the many ways in which a model cannot be had into one error with the cure."""
    try:
        yield
    except ImportError as error:
        raise ModelError(
            f"{source.name} needs a package that is not installed: {error}".splitlines()[0],
            "for .gguf files: pip install gguf",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _cause(source, error) from error


def _cause(source: ModelSource, error: BaseException) -> ModelError:
    from huggingface_hub import errors as hub

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    local = f"or pass a local folder: {source.options.model} /path/to/model"
    page = f"https://huggingface.co/{source.name}"
    if any(isinstance(link, hub.GatedRepoError) for link in chain) or "gated repo" in str(error):
        return ModelError(
            f"{source.name} is gated: its licence must be accepted first.",
            f"accept it at {page}, then set HF_TOKEN to a token of that account",
            local,
        )
    if any(isinstance(link, hub.RepositoryNotFoundError) for link in chain):
        return ModelError(
            f"{source.name} is not on the hub, or is private.",
            f"check the name at {page}; for a private one set HF_TOKEN",
            local,
        )
    offline = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError)
    if any(isinstance(link, offline) for link in chain) and not Path(source.location).is_dir():
        return ModelError(
            f"{source.name} is not in the local cache and the hub cannot be reached.",
            f"download it once where there is a network: hf download {source.name}",
            f"unset HF_HUB_OFFLINE if it is set, {local}",
        )
    return ModelError(
        f"{source.name} cannot be loaded: {str(error).strip().splitlines()[0][:200]}",
        "it must be a causal language model with safetensors weights and no code of its own",
        local,
    )


def load_tokenizer(source: ModelSource, chat_template: str | None) -> Any:
    """The model's tokenizer, with ``chat_template`` (a file or "plain") in place of its own."""
    with explained(source):
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments())
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template, source.options.chat_template)
    return tokenizer


def read_template(chat_template: str, option: str = SHELL.chat_template) -> str:
    """The template's text: that of a file, or "plain"."""
    if chat_template == "plain":
        return PLAIN_TEMPLATE
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UsageError(f"{option} {chat_template}: cannot be read ({reason}).") from error


def require_template(tokenizer: Any, source: ModelSource, place: str) -> None:
    """Raise unless the tokenizer can render the conversation that stands at ``place``."""
    if tokenizer.chat_template is None:
        option = source.options.chat_template
        raise ModelError(
            f"{source.name} has no chat template, and {place} is conversational.",
            f"pass {option} FILE (Jinja, as the model was trained), or {option} plain",
        )
    try:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program from elsewhere: anything may come
        raise ModelError(f"the chat template cannot be rendered: {error}.") from error


def choose_place(
    source: ModelSource, device: str, dtype: str
) -> tuple[torch.device, torch.dtype]:
    """Where the model runs, and in what precision."""
    place = choose_device(device, source.options.device)
    return place, choose_dtype(source, dtype, place)


def choose_device(name: str, option: str = SHELL.device) -> torch.device:
    """``auto``: CUDA where there is some, else the CPU."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local = int(os.environ.get("LOCAL_RANK", "0"))  # torchrun: one process for each GPU
        return torch.device("cuda", local % torch.cuda.device_count())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"{option} {name}: {str(error).splitlines()[0]}") from error
    return device


def choose_dtype(source: ModelSource, name: str, device: torch.device) -> torch.dtype:
    """``auto``: the checkpoint's on CUDA, float32 on the CPU."""
    if name != "auto":
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    with explained(source):
        config = AutoConfig.from_pretrained(source.location, **source.arguments())
    dtype = config.get_text_config().dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def load_model(
    source: ModelSource, device: torch.device, dtype: torch.dtype, device_map: str | None = None
) -> Any:
    """The model in evaluation mode, its weights frozen. Only safetensors and GGUF are read.

    ``device_map`` spreads the model over all GPUs instead of putting it on ``device``. The
    source's adapter is not looked at.
    """
    arguments = source.arguments()
    if source.gguf_file:
        from transformers import GgufConfig

        arguments["quantization_config"] = GgufConfig(dequantize=True)
    else:
        arguments["use_safetensors"] = True
    if device_map is not None:
        if find_spec("accelerate") is None:
            raise ModelError(
                "--device-map needs accelerate, which is not installed.", "pip install accelerate"
            )
        arguments["device_map"] = device_map
    transformers_logging.disable_progress_bar()
    with explained(source):
        model = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, **arguments)
    if device_map is None:
        model = model.to(device)
    elif torch.cuda.is_available() and {"cpu", "disk"} & set(
        map(str, getattr(model, "hf_device_map", {}).values())
    ):
        raise ModelError(
            f"{source.name} does not fit into the GPUs' memory.",
            f"take more or larger GPUs, or {source.options.dtype} bfloat16",
        )
    return model.eval().requires_grad_(False)


@torch.no_grad()
def position_limit(model: PreTrainedModel) -> int | None:
    """How many positions the model has learned a vector for; None where none are learned.

    One token, repeated, is shown to the model: a table of positions is the one whose consecutive
    rows come out. Where they begin need not be its first row (OPT's is its third).
    """
    count = 4
    limits: list[int] = []
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    tokens = torch.full((1, count), 1 if padding == 0 else 0)

    def look(table: nn.Embedding, _: Any, output: torch.Tensor) -> None:
        rows, weight = output.flatten(0, -2), table.weight  # [4, H], [N, H]
        starts = (weight == rows[0]).all(1).nonzero().flatten().tolist()
        limits.extend(
            len(weight) - start
            for start in starts if torch.equal(weight[start : start + count], rows)
        )

    hooks = [
        table.register_forward_hook(look)
        for table in model.modules()
        if isinstance(table, nn.Embedding) and table is not model.get_input_embeddings()
    ]
    try:
        model.get_decoder()(input_ids=tokens.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return min(limits, default=None)
