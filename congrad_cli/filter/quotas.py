"""``--quotas FILE``: how many pairs, or which share of them, each group may keep."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import UsageError
from congrad_cli.records.objects import excerpt, parse_object
from congrad_cli.records.record import BadRecord, Place

OTHERS = "*"
SHOWN = 8
"""So many groups are named in a message."""

Quotas = dict[str, int | float]
"""Group -> a number of pairs (int), or a share of the group's pairs (float below 1)."""


def read_quotas(path: Path) -> Quotas:
    """The object in the file, or :class:`UsageError` where it is something else."""
    option = f"--quotas {path}"
    try:
        found = parse_object(path.read_bytes(), Place(str(path), 1))
    except OSError as error:
        raise UsageError(f"{option}: cannot be read ({error.strerror}).") from error
    except BadRecord as error:
        raise UsageError(f"{option}: {error.what}", *error.hints) from error
    for name, value in found.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not (whole or (isinstance(value, float) and 0 <= value < 1)):
            raise UsageError(
                f"{option}: the quota of {json.dumps(name)} is neither a number of pairs nor a "
                "share below 1.",
                f"saw: {excerpt(value)}", "write 100 for 100 pairs, or 0.5 for half of them",
            )
    return found


def group_quotas(
    quotas: Quotas, names: Sequence[str], pairs: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many pairs each group may keep, [L], of the ``pairs`` [L] that it has.

    Raises :class:`UsageError` for a quota of no group, and for a group without one.
    """
    unknown = [name for name in quotas if name != OTHERS and name not in names]
    if unknown:
        raise UsageError(f"--quotas names groups that are not there: {listed(unknown)}.",
                         f"groups there: {listed(names)}")
    missing = [name for name in names if name not in quotas]
    if missing and OTHERS not in quotas:
        raise UsageError(f"--quotas says nothing of these groups: {listed(missing)}.",
                         'name them, or give all others one quota: "*": 0.5')
    counts = np.zeros(len(names), np.int64)
    for label, (name, there) in enumerate(zip(names, pairs.tolist(), strict=True)):
        quota = quotas.get(name, quotas.get(OTHERS, 0))
        counts[label] = share_of(quota, there) if isinstance(quota, float) else min(quota, there)
    return counts


def share_of(share: float, pairs: int) -> int:
    """So many of the pairs; a started one is a whole one."""
    return math.ceil(share * pairs - 1e-9)


def listed(names: Sequence[str], quote: bool = True) -> str:
    """The first few names, for a message on one line."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = [json.dumps(name, ensure_ascii=False) if quote else name for name in names[:SHOWN]]
    return ", ".join(shown) + more
