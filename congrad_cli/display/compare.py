"""What ``show --compare`` shows: who would keep what, and for whom that differs."""

import math
from typing import TYPE_CHECKING

from congrad_cli.console import say, table

if TYPE_CHECKING:
    from congrad_cli.filter.compare import Comparison


def show_comparison(found: "Comparison") -> None:
    """Per group what A and B would keep, those that gain most first; then how alike they are."""
    groups = sorted(found.groups.items(), key=lambda item: (item[1].a - item[1].b, item[0]))
    table(
        f"A: {found.a}, B: {found.b}",
        ("group", "pairs", "kept by A", "kept by B", "by both", "B - A"),
        [
            (name, f"{kept.pairs:,}", f"{kept.a:,}", f"{kept.b:,}", f"{kept.both:,}",
             f"{kept.b - kept.a:+,}" if kept.b != kept.a else "0")
            for name, kept in groups
        ],
    )  # fmt: skip
    whole = found.whole
    say("compare", f"of {whole.pairs:,} pairs A would keep {whole.a:,}, B {whole.b:,}, both "
        f"{whole.both:,} (overlap {_number(found.overlap)}). Rank correlation of the scores "
        f"{_number(found.rank_correlation)}; cosine of the directions "
        f"{_number(found.direction_cosine)}.")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
