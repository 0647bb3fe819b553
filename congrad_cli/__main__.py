"""``python -m congrad_cli`` (what torchrun runs) and the command ``congrad``."""

import os
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line. Ctrl-C ends quietly even while it is being imported."""
    try:
        _open_missing_streams()
        from congrad_cli.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _open_missing_streams() -> None:
    """Give the numbers 0 to 2 to the null device where the caller closed them.

    Else the next file that is opened gets such a number, and what is printed would go into it.
    ``sys.stdin`` and ``sys.stdout`` stay None then: commands that need them say so.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")


if __name__ == "__main__":
    main()
