"""``congrad consensus``: one direction that is good for every group. numpy only."""

from congrad_cli.callable import make_callable

make_callable(__name__)
