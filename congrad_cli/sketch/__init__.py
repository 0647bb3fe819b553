"""``congrad sketch``: the gradient of every pair, compressed into the store. Needs torch."""
