"""The solvers beside pcgrad and mean: against TorchJD's aggregators, and against optimality itself.

A solution of a convex problem proves itself: the conditions of optimality, checked on explicit
vectors, leave no other. TorchJD is asked where it needs no solver of its own.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from congrad_cli.consensus.cone import nonnegative, project, ridge_for
from congrad_cli.consensus.methods import CAGRAD_RADIUS, METHODS
from congrad_cli.consensus.solver import semidefinite, solve
from congrad_cli.errors import NumericsError
from congrad_cli.settings import METHODS as NAMES
from congrad_cli.settings import ConsensusSettings

SAFE = ("upgrad", "dualproj", "mgda")
"""What these find makes no group worse."""

# Few distinct values, so that ties, dependent vectors and exact opposites come up.
whole = hnp.arrays(
    np.float64, st.tuples(st.integers(2, 6), st.integers(1, 5)), elements=st.integers(-4, 4)
)
seeds = st.integers(0, 2**32)


@st.composite
def vectors(draw):
    """Group gradients, none of them zero: small integers, or of lengths over four decades."""
    if draw(st.booleans()):
        found = draw(whole)
    else:
        rng = np.random.default_rng(draw(seeds))
        found = rng.standard_normal((draw(st.integers(2, 8)), draw(st.integers(1, 9))))
        found *= 10 ** rng.uniform(-4, 0, (len(found), 1))
    found = found[found.any(1)]
    assume(len(found) > 1)
    return found


def solution(method, found):
    return solve(found @ found.T, ConsensusSettings(method=method))


def direction(method, found):
    """d, or None where the method has none for these vectors."""
    try:
        return solution(method, found).coefficients @ found
    except NumericsError:
        return None


def independent(seed, count=5, scale=1.0):
    """Vectors far from depending on each other, with conflicts."""
    rng = np.random.default_rng(seed)
    return scale * (rng.standard_normal((count, count + 4)) - 0.3)


def test_every_method_has_a_name_on_the_command_line():
    assert set(NAMES) == {"pcgrad", "mean", *METHODS}


# --- TorchJD ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchjd():
    pytest.importorskip("torch")
    return pytest.importorskip("torchjd.aggregation")


def theirs(aggregator, found):
    import torch

    return aggregator(torch.from_numpy(found)).numpy()


@given(seed=seeds, count=st.integers(2, 7), dependent=st.booleans())
@pytest.mark.parametrize(("method", "name"), [("imtl-g", "IMTLG"), ("aligned-mtl", "AlignedMTL")])
def test_closed_forms_are_torchjds(torchjd, method, name, seed, count, dependent):
    found = independent(seed, count)
    if dependent:
        found[-1] = found[0] - found[1] if count > 2 else 2 * found[0]
    expected = theirs(getattr(torchjd, name)(), found)
    np.testing.assert_allclose(direction(method, found), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_mgda_is_torchjds_once_that_has_converged(torchjd, seed):
    """Frank and Wolfe's steps come close slowly; ours is at least as short, and near."""
    found = independent(seed, 3 + seed)
    d = direction("mgda", found)
    slow = theirs(torchjd.MGDA(epsilon=1e-12, max_iters=2000), found)
    assert np.linalg.norm(d) <= np.linalg.norm(slow) * (1 + 1e-12)
    np.testing.assert_allclose(slow, d, atol=0.01 * np.linalg.norm(found, axis=1).max())


@given(seed=seeds, count=st.integers(2, 5))
@pytest.mark.parametrize(("method", "name"), [("upgrad", "UPGrad"), ("dualproj", "DualProj")])
def test_projections_are_torchjds_with_a_projector_that_tries_everything(
    torchjd, method, name, seed, count
):
    """TorchJD's own projector needs another package; it takes one that knows no algorithm."""
    linalg = pytest.importorskip("torchjd.linalg")
    if not hasattr(linalg, "DualConeProjector"):
        pytest.skip("this TorchJD takes no projector")
    import torch

    class TryEverything(linalg.DualConeProjector):
        def __call__(self, U, G):
            rows = U.reshape(-1, U.shape[-1]).numpy()
            found = [brute_projection(G.numpy(), u) for u in rows]
            return torch.from_numpy(np.array(found)).reshape(U.shape)

    found = independent(seed, count)
    expected = theirs(getattr(torchjd, name)(projector=TryEverything()), found)
    np.testing.assert_allclose(direction(method, found), expected, atol=1e-9)


def brute_projection(gramian, u):
    """The least v M v with v >= u, over every choice of the entries that stay at their bound."""
    best = None
    for choice in range(2 ** len(u)):
        free = np.array([choice >> place & 1 for place in range(len(u))], bool)
        v = u.copy()
        if free.any():
            v[free] = -np.linalg.solve(
                gramian[np.ix_(free, free)], gramian[np.ix_(free, ~free)] @ u[~free]
            )
        if (v >= u - 1e-12).all() and (best is None or v @ gramian @ v < best @ gramian @ best):
            best = v
    return best


# --- optimality ------------------------------------------------------------------------------


@given(found=vectors())
def test_mgda_is_the_shortest_combination(found):
    """w is a convex combination, and no g_l has a smaller product with d than d itself."""
    try:
        w = solution("mgda", found).coefficients
    except NumericsError:  # then some combination is zero: no direction u is better for all
        assert min(np.linalg.norm(mix @ found) for mix in opposing_mixes(found)) < 1e-6
        return
    d = w @ found
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1)
    assert (found @ d).min() >= (d @ d) * (1 - 1e-6)


def opposing_mixes(found):
    """Of every choice of groups, shares of a combination that is zero if one is; [.., L]."""
    for choice in range(1, 2 ** len(found)):
        inside = [place for place in range(len(found)) if choice >> place & 1]
        unit = found[inside] / np.linalg.norm(found[inside], axis=1, keepdims=True)
        _, _, right = np.linalg.svd(np.vstack([unit.T, np.zeros((len(inside), len(inside)))]))
        shares = right[-1] * np.sign(right[-1].sum() or 1)
        if (shares >= 0).all():
            mix = np.zeros(len(found))
            mix[inside] = shares / np.linalg.norm(found[inside], axis=1)
            yield mix / np.linalg.norm(mix * np.linalg.norm(found, axis=1))


@given(found=vectors(), seed=seeds)
def test_projections_meet_their_conditions(found, seed):
    """v >= u, no group worse, and nothing added where it does not touch the cone's wall."""
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    u = np.random.default_rng(seed).standard_normal(len(found))
    cosines = unit @ unit.T
    v = project(cosines, u, ridge_for(cosines))
    assert (v >= u).all()
    d = v @ unit
    assert (unit @ d).min() >= -1e-9
    assert (v - u) @ (unit @ d) == pytest.approx(0, abs=1e-8)


@given(found=vectors())
def test_dualproj_is_the_nearest_direction_that_makes_no_group_worse(found):
    d, mean = direction("dualproj", found), found.mean(0)
    assume(d is not None)
    if (found @ mean >= 0).all():
        np.testing.assert_allclose(d, mean, atol=1e-12 * np.abs(found).max())
    # the projection onto a cone: the rest is at a right angle to it
    largest = np.linalg.norm(found, axis=1).max()
    assert (mean - d) @ d == pytest.approx(0, abs=1e-8 * largest**2)


@given(found=vectors())
@settings(max_examples=40)
def test_cagrad_is_at_its_own_bound(found):
    """Its dual bounds the least product of every d in the ball; d is in the ball and reaches it."""
    mean = found.mean(0)
    d = direction("cagrad", found)
    assume(d is not None)
    radius = CAGRAD_RADIUS * np.linalg.norm(mean)
    largest = np.linalg.norm(found, axis=1).max()
    w = solution("cagrad", found).coefficients - 1 / len(found)
    assert w.min() >= -1e-12
    assert np.linalg.norm(d - mean) <= radius * (1 + 1e-9)
    s = (w / w.sum()) @ found
    bound = mean @ s + radius * np.linalg.norm(s)
    assert (found @ d).min() == pytest.approx(bound, abs=1e-8 * largest**2)


@given(seed=seeds, count=st.integers(2, 8))
def test_nash_is_the_bargain(seed, count):
    found = independent(seed, count)
    a = solution("nash-mtl", found).coefficients
    assert (a > 0).all()
    gains = a * (found @ (a @ found))
    np.testing.assert_allclose(gains / gains.mean(), 1, rtol=1e-9)


@given(seed=seeds, count=st.integers(2, 8))
def test_imtl_has_the_same_projection_on_every_group(seed, count):
    found = independent(seed, count)
    d = direction("imtl-g", found)
    along = found @ d / np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(along, along[0], rtol=1e-6)


@given(found=vectors())
@settings(max_examples=40)
@pytest.mark.parametrize("method", ["mgda", "upgrad", "dualproj", "cagrad", "nash-mtl"])
def test_the_gap_of_a_solution_is_nothing(method, found):
    try:
        gap = solution(method, found).gap
    except NumericsError:
        assume(False)
    assert abs(gap) < 1e-7


# --- promises --------------------------------------------------------------------------------


@given(found=vectors())
@pytest.mark.parametrize("method", SAFE)
def test_no_group_gets_worse(method, found):
    """Dependent, opposed, and of lengths four decades apart: the cosines are not negative."""
    d = direction(method, found)
    assume(d is not None)
    length = np.linalg.norm(found, axis=1)
    assert (found @ d / length).min() >= -1e-7 * np.linalg.norm(d)


@given(found=vectors(), data=st.data())
@settings(max_examples=40)
@pytest.mark.parametrize("method", list(METHODS))
def test_the_order_of_groups_does_not_matter(method, found, data):
    order = data.draw(st.permutations(range(len(found))))
    d, again = direction(method, found), direction(method, found[order])
    assume(d is not None and again is not None)
    scale = np.linalg.norm(d) + np.linalg.norm(found, axis=1).max()
    np.testing.assert_allclose(again, d, atol=1e-6 * scale)


@given(seed=seeds, power=st.integers(-400, 400))
@pytest.mark.parametrize("method", list(METHODS))
def test_scale_changes_nothing_at_all(method, seed, power):
    """A factor 2^k is exact in floating point; no epsilon of a solver may see it."""
    gramian = independent(seed) @ independent(seed).T
    wanted = ConsensusSettings(method=method)
    np.testing.assert_array_equal(
        solve(np.ldexp(gramian, power), wanted).coefficients, solve(gramian, wanted).coefficients
    )


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("scale", [1e-8, 1e-30, 1e30])
def test_tiny_and_huge_gradients_keep_their_direction(method, scale):
    d, scaled = direction(method, independent(3)), direction(method, independent(3, scale=scale))
    np.testing.assert_allclose(
        scaled / np.linalg.norm(scaled), d / np.linalg.norm(d), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("method", list(METHODS))
def test_two_groups_that_agree_pull_together(method):
    found = np.array([[2.0, 1.0], [2.0, -1.0]])
    d = direction(method, found)
    np.testing.assert_allclose(d / np.linalg.norm(d), [1.0, 0.0], atol=1e-9)


@pytest.mark.parametrize("method", [*SAFE, "cagrad", "nash-mtl", "imtl-g"])
def test_opposed_groups_are_an_error_with_a_cure(method):
    with pytest.raises(NumericsError) as caught:
        solution(method, np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert "--method" in caught.value.hints[0]


def test_a_failure_of_linear_algebra_is_an_error_with_a_cure(monkeypatch):
    def fail(*_, **__):
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(np.linalg, "pinv", fail)
    with pytest.raises(NumericsError, match="imtl-g found no solution") as caught:
        solution("imtl-g", independent(0))
    assert "--method pcgrad" in caught.value.hints[0]


@pytest.mark.parametrize("method", list(METHODS))
def test_many_groups(method):
    """120 groups with half of the pairs in conflict."""
    rng = np.random.default_rng(4)
    found = rng.standard_normal((120, 400)) + 0.05 * rng.standard_normal(400)
    d = direction(method, found)
    assert np.isfinite(d).all()
    if method in SAFE:
        assert (found @ d).min() >= -1e-9 * np.linalg.norm(d)


@given(seed=seeds, count=st.integers(1, 12), rank=st.integers(1, 12))
@settings(max_examples=50)
def test_the_program_beneath_meets_its_conditions(seed, count, rank):
    """x >= 0, no slope downwards, none at all where x > 0; Q of any rank, b in its range."""
    rng = np.random.default_rng(seed)
    factor = rng.integers(-2, 3, (count, rank)).astype(float)
    quadratic, linear = factor @ factor.T, factor @ rng.integers(-2, 3, rank).astype(float)
    assume(quadratic.any())
    x = nonnegative(quadratic, linear, ridge_for(quadratic))
    slope = quadratic @ x - linear
    assert (x >= 0).all()
    assert slope.min() >= -1e-7
    assert (x * slope).max() <= 1e-6 * max(1, x.max())


@given(seed=seeds, count=st.integers(2, 8))
def test_a_gramian_of_vectors_is_left_alone_and_another_is_mended(seed, count):
    found = independent(seed, count)
    gramian = found @ found.T
    np.testing.assert_array_equal(semidefinite(gramian), gramian)
    noisy = gramian - 0.9 * np.diag(np.diagonal(gramian))
    mended = semidefinite(noisy)
    np.testing.assert_allclose(np.diagonal(mended), np.diagonal(noisy))
    assert np.linalg.eigvalsh(mended)[0] >= -1e-9 * np.diagonal(noisy).max()
