"""What ``consensus`` shows of groups that are not the data's own."""

from typing import TYPE_CHECKING

from congrad_cli.console import say, table

if TYPE_CHECKING:
    from congrad_cli.consensus.grouping import Cluster, Grouping

TOP = 3
CLUSTERS_SHOWN = 40


def show_grouping(grouping: "Grouping") -> None:
    """What clusters are made of; which groups became one."""
    if grouping.clusters:
        table("clusters (cosine: of two pairs inside, on average)",
              ("cluster", "pairs", "cosine", "made of"),
              [(one.name, f"{one.pairs:,}",
                "" if one.pairs < 2 else f"{one.cohesion:+.3f}", _made_of(one))
               for one in grouping.clusters[:CLUSTERS_SHOWN]])
        if len(grouping.clusters) > CLUSTERS_SHOWN:
            say("consensus", f"{len(grouping.clusters) - CLUSTERS_SHOWN} smaller clusters are not "
                "shown.")
    for name, parts in grouping.merged.items():
        say("consensus", f"merged {len(parts)} groups into {name}: {', '.join(parts)}.")


def _made_of(cluster: "Cluster") -> str:
    """The largest of the data's groups in it, with their shares."""
    largest = list(cluster.made_of.items())[:TOP]
    more = len(cluster.made_of) - len(largest)
    shown = ", ".join(f"{name} {pairs / cluster.pairs:.0%}" for name, pairs in largest)
    return shown + (f" and {more} more" if more > 0 else "")
