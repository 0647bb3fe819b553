"""Tables of what ``detection.py`` measured, as Markdown.

    python tests/benchmarks/detection_tables.py tiny.csv --measure auroc
    python tests/benchmarks/detection_tables.py tiny.csv --measure "auroc beyond default" \\
        --finders "mean, raw" "upgrad, raw"
"""

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SHOWN = ("pcgrad, raw", "pcgrad, unit", "mean, raw", "mean, unit", "no groups, unit",
         "pcgrad, unit, language left out", "pcgrad, unit + margin per token",
         "own language, unit", "margin", "margin per token", "norm", "length")
BEYOND = "beyond default"
BEYOND_MEAN = "beyond mean"
"""Beyond the mean of pairs of the same norm: what surgery adds."""


@dataclass(frozen=True)
class Cell:
    """One measure of one finder in one scenario, and its interval."""

    scenario: str
    finder: str
    measure: str
    value: float
    low: float
    high: float


def write_cells(path: Path, cells: Iterable[Cell]) -> None:
    """All cells, one a line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Cell.__annotations__)
        writer.writerows(vars(cell).values() for cell in cells)


def read_cells(path: Path) -> list[Cell]:
    """What :func:`write_cells` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Cell(*list(row.values())[:3], *map(float, list(row.values())[3:]))
                for row in csv.DictReader(file)]


def show(cells: Iterable[Cell], measure: str, finders: Sequence[str], bare: bool = False) -> None:
    """Print one measure, scenarios down and finders across; ``bare``: without intervals."""
    table = {(cell.scenario, cell.finder): cell for cell in cells if cell.measure == measure}
    finders = [one for one in finders if any(key[1] == one for key in table)]
    signed = "+" if "beyond" in measure else ""
    print(f"| {measure} | " + " | ".join(finders) + " |")
    print("|---" * (len(finders) + 1) + "|")
    for name in dict.fromkeys(key[0] for key in table):
        print(f"| {name} | " + " | ".join(
            _entry(table.get((name, finder)), signed, bare) for finder in finders) + " |")
    print()


def _entry(cell: Cell | None, signed: str, bare: bool) -> str:
    if cell is None:
        return "-"
    value = f"{cell.value:{signed}.2f}"
    if bare or cell.low == cell.high:
        return value
    sure = signed and (cell.low > 0 or cell.high < 0)
    value = f"**{value}**" if sure else value
    return f"{value} [{cell.low:{signed}.2f}, {cell.high:{signed}.2f}]"


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--measure", nargs="+", default=["auroc", f"auroc {BEYOND}"])
    parser.add_argument("--finders", nargs="+", default=list(SHOWN))
    parser.add_argument("--scenarios", nargs="+")
    parser.add_argument("--bare", action="store_true", help="without intervals")
    args = parser.parse_args()
    cells = [cell for cell in read_cells(args.cells)
             if not args.scenarios or cell.scenario in args.scenarios]
    for measure in args.measure:
        show(cells, measure, args.finders, args.bare)


if __name__ == "__main__":
    main()
