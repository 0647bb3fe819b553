"""Models with a learned table of positions say how far it reaches."""

from typing import Any

import pytest
import torch
from transformers import (
    BioGptConfig,
    BloomConfig,
    GPT2Config,
    GPTNeoConfig,
    OPTConfig,
    PreTrainedConfig,
)
from zoo import ARCHITECTURES, build, zoo

from congrad_cli.checkpoint import position_limit
from congrad_cli.errors import UsageError
from congrad_cli.sketch.model import check_positions

POSITIONS, VOCABULARY = 23, 30
TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0
}  # fmt: skip
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LEARNED = {
    "gpt2": GPT2Config(**TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS),
    "opt": OPTConfig(
        **TOKENS, **SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=POSITIONS
    ),
    "opt with a projection": OPTConfig(
        **TOKENS, **SIZES, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=POSITIONS
    ),
    "gpt_neo": GPTNeoConfig(
        **TOKENS, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=POSITIONS,
    ),
    "biogpt": BioGptConfig(
        **TOKENS, **SIZES, intermediate_size=48, max_position_embeddings=POSITIONS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_table_takes_that_many_tokens_and_not_one_more(name: str) -> None:
    model = build(LEARNED[name])
    limit = position_limit(model)
    assert limit == POSITIONS
    ids = torch.ones(1, limit + 1, dtype=torch.long)
    model(input_ids=ids[:, :limit], use_cache=False)
    with pytest.raises(IndexError):
        model(input_ids=ids, use_cache=False)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "gpt2"])
def test_rotary_models_have_no_limit(name: str) -> None:
    assert position_limit(build(zoo(VOCABULARY)[name])) is None


@pytest.mark.parametrize("same", [False, True])
def test_other_tables_are_not_taken_for_positions(same: bool) -> None:
    """ALiBi has none; a vocabulary whose rows are all alike has nothing to do with positions."""
    config: PreTrainedConfig = BloomConfig(**TOKENS, hidden_size=32, n_layer=2, n_head=4)
    model = build(config)
    if same:
        with torch.no_grad():
            model.get_input_embeddings().weight.fill_(0.5)
    assert position_limit(model) is None


def test_longer_sequences_than_positions_are_refused_with_the_cure() -> None:
    check_positions(build(LEARNED["opt"]), POSITIONS)
    check_positions(build(zoo(VOCABULARY)["llama"]), 10**6)
    with pytest.raises(UsageError, match="has learned 23 positions") as error:
        check_positions(build(LEARNED["opt"]), POSITIONS + 1)
    assert error.value.hints == ("pass --max-length 23",)
