"""Gates: what a filtered data set must fulfil, checked after everything has been written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from congrad_cli.errors import GateError, UsageError
from congrad_cli.filter.quotas import listed
from congrad_cli.settings import FilterSettings


@dataclass(frozen=True)
class Gate:
    """A limit, the value that was compared with it, and what to say of it."""

    name: str
    limit: float
    value: float
    met: bool
    told: str

    def to_json(self) -> dict[str, Any]:
        """What the summary says of it."""
        return {"limit": self.limit, "value": self.value, "met": self.met}


def check_gate_options(settings: FilterSettings) -> None:
    """Raise :class:`UsageError` for limits that cannot be."""
    least = settings.min_per_group
    for name, share in (("max-drop-rate", settings.max_drop_rate),
                        ("max-conflict", settings.max_conflict)):
        if share is not None and not 0 <= share <= 1:
            raise UsageError(f"--{name} {share} is not between 0 and 1.")
    if least is not None and least < 1:
        raise UsageError(f"--min-per-group {least} is no number of pairs from 1.")


def gates(
    names: Sequence[str],
    pairs: Sequence[int],
    kept: Sequence[int],
    settings: FilterSettings,
    conflicts: tuple[int, int] | None = None,
) -> list[Gate]:
    """The gates that the settings ask for; ``pairs`` are the sketched ones of each group.

    ``conflicts`` counts the pairs of groups that conflict, and all of them. A group whose pairs
    all went without a sketch keeps none, and fails ``min_per_group``.
    """
    found = []
    if settings.max_drop_rate is not None:
        limit, count, dropped = settings.max_drop_rate, sum(pairs), sum(pairs) - sum(kept)
        found.append(Gate(
            "max-drop-rate", limit, dropped / count if count else 0.0,
            dropped <= limit * count + 1e-9,
            f"--max-drop-rate {limit:g}: {dropped:,} of {count:,} pairs were dropped "
            f"({dropped / max(count, 1):.4g})",
        ))
    if settings.min_per_group is not None:
        least = settings.min_per_group
        short = [f"{name} {number}" for name, number in zip(names, kept, strict=True)
                 if number < least]
        found.append(Gate(
            "min-per-group", least, min(kept, default=0), not short,
            f"--min-per-group {least}: groups that keep fewer: {listed(short, quote=False)}",
        ))
    if settings.max_conflict is not None and conflicts is not None:
        limit, (count, among) = settings.max_conflict, conflicts
        share = count / max(among, 1)
        found.append(Gate(
            "max-conflict", limit, share, count <= limit * among + 1e-9,
            f"--max-conflict {limit:g}: {count:,} of {among:,} pairs of groups conflict "
            f"({share:.4g})",
        ))
    return found


def require_gates(found: Sequence[Gate]) -> None:
    """Raise :class:`GateError` that names every gate which is not met."""
    missed = [gate.told for gate in found if not gate.met]
    if missed:
        what = "a gate is not met" if len(missed) == 1 else f"{len(missed)} gates are not met"
        raise GateError(f"{what}: {'; '.join(missed)}.", "everything was written all the same")
