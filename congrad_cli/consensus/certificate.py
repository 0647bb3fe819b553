"""What a consensus does to each group, told from the products of d and the group gradients."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.consensus.bootstrap import Intervals
from congrad_cli.errors import NumericsError
from congrad_cli.weights import Floats

ROUNDING = 1e-7
"""A cosine this far below zero is zero: solvers put many groups exactly on the edge."""


@dataclass(frozen=True)
class Certificate:
    """Of the groups that take part: a step along d makes a group worse where its cosine is < 0.

    ``conflicts`` counts pairs of groups, of ``pairs``, whose gradients have a negative product,
    and ``unresolved`` those of them whose interval holds 0. After the surgery a conflict is a group
    that d makes worse; ``unsure`` are the groups whose cosine to d may have either sign.
    ``gap`` is how far the solver is from the optimum of its method, None where it has none.
    """

    least: float  # the least cosine of d to a group
    least_group: str
    worse: list[str]
    unsure: list[str]
    conflicts: int
    unresolved: int
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

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def certify(
    names: list[str], cosine: Floats, conflict: Floats, inside: NDArray[np.bool_],
    gap: float | None, found: Intervals | None = None,
) -> Certificate:
    """From cos(d, G_l) [L], the cosines between groups [L, L], who takes part [L], and intervals.

    Without intervals nothing is unresolved.
    """
    part = np.flatnonzero(inside)
    lowest = int(part[np.argmin(cosine[part])])
    one, other = np.tril_indices(len(part), -1)
    among = conflict[part[one], part[other]] < 0
    unresolved, unsure = 0, np.zeros(len(names), bool)
    if found is not None:
        unresolved = int((among & holds_zero(found.conflict_range[part[one], part[other]])).sum())
        unsure = holds_zero(found.along_range)
    return Certificate(
        least=float(cosine[lowest]),
        least_group=names[lowest],
        worse=[names[i] for i in part if cosine[i] < -ROUNDING],
        unsure=[names[i] for i in part if unsure[i]],
        conflicts=int(among.sum()),
        unresolved=unresolved,
        pairs=len(one),
        gap=gap,
    )


def holds_zero(ends: Floats) -> NDArray[np.bool_]:
    """Whether intervals [.., 2] hold 0; one that is not known may."""
    return np.asarray(~((ends[..., 0] > 0) | (ends[..., 1] < 0)))
