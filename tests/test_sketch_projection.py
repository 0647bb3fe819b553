"""The projection by itself: what it is, that it is unbiased, that it never changes."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from congrad_cli.sketch.exact import sketch_gradient
from congrad_cli.sketch.projection import Fold, FoldedSums, Projection, random_signs

CPU = torch.device("cpu")


def as_matrix(fold: Fold, lines: int, length: int) -> np.ndarray:
    """The fold as a dense matrix [lines * W, lines * length], column by column."""
    basis = torch.eye(lines * length).view(-1, lines, length)
    total = torch.zeros(len(basis), lines, 2 * fold.buckets)
    fold.add(total, basis)
    return total.unflatten(2, (2, -1)).sum(2).flatten(1).T.numpy()


@given(
    lines=st.integers(1, 5), length=st.integers(1, 40), buckets=st.integers(1, 17),
    seed=st.integers(0, 3),
)  # fmt: skip
def test_a_fold_puts_every_entry_into_one_bucket_of_its_own_line(
    lines: int, length: int, buckets: int, seed: int
) -> None:
    matrix = as_matrix(Fold.draw(seed, "fold", "m", (lines, length), buckets), lines, length)
    assert matrix.shape == (lines * buckets, lines * length)
    assert (np.count_nonzero(matrix, axis=0) == 1).all()
    assert (np.abs(matrix).sum(0) == 1).all()
    line_of_bucket = np.repeat(np.arange(lines), buckets)
    line_of_entry = np.repeat(np.arange(lines), length)
    assert (line_of_bucket[np.abs(matrix).argmax(0)] == line_of_entry).all()


def test_a_fold_spreads_entries_evenly_over_buckets() -> None:
    matrix = as_matrix(Fold.draw(0, "fold", "m", (2, 64), 16), 2, 64)
    assert (np.abs(matrix).sum(1) == 4).all()  # 4 chunks of 16: each fills every bucket once


def sketch(projection: Projection, gradient: torch.Tensor) -> torch.Tensor:
    """The sketch of one layer's gradient [out, in]."""
    return sketch_gradient({"m": gradient[None]}, projection)


def gradients(shared: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two gradients [out, in] whose inputs share a direction, and that direction [in, 1]."""
    generator = torch.Generator().manual_seed(7)
    mean = torch.randn(20, generator=generator)
    common = torch.randn(30, generator=generator)
    left, right = (
        (torch.randn(30, 20, generator=generator) + 0.5 * common[:, None])
        + shared * torch.randn(30, 1, generator=generator) * mean
        for _ in range(2)
    )
    return left, right, mean[:, None] / mean.norm()


def test_inner_products_are_unbiased_with_and_without_leading_directions() -> None:
    left, right, mean = gradients(shared=3.0)
    truth = float((left * right).sum())
    for leading in ({}, {"m": mean}):
        products = [
            float(sketch(scheme, left) @ sketch(scheme, right))
            for scheme in (Projection(64, 4, seed, leading) for seed in range(800))
        ]
        error = np.std(products) / np.sqrt(len(products))
        assert abs(np.mean(products) - truth) < 4 * error
        # the same bound must be able to fail: 4 standard errors are small beside the truth
        assert 4 * error < 0.25 * abs(truth)


def test_the_input_side_is_unbiased_for_a_skewed_leading_direction_in_three_dimensions() -> None:
    """Small and skewed, where a basis made of random signs would be off by 19 %."""
    leading = torch.tensor([[1.0], [2.0], [3.0]]) / 14**0.5
    total = torch.zeros(3, 3, dtype=torch.float64)
    count = 4000
    for seed in range(count):
        basis = Projection(8, 1, seed, {"m": leading}).layer("m", 3, 2, CPU, torch.float64).inputs
        total += basis @ basis.T / count
    assert (total - torch.eye(3)).abs().max() < 0.06  # 4 standard errors of a mean of 4000


def test_leading_directions_reduce_the_error() -> None:
    left, right, mean = gradients(shared=3.0)
    truth = float((left * right).sum())

    def error(leading: dict[str, torch.Tensor]) -> float:
        schemes = [Projection(512, 4, seed, leading) for seed in range(200)]
        return float(np.std([float(sketch(s, left) @ sketch(s, right)) - truth for s in schemes]))

    assert error({"m": mean}) < 0.6 * error({})


def test_the_input_side_is_exact_when_all_directions_are_kept() -> None:
    layer = Projection(64, 32, 0).layer("m", 20, 8, CPU, torch.float64)
    torch.testing.assert_close(layer.inputs @ layer.inputs.T, torch.eye(20, dtype=torch.float64))


def test_random_directions_are_orthonormal_and_avoid_the_leading_ones() -> None:
    _, _, mean = gradients(1.0)
    layer = Projection(64, 8, 0, {"m": mean}).layer("m", 20, 8, CPU, torch.float64)
    leading, rest = layer.inputs[:, :1], layer.inputs[:, 1:]
    torch.testing.assert_close(leading, mean.double())
    assert (leading.T @ rest).abs().max() < 1e-12
    torch.testing.assert_close(rest.T @ rest, torch.eye(8, dtype=torch.float64) * 19 / 8)


def test_the_random_bits_are_the_same_in_every_version() -> None:
    """Stores outlive versions: these bits may never change."""
    signs = random_signs(5, "input", "model.layers.0.mlp", (64, 32))
    assert set(np.unique(signs)) == {-1, 1}
    assert hashlib.sha256(signs.tobytes()).hexdigest()[:16] == "c20810be0c82d7a1"
    fold = Fold.draw(5, "fold", "model.layers.0.mlp", (4, 100), 32)
    assert fold.shifts == [31, 26, 26, 8]


@given(length=st.integers(1, 40), buckets=st.integers(1, 17), turn=st.integers(0, 20))
def test_single_columns_fold_as_the_whole_does(length: int, buckets: int, turn: int) -> None:
    fold = Fold.draw(1, "fold", "m", (3, length), buckets)
    generator = torch.Generator().manual_seed(length)
    columns = torch.randint(0, length, (2, 5), generator=generator)  # some of them twice
    entries = torch.randn(2, 5, 3, generator=generator)
    whole = torch.zeros(2, 3, length)
    for row in range(2):
        for column, entry in zip(columns[row], entries[row], strict=True):
            whole[row, :, column] += entry
    one, other = torch.zeros(2, 2, 3, 2 * buckets)
    fold.add(one, whole)
    fold.add_columns(other, entries, columns)
    torch.testing.assert_close(other, one)
    turned = torch.zeros_like(one)
    fold.add(turned, whole, turn)
    folded = one.unflatten(2, (2, -1)).sum(2)
    torch.testing.assert_close(turned.unflatten(2, (2, -1)).sum(2), folded.roll(turn, 2))


def test_blocks_share_the_exact_lines_evenly_and_keep_products() -> None:
    scheme = Projection(96, 12, 0)  # twelve blocks: no power of two
    sums = FoldedSums.zeros(2, scheme, CPU)
    sums.exact[0, 0, 3], sums.exact[1, 0, 96 + 3], sums.exact[1, 0, 50] = 2.0, 5.0, 1.0
    left, right = sums.total()
    assert float(left @ right) == pytest.approx(10.0)
    energy = left.view(12, 8).square().sum(1)
    assert float(energy.sum()) == pytest.approx(4.0)
    assert energy.max() < 2.1 * energy.mean()  # untransformed, one block would hold all of it


def test_experts_meet_in_no_fixed_way() -> None:
    """The same gradient in two experts: products between them are zero on average."""
    gradient = torch.randn(1, 30, 20, generator=torch.Generator().manual_seed(0))
    blank = torch.zeros_like(gradient)
    products = []
    for seed in range(300):
        scheme = Projection(64, 4, seed)
        first = sketch_gradient({"m": torch.cat([gradient, blank])}, scheme)
        second = sketch_gradient({"m": torch.cat([blank, gradient])}, scheme)
        products.append(float(first @ second) / float(first @ first))
    assert abs(np.mean(products)) < 4 * np.std(products) / 300**0.5
    assert np.std(products) < 0.4  # a shared fold would give 1 with a random sign


def test_seed_layer_and_role_each_change_the_bits() -> None:
    draws = [random_signs(*key, (64, 8)) for key in (
        (0, "input", "a"), (1, "input", "a"), (0, "fold-sign", "a"), (0, "input", "b"))]
    for index, draw in enumerate(draws):
        for other in draws[index + 1 :]:
            assert 0.3 < (draw == other).mean() < 0.7
