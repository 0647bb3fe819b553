"""The bundled preference pairs as a pool for ``detection.py``: all labels right, 18 languages.

Smaller than the pool of ``conflicts.py`` and with one flaw for each pair, so not every scenario can
be drawn from it; but it needs no text that is not in the repository.

    python tests/benchmarks/sample_pool.py --out sample-pool.jsonl
"""

import argparse
import json
from pathlib import Path

BUNDLED = Path(__file__).resolve().parents[2] / "sample_data" / "preferences.jsonl"


def main() -> None:
    """Put the swapped labels right, and write rows as ``conflicts.py`` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    places: dict[str, int] = {}
    lines = []
    for line in BUNDLED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        better, worse = row["chosen"], row["rejected"]
        if row.pop("planted"):
            better, worse = worse, better
        lines.append(json.dumps(row | {
            "chosen": better, "rejected": worse, "kind": "content", "level": 1,
            "place": places.setdefault(row["item"], len(places)),
            "longer": len(worse) > len(better),
        }, ensure_ascii=False) + "\n")
    args.out.write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
