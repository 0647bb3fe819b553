"""What can be refused without torch: settings, and in a first pass every record of the data."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import InputError, UsageError
from congrad_cli.records import REF_FIELDS, Record, read_records
from congrad_cli.settings import RecordSettings, SketchSettings
from congrad_cli.store import Source


@dataclass(frozen=True)
class DataIndex:
    """What the first pass over the data finds out."""

    sources: list[Source]  # with resolved paths
    fields: RecordSettings
    groups: list[str]
    group: NDArray[np.int32]  # [N] index into groups
    digest: NDArray[np.uint8]  # [N, 16]
    conversation: str | None  # FILE:LINE of the first conversational record
    ref_logp: NDArray[np.float32] | None  # [N, 2], where the data brings a reference's

    @property
    def rows(self) -> int:
        """N, the number of records."""
        return len(self.group)

    def records(self) -> Iterator[Record]:
        """Read the data once more."""
        places = [(source.name, Path(source.path)) for source in self.sources]
        return read_records(places, self.fields)

    def fingerprint(self) -> str:
        """One digest of all records; file names are not in it."""
        return hashlib.sha256(self.digest.tobytes()).hexdigest()[:16]


def index_data(sources: list[tuple[str, Path]], settings: RecordSettings) -> DataIndex:
    """Validate every record and note groups and digests. Raises :class:`InputError`.

    ``sources`` holds (name to show, path) of every data file.
    """
    digests, labels = bytearray(), []
    counts = dict.fromkeys((name for name, _ in sources), 0)
    conversation = None
    references: list[tuple[float, float]] = []
    for record in read_records(sources, settings):
        digests += record.digest()
        labels.append(record.group)
        counts[record.source] += 1
        if record.ref_logp is not None:
            references.append(record.ref_logp)
        if references and len(references) < len(labels):
            raise InputError(
                f"{record.source}:{record.line}: some records have {' and '.join(REF_FIELDS)}, "
                "others have not.",
                "give them to every record or to none",
            )
        if conversation is None and record.conversational:
            conversation = f"{record.source}:{record.line}"
    if not labels:
        raise InputError(f"{', '.join(counts)}: no records.", "each line holds one pair, as JSON")
    groups = sorted(set(labels))
    number = {label: index for index, label in enumerate(groups)}
    return DataIndex(
        sources=[Source(name, str(path.resolve()), counts[name]) for name, path in sources],
        fields=settings,
        groups=groups,
        group=np.array([number[label] for label in labels], np.int32),
        digest=np.frombuffer(bytes(digests), np.uint8).reshape(-1, 16),
        conversation=conversation,
        ref_logp=np.array(references, np.float32) if references else None,
    )


def check_settings(settings: SketchSettings) -> None:
    """Raise :class:`UsageError` where options do not make sense together."""
    if settings.width is not None and settings.dim % settings.width:
        raise UsageError(f"--dim {settings.dim} is not a multiple of --width {settings.width}.")
    kind, colon, share = settings.token_weighting.partition(":")
    try:
        fine = kind == "ld" and 0 <= float(share) <= 1 if colon else kind in ("sum", "mean")
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(
            f"--token-weighting {settings.token_weighting}: pass sum, mean or ld:A.",
            "A, between 0 and 1, is the weight of tokens beyond the shorter answer's length",
        )
