"""What ``demo`` shows."""

from typing import TYPE_CHECKING

from congrad_cli.console import say
from congrad_cli.display.filter import show_filter

if TYPE_CHECKING:
    from congrad_cli.demo import DemoResult


def show_demo(result: "DemoResult") -> None:
    """What the demo kept and dropped, and one pair of each."""
    show_filter(result.filter)
    for title, pair in (("kept", result.best), ("dropped", result.worst)):
        say(f"most clearly {title}", f"{pair['group']}, score {pair['score']:+.3f}",
            f"prompt:   {pair['prompt']}", f"chosen:   {pair['chosen']}",
            f"rejected: {pair['rejected']}")
    say("demo", f"{result.planted_dropped} of {result.planted} pairs with swapped answers were "
        f"dropped, and {result.clean_dropped} of the {result.clean} others.",
        f"congrad never saw which were swapped; AUROC of its scores: {result.auroc:.2f}")
