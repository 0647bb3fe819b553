"""``--merge-groups``: groups whose gradients agree become one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from congrad_cli.weights import Floats

SHOWN = 40
"""Names of merged groups are kept to so many characters, if there are more than two names."""


def merge_alike(
    names: Sequence[str], cosine: Floats, allowed: NDArray[np.bool_], least: float
) -> list[list[int]]:
    """The groups in sets, each sorted by name: complete linkage down to a cosine of ``least``.

    The two sets whose *least* cosine between members is the largest become one, as long as it is
    ``least`` or more: so every two groups of a set agree that much. (An average would let in some
    that do not.) Of equal ones the first by name go first. Groups that are not ``allowed`` [L]
    stay alone. Sets come in the order of their first group; names do not depend on the groups'
    order.
    """
    order = sorted(np.flatnonzero(allowed).tolist(), key=lambda group: names[group])
    sets = {group: [group] for group in order}
    linked = cosine[np.ix_(order, order)].copy()
    np.fill_diagonal(linked, -np.inf)
    while len(order) > 1:
        one, other = divmod(int(linked.argmax()), len(order))  # the first of equal ones
        if not linked[one, other] >= least:
            break
        sets[order[one]] += sets.pop(order[other])
        linked[one] = np.minimum(linked[one], linked[other])
        linked[:, one] = linked[one]
        linked[one, one] = -np.inf
        linked[other], linked[:, other] = -np.inf, -np.inf
    alone = [[group] for group in np.flatnonzero(~allowed).tolist()]
    found = [*sets.values(), *alone]
    return sorted((sorted(group, key=lambda one: names[one]) for group in found), key=min)


def merged_names(names: Sequence[str], sets: Sequence[Sequence[int]]) -> list[str]:
    """A name for every set: ``de+nl``, or ``de+nl+7 more`` where there are many; all differ."""
    taken = {names[group[0]] for group in sets if len(group) == 1}
    result = []
    for group in sets:
        name = names[group[0]]
        if len(group) > 1:
            parts = [names[one] for one in group]
            shown = max(sum(len("+".join(parts[:end])) <= SHOWN
                            for end in range(1, len(parts) + 1)), 2)
            while (name := _joined(parts, shown)) in taken and shown < len(parts):
                shown += 1
            while name in taken:  # a group was called that already
                name += "'"
        taken.add(name)
        result.append(name)
    return result


def _joined(parts: Sequence[str], shown: int) -> str:
    more = len(parts) - shown
    return "+".join([*parts[:shown], *([f"{more} more"] if more > 0 else [])])
