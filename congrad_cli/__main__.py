"""``python -m congrad_cli`` (what torchrun runs) and the command ``congrad``."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line. Ctrl-C ends quietly even while it is being imported."""
    try:
        from congrad_cli.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
