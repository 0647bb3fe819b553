"""Long rows: attention by segments gives the mask's numbers, and no table of T x T exists."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DeepseekV3Config, DogeConfig, GptOssConfig, Llama4TextConfig, MistralConfig
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)
from zoo import ARCHITECTURES, WINDOW, build, zoo

from congrad_cli.records.record import Record
from congrad_cli.sketch import attention, long_rows
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.forward import PairForward
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import Layer, all_layers, choose_layers
from congrad_cli.sketch.long_rows import SegmentMask, Steps, find_window, segment_attention
from congrad_cli.sketch.pairs import PairBatch, batch_pairs
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.tokens import TokenizedPair

VOCABULARY = 101
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
ALL = (*ARCHITECTURES, "gpt_oss", "deepseek_v3")


def model_of(name: str) -> Any:
    """A tiny model routed through our attention, its sinks switched on."""
    configs = {
        **zoo(VOCABULARY),
        "gpt_oss": GptOssConfig(
            **COMMON, head_dim=8, sliding_window=WINDOW, num_local_experts=2,
            num_experts_per_tok=1, layer_types=["sliding_attention", "full_attention"],
        ),
        "deepseek_v3": DeepseekV3Config(  # values narrower than keys
            **{**COMMON, "num_key_value_heads": 4}, first_k_dense_replace=2, kv_lora_rank=16,
            q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=12, v_head_dim=8,
        ),
    }  # fmt: skip
    if name == "gpt2":
        configs[name].n_inner = 48  # no activation may outgrow the table that must not be
    model = build(configs[name])
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("sinks"):
                parameter.normal_(1.0)
    assert use_shared_rows(model)
    return model


def linears(model: Any) -> dict[str, Layer]:
    """The plain linear layers of the blocks; fused experts are left out here."""
    everything = choose_layers(all_layers(model), "blocks")
    return {name: layer for name, layer in everything.items() if layer.kind == "matrix"}


def pairs_of(*lengths: tuple[int, int, int]) -> list[TokenizedPair]:
    """Pairs of random tokens with these lengths of prompt, chosen and rejected."""
    generator = torch.Generator().manual_seed(2)
    return [
        TokenizedPair(
            Record(row, "f", row + 1, b"", "", "", "", "x", None),
            *(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in triple),
        )
        for row, triple in enumerate(lengths)
    ]


UNEQUAL = ((9, 5, 14), (17, 12, 1), (0, 8, 6), (24, 1, 2), (1, 20, 22))


def observe(model: Any, batch: PairBatch) -> dict[str, Tensor]:
    """What a batch yields: states, gradient at the embeddings, sketch, log-probabilities."""
    layers = linears(model)
    seen: list[Tensor] = []
    with PairSketcher(model, layers, Projection(256, 8, 0)) as sketcher:
        with torch.no_grad():
            states = sketcher._forward.states(batch)
        hook = model.get_input_embeddings().register_forward_hook(lambda *a: seen.append(a[2]))
        result = sketcher.sketch(batch)
        hook.remove()
    real = batch.segments != attention.PADDING
    gradient = next(output.grad for output in seen if output.grad is not None)[real]
    return {
        "states": states, "gradient": gradient, "sketch": result.sketch, "logp": result.logp
    }  # fmt: skip


def watch_masks(patch: pytest.MonkeyPatch, width: int) -> list[Any]:
    """The masks of rows of ``width`` tokens, as attention receives them."""
    masks: list[Any] = []
    original = attention.masked_attention

    def spy(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kw: Any):
        if query.shape[2] == width:
            masks.append(attention_mask)
        return original(module, query, key, value, attention_mask, **kw)

    patch.setattr(attention, "masked_attention", spy)
    return masks


def compare(
    monkeypatch: pytest.MonkeyPatch, model: Any, batch: PairBatch
) -> tuple[dict[str, float], list[Any]]:
    """Relative differences between a table of T x T and long rows; the masks of the latter."""
    dense = observe(model, batch)
    with monkeypatch.context() as patch:
        patch.setattr(long_rows, "LONG_ROW", 0)
        patch.setattr(long_rows, "QUERY_BLOCK", 4)
        masks = watch_masks(patch, batch.input_ids.shape[1])
        use_shared_rows(model)  # registers the spy
        long = observe(model, batch)
    use_shared_rows(model)
    differences = {
        name: float((long[name] - expected).float().norm() / expected.float().norm())
        for name, expected in dense.items()
    }
    return differences, masks


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_segments_give_what_the_table_gives(
    monkeypatch: pytest.MonkeyPatch, name: str, shared: bool
) -> None:
    batch = batch_pairs(pairs_of(*UNEQUAL), 0, shared, padding=3)
    differences, masks = compare(monkeypatch, model_of(name), batch)
    assert masks and all(isinstance(mask, SegmentMask) for mask in masks)
    assert max(differences.values()) <= 1e-5, differences


@pytest.mark.parametrize("name", ALL)
def test_in_bfloat16_they_differ_by_rounding(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    batch = batch_pairs(pairs_of(*UNEQUAL), 0, True, padding=3)
    differences, masks = compare(monkeypatch, model_of(name).bfloat16(), batch)
    assert isinstance(masks[0], SegmentMask)
    assert max(differences.values()) <= 4 * torch.finfo(torch.bfloat16).eps, differences


def plain_states(model: Any, pairs: list[TokenizedPair]) -> Tensor:
    """States from one sequence at a time, without mask or padding."""
    states = []
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            ids = torch.tensor([pair.prompt + answer])
            with torch.no_grad():
                hidden = model.model(input_ids=ids, use_cache=False)[0][0]
            states.append(hidden[len(pair.prompt) - 1 : -1])
    return torch.cat(states)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_caps_and_sinks_are_those_of_the_models_own_attention(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pairs = pairs_of((9, 5, 14), (17, 12, 1), (24, 3, 2))
    model = model_of(name)
    model.set_attn_implementation("eager")
    expected = plain_states(model, pairs)
    assert use_shared_rows(model)
    monkeypatch.setattr(long_rows, "LONG_ROW", 0)
    monkeypatch.setattr(long_rows, "QUERY_BLOCK", 4)
    with torch.no_grad():
        states = PairForward(model).states(batch_pairs(pairs, 0, shared=True))
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation's output has."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        output = function(*args, **(kwargs or {}))
        for part in output if isinstance(output, list | tuple) else [output]:
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.numel())
        return output


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_no_table_of_tokens_by_tokens_is_ever_made(
    monkeypatch: pytest.MonkeyPatch, name: str, shared: bool
) -> None:
    model = model_of(name)
    batch = batch_pairs(pairs_of((120, 85, 120)), 0, shared, padding=5)
    longest = 120 + 120  # the square of a whole row is more
    monkeypatch.setattr(long_rows, "QUERY_BLOCK", 16)

    def largest() -> int:
        with PairSketcher(model, linears(model), Projection(256, 8, 0)) as sketcher:
            with LargestTensor() as mode:
                sketcher.sketch(batch)  # forward and backward
            return mode.elements

    assert largest() >= longest**2  # the watch sees a table where there is one
    monkeypatch.setattr(long_rows, "LONG_ROW", batch.input_ids.shape[1] - 1)
    assert largest() < longest**2


@pytest.mark.parametrize(
    ("window", "steps"),
    [(200, Steps(0.3, softcap=2.0)), (200, Steps(0.3, sinks=torch.zeros(2))), (30, Steps(0.3))],
)
def test_blocks_leave_no_table_behind_for_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch, window: int, steps: Steps
) -> None:
    monkeypatch.setattr(long_rows, "QUERY_BLOCK", 20)
    query, key, value = (torch.randn(1, 2, 200, 4, requires_grad=True) for _ in range(3))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, id):
        result = segment_attention(query, key, value, SegmentMask(((80, 60, 60),), window), steps)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    assert result.requires_grad and sum(storages.values()) < 4 * 200**2 / 3  # float32


def test_the_table_stays_for_rows_of_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_pairs(pairs_of((20, 20, 11)), 0, shared=True)
    model = model_of("llama")
    masks = watch_masks(monkeypatch, 51)
    use_shared_rows(model)
    for limit, kind in ((50, SegmentMask), (51, Tensor)):
        monkeypatch.setattr(long_rows, "LONG_ROW", limit)
        observe(model, batch)
        assert isinstance(masks[-1], kind)


@pytest.mark.parametrize("window", [1, 5, 38, 39, 40, 100])
def test_windows_shorter_and_longer_than_the_sequence(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """The longest of the sequences has 39 tokens."""
    model = build(MistralConfig(**COMMON, sliding_window=window))
    assert use_shared_rows(model)
    batch = batch_pairs(pairs_of((9, 30, 12), (25, 4, 14)), 0, shared=True)
    differences, masks = compare(monkeypatch, model, batch)
    assert {mask.window for mask in masks} == {min(window, 39)}
    assert max(differences.values()) <= 1e-5, differences


LENGTH = 300


@pytest.mark.parametrize(
    ("rule", "window"),
    [
        (causal_mask_function, LENGTH),
        *((sliding_window_causal_mask_function(w), min(w, LENGTH)) for w in (1, 2, 150, 299, 300)),
        (sliding_window_causal_mask_function(5_000), LENGTH),
        (bidirectional_mask_function, None),
        (chunked_causal_mask_function(64, torch.zeros(2, dtype=torch.long)), None),
        (chunked_causal_mask_function(299, torch.zeros(2, dtype=torch.long)), None),
        (chunked_causal_mask_function(300, torch.zeros(2, dtype=torch.long)), LENGTH),
        (and_masks(causal_mask_function, lambda b, h, q, k: (q - k) % 2 == 0), None),
        (and_masks(causal_mask_function, lambda b, h, q, k: k != q), None),
        (and_masks(causal_mask_function, lambda b, h, q, k: (b == 0) | (k > q - 7)), None),
        # the first tokens stay visible; a prefix sees itself both ways
        (or_masks(sliding_window_causal_mask_function(20), lambda b, h, q, k: (k < 3) & (k <= q)),
         None),
        (or_masks(causal_mask_function, lambda b, h, q, k: (k < 9) & (q < 9)), None),
        (lambda b, h, q, k: q < 0, None),
    ],
)  # fmt: skip
def test_the_mask_rule_is_asked_not_guessed(
    rule: Callable[..., Tensor], window: int | None
) -> None:
    assert find_window(rule, 2, LENGTH, torch.device("cpu")) == window


def test_chunked_attention_keeps_the_table_and_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4 without experts: chunks of 8 in one layer, full attention in the other."""
    model = build(
        Llama4TextConfig(
            **COMMON, head_dim=8, intermediate_size_mlp=48, attention_chunk_size=8, moe_layers=[],
            layer_types=["chunked_attention", "full_attention"], no_rope_layers=[1, 0],
        )
    )  # fmt: skip
    pairs = pairs_of((9, 5, 14), (17, 12, 3))
    expected = plain_states(model, pairs)
    monkeypatch.setattr(long_rows, "LONG_ROW", 0)
    for shared in (True, False):
        batch = batch_pairs(pairs, 0, shared, padding=2)
        masks = watch_masks(monkeypatch, batch.input_ids.shape[1])
        use_shared_rows(model)
        with torch.no_grad():
            states = PairForward(model).states(batch)
        assert [type(mask) for mask in masks] == [Tensor, SegmentMask]
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


def test_models_that_compute_with_their_mask_keep_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Doge adds learned numbers to it."""
    model = build(DogeConfig(**COMMON, keep_window_size=8, is_moe=False))
    assert use_shared_rows(model)
    assert not PairForward(model)._knows_segments
    assert PairForward(model_of("llama"))._knows_segments
    batch = batch_pairs(pairs_of(*UNEQUAL), 0, True, padding=3)
    differences, masks = compare(monkeypatch, model, batch)
    assert all(isinstance(mask, Tensor) for mask in masks)
    assert max(differences.values()) == 0


def test_a_layer_that_ignores_its_window_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that gives other numbers without a table is found out before a long row."""
    model = model_of("gemma2")
    monkeypatch.setattr(
        attention, "segment_attention", lambda query, *_: torch.zeros_like(query.transpose(1, 2))
    )
    assert not PairForward(model)._knows_segments
