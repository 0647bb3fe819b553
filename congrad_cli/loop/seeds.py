"""Seeds that hang on what is drawn alone, so that no order and no interruption changes a draw."""

from hashlib import sha256


def seed_of(*parts: object) -> int:
    """A seed below 2**31 from the parts' texts: the run's seed, the round, the stage, the item."""
    return int.from_bytes(sha256("\0".join(map(str, parts)).encode()).digest()[:4]) >> 1
