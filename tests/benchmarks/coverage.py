"""How often the 95 % intervals of ``consensus`` hold the truth, in simulated groups.

``signal`` is the true gradient's square over that of its average's noise; 0.2 is what a few pairs
give, 50 what thousands do. ``t3`` noise has heavy tails.

    OMP_NUM_THREADS=1 python tests/benchmarks/coverage.py --trials 300
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from simulated import World, coverage


def main() -> None:
    """One line for each kind of world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    trials = parser.parse_args().trials
    plain = World()
    worlds = {
        **{f"signal {signal}, cosine {cosine}": replace(plain, signal=signal, cosine=cosine)
           for signal in (0.2, 1, 5, 50) for cosine in (0.1, 0.8)},
        **{f"signal {signal}, D 1,000": replace(plain, signal=signal, dim=1000)
           for signal in (0.2, 1, 5, 50)},
        **{f"signal {signal}, t3 noise": replace(plain, signal=signal, tails=3.0)
           for signal in (1, 5)},
        **{f"signal 5, {blocks} blocks": replace(plain, signal=5, blocks=blocks)
           for blocks in (2, 3, 8, 16)},
    }  # fmt: skip
    for name, world in worlds.items():
        found = coverage(world, trials, seed=1)
        print(f"{name:28}", ", ".join(f"{what} {value:+.3f}" if "error" in what else
                                      f"{what} {value:.3f}" for what, value in found.items()))


if __name__ == "__main__":
    main()
