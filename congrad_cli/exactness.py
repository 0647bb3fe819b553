"""Do stored rows say what materialised gradients say? Their cosines, norms and log-probabilities.

What is *far off* is told by the rows themselves: each cosine has a jackknife error (see the
module ``jackknife``), and so has each norm. Of a row that is its pair's, the cosines to the other
rows are off by 0.5 to 1.5 such errors (root mean square over 24 pairs of the tiny model; widths
from 8 on, all codes); of two rows of 32,768 numbers that were swapped by 4 to 6, of 8,192 by 2
to 3. Below that a row drowns in the sketch's own error, and only norm and log-probabilities tell.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.codec import Codec
from congrad_cli.jackknife import jackknife_error
from congrad_cli.products import row_squares

Floats = NDArray[np.float64]

COSINE_ERRORS, NORM_ERRORS = 2.5, 4.0
"""So many of its own errors may a row be off: root mean square over the others, and alone."""
COSINE_SLACK, NORM_SLACK = 2e-3, 0.01
LOGP_TOLERANCE, HALF_LOGP_TOLERANCE = 1e-3, 0.05
"""Rounding in float32, and in half precision."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is stored of K pairs, or what was computed again: norms [K], log-probs [K, 2]."""

    cosine: Floats  # [K, K]
    norm: Floats
    logp: Floats


@dataclass(frozen=True, slots=True)
class Stored:
    """Stored pairs, and the errors that the sketch says its numbers have; NaN: it cannot say."""

    measured: Measured
    cosine_error: Floats  # [K, K]
    norm_error: Floats  # [K], relative


@dataclass(frozen=True, slots=True)
class Agreement:
    """How K stored pairs compare with their materialised gradients; ``trouble`` is far off."""

    pairs: int
    rmse: float
    expected: float | None  # the root mean square of the cosines' own errors
    largest: float
    spearman: float | None  # of each pair's mean cosine to the others; None: they are all alike
    norm_error: float
    logp_error: float
    trouble: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self) | {"far_off": bool(self.trouble)}


def stored_pairs(direction: Floats, norm: Floats, logp: Floats, codec: Codec) -> Stored:
    """What decoded rows [K, D] say, free of what the code adds to a row's own product."""
    count, width = len(direction), codec.width
    blocks = direction.reshape(count, width, -1)
    own = row_squares(direction, codec).true  # [K, r]
    length = np.sqrt(own.sum(1))
    cosine, error = np.eye(count), np.zeros((count, count))
    for i in range(count):
        others = np.arange(count) != i
        dot = np.vecdot(blocks[i], blocks)[others]  # [K - 1, r]
        mine = np.broadcast_to(own[i], dot.shape)
        cosine[i, others] = dot.sum(1) / (length[i] * length[others])
        error[i, others] = jackknife_error(dot, mine, own[others])
    share = own / own.sum(1, keepdims=True)
    spread = ((share - 1 / width) ** 2).sum(1)
    norms = (np.sqrt(width / (width - 1) * spread) / 2 if width > 1
             else np.full(count, np.nan))  # of a square root: half as much as of the square
    return Stored(Measured(cosine, norm, logp), error, norms)


def compare_measured(
    stored: Stored, exact: Measured, code: str, half: bool, names: list[str]
) -> Agreement:
    """Compare K pairs, called ``names``; ``half``: the model computed in half precision."""
    apart = ~np.eye(len(names), dtype=bool)
    off = np.abs(stored.measured.cosine - exact.cosine)
    norms = np.abs(stored.measured.norm / exact.norm - 1)
    logps = np.abs(stored.measured.logp / exact.logp - 1).max(1)
    bias = np.abs(np.arcsin(np.clip(exact.cosine, -1, 1)) - exact.cosine) if code == "1bit" else (
        np.zeros_like(off))
    beyond = np.maximum(off - bias, 0)  # one bit a number is too high by a known amount
    trouble = []
    if np.isfinite(stored.cosine_error).all():
        expected = _mean_square(stored.cosine_error, apart)
        found = _mean_square(beyond, apart)
        trouble += [f"{names[place]}: its cosines are off by {found[place]:.4f}, expected "
                    f"{expected[place]:.4f}"
                    for place in np.flatnonzero(found > COSINE_ERRORS * expected + COSINE_SLACK)]
    if np.isfinite(stored.norm_error).all():  # of one pair it says little where r is small
        usual = float(np.sqrt(np.mean(stored.norm_error**2)))
        trouble += [f"{names[place]}: its norm is off by {norms[place]:.1%}, expected {usual:.1%}"
                    for place in np.flatnonzero(~(norms <= NORM_ERRORS * usual + NORM_SLACK))]
    limit = HALF_LOGP_TOLERANCE if half else LOGP_TOLERANCE
    trouble += [f"{names[place]}: a log-probability is off by {logps[place]:.1e}, relative"
                for place in np.flatnonzero(~(logps <= limit))]
    known = np.isfinite(stored.cosine_error[apart]).all()
    return Agreement(
        pairs=len(names),
        rmse=float(np.sqrt(np.mean(off[apart] ** 2))),
        expected=float(np.sqrt(np.mean(stored.cosine_error[apart] ** 2))) if known else None,
        largest=float(off[apart].max()),
        spearman=_spearman(_mean(stored.measured.cosine, apart), _mean(exact.cosine, apart)),
        norm_error=float(norms.max()),
        logp_error=float(logps.max()),
        trouble=trouble,
    )


def _mean(values: Floats, apart: NDArray[np.bool_]) -> Floats:
    return np.asarray((values * apart).sum(1) / apart.sum(1), np.float64)


def _mean_square(values: Floats, apart: NDArray[np.bool_]) -> Floats:
    """The root mean square over the other pairs, [K]."""
    return np.sqrt(_mean(values**2, apart))


def _spearman(left: Floats, right: Floats) -> float | None:
    """Rank correlation; mean cosines of real gradients have no ties."""
    one, other = (np.argsort(np.argsort(values)).astype(np.float64) for values in (left, right))
    return float(np.corrcoef(one, other)[0, 1]) if len(left) > 1 else None
