"""``congrad`` with other constants: ``python patched.py NAME=NUMBER ... -- ARGS``."""

import importlib
import sys
from collections.abc import Mapping

PLACES = {
    "WINDOW": ("congrad_cli.sketch.ranks", "congrad_cli.sketch.tokens"),
    "SHARD_ROWS": ("congrad_cli.writer",),
    "GRACE_SECONDS": ("congrad_cli.sketch.stopping",),
}
"""Where each constant is looked up: it may be imported by value."""


def patch(constants: Mapping[str, float]) -> None:
    """Give constants of the program other values, in this process."""
    for name, number in constants.items():
        for place in PLACES[name]:
            module = importlib.import_module(place)
            assert hasattr(module, name)
            setattr(module, name, number)


if __name__ == "__main__":
    split = sys.argv.index("--")
    patch({name: int(number) for name, number in (arg.split("=") for arg in sys.argv[1:split])})
    sys.argv = ["congrad", *sys.argv[split + 1 :]]
    from congrad_cli.cli import main

    main()
