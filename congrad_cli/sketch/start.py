"""What a store settles once, before its first row: leading directions and the layout of rows.

Both follow from the model alone, not from the data, so that every run and rank of a store, and
every resumed one, works alike. Whoever writes ``projection.safetensors`` first decides.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from congrad_cli.errors import StoreError
from congrad_cli.settings import SketchSettings
from congrad_cli.sketch.calibration import leading_directions
from congrad_cli.sketch.check import LayoutCheck, check_batches, compare_layouts
from congrad_cli.sketch.gradients import PairSketcher
from congrad_cli.sketch.layers import Layer
from congrad_cli.sketch.projection import Projection
from congrad_cli.sketch.width import choose_width
from congrad_cli.tensors import commit_file, map_arrays, pack_arrays

FILE = "projection.safetensors"

CHECK_DIM, CHECK_WIDTH = 4096, 8
"""Of the sketch that the batches are checked with."""


@dataclass(frozen=True)
class Start:
    """U [in, k] of every layer, r, and how far shared rows differ from separate ones."""

    leading: dict[str, Tensor]
    width: int
    layout: LayoutCheck

    def why_apart(self) -> str:
        """The warning for a model that cannot share."""
        return (
            "this model gives other numbers for a row with a shared prompt (difference "
            f"{self.layout.difference:.1e}, tolerance {self.layout.tolerance:.1e}); every answer "
            "gets a row of its own instead"
        )


def find_start(
    model: Any, layers: Mapping[str, Layer], settings: SketchSettings, can_share: bool
) -> Start:
    """Find the directions and compare the layouts; refuses what cannot be sketched."""
    leading = leading_directions(model, layers, settings.leading)
    check_batches(model, layers, Projection(CHECK_DIM, CHECK_WIDTH, 0, leading))
    width = settings.width or choose_width(model, layers, leading, settings.dim)
    scheme = Projection(settings.dim, width, settings.seed, leading)
    with PairSketcher(model, layers, scheme) as sketcher:
        return Start(leading, width, compare_layouts(sketcher, can_share))


def has_start(path: Path) -> bool:
    """Whether the store at ``path`` has settled it already."""
    return (path / FILE).exists()


def forget_other_start(path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Remove what a run of another model or settings left that was stopped before its store was."""
    if has_start(path) and map_arrays(path / FILE)[1].get("fingerprint") != fingerprint:
        (path / FILE).unlink(missing_ok=True)


def write_start(path: Path, start: Start, fingerprint: Mapping[str, Any]) -> None:
    """Settle it for the store at ``path``, unless somebody else has meanwhile.

    ``fingerprint`` is that of the store to be.
    """
    arrays = {name: basis.numpy() for name, basis in start.leading.items()}
    about = {**asdict(start.layout), "width": start.width, "fingerprint": fingerprint}
    with suppress(FileExistsError):
        commit_file(path / FILE, pack_arrays(arrays, about))


def read_start(path: Path, layers: Mapping[str, Layer]) -> Start:
    """What the store at ``path`` has settled."""
    arrays, about = map_arrays(path / FILE)
    leading = {name: torch.from_numpy(np.array(basis)) for name, basis in arrays.items()}
    if not set(leading) <= set(layers) or not {"difference", "tolerance", "width"} <= about.keys():
        raise StoreError(
            f"{path / FILE} belongs to another model.", "pass --overwrite to start anew"
        )
    layout = LayoutCheck(float(about["difference"]), float(about["tolerance"]))
    return Start(leading, int(about["width"]), layout)
