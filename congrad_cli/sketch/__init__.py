"""``congrad sketch``: the gradient of every pair, compressed into the store. Needs torch."""

from congrad_cli.callable import make_callable

make_callable(__name__)
