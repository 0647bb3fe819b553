"""``store.json``: which model and settings a store was made with, and what a row of it holds."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from congrad_cli.codec import Codec
from congrad_cli.errors import StoreError
from congrad_cli.settings import FORMAT, STORE_DTYPES

OTHER_STORE = "pass --store OTHER, or --overwrite to replace it"

OPTIONAL_COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    "ref_logp": (np.float32, (2,)),
    "weighted_logp": (np.float32, (2,)),
}
"""Log-probabilities of chosen and rejected with the sketch's token weighting: the reference's,
and the policy's where the weighting is not a plain sum."""


def shard_columns(header: "StoreHeader") -> dict[str, tuple[type, tuple[int, ...]]]:
    """Each tensor of a shard: its type, and its shape behind the leading n rows.

    ``digest`` names the pair. ``direction`` (and ``scale``, unless it is float16) is the sketch
    divided by its norm, as the store codes it, ``norm`` the norm of the unnormalised sketch,
    ``logp`` the log-probabilities of chosen and rejected summed over the response, ``tokens`` the
    lengths of prompt, chosen and rejected after truncation.
    """
    return {
        **header.codec.columns(),
        "norm": (np.float32, ()),
        "logp": (np.float32, (2,)),
        "tokens": (np.int32, (3,)),
        "digest": (np.uint8, (16,)),
        **{name: OPTIONAL_COLUMNS[name] for name in header.optional},
    }


@dataclass(frozen=True)
class StoreHeader:
    """``store.json``: how was sketched, on which model. Written once, before the first shard.

    Which data it was is the index's matter: it may change.
    """

    model: str  # as the user named it; the fingerprint decides
    dim: int
    width: int
    fingerprint: dict[str, Any]  # model and settings: kept apart to name the culprit
    token_weighting: str = "sum"
    optional: list[str] = field(default_factory=list)  # which of OPTIONAL_COLUMNS there are
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def store_dtype(self) -> str:
        """How rows are coded. It is kept with the settings that the fingerprint holds.

        Stores from before there was a choice do not have it: their rows are float16.
        """
        settings = self.fingerprint.get("settings")
        known = settings if isinstance(settings, dict) else {}
        return known.get("store_dtype", "float16")  # type: ignore[no-any-return]

    @property
    def codec(self) -> Codec:
        """What encodes and decodes the rows."""
        return Codec(self.store_dtype, self.dim, self.width)

    def to_json(self) -> bytes:
        """The file's bytes: sorted keys, so that equal headers are equal files."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False).encode(
            errors="backslashreplace")  # what a path has that is no UTF-8 becomes a JSON escape

    @staticmethod
    def from_json(data: bytes, place: Path) -> "StoreHeader":
        """Read the file back, or raise :class:`StoreError`."""
        try:
            fields = json.loads(data)
            if fields.get("format") != FORMAT:
                raise StoreError(
                    f"{place}: store format {fields.get('format')}, this congrad reads {FORMAT}.",
                    "use the congrad that made it, or sketch again with --overwrite",
                )
            header = StoreHeader(**fields)
            _check_kinds(header)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreError(f"{place}: not a store header ({error}).") from error
        sizes = f"dim {header.dim}, width {header.width}"
        if not 0 < header.dim <= 1 << 24:
            raise StoreError(f"{place}: impossible sizes ({sizes}).")
        if not 0 < header.width <= header.dim or header.dim % header.width:
            raise StoreError(f"{place}: impossible sizes ({sizes}).")
        return header


def _check_kinds(header: StoreHeader) -> None:
    """Raise :class:`TypeError` unless every field that is used is of its kind."""
    kinds: list[tuple[str, Any, type]] = [
        ("model", header.model, str),
        ("dim", header.dim, int),
        ("width", header.width, int),
        ("fingerprint", header.fingerprint, dict),
        ("optional", header.optional, list),
        ("versions", header.versions, dict),
    ]
    for name, value, kind in kinds:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name} is a {type(value).__name__}")
    if not set(header.optional) <= set(OPTIONAL_COLUMNS):
        raise TypeError(f"optional columns {header.optional}")
    if header.store_dtype not in STORE_DTYPES:
        raise TypeError(f"store_dtype {header.store_dtype!r}")


def read_header(path: Path) -> StoreHeader:
    """``store.json`` of the store at ``path``."""
    file = path / "store.json"
    try:
        if not file.is_file():  # opening a pipe would wait for ever
            raise FileNotFoundError
        return StoreHeader.from_json(file.read_bytes(), file)
    except (OSError, ValueError) as error:  # ValueError: what came from the pipe is no path
        raise StoreError(
            f"{path} is not a store: no store.json in it.",
            "make one: congrad sketch DATA --model MODEL --store DIR",
        ) from error


def check_same(
    path: Path, stored: StoreHeader, wanted: StoreHeader, cure: str = OTHER_STORE
) -> None:
    """Raise :class:`StoreError` naming which part of the fingerprint differs."""
    for part, what in (("model", "another model"), ("settings", "other settings")):
        before, now = stored.fingerprint.get(part), wanted.fingerprint.get(part)
        if before != now:
            raise StoreError(
                f"{path} was made with {what}.",
                f"store: {_difference(before, now)}",
                f"now:   {_difference(now, before)}",
                cure,
            )


def _difference(value: Any, other: Any) -> str:
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if other.get(k) != v) or "-"
    return str(value)
