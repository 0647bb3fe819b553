"""The benchmark of growth: its fits, its counts by shape, and that every part works."""

import io
import re
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import scale
import scaling
import scaling_parts
from counting import plain_parts, sketch_parts
from expected import (
    LINES,
    MODELS,
    ROW_BYTES,
    SIZES,
    activation_bytes,
    batch_bytes,
    operations,
    projection_bytes,
)
from power_law import beyond_start, fit_power, local_exponents
from scaling_sketch import LEADING, SketchPoint, measure_point, pairs_of, projection
from scaling_tables import ANSWERS, TOKENS, calculator, span, stores, table

from congrad_cli.cli import app
from congrad_cli.settings import ROW_SIZES, SketchSettings
from congrad_cli.sketch.attention import use_shared_rows
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import all_layers, choose_layers
from congrad_cli.sketch.pairs import batch_pairs
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.token_report import store_bytes

ROOT = Path(__file__).resolve().parent.parent
SHARDED = {"0/1": 10.0, "0/2": 6.0, "1/2": 6.0}
"""CPU seconds of ranks in the test of all parts; a run that is all start takes 4."""
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHAPE = replace(SIZES["1M"], heads=4, kv_heads=2, head_size=32)  # one head is not copied


@given(
    exponent=st.floats(-3, 3), factor=st.floats(1e-3, 1e3),
    sizes=st.lists(st.integers(1, 10**6), min_size=3, max_size=8, unique=True),
)  # fmt: skip
def test_a_power_law_is_found_again(exponent, factor, sizes):
    law = fit_power((size, factor * size**exponent) for size in sizes)
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.low - 1e-6 <= exponent <= law.high + 1e-6
    assert law.at(sizes[0]) == pytest.approx(factor * sizes[0] ** exponent, rel=1e-4)


@pytest.mark.parametrize("count", [5, 8])  # in two turns: with Student's t of the table and beyond
def test_the_interval_of_an_exponent_holds_it_as_often_as_it_says(count):
    rng = np.random.default_rng(0)
    sizes = [100 * 3.0**step for step in range(count)] * 2
    laws = [fit_power((size, 5 * size**1.3 * np.exp(rng.normal(0, 0.1))) for size in sizes)
            for _ in range(4000)]
    held = np.mean([law.low <= 1.3 <= law.high for law in laws])
    assert 0.94 < held < 0.962


def test_a_bend_makes_the_interval_wide():
    straight = fit_power((size, size**1.5) for size in (1, 10, 100, 1000))
    bent = fit_power((size, size + size**2 / 30) for size in (1, 10, 100, 1000))
    assert straight.high - straight.low < 1e-6
    assert bent.high - bent.low > 0.3


def test_a_fixed_start_has_no_part_in_the_exponent():
    costs = {size: 500 + 0.02 * size for size in (64, 512, 1024, 4096)}
    assert fit_power(costs.items()).exponent < 0.1
    assert fit_power(beyond_start(costs).items()).exponent == pytest.approx(1)


def test_exponents_between_neighbours_show_two_regimes():
    found = local_exponents({1: 3.0, 10: 30.0, 100: 3000.0})
    assert found == {10: pytest.approx(1), 100: pytest.approx(2)}


@pytest.mark.parametrize("values", [{1.0: 2.0}, {1.0: 0.0, 2.0: 1.0}, {0.0: 1.0, 2.0: 1.0}])
def test_what_has_no_logarithm_has_no_law(values):
    with pytest.raises(ValueError, match="no power law"):
        fit_power(values.items())


def test_operations_by_shape_are_those_counted_on_the_model():
    model = random_model()
    point = SketchPoint("1M", prompt=7, answer=5, pairs=1)
    batch = [batch_pairs(pairs_of(point, SHAPE.vocabulary), 0, shared=True)]
    plain, ours = plain_parts(model, batch, False), sketch_parts(model, batch, LINES)
    assert operations(SHAPE, 17, 10) == {
        "blocks": 2 * plain["linears"], "attention": 2 * plain["attention"],
        "head": 2 * plain["head"], "sketch": 2 * sum(ours.values()),
    }  # fmt: skip
    assert SHAPE.parameters == sum(
        weight.numel() for weight in model.parameters() if weight.ndim > 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_batch_are_those_that_its_backward_pass_is_given(dtype):
    model = random_model().to(dtype).requires_grad_(False)
    assert use_shared_rows(model)
    point = SketchPoint("1M", prompt=20, answer=20, pairs=4)
    batch = batch_pairs(pairs_of(point, SHAPE.vocabulary), 0, shared=True)
    kept = {}

    def keep(tensor):
        if not (tensor.is_leaf and tensor.ndim == 2 and tensor.dtype == dtype):  # a weight
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), PairSketcher(
            model, {}, Projection(256, 8, 0)) as sketcher:
        sketcher.sketch(batch)
    head = sum(size for size, tensor in kept.values() if SHAPE.vocabulary in tensor.shape)
    found = sum(size for size, _ in kept.values()) - head
    expected = batch.input_ids.numel() * activation_bytes(SHAPE, dtype == torch.bfloat16)
    assert expected < found < 1.1 * expected  # the mask, the last norm, rotary tables
    assert head <= batch_bytes(SHAPE, 0, len(batch.targets), True)


def test_bytes_of_projections_are_those_that_a_sketch_holds():
    layers = choose_layers(all_layers(random_model()), "blocks")
    scheme = projection(layers, SketchPoint("1M", dim=1024, width=LINES - LEADING))
    held = 0
    for name, layer in layers.items():
        one = scheme.layer(name, layer.inputs, layer.outputs, torch.device("cpu"), torch.float32)
        held += sum(part.nbytes for part in (one.inputs, one.exact.signs, one.random.signs))
    assert projection_bytes(SHAPE, half=False) == held


def test_bytes_of_a_row_are_at_most_those_of_the_readme():
    for size, (dim, code) in ROW_SIZES.items():
        assert store_bytes(SketchSettings("", dim=dim, store_dtype=code), 1) == ROW_BYTES[size]


def test_the_parameters_of_real_models_are_theirs():
    """By their cards: 134.5 M, 1.24 B, 8.03 B, 70.6 B."""
    found = [shape.parameters / 1e9 for shape in MODELS.values()]
    np.testing.assert_allclose(found, [0.1345, 1.236, 8.03, 70.55], rtol=1e-3)


def test_the_formula_of_the_readme_is_near_the_count():
    block = re.search(r"^```python\n(def cost.*?)^```$", README, re.M | re.S)
    names = {}
    exec(block[1], names)
    for shape in MODELS.values():
        (least, most), size = names["cost"](
            shape.parameters, shape.layers, shape.heads * shape.head_size, 1000, TOKENS)
        counted = 1000 * sum(operations(shape, TOKENS, ANSWERS).values()) / 989e12 / 3600
        assert least == pytest.approx(counted / 0.4, rel=0.1)
        assert most == pytest.approx(counted / 0.2, rel=0.1)
        assert size == pytest.approx(1000 * ROW_BYTES["16k"] / 1e9)


@pytest.mark.parametrize("printed", [calculator, stores])
def test_the_tables_of_the_readme_are_those_of_the_calculator(printed):
    assert printed() in README


def test_hours_are_told_in_a_unit_that_fits():
    assert [span(0.01, 0.02), span(0.1, 0.2), span(1.5, 3), span(30, 60)] == [
        "36 to 72 s", "6 to 12 min", "1.5 to 3 h", "1.2 to 2.5 days"]


def test_every_part_gives_a_table_and_lines_that_can_be_read_again(
    monkeypatch, tmp_path, capsys
):
    ran, measure = [], scale.measure

    def one_of_a_kind(arguments):
        """One command of each kind is tried: the others differ in numbers alone."""
        kind = arguments[2] if arguments[0] == "-m" else "scores"
        if kind not in ran:
            ran.append(kind)
            if kind != "sketch":
                return measure(arguments)
            # its data and options are fine; here, where torch is imported; it closes its stdout
            with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as end:
                app([*arguments[2:], "--dry-run"])
            assert not end.value.code
        only_start = kind == "sketch" and Path(arguments[3]).read_text().count("\n") == 4
        return 1.0, 4.0 if only_start else SHARDED.get(arguments[-1], 4.0), 3.0

    monkeypatch.setattr(scale, "measure", one_of_a_kind)
    monkeypatch.setattr(scaling_parts, "sketch_point",
                        lambda **point: measure_point(SketchPoint(**point)))
    monkeypatch.setattr(scaling_parts, "ThreadPoolExecutor", OneByOne)
    out = tmp_path / "points.csv"
    scaling.main(["--smoke", "--folder", str(tmp_path), "--out", str(out)])
    points = scaling.read_points(out)
    printed = capsys.readouterr().out
    assert {point.part for point in points} == set(scaling_parts.PARTS)
    for part in scaling_parts.PARTS:
        assert table(part, points) in printed
    assert not [*tmp_path.glob("*/*")]  # data and stores are gone
    for point in points:
        assert all(np.isfinite(value) for value in point.measures.values()), point
        if point.part == "store":
            assert point.measures["bytes a pair"] == pytest.approx(
                point.measures["predicted"], abs=10)
        if point.part == "ranks" and point.size == 2:
            assert point.measures["efficiency"] == pytest.approx(10 / 12)
            assert point.measures["beyond the start"] == pytest.approx((10 - 4) / (12 - 2 * 4))
    assert sorted(ran) == ["consensus", "scores", "sketch"]


class OneByOne:
    """A pool that keeps order: a server of forks runs one command at a time."""

    def __init__(self, _workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, work, items):
        return map(work, items)


def random_model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE.config())).eval()
