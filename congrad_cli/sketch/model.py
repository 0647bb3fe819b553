"""The model that is sketched: its adapter, its fingerprint, and whether rows fit into it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from congrad_cli import checkpoint
from congrad_cli.checkpoint import explained, position_limit
from congrad_cli.errors import ModelError, UsageError
from congrad_cli.model_source import ModelSource

WHOLE_BYTES, SAMPLE_BYTES, SAMPLES = 1 << 30, 1 << 20, 512
"""Weight files are hashed whole up to the first, else in so many pieces of that size."""


def load_model(
    source: ModelSource, device: torch.device, dtype: torch.dtype, device_map: str | None = None
) -> Any:
    """As :func:`checkpoint.load_model`, with the source's adapter: its weights want a gradient."""
    model = checkpoint.load_model(source, device, dtype, device_map)
    return model if source.adapter is None else _with_adapter(model, source)


def _with_adapter(model: PreTrainedModel, source: ModelSource) -> Any:
    """The model with its adapter's layers put in; only their weights want a gradient."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(
            "--adapter needs PEFT, which is not installed.", "pip install 'congrad-cli[train]'"
        ) from error
    try:
        tuned = PeftModel.from_pretrained(
            model, source.adapter, is_trainable=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"--adapter {source.adapter} does not fit {source.name}: "
            f"{str(error).strip().splitlines()[0][:200]}"
        ) from error
    return tuned.eval().get_base_model()


def model_fingerprint(source: ModelSource, tokenizer: Any) -> dict[str, str]:
    """Digests that tell one model from another; names and paths are not among them.

    Weights of a hub model: its commit. Of a folder or file: the configuration, and every weight
    file, whole up to 1 GiB; of a larger one its header and ``SAMPLES`` evenly spread pieces (a
    full hash of 16 GB takes longer than most runs' start, and training changes every tensor).
    """
    digest = hashlib.sha256()
    path = Path(source.location)
    if path.is_dir():
        names = [source.gguf_file] if source.gguf_file else ["config.json", *sorted(
            file.name for file in path.glob("*.safetensors"))]
        for name in names:
            digest.update(name.encode() if name != source.gguf_file else b"gguf")
            _digest_file(path / name, digest)
    else:
        with explained(source):
            config = AutoConfig.from_pretrained(source.location, **source.arguments())
        commit = getattr(config, "_commit_hash", None)
        digest.update((commit or source.location + config.to_json_string()).encode())
    if source.adapter is not None:
        for file in sorted(Path(source.adapter).glob("adapter_*")):
            digest.update(file.name.encode())
            _digest_file(file, digest)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else ""
    vocabulary = json.dumps([sorted(tokenizer.get_vocab().items()), rules], ensure_ascii=True)
    template = json.dumps([tokenizer.chat_template, tokenizer.eos_token])
    return {
        "weights": digest.hexdigest()[:16],
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest()[:16],
        "chat_template": hashlib.sha256(template.encode()).hexdigest()[:16],
    }


def _digest_file(path: Path, digest: Any) -> None:
    length = path.stat().st_size
    digest.update(str(length).encode())
    with path.open("rb") as file:
        if length <= WHOLE_BYTES:
            while part := file.read(SAMPLE_BYTES):
                digest.update(part)
            return
        for index in range(SAMPLES):  # the first one holds the header, the last one the end
            file.seek((length - SAMPLE_BYTES) * index // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Raise :class:`UsageError` where sequences may be longer than the model has positions for."""
    limit = position_limit(model)
    if limit is not None and max_length > limit:
        raise UsageError(
            f"--max-length {max_length} is too long: the model has learned {limit:,} positions.",
            f"pass --max-length {limit}",
        )
