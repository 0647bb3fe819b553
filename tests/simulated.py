"""Group gradients of known truth, for asking how often an interval holds it."""

from dataclasses import dataclass

import numpy as np

from congrad_cli.consensus.bootstrap import Intervals, intervals


@dataclass(frozen=True)
class World:
    """Groups whose true gradients have cosines of about ``cosine``, either way.

    ``signal`` is |mu|^2 over the square of an average's noise, ``dim`` how many numbers there are.
    """

    groups: int = 4
    blocks: int = 32
    dim: int = 64
    signal: float = 1.0
    cosine: float = 0.3
    tails: float = 0.0  # degrees of freedom of the noise; 0: normal

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """True gradients [L, D], and the sums of the blocks [K, D]."""
        common, own = rng.standard_normal((2, self.groups, self.dim)) / np.sqrt(self.dim)
        sign = rng.choice([-1, 1], (self.groups, 1))
        truth = self.cosine**0.5 * sign * common[0] + (1 - self.cosine) ** 0.5 * own
        shape = (self.groups, self.blocks, self.dim)
        noise = rng.standard_t(self.tails, shape) if self.tails else rng.standard_normal(shape)
        noise *= np.sqrt(self.blocks / self.signal / self.dim)
        sums = (truth[:, None] + noise) / self.blocks
        return truth, sums.reshape(-1, self.dim)

    def found(self, sums: np.ndarray, a: np.ndarray) -> Intervals:
        """What the blocks tell."""
        first = np.arange(self.groups + 1) * self.blocks
        share = np.full(len(sums), 1 / self.blocks)
        return intervals(sums @ sums.T, share, first, a, seed=0)


def cosine_table(vectors: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of vectors."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def coverage(world: World, trials: int, seed: int) -> dict[str, float]:
    """How often intervals hold the truth, between groups and with d; their width; mean errors."""
    rng = np.random.default_rng(seed)
    held, along, width, bias, plain = [], [], [], [], []
    upper = np.triu_indices(world.groups, 1)
    for _ in range(trials):
        truth, sums = world.draw(rng)
        a = rng.uniform(0.2, 1, world.groups)
        found = world.found(sums, a)
        low, high = np.moveaxis(found.conflict_range[upper], -1, 0)
        real = cosine_table(truth)[upper]
        held.append((low <= real) & (real <= high))
        width.append(high - low)
        size = np.sign(real)
        bias.append((found.conflict[upper] - real) * size)
        averages = sums.reshape(world.groups, world.blocks, -1).sum(1)
        plain.append((cosine_table(averages)[upper] - real) * size)
        with_d = cosine_table(np.vstack([a @ truth, truth]))[0, 1:]
        along.append((found.along_range[:, 0] <= with_d) & (with_d <= found.along_range[:, 1]))
    return {"conflict": float(np.mean(held)), "along": float(np.mean(along)),
            "width": float(np.mean(width)), "error": float(np.nanmean(bias)),
            "plain error": float(np.mean(plain))}
