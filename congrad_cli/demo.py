"""``congrad demo``: the three steps on the bundled pairs with the bundled model."""

import io
import json
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from congrad_cli.consensus import run as consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter import run as filtering
from congrad_cli.filter.summary import FilterSummary
from congrad_cli.progress import Progress
from congrad_cli.records.record import DataFile
from congrad_cli.settings import ConsensusSettings, FilterSettings, RecordSettings, SketchSettings
from congrad_cli.sketch.index import index_data


@dataclass(frozen=True)
class DemoResult:
    """What the demo shows."""

    filter: FilterSummary
    best: dict[str, Any]
    worst: dict[str, Any]
    planted: int
    planted_dropped: int
    clean: int
    clean_dropped: int
    auroc: float


def sample_data() -> Path:
    """The bundled data: inside an installed package, beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "sample_data", here.parent / "sample_data"):
        if (folder / "preferences.jsonl").is_file():
            return folder
    raise UsageError("the bundled sample data is not installed.", "reinstall congrad-cli")


def run(pairs: int, threads: int, progress: Progress) -> DemoResult:
    """Sketch, reconcile, filter the first ``pairs`` bundled pairs (they are mixed by language).

    Only then are the results compared with the labels that none of the steps reads.
    """
    folder = sample_data()
    with tempfile.TemporaryDirectory(prefix="congrad-") as place:
        data, store, scores = (Path(place) / name for name in ("pairs.jsonl", "store", "scores"))
        with (folder / "preferences.jsonl").open("rb") as bundled:
            lines = list(islice(bundled, pairs))
        data.write_bytes(b"".join(lines))
        index = index_data([DataFile(data.name, data)], RecordSettings())
        from congrad_cli.sketch import run as sketch

        settings = SketchSettings(model=str(folder / "tiny-model"), device="cpu", threads=threads)
        sketch.run(index, store, settings, progress)
        consensus.run(store, ConsensusSettings(), progress)
        kept = filtering.run(store, FilterSettings(scores=scores), io.BytesIO(), progress)
        entries = [json.loads(line) for line in scores.read_bytes().splitlines()]
    return _result(kept, entries, [json.loads(line) for line in lines])


def _result(
    kept: FilterSummary,
    entries: list[dict[str, Any]],
    records: list[dict[str, Any]],
) -> DemoResult:
    pairs = [records[entry["row"]] | entry for entry in entries]
    planted = [pair for pair in pairs if pair["planted"]]
    clean = [pair for pair in pairs if not pair["planted"]]
    return DemoResult(
        filter=kept,
        best=max(pairs, key=lambda pair: float(pair["score"])),
        worst=min(pairs, key=lambda pair: float(pair["score"])),
        planted=len(planted),
        planted_dropped=sum(not pair["keep"] for pair in planted),
        clean=len(clean),
        clean_dropped=sum(not pair["keep"] for pair in clean),
        auroc=auroc([pair["score"] for pair in clean], [pair["score"] for pair in planted]),
    )


def auroc(higher: list[float], lower: list[float]) -> float:
    """The chance that a random member of ``higher`` exceeds one of ``lower``; ties count half."""
    above = np.asarray(higher)[:, None] - np.asarray(lower)[None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
