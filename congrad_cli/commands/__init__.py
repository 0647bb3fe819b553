"""What the shell sees of each command: options in, streams out. No numerics, no torch."""
