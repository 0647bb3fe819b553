"""A pair's row depends on the pair alone: not on its batch, padding, order or layout."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import read_all
from transformers import OPTConfig
from zoo import ARCHITECTURES, build, zoo

from congrad_cli import log_probs
from congrad_cli.checkpoint import load_tokenizer
from congrad_cli.model_source import find_model
from congrad_cli.records.record import Record
from congrad_cli.settings import SketchSettings
from congrad_cli.sketch import forward
from congrad_cli.sketch.attention import added_mask, use_shared_rows
from congrad_cli.sketch.calibration import leading_directions
from congrad_cli.sketch.check import compare_layouts
from congrad_cli.sketch.exact import exact_gradient, sketch_gradient
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import Layer, all_layers, choose_layers
from congrad_cli.sketch.model import load_model
from congrad_cli.sketch.pairs import batch_pairs, cut_batches
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.tokens import TokenizedPair, tokenize

VOCABULARY = 101


def block_layers(model: Any) -> dict[str, Layer]:
    """What ``--layers blocks`` means."""
    return choose_layers(all_layers(model), "blocks")


def random_pairs(count: int) -> list[TokenizedPair]:
    """Pairs of random tokens and varied lengths; the last has no prompt."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    return [
        TokenizedPair(
            Record(row, "f", row + 1, b"", "", "", "", "x", None),
            ids((9 + 3 * row) % 17 if row < count - 1 else 0), ids(5 + row), ids(12 - row),
        )
        for row in range(count)
    ]  # fmt: skip


def sketcher_of(model: Any) -> PairSketcher:
    layers = block_layers(model)
    leading = leading_directions(model, layers, 2)
    return PairSketcher(model, layers, Projection(256, 8, 0, leading))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_and_separate_rows_equal_autograd(name: str) -> None:
    model = build(zoo(VOCABULARY)[name])
    pairs = random_pairs(5)
    layers = block_layers(model)
    projection = Projection(256, 8, 0, leading_directions(model, layers, 2))
    truth = [
        sketch_gradient(exact_gradient(model, layers, pair).layers, projection) for pair in pairs
    ]
    assert use_shared_rows(model)
    with PairSketcher(model, layers, projection) as sketcher:
        for shared in (True, False):
            result = sketcher.sketch(batch_pairs(pairs, 0, shared)).sketch
            for row, expected in enumerate(truth):
                assert (result[row] - expected).norm() < 1e-4 * expected.norm()


def test_the_rejected_answer_does_not_see_the_chosen_one() -> None:
    """The mask is what separates them: without it the numbers are others."""
    model = build(zoo(VOCABULARY)["llama"])
    assert use_shared_rows(model)
    pair = random_pairs(3)[1]
    with sketcher_of(model) as sketcher:
        batch = batch_pairs([pair], 0, shared=True)
        right = sketcher.sketch(batch)
        blind = batch.segments.clamp(max=1)  # one answer after the other in one segment
        wrong = sketcher.sketch(replace(batch, segments=blind))
    assert (right.logp[0, 0] - wrong.logp[0, 0]).abs() > 1e-3 or (
        right.logp[0, 1] - wrong.logp[0, 1]
    ).abs() > 1e-3


def test_all_layers_keep_one_table_of_their_mask() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    assert use_shared_rows(model)
    batch = batch_pairs(random_pairs(5), 0, shared=True)
    kept: list[torch.Tensor] = []
    with sketcher_of(model) as sketcher, torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x) or x, lambda x: x):
        sketcher.sketch(batch)
    length = batch.input_ids.shape[1]
    tables = [x for x in kept if x.ndim == 4 and x.shape[2:] == (length, length)]
    assert len(tables) == model.config.num_hidden_layers > 1
    assert len({table.data_ptr() for table in tables}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_takes_the_added_mask_as_it_takes_flags(dtype: torch.dtype) -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 8, dtype=dtype).unbind()
    flags = torch.rand(2, 1, 9, 9) < 0.6
    flags[0, 0, 3] = False  # a row that sees nothing, as padding may
    attend = torch.nn.functional.scaled_dot_product_attention
    table = added_mask(flags, dtype)
    assert table is added_mask(flags, dtype)
    assert added_mask(flags, torch.float64).dtype == torch.float64
    torch.testing.assert_close(attend(query, key, value, table), attend(query, key, value, flags),
                               rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_batch_order_and_padding_do_not_change_a_row(name: str) -> None:
    model = build(zoo(VOCABULARY)[name])
    assert use_shared_rows(model)
    pairs = random_pairs(6)
    with sketcher_of(model) as sketcher:
        alone = [sketcher.sketch(batch_pairs([pair], 0, shared=True)) for pair in pairs]
        together = sketcher.sketch(batch_pairs(pairs[::-1], 7, shared=True, padding=13))
    for row, one in enumerate(alone):
        other = together.sketch[len(pairs) - 1 - row]
        cosine = torch.cosine_similarity(one.sketch[0].double(), other.double(), dim=0)
        assert cosine > 1 - 1e-6
        torch.testing.assert_close(one.logp[0], together.logp[len(pairs) - 1 - row])


def test_chunks_of_the_head_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(zoo(VOCABULARY)["gemma2"])
    assert use_shared_rows(model)
    batch = batch_pairs(random_pairs(4), 0, shared=True)
    with sketcher_of(model) as sketcher:
        whole = sketcher.sketch(batch)
        monkeypatch.setattr(log_probs, "HEAD_ELEMENTS", 3 * VOCABULARY)
        chunked = sketcher.sketch(batch)
    torch.testing.assert_close(chunked.sketch, whole.sketch)
    torch.testing.assert_close(chunked.logp, whole.logp)


def test_weights_stay_frozen_and_hooks_go() -> None:
    model = build(zoo(VOCABULARY)["llama"])
    assert use_shared_rows(model)
    with sketcher_of(model) as sketcher:
        sketcher.sketch(batch_pairs(random_pairs(2), 0, shared=True))
        assert all(not p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_check_at_start_notices_a_model_that_cannot_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(zoo(VOCABULARY)["llama"])
    assert use_shared_rows(model)
    with sketcher_of(model) as sketcher:
        assert compare_layouts(sketcher).agree
        # a model that ignores our mask, as one with its own mask code would
        monkeypatch.setattr(forward, "shared_rows", lambda *_: nullcontext())
        assert not compare_layouts(sketcher).agree


def test_the_check_at_start_accepts_rounding_in_half_precision() -> None:
    """Padding often changes nothing at all there; the yardstick is then the format's own step."""
    for name in ARCHITECTURES:
        model = build(zoo(VOCABULARY)[name]).bfloat16()
        assert use_shared_rows(model)
        with sketcher_of(model) as sketcher:
            check = compare_layouts(sketcher)
        assert check.agree and check.difference > 0, (name, check)


def test_opt_whose_body_lies_deeper_than_its_prefix() -> None:
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, ffn_dim=48,
        num_attention_heads=4, max_position_embeddings=256, dropout=0.0, word_embed_proj_dim=32,
    )  # fmt: skip
    model = build(config)
    pair = random_pairs(3)[1]
    use_shared_rows(model)
    layers = block_layers(model)
    exact = exact_gradient(model, layers, pair)
    with PairSketcher(model, layers, Projection(256, 8, 0)) as sketcher:
        result = sketcher.sketch(batch_pairs([pair], 0, shared=False))
        assert not sketcher.silent
    torch.testing.assert_close(result.logp[0], exact.logp, rtol=1e-4, atol=1e-4)


def test_batches_hold_the_budget_and_every_pair_once() -> None:
    pairs = random_pairs(7)
    for budget in (1, 40, 100, 10_000):
        batches = list(cut_batches(pairs, budget, shared=True))
        assert sorted(p.record.row for batch in batches for p in batch) == list(range(7))
        for batch in batches:
            assert len(batch) == 1 or max(p.length for p in batch) * len(batch) <= budget


def test_fidelity_of_cosines_on_the_bundled_model(sample_data: Path) -> None:
    """RMSE of the cosines between rows against exact gradients: at most 1.4 / sqrt(D)."""
    settings = SketchSettings(model=str(sample_data / "tiny-model"))
    source = find_model(settings.model)
    tokenizer = load_tokenizer(source, None)
    model = load_model(source, torch.device("cpu"), torch.float32)
    layers = block_layers(model)
    records = read_all(sample_data / "preferences.jsonl")
    pairs = [tokenize(record, tokenizer, 1024) for record in islice(records, 36)]
    exact = torch.stack([
        torch.cat([part.flatten() for part in exact_gradient(model, layers, pair).layers.values()])
        for pair in pairs
    ])
    assert use_shared_rows(model)
    leading = leading_directions(model, layers, settings.leading)
    projection = Projection(8192, 32, settings.seed, leading)
    with PairSketcher(model, layers, projection) as sketcher:
        rows = torch.cat([
            sketcher.sketch(batch_pairs(batch, 0, shared=True)).sketch
            for batch in cut_batches(pairs, 2048, shared=True)
        ])
    order = [p.record.row for batch in cut_batches(pairs, 2048, shared=True) for p in batch]
    error = cosines(rows) - cosines(exact[order])
    assert error.square().mean().sqrt() <= 1.4 / 8192**0.5


def cosines(rows: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs of rows, the upper triangle."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    upper = torch.triu_indices(len(rows), len(rows), 1)
    return (unit @ unit.T)[upper[0], upper[1]]
