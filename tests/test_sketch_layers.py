"""Every kind of weight in every architecture, against autograd; and what is refused, by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_sketch_rows import VOCABULARY, random_pairs
from torch import Tensor, nn
from zoo import build, zoo

from congrad_cli.errors import ModelError, UsageError
from congrad_cli.model_source import find_model
from congrad_cli.sketch import long_rows
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.calibration import leading_directions
from congrad_cli.sketch.check import check_batches, compare_layouts, without_peers
from congrad_cli.sketch.coverage import measure_coverage
from congrad_cli.sketch.exact import exact_gradient, sketch_gradient
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import Layer, all_layers, choose_layers
from congrad_cli.sketch.model import load_model
from congrad_cli.sketch.pairs import batch_pairs
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.uses import MixedRowsError

NOT_ALL = {
    "gpt_oss": "all,!*.experts.*_bias,!*.sinks",
    "mamba": "all,!*.conv1d,!*.A_log,!*.D,!*.dt_proj.bias",
    "jamba": "all,!*.conv1d,!*.A_log,!*.D,!*.dt_proj.bias",
}
"""Where something must be left out; everywhere else ``all`` means all."""

SEPARATE_ONLY = {"mamba", "jamba"}


def projection_of(model: Any, layers: dict[str, Layer]) -> Projection:
    return Projection(256, 8, 0, leading_directions(model, layers, 2))


def sketches(model: Any, layers: dict[str, Layer], projection: Projection, shared: bool) -> Tensor:
    pairs = random_pairs(4)
    with PairSketcher(model, layers, projection) as sketcher:
        try:
            rows = sketcher.sketch(batch_pairs(pairs, 0, shared)).sketch
        except MixedRowsError:  # what the command does then: one pair at a time
            rows = torch.cat([
                sketcher.sketch(batch_pairs([pair], 0, shared)).sketch for pair in pairs
            ])
        assert not sketcher.silent
    return rows


def worst_error(rows: Tensor, model: Any, layers: dict[str, Layer], scheme: Projection) -> float:
    """The largest relative error against sketches of gradients that autograd materialises."""
    errors = []
    for row, pair in zip(rows, random_pairs(4), strict=True):
        truth = sketch_gradient(exact_gradient(model, layers, pair).layers, scheme)
        errors.append(float((row - truth).norm() / truth.norm()))
    return max(errors)


@pytest.mark.parametrize("name", zoo(VOCABULARY))
def test_every_weight_of_every_architecture_equals_autograd(name: str) -> None:
    model = build(zoo(VOCABULARY)[name])
    everything = all_layers(model)
    assert sum(layer.size for layer in everything.values()) == sum(
        weight.numel() for weight in model.parameters()
    )
    layers = choose_layers(everything, NOT_ALL.get(name, "all"))
    scheme = projection_of(model, layers)
    for shared in (False,) if name in SEPARATE_ONLY else (True, False):
        if shared:
            assert use_shared_rows(model)
        rows = sketches(model, layers, scheme, shared)
        assert worst_error(rows, model, layers, scheme) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma3"])
def test_each_weight_alone_equals_autograd(name: str) -> None:
    """In the sum of all, a small weight's error could hide."""
    model = build(zoo(VOCABULARY)[name])
    use_shared_rows(model)
    everything = all_layers(model)
    names = [name for name in everything if "layers.1." not in name and "h.1." not in name]
    for name in names:
        layers = {name: everything[name]}
        scheme = projection_of(model, layers)
        rows = sketches(model, layers, scheme, shared=True)
        assert worst_error(rows, model, layers, scheme) < 1e-4, name


def test_blocks_means_every_linear_of_the_blocks() -> None:
    layers = choose_layers(all_layers(build(zoo(VOCABULARY)["qwen2"])), "blocks")
    kinds = {name.removeprefix("model.layers.0.") for name in layers if ".0." in name}
    assert kinds == {
        *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    experts = choose_layers(all_layers(build(zoo(VOCABULARY)["mixtral"])), "blocks")
    assert {"model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.down_proj"} <= set(
        experts
    )


@pytest.mark.parametrize(
    ("terms", "count"),
    [
        ("blocks", 14), ("all", 21), ("*.mlp.*", 6), ("*.mlp", 6), ("*.mlp,*.self_attn", 14),
        ("all,!*norm*", 16), ("!*.mlp", 8), ("lm_head", 1), ("blocks,!*.0.*,*.0.mlp.up_proj", 8),
        ("model.norm.weight", 1),
    ],
)  # fmt: skip
def test_terms_choose_from_the_left(terms: str, count: int) -> None:
    assert len(choose_layers(all_layers(build(zoo(VOCABULARY)["llama"])), terms)) == count


def test_terms_that_mean_nothing_are_refused() -> None:
    layers = all_layers(build(zoo(VOCABULARY)["llama"]))
    with pytest.raises(UsageError, match=r"--layers \*\.mpl: the model has no such weight"):
        choose_layers(layers, "*.mpl")
    with pytest.raises(ModelError, match="leaves no weight"):
        choose_layers(layers, "*.mlp,!*.mlp")


def test_what_cannot_be_sketched_is_named_and_can_be_left_out() -> None:
    mamba = build(zoo(VOCABULARY)["mamba"])
    with pytest.raises(ModelError, match=r"layers\.0\.mixer\.conv1d\.weight cannot be") as error:
        choose_layers(all_layers(mamba), "all")
    assert "!backbone.layers.*.mixer.conv1d.weight" in error.value.hints[0]
    layers = choose_layers(all_layers(mamba), "all,!*.conv1d")
    with pytest.raises(ModelError, match=r"A_log cannot be sketched: the model uses it in"):
        sketches(mamba, layers, Projection(256, 8, 0), shared=False)


@pytest.mark.parametrize(
    ("name", "terms", "culprit"),
    [("gpt_oss", "all,!*.experts.*_bias", "sinks"),
     ("mamba", "all,!*.conv1d,!*.A_log,!*.dt_proj.bias", r"mixer\.D")],
)  # fmt: skip
def test_vectors_that_are_neither_bias_nor_scale_are_named(
    name: str, terms: str, culprit: str
) -> None:
    model = build(zoo(VOCABULARY)[name])
    layers = choose_layers(all_layers(model), terms)
    with pytest.raises(ModelError, match=rf"layers\.\d\..*{culprit} cannot be sketched"):
        check_batches(model, layers, Projection(256, 8, 0))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "jamba"])
def test_a_model_whose_rows_are_their_pairs_own_passes_the_check(name: str) -> None:
    model = build(zoo(VOCABULARY)[name])
    layers = choose_layers(all_layers(model), NOT_ALL.get(name, "all"))
    check_batches(model, layers, Projection(256, 8, 0))


class BatchMean(nn.Module):
    """Lets rows see one another, as no language model should."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.1 * x.mean(0, keepdim=True))


def test_a_model_that_mixes_rows_is_refused() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    model.model.layers[0].mlp = BatchMean(model.model.layers[0].mlp)
    layers = choose_layers(all_layers(model), "blocks")
    with pytest.raises(ModelError, match="a row changes with the batch it is in"):
        check_batches(model, layers, Projection(256, 8, 0))


class Bypass(nn.Module):
    """A linear layer whose weight is read, not called."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x, self.linear.weight)


class Unused(nn.Linear):
    """A linear layer whose weight has no part in the answer."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.out_features)


def test_a_use_that_is_not_understood_is_an_error_not_a_gap() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    model.model.layers[1].mlp.up_proj = Bypass(model.model.layers[1].mlp.up_proj)
    layers = choose_layers(all_layers(model), "blocks")
    with pytest.raises(ModelError, match=r"up_proj\.linear\.weight cannot be sketched: .*einsum"):
        sketches(model, layers, Projection(256, 8, 0), shared=False)


def test_a_weight_without_a_part_in_the_answer_is_an_error() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    for block in model.model.layers:
        block.mlp.up_proj = Unused(32, 48, bias=False)
    layers = choose_layers(all_layers(model), "blocks")
    with PairSketcher(model, layers, Projection(256, 8, 0)) as sketcher, pytest.raises(
        ModelError, match=r"mlp\.up_proj\.weight cannot be sketched: it takes no part"
    ):
        compare_layouts(sketcher, can_share=False)


def test_an_expert_that_no_token_chose_is_not_missed() -> None:
    heard = {"layers.0.experts.0.w", "layers.0.experts.2.w"}
    assert without_peers({"layers.0.experts.1.w", "layers.1.experts.3.w"}, heard) == []
    assert without_peers({"layers.0.other.1.w"}, heard) == ["layers.0.other.1.w"]


class PerExpert(nn.Module):
    """Experts as separate linear layers, each called with its tokens only."""

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.router = nn.Linear(size, count, bias=False)
        self.experts = nn.ModuleList(nn.Linear(size, size) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weight, choice = torch.softmax(self.router(flat), -1).max(-1)
        total = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            token = torch.where(choice == index)[0]
            if len(token):
                total = total.index_add(0, token, expert(flat[token]) * weight[token, None])
        return total.view_as(x)


def test_experts_as_separate_layers_are_sketched_one_pair_at_a_time() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    torch.manual_seed(3)
    for block in model.model.layers:
        block.mlp = PerExpert(32, 3)
    use_shared_rows(model)
    layers = choose_layers(all_layers(model), "all")
    scheme = projection_of(model, layers)
    with PairSketcher(model, layers, scheme) as sketcher, pytest.raises(MixedRowsError):
        sketcher.sketch(batch_pairs(random_pairs(4), 0, shared=True))
    rows = sketches(model, layers, scheme, shared=True)
    assert worst_error(rows, model, layers, scheme) < 1e-4


class Quantised(nn.Module):
    """A linear layer that holds bytes and a scale, as quantised layers do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("scale", linear.weight.detach().abs().amax() / 127)
        self.register_buffer("bytes", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.bytes.to(x.dtype) * self.scale).T


def test_quantised_linears_have_the_gradient_of_their_values() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    plain = build(zoo(VOCABULARY)["llama"])
    for block, twin in zip(model.model.layers, plain.model.layers, strict=True):
        block.mlp.up_proj = Quantised(block.mlp.up_proj)
        with torch.no_grad():
            twin.mlp.up_proj.weight.copy_(block.mlp.up_proj.bytes * block.mlp.up_proj.scale)
    use_shared_rows(model)
    layers = choose_layers(all_layers(model), "blocks")
    twins = choose_layers(all_layers(plain), "blocks")
    assert layers.keys() == twins.keys()
    assert layers["model.layers.0.mlp.up_proj.weight"].kind == "packed"
    scheme = projection_of(model, layers)
    rows = sketches(model, layers, scheme, shared=True)
    assert worst_error(rows, plain, twins, scheme) < 1e-4


def test_coverage_is_the_share_that_autograd_finds() -> None:
    model = build(zoo(VOCABULARY)["gemma3"])
    everything = all_layers(model)
    chosen = choose_layers(everything, "blocks")
    pairs = random_pairs(6)
    coverage = measure_coverage(model, everything, chosen, pairs)
    energy = dict.fromkeys(everything, 0.0)
    for pair in sorted(pairs, key=lambda pair: pair.length)[:4]:
        for name, gradient in exact_gradient(model, everything, pair).layers.items():
            energy[name] += float(gradient.square().sum())
    whole = sum(energy.values())
    assert coverage.covered.energy == pytest.approx(
        sum(energy[name] for name in chosen) / whole, rel=1e-3
    )
    left = coverage.left_out
    assert left.keys() == {"embeddings", "norms and biases"}
    assert left["embeddings"].energy == pytest.approx(
        energy["model.embed_tokens.weight"] / whole, rel=1e-3
    )
    assert coverage.covered.numbers + sum(part.numbers for part in left.values()) == (
        pytest.approx(1)
    )
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("long_row", [2048, 8])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "gemma3"])
def test_checkpointing_changes_memory_not_numbers(
    name: str, long_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_rows, "LONG_ROW", long_row)  # the layout must be known once more
    model = build(zoo(VOCABULARY)[name])
    use_shared_rows(model)
    layers = choose_layers(all_layers(model), "all")
    scheme = projection_of(model, layers)
    batch = batch_pairs(random_pairs(4), 0, shared=True)
    saved: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    results = []
    for checkpointing in (False, True):
        saved.clear()
        with (
            PairSketcher(model, layers, scheme, checkpointing) as sketcher,
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        ):
            results.append((sketcher.sketch(batch).sketch, sum(saved)))
    (plain, kept), (again, kept_again) = results
    torch.testing.assert_close(again, plain)
    assert kept_again < kept / 2  # what blocks save is not seen here: it is thrown away


def test_adapters_are_sketched_alone_and_exactly(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = build(zoo(VOCABULARY)["llama"])
    base.save_pretrained(tmp_path / "base")
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    tuned.save_pretrained(tmp_path / "adapter")
    source = find_model(str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    model = load_model(source, torch.device("cpu"), torch.float32)
    everything = all_layers(model, adapter=True)
    layers = choose_layers(everything, "blocks")
    assert layers.keys() == everything.keys()
    assert len(layers) == 8 and all("lora_" in name for name in layers)
    use_shared_rows(model)
    scheme = projection_of(model, layers)
    rows = sketches(model, layers, scheme, shared=True)
    assert worst_error(rows, model, layers, scheme) < 1e-4
    # against PEFT's own gradients, on a model that none of this code has touched
    pair = random_pairs(4)[2]
    fresh = tuned.get_base_model()
    truth = exact_gradient(fresh, all_layers(fresh), pair).layers
    ours = exact_gradient(model, layers, pair).layers
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, truth[name], rtol=1e-4, atol=1e-5)


def test_an_adapter_that_does_not_fit_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json is needed"):
        find_model("org/name", adapter=str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    build(zoo(VOCABULARY)["llama"]).save_pretrained(tmp_path / "base")
    source = find_model(str(tmp_path / "base"), adapter=str(tmp_path))
    with pytest.raises(ModelError, match=r"--adapter .* does not fit"):
        load_model(source, torch.device("cpu"), torch.float32)


class ByTranspose(nn.Linear):
    """A linear layer as Falcon writes it."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Halves(nn.Linear):
    """A linear layer that takes its weight apart."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.weight.chunk(2)
        return torch.cat([x @ first.T, x @ second.T], -1)


class OnConstants(nn.Linear):
    """A linear layer that is also used on numbers which hang on nothing learned."""

    def forward(self, x: Tensor) -> Tensor:
        steady = torch.ones(*x.shape[:-1], self.in_features)
        return super().forward(x) + torch.tanh(super().forward(steady))


def with_up_projection(kind: type[nn.Linear]) -> Any:
    model = build(zoo(VOCABULARY)["llama"])
    for block in model.model.layers:
        old, block.mlp.up_proj = block.mlp.up_proj, kind(32, 48, bias=False)
        block.mlp.up_proj.weight = old.weight
    use_shared_rows(model)
    return model


@pytest.mark.parametrize("kind", [ByTranspose, OnConstants])
def test_unusual_linear_layers_equal_autograd(kind: type[nn.Linear]) -> None:
    model = with_up_projection(kind)
    layers = choose_layers(all_layers(model), "blocks")
    scheme = projection_of(model, layers)
    rows = sketches(model, layers, scheme, shared=True)
    assert worst_error(rows, model, layers, scheme) < 1e-4


class TurnedTwice(nn.Linear):
    """A linear layer whose weight takes the part of its own transpose."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * torch.nn.functional.linear(
            torch.ones(*x.shape[:-1], self.out_features), self.weight.T
        ).sum(-1, keepdim=True)


@pytest.mark.parametrize(("kind", "use"), [(Halves, "in chunk"), (TurnedTwice, "transposed")])
def test_a_weight_that_is_taken_apart_or_turned_is_refused(
    kind: type[nn.Linear], use: str
) -> None:
    model = with_up_projection(kind)
    layers = choose_layers(all_layers(model), "blocks")
    with pytest.raises(ModelError, match=rf"up_proj\.weight cannot be sketched: .*{use}"):
        sketches(model, layers, Projection(256, 8, 0), shared=False)


def test_vectors_that_two_modules_share_are_heard_in_both() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    first, second = model.model.layers
    second.input_layernorm.weight = first.input_layernorm.weight
    use_shared_rows(model)
    layers = choose_layers(all_layers(model), "*.input_layernorm")
    assert len(layers) == 1
    scheme = projection_of(model, layers)
    rows = sketches(model, layers, scheme, shared=True)
    assert worst_error(rows, model, layers, scheme) < 1e-4


class ReadsChild(nn.Module):
    """Uses a bias that another module owns."""

    def __init__(self, child: nn.Linear) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.child.weight, self.child.bias)


def test_a_vector_used_outside_its_module_is_refused() -> None:
    model = build(zoo(VOCABULARY)["phi"])
    block = model.model.layers[0]
    block.mlp.fc1 = ReadsChild(block.mlp.fc1)
    layers = choose_layers(all_layers(model), "all")
    with pytest.raises(ModelError, match=r"fc1\.child\.bias cannot be sketched: .*outside"):
        sketches(model, layers, Projection(256, 8, 0), shared=False)


def test_the_padding_tokens_line_has_no_gradient_as_in_training() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    padding = random_pairs(4)[1].prompt[0]
    model.model.embed_tokens.padding_idx = padding
    use_shared_rows(model)
    layers = choose_layers(all_layers(model), "model.embed_tokens")
    scheme = projection_of(model, layers)
    rows = sketches(model, layers, scheme, shared=True)
    assert worst_error(rows, model, layers, scheme) < 1e-4


def test_norms_with_a_scale_per_head_are_no_linears() -> None:
    config = zoo(VOCABULARY)["cohere"]
    config.use_qk_norm = True
    model = build(config)
    use_shared_rows(model)
    layers = choose_layers(all_layers(model), "blocks")
    assert not any("norm" in name for name in layers)
    scheme = projection_of(model, layers)
    assert worst_error(sketches(model, layers, scheme, shared=True), model, layers, scheme) < 1e-4


def test_falcon_and_llama_4_and_their_kind_are_sketched() -> None:
    from transformers import FalconConfig, Llama4TextConfig

    falcon = FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    llama4 = Llama4TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=2,
        pad_token_id=0, bos_token_id=0, eos_token_id=1, head_dim=8,
        interleave_moe_layer_step=3,
    )  # fmt: skip
    for config in (falcon, llama4):
        model = build(config)
        layers = choose_layers(all_layers(model), "blocks")
        scheme = projection_of(model, layers)
        rows = sketches(model, layers, scheme, shared=False)
        assert worst_error(rows, model, layers, scheme) < 1e-4


def test_checkpointing_gives_blocks_their_own_forward_back() -> None:
    """accelerate puts a forward of its own on every block."""
    model = build(zoo(VOCABULARY)["llama"])
    use_shared_rows(model)
    block, calls = model.model.layers[0], []
    plain = block.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    block.forward = counted
    layers = choose_layers(all_layers(model), "blocks")
    with PairSketcher(model, layers, Projection(256, 8, 0), checkpointing=True) as sketcher:
        for _ in range(2):
            before = len(calls)
            sketcher.sketch(batch_pairs(random_pairs(2), 0, shared=True))
            assert len(calls) == before + 2  # once, and once more in the backward
    assert block.forward is counted


def test_embeddings_are_sketched_the_same_with_several_threads() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    layers = choose_layers(all_layers(model), "model.embed_tokens")
    batch = batch_pairs(random_pairs(4), 0, shared=False)
    torch.set_num_threads(2)
    try:
        with PairSketcher(model, layers, Projection(256, 8, 0)) as sketcher:
            first, *others = (sketcher.sketch(batch).sketch for _ in range(8))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(first, other) for other in others)
