"""The codes of a store's rows: what comes back, in how many bytes, and what products become."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import normalised

from congrad_cli.codec import LEVELS, LLOYD_MAX, Codec, rotate
from congrad_cli.settings import STORE_DTYPES
from congrad_cli.tensors import map_arrays, pack_arrays

COARSE = ("int4", "1bit")


def heavy_rows(count, dim, width, seed=0):
    """Unit rows as sketches are: heavy tails, and blocks of very different energy."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(3, (count, width, dim // width))
    rows *= np.exp(0.5 * rng.standard_normal((1, width, 1)))
    rows *= np.exp(0.3 * rng.standard_normal((count, width, 1)))
    return normalised(rows.reshape(count, dim)).astype(np.float32)


def pairs_of_cosine(cosine, count, codec, seed=0):
    """Two times ``count`` unit rows; row i of both has this cosine, up to the spread of chance."""
    one, other = (heavy_rows(count, codec.dim, codec.width, seed + part) for part in (0, 1))
    return one, normalised(cosine * one + math.sqrt(1 - cosine**2) * other).astype(np.float32)


def decoded(codec, rows):
    return codec.decode(codec.encode(rows)).astype(np.float64)


def products(one, other):
    return np.einsum("nd,nd->n", one.astype(np.float64), other.astype(np.float64))


shapes = st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(0, 5))  # W, width, n


# --- what is stored --------------------------------------------------------------------------


@given(shape=shapes, name=st.sampled_from(STORE_DTYPES), seed=st.integers(0, 99))
def test_arrays_are_the_columns_that_were_promised(shape, name, seed):
    """Any size: odd numbers of numbers, blocks that are no power of two, batches of nothing."""
    size, width, count = shape
    codec = Codec(name, size * width, width)
    rows = np.random.default_rng(seed).standard_normal((count, codec.dim)).astype(np.float32)
    arrays = codec.encode(rows)
    assert {key: (array.dtype, array.shape) for key, array in arrays.items()} == {
        key: (np.dtype(kind), (count, *tail)) for key, (kind, tail) in codec.columns().items()
    }
    back = codec.decode(arrays)
    assert back.shape == rows.shape
    assert back.dtype == np.float32
    assert np.isfinite(back).all()


@pytest.mark.parametrize(
    ("name", "size"), [("float16", 16384), ("int8", 8196), ("int4", 4160), ("1bit", 1088)]
)
def test_bytes_of_a_row(name, size):
    """What the README promises for the default of 8,192 numbers in 32 sub-sketches."""
    arrays = Codec(name, 8192, 32).encode(heavy_rows(1, 8192, 32))
    assert sum(array.nbytes for array in arrays.values()) == size


def test_bits_are_packed_from_the_lowest_on():
    """Blocks of one number: nothing to rotate, so that the bits are the row's signs."""
    row = np.array([[1, -1, 1, 1, -1, -1, -1, 1, -1, 1]], np.float32) / np.float32(math.sqrt(10))
    arrays = Codec("1bit", 10, 10).encode(row)
    assert arrays["direction"].tolist() == [[0b10001101, 0b10]]
    np.testing.assert_allclose(arrays["scale"], [[10**-0.5] * 10], rtol=1e-3)


def test_halves_of_bytes_are_packed_from_the_lowest_on():
    row = np.array([[1, -1, 1, 1, -1, -1, -1, 1, -1]], np.float32) / 3
    found = Codec("int4", 9, 9).encode(row)["direction"]
    up, down = 11, 4  # the levels 0.942 and -0.942, next to 1 and -1
    assert [[byte & 15, byte >> 4] for byte in found[0].tolist()] == [
        [up, down], [up, up], [down, down], [down, up], [down, 0]]  # the last half is empty


def test_coded_rows_survive_the_file(tmp_path):
    for name in STORE_DTYPES:
        arrays = Codec(name, 24, 3).encode(heavy_rows(4, 24, 3))
        (tmp_path / name).write_bytes(pack_arrays(arrays, {}))
        found = map_arrays(tmp_path / name)[0]
        for key, array in arrays.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(found[key], array)


def test_an_unknown_code_is_an_error():
    with pytest.raises(ValueError, match="int2"):
        Codec("int2", 8, 1)


# --- what comes back -------------------------------------------------------------------------


@given(shape=shapes, seed=st.integers(0, 99), power=st.floats(-6, 0))
def test_int8_is_within_half_a_step_of_every_number(shape, seed, power):
    size, width, count = shape
    codec = Codec("int8", size * width, width)
    rows = 10**power * np.random.default_rng(seed).standard_normal((count, codec.dim))
    rows = rows.astype(np.float32)
    step = np.abs(rows).max(1, initial=0, keepdims=True) / 127
    assert (np.abs(decoded(codec, rows) - rows) <= 0.5001 * step).all()


@given(shape=shapes, seed=st.integers(0, 99), name=st.sampled_from(COARSE))
def test_errors_of_coarse_codes_are_orthogonal_to_the_row_in_every_block(shape, seed, name):
    """What makes products of different rows right, whatever the energies of the blocks."""
    size, width, count = shape
    codec = Codec(name, size * width, width)
    rows = heavy_rows(count, codec.dim, width, seed)
    turned = rotate(rows, size).reshape(count, width, size).astype(np.float64)
    found = decoded(codec, rows).reshape(count, width, size)
    square = (turned**2).sum(2)
    np.testing.assert_allclose((found * turned).sum(2), square, rtol=2e-3, atol=1e-9)


@given(shape=shapes, name=st.sampled_from(STORE_DTYPES))
def test_rows_and_blocks_of_zeros_stay_zero(shape, name):
    """A division by their length must not happen; and zeros must not become signs."""
    size, width, _ = shape
    codec = Codec(name, size * width, width)
    rows = np.zeros((2, codec.dim), np.float32)
    rows[1, 0] = 1
    found = decoded(codec, rows)
    assert not found[0].any()
    assert not found[1, size:].any()
    assert found[1, :size].any()


@pytest.mark.parametrize("name", COARSE)
def test_a_single_large_number_loses_nothing(name):
    """The rotation spreads it evenly: its code is exact, however heavy the tail."""
    row = np.zeros((1, 64), np.float32)
    row[0, 5] = 1
    found = decoded(Codec(name, 64, 2), row)
    np.testing.assert_allclose(found[0], rotate(row, 32)[0], atol=1e-3 / math.sqrt(32))


@given(shape=shapes, seed=st.integers(0, 99))
def test_the_rotation_keeps_products_and_blocks(shape, seed):
    size, width, count = shape
    rows = np.random.default_rng(seed).standard_normal((count, size * width)).astype(np.float32)
    turned = rotate(rows, size)
    before, after = (part.reshape(count, width, size).swapaxes(0, 1) for part in (rows, turned))
    np.testing.assert_allclose(
        after @ after.swapaxes(1, 2), before @ before.swapaxes(1, 2), atol=1e-4
    )


@pytest.mark.parametrize("size", [64, 100, 127, 129, 180])
def test_the_rotation_spreads_every_number_over_its_block(size):
    """Whatever the size of a block: no number may be left alone, for heavy tails are sparse."""
    spread = rotate(np.eye(size, dtype=np.float32), size)
    assert np.abs(spread).max() < 4 / math.sqrt(size)


def test_the_levels_are_the_best_for_a_standard_normal_number():
    """Each is the mean of the numbers nearest to it; together they lose 0.95 % of the square."""
    def density(t):
        return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

    edges = [0.0, *((a + b) / 2 for a, b in pairwise(LLOYD_MAX)), math.inf]
    mass = [(math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) / 2
            for a, b in pairwise(edges)]
    first = [density(a) - density(b) for a, b in pairwise(edges)]
    np.testing.assert_allclose(LLOYD_MAX, np.array(first) / mass, rtol=1e-9)
    assert 2 * np.dot(LLOYD_MAX, first) == pytest.approx(1 - 0.0095, abs=1e-5)
    assert LEVELS["int4"].tolist() == sorted(LEVELS["int4"].tolist())


# --- products --------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [-0.2, 0.0, 0.05, 0.2])
@pytest.mark.parametrize(("width", "dim"), [(8, 1024), (5, 900)])
@pytest.mark.parametrize("name", STORE_DTYPES)
def test_products_of_different_rows_are_unbiased(name, width, dim, cosine):
    """Within four standard errors of 2,000 pairs, or the next order that 1bit is known to have."""
    codec = Codec(name, dim, width)
    one, other = pairs_of_cosine(cosine, 2000, codec)
    error = products(decoded(codec, one), decoded(codec, other)) - products(one, other)
    next_order = abs(math.asin(cosine) - cosine) if name == "1bit" else 0
    # heavy tails that are left after the rotation: up to 1 % of the cosine
    allowed = 4 * error.std() / math.sqrt(len(error)) + 2 * next_order + 0.01 * abs(cosine)
    assert abs(error.mean()) < allowed + 1e-6


@pytest.mark.parametrize(("name", "added"), [("int8", 0.06), ("int4", 0.17), ("1bit", 1.5)])
def test_the_error_that_coding_adds_is_small_beside_the_sketchs(name, added):
    """In units of 1 / sqrt(D)."""
    codec = Codec(name, 2048, 8)
    one, other = pairs_of_cosine(0.0, 1000, codec)
    error = products(decoded(codec, one), decoded(codec, other)) - products(one, other)
    assert added / 2 < error.std() * math.sqrt(codec.dim) < added


@pytest.mark.parametrize("cosine", [0.5, 0.8])
def test_large_cosines_of_1bit_follow_the_arcsine(cosine):
    """The law that the help states: 4.7 % high at 0.5. int4 has next to none of it."""
    rng = np.random.default_rng(1)
    one, noise = rng.standard_normal((2, 400, 4096))
    other = cosine * one + math.sqrt(1 - cosine**2) * noise
    one, other = (normalised(rows).astype(np.float32) for rows in (one, other))
    mean = {name: products(*(decoded(Codec(name, 4096, 4), rows) for rows in (one, other))).mean()
            for name in COARSE}
    assert mean["1bit"] == pytest.approx(math.asin(cosine), rel=0.005)
    assert mean["int4"] == pytest.approx(cosine, rel=0.003)
    if cosine == 0.5:
        assert math.asin(cosine) / cosine == pytest.approx(1.047, abs=1e-3)


@pytest.mark.parametrize(("name", "square"), [("int8", 1.0), ("int4", 1.0096), ("1bit", 1.571)])
def test_the_product_of_a_row_with_itself_is_what_the_docstring_says(name, square):
    rows = normalised(np.random.default_rng(2).standard_normal((200, 4096))).astype(np.float32)
    found = decoded(Codec(name, 4096, 16), rows)
    assert products(found, found).mean() == pytest.approx(square, rel=0.01)


@pytest.mark.parametrize("only_finite", [True, False])
def test_every_float16_is_decoded_as_a_cast_would(only_finite):
    """All 65,536 of them: subnormal ones, both zeros, and what is no number."""
    stored = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    if only_finite:
        stored = stored[np.isfinite(stored)]
    stored = stored.reshape(-1, 1024)
    with np.errstate(invalid="ignore"):
        expected = stored.astype(np.float32)
    found = Codec("float16", 1024, 1).decode({"direction": stored})
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
