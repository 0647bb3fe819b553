"""Tiny models of real architectures, built from their configurations with random weights."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
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
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    many_heads = {**common, "num_key_value_heads": 4}
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
        "qwen3": Qwen3Config(**common, head_dim=8),
        "cohere": CohereConfig(**common, logit_scale=0.25),  # tied, parallel blocks, LayerNorm
        "phi": PhiConfig(**many_heads),  # biases everywhere, in the head too
        "opt": OPTConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, ffn_dim=48,
            num_attention_heads=4, max_position_embeddings=256, dropout=0.0,
            word_embed_proj_dim=32,
        ),
        "mixtral": MixtralConfig(**common, num_local_experts=4),
        "qwen2_moe": Qwen2MoeConfig(
            **common, **experts, shared_expert_intermediate_size=40
        ),
        "qwen3_moe": Qwen3MoeConfig(**common, **experts, head_dim=8),
        "gpt_oss": GptOssConfig(
            **common, num_local_experts=4, head_dim=8, sliding_window=WINDOW
        ),
        "deepseek_v3": DeepseekV3Config(
            **many_heads, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
            moe_intermediate_size=24, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16,
            qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
        ),
        "mamba": MambaConfig(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2),
        "jamba": JambaConfig(
            **common, num_experts=4, use_mamba_kernels=False, attn_layer_period=2,
            attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        ),
    }  # fmt: skip


ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma2", "gemma3", "gpt2")
"""What every numeric test runs on; the others stand for special kinds of weights."""


def build(config: PreTrainedConfig) -> Any:
    """A float32 model whose matrices are large enough for attention and caps to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            else:  # norms of ones and biases of zeros would hide mistakes
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model
