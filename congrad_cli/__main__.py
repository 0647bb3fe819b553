"""``python -m congrad_cli``: the same command as ``congrad``."""

from congrad_cli.cli import main

if __name__ == "__main__":
    main()
