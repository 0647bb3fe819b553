"""What a consensus does to each group, told from the products of d and the group gradients."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import NumericsError
from congrad_cli.weights import Floats

ROUNDING = 1e-7
"""A cosine this far below zero is zero: solvers put many groups exactly on the edge."""


@dataclass(frozen=True)
class Certificate:
    """Of the groups that take part: a step along d makes a group worse where its cosine is < 0.

    ``conflicts`` counts pairs of groups, of ``pairs``, whose gradients have a negative product;
    ``gap`` is how far the solver is from the optimum of its method, None where it has none.
    """

    least: float  # the least cosine of d to a group
    least_group: str
    worse: list[str]
    conflicts: int
    pairs: int
    gap: float | None

    def require_descent(self, written: str) -> None:
        """Raise :class:`NumericsError` if a group would get worse."""
        if self.worse:
            raise NumericsError(
                "--require-descent: a step along the consensus makes groups worse: "
                f"{', '.join(self.worse[:8])}{' ...' if len(self.worse) > 8 else ''}.",
                f"the consensus was written all the same: {written}",
                "try --method upgrad, dualproj or mgda, which make no group worse",
            )


def certify(
    names: list[str], cosine: Floats, conflict: Floats, inside: NDArray[np.bool_],
    gap: float | None,
) -> Certificate:
    """From cos(d, G_l) [L], the cosines between groups [L, L], and who takes part [L]."""
    part = np.flatnonzero(inside)
    lowest = int(part[np.argmin(cosine[part])])
    among = conflict[np.ix_(part, part)]
    return Certificate(
        least=float(cosine[lowest]),
        least_group=names[lowest],
        worse=[names[i] for i in part if cosine[i] < -ROUNDING],
        conflicts=int((among < 0).sum()) // 2,
        pairs=len(part) * (len(part) - 1) // 2,
        gap=gap,
    )
