"""Do finders tell swapped labels better the more pairs there are?

Of each language of a pool of ``real_pairs.py`` some pairs are drawn and a tenth of their labels is
swapped; other pairs are not data. Prints mean AUROC over the draws, which share the pool's pairs:
the errors beside it say how much depends on the draws, not on the pool. Then, how much pairs
have in common: the mean cosine of two pairs of one language that are of different items.

    python tests/benchmarks/real_growth.py --pool chat.jsonl --store chat.congrad
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from finders import DrawnPairs, Sketches, find, read_sketches
from measures import auroc
from scenarios import Pool, read_rows

FINDERS = ("mean, unit", "margin per token")
SIZES = (10, 20, 40, 80)
DRAWS = 200


def growth(pool: Pool, sketches: Sketches, size: int, draws: int) -> dict[tuple[str, str], list]:
    """(finder, language or ``all``) -> AUROC of every draw of ``size`` pairs of each language."""
    found: dict[tuple[str, str], list] = {}
    for seed in range(draws):
        place, bad = draw_pairs(pool, size, random.Random(f"{size}/{seed}"))
        label = np.repeat(np.arange(len(pool.languages), dtype=np.int32), size)
        pairs = DrawnPairs(sketches, place, bad, label, pool.languages)
        for finder in FINDERS:
            value = find(pairs, finder, np.arange(len(place)), seed).value
            for name, rows in parts(pool, label):
                one = auroc(value[rows], np.array(bad)[rows], np.ones((1, rows.sum())))
                found.setdefault((finder, name), []).append(float(one[0]))
    return found


def draw_pairs(pool: Pool, size: int, rng: random.Random) -> tuple[list[int], list[bool]]:
    """Places language by language, and which labels are swapped."""
    place: list[int] = []
    bad: set[int] = set()
    for language in pool.languages:
        of = [number for number, row in enumerate(pool.rows) if row["language"] == language]
        some = rng.sample(of, size)
        place += some
        bad |= set(rng.sample(some, max(1, size // 10)))
    return place, [one in bad for one in place]


def parts(pool: Pool, label: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """All pairs, and those of each language."""
    yield "all", np.ones(len(label), bool)
    for number, language in enumerate(pool.languages):
        yield language, label == number


def likeness(pool: Pool, sketches: Sketches) -> dict[str, float]:
    """Language -> mean cosine of two of its content pairs, those of one item left out."""
    found = {}
    for language in pool.languages:
        place = [one for places in pool.content(language).values() for one in places]
        item = np.array([pool.rows[one]["item"] for one in place])
        apart = item[:, None] != item
        found[language] = float(sketches.cosine[np.ix_(place, place)][apart].mean())
    return found


def main() -> None:
    """Print a table, one line for each number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True, help="of this pool alone")
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    from congrad_cli.store import GradientStore

    pool, store = Pool(read_rows(args.pool)), GradientStore.open(args.store)
    if len(store) != len(pool.rows):
        parser.error(f"the store has {len(store)} pairs, not the pool's {len(pool.rows)}")
    sketches, wide = read_sketches(store), ("all", *pool.languages)
    columns = [(finder, name) for finder in FINDERS for name in wide]
    print("| pairs of each language | " + " | ".join(f"{a}, {b}" for a, b in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    least = min(sum(row["language"] == one for row in pool.rows) for one in pool.languages)
    for size in (size for size in SIZES if size <= least):
        found = growth(pool, sketches, size, args.draws)
        values = [np.array(found[key]) for key in columns]
        print(f"| {size} | " + " | ".join(
            f"{one.mean():.2f} ± {one.std() / len(one) ** 0.5:.2f}" for one in values) + " |")
    for language, cosine in likeness(pool, sketches).items():
        print(f"{language}: mean cosine of two pairs {cosine:.4f}")


if __name__ == "__main__":
    main()
