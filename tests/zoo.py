"""Tiny models of real architectures, built from their configurations with random weights."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

WINDOW = 6  # shorter than any pair, so that sliding windows matter


def zoo(vocabulary: int) -> dict[str, PreTrainedConfig]:
    """One configuration per architecture, two blocks each, special features switched on."""
    common: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    gemma = {**common, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
    return {
        "llama": LlamaConfig(**common),
        "qwen2": Qwen2Config(**common),
        "mistral": MistralConfig(**common, sliding_window=WINDOW),
        "gemma2": Gemma2Config(**gemma, attn_logit_softcapping=2.0, final_logit_softcapping=4.0),
        "gemma3": Gemma3TextConfig(
            **gemma, layer_types=["sliding_attention", "full_attention"]
        ),
        "gpt2": GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=256,
            attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=0, eos_token_id=1,
        ),
    }  # fmt: skip


ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma2", "gemma3", "gpt2")


def build(config: PreTrainedConfig) -> Any:
    """A float32 model whose matrices are large enough for attention and caps to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model
