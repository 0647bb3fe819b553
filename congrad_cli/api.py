"""What the commands do, from Python: ``from congrad_cli import sketch, consensus, select``.

The arguments have the options' names, with _ for -; what they mean, the reference says. Errors are
those of :mod:`congrad_cli.errors`. Nothing is printed; ``progress`` takes an object such as
:class:`congrad_cli.progress.Silent`.
"""

import difflib
import io
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from congrad_cli import arguments
from congrad_cli.errors import UsageError
from congrad_cli.progress import Progress, Silent
from congrad_cli.records.files import find_files
from congrad_cli.records.record import DataFile
from congrad_cli.settings import (
    ROW_SIZES,
    ConsensusSettings,
    FilterSettings,
    RecordSettings,
    SketchSettings,
)

if TYPE_CHECKING:
    from congrad_cli.consensus.summary import ConsensusSummary
    from congrad_cli.filter.summary import FilterSummary

Place = str | Path
Data = Place | Iterable[Place] | Iterable[Mapping[str, Any]]
"""A file, glob or folder; several; or the records themselves, in any shape that is known."""
Settings = TypeVar("Settings", SketchSettings, RecordSettings, ConsensusSettings, FilterSettings)


@dataclass(frozen=True)
class Selection:
    """What ``select`` decided about every record of the data, [N], in the data's order.

    ``score`` and ``error`` are NaN where there is none; ``reason`` is "kept", or why not.
    """

    keep: NDArray[np.bool_]
    score: NDArray[np.float64]
    error: NDArray[np.float64]
    reason: list[str]
    group: list[str | None]
    summary: "FilterSummary"

    @property
    def rows(self) -> NDArray[np.int64]:
        """The kept records' places in the data: ``dataset.select(selection.rows)``."""
        return np.flatnonzero(self.keep)


def sketch(
    data: Data, model: str, store: Place, *, progress: Progress | None = None, **options: Any
) -> Path:
    """Sketch every pair of the data into ``store``; what is there already is not done again.

    ``options`` are those of ``congrad sketch``: ``row_size="8k"``, ``device="cuda"``,
    ``group_by=("domain",)`` ... Returns the store's path.
    """
    from congrad_cli.directory import check_directory, piped_data
    from congrad_cli.records.damage import DamageLimit
    from congrad_cli.sketch.index import check_settings, index_data
    from congrad_cli.sketch.run import run

    told = progress or Silent()
    if (size := options.pop("row_size", None)) is not None:
        if size not in ROW_SIZES:
            raise UsageError(f"row_size {size!r} is none of {', '.join(ROW_SIZES)}.")
        options["dim"], options["store_dtype"] = ROW_SIZES[size]
    of_records = {item.name for item in fields(RecordSettings)} & options.keys()
    reading = _settings(RecordSettings, {name: options.pop(name) for name in of_records})
    settings = _settings(SketchSettings, options | {"model": str(model)}, also=RecordSettings)
    check_settings(settings)
    path = Path(store).absolute()
    check_directory(path)
    with ExitStack() as stack:
        named = _named(data)
        if isinstance(named, bytes):
            file = stack.enter_context(piped_data(path, io.BytesIO(named)))
            files = [DataFile("records", file)]
        else:
            files = find_files(named)
        damage = DamageLimit(settings.bad_records == "stop", settings.max_bad)
        run(index_data(files, reading, damage, told), path, settings, told)
    return path


def consensus(
    store: Place, *, progress: Progress | None = None, **options: Any
) -> "ConsensusSummary":
    """Find the direction that is good for every group, and keep it in the store.

    ``options`` are those of ``congrad consensus``: ``method="upgrad"``, ``pair_norm="unit"``,
    ``name="strict"`` ...
    """
    from congrad_cli.consensus.run import run

    weights = options.get("weights")
    if isinstance(weights, Mapping):
        options["weights"] = arguments.weights_as_text("weights", dict(weights))
    settings = _settings(ConsensusSettings, options)
    arguments.groups(settings.groups)
    return run(Path(store), settings, progress or Silent())


def select(
    store: Place, *, progress: Progress | None = None, **options: Any
) -> Selection:
    """Decide which pairs of the store are kept; nothing is written.

    ``options`` are those of ``congrad filter``: ``keep_ratio=0.8``, ``per_group=True``,
    ``consensus="strict"``, ``leave_out_by="item"`` ...
    """
    from congrad_cli.filter.run import judge

    judged = judge(Path(store), _settings(FilterSettings, options), progress or Silent())
    rows, decided = judged.store.row, judged.outcome.decisions
    count = judged.store.rows
    keep = np.zeros(count, bool)
    keep[rows] = decided.keep
    numbers = np.full((2, count), np.nan)
    numbers[:, rows] = judged.outcome.ranking.scores.score, judged.outcome.ranking.scores.error
    reason: list[str] = [judged.outcome.skipped.get(row, "not-sketched") for row in range(count)]
    group: list[str | None] = [None] * count
    for place, row in enumerate(rows.tolist()):
        reason[row] = decided.reason[place]
        group[row] = judged.target.names[judged.target.label[place]]
    return Selection(keep, numbers[0], numbers[1], reason, group, judged.summary)


def _named(data: Data) -> list[str] | bytes:
    """The names of files, or records as JSON lines."""
    if isinstance(data, str | Path):
        return [str(data)]
    items = list(data)
    if all(isinstance(item, str | Path) for item in items):
        return [str(item) for item in items]
    lines = [json.dumps(item, ensure_ascii=False) for item in items]
    return "".join(f"{line}\n" for line in lines).encode(errors="surrogatepass")


def _settings(
    kind: type[Settings], options: Mapping[str, Any], also: type | None = None
) -> Settings:
    """The options as settings; raises :class:`UsageError` for one that is not there."""
    known = [item.name for item in fields(kind)]
    others = [] if also is None else [item.name for item in fields(also)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known + others, 1)
            raise UsageError(f"there is no option '{name}'.",
                             *([f"did you mean {near[0]}?"] if near else []))
    return kind(**options)
