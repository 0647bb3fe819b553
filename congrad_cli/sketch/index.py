"""What can be refused without torch: settings, and in a first pass every record of the data."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import InputError, UsageError
from congrad_cli.outputs import check_output, is_special
from congrad_cli.progress import Progress, Silent
from congrad_cli.records.containers import suffix_warning
from congrad_cli.records.damage import DamageLimit
from congrad_cli.records.reader import REF_FIELDS, RecordFile, language_detector, read_records
from congrad_cli.records.record import DataFile, Record, Rejected
from congrad_cli.records.rejects import write_rejects
from congrad_cli.settings import RecordSettings, SketchSettings
from congrad_cli.store_index import NO_GROUP, Source, StoreIndex, raw_digest


@dataclass(frozen=True)
class DataIndex:
    """What the first pass over the data finds out. N counts all items, rejected ones included."""

    stored: StoreIndex  # what the store keeps of it; its sources have resolved paths
    rejected: list[dict[str, Any]]  # row, source, line, code, message of each
    conversation: str | None  # FILE:LINE of the first conversational record
    ref_logp: NDArray[np.float32] | None  # [N, 2], where the data brings a reference's
    damage: DamageLimit

    @property
    def rows(self) -> int:
        """N, the number of items."""
        return self.stored.rows

    @property
    def groups(self) -> list[str]:
        """The names of the groups."""
        return self.stored.groups

    @property
    def group(self) -> NDArray[np.int32]:
        """The index into ``groups`` of every item, [N]; NO_GROUP where it was rejected."""
        return self.stored.group

    @property
    def digest(self) -> NDArray[np.uint8]:
        """The digest of every item, [N, 16]."""
        return self.stored.digest

    @property
    def files(self) -> list[DataFile]:
        """The data's files."""
        return [DataFile(item.name, Path(item.path), item.language) for item in self.stored.sources]

    def records(self) -> Iterator[Record]:
        """Read the usable records once more; their groups are in ``group``.

        Raises :class:`InputError` where the data is not what it was in the first pass.
        """
        count = 0
        for record in read_records(self.files, self.stored.fields, grouped=False):
            row = record.row
            if row >= self.rows or not self.stored.knows(record):
                raise _changed(f"{record.source}:{record.line}")
            if self.group[row] != NO_GROUP and isinstance(record, Record):
                yield record
            count += 1
        if count < self.rows:
            raise _changed(", ".join(file.name for file in self.files))


def _changed(where: str) -> InputError:
    return InputError(f"{where}: the data changed while it was being read.",
                      "run the command again when nothing writes to it any more")


@dataclass
class _Columns:
    """What is collected of every item, in order."""

    digests: bytearray = field(default_factory=bytearray)
    labels: list[str | None] = field(default_factory=list)
    references: list[tuple[float, float]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    conversation: str | None = None
    spoken: Counter[str] = field(default_factory=Counter)  # answers of several turns, by file

    def add(self, record: Record) -> None:
        """Note a usable record."""
        self.digests += record.digest()
        self.labels.append(record.group)
        if record.ref_logp is not None:
            self.references.append(record.ref_logp)
        usable = len(self.labels) - len(self.rejected)
        if self.references and len(self.references) < usable:
            raise InputError(
                f"{record.source}:{record.line}: some records have {' and '.join(REF_FIELDS)}, "
                "others have not.",
                "give them to every record or to none",
            )
        if record.conversational:
            self.conversation = self.conversation or f"{record.source}:{record.line}"
            self.spoken[record.source] += max(len(record.chosen), len(record.rejected)) > 1

    def reject(self, item: Rejected) -> None:
        """Note an item that is no usable pair."""
        self.digests += raw_digest(item.raw)
        self.labels.append(None)
        error = item.error
        self.rejected.append({"row": item.row, "source": error.source, "line": error.line,
                              "code": error.code, "message": error.what})

    def reference_logps(self) -> NDArray[np.float32] | None:
        """The references' log-probabilities by row, [N, 2]; nan where an item was rejected."""
        if not self.references:
            return None
        usable = np.array([label is not None for label in self.labels])
        result = np.full((len(self.labels), 2), np.nan, np.float32)
        result[usable] = self.references
        return result


def index_data(
    files: Sequence[DataFile],
    fields: RecordSettings,
    damage: DamageLimit | None = None,
    progress: Progress | None = None,
) -> DataIndex:
    """Read every record and note groups and digests.

    Raises :class:`InputError` at the first bad record, or where there are more than ``damage``
    allows.
    """
    damage, progress = damage or DamageLimit(), progress or Silent()
    found, sources = _Columns(), []
    detector = language_detector(fields)
    for file in files:
        before = len(found.labels)
        data = RecordFile(file, fields, detector)
        for record in data.records(before):
            if isinstance(record, Record):
                found.add(record)
            else:
                damage.count(record.error)
                found.reject(record)
                progress.warn(f"{record.source}:{record.line}: left out ({record.error.code}): "
                              f"{record.error.what}", record.error.code)
        shape = data.shape.name if data.shape else ""
        records = len(found.labels) - before
        sources.append(Source(file.name, str(file.path.resolve()), records, shape, file.language))
        progress.note(data.describe(records), "file")
        suffix = suffix_warning(file)
        if suffix:
            progress.warn(suffix, "suffix")
        if found.spoken[file.name]:
            progress.warn(
                f"{file.name}: {found.spoken[file.name]:,} pairs have answers of several turns: "
                "what users say in them is learnt, too, as in TRL", "turns")
    names = ", ".join(file.name for file in files)
    if not found.labels:
        raise InputError(f"{names}: no records.", "each line holds one pair, as JSON")
    groups = sorted({label for label in found.labels if label is not None})
    if not groups:
        raise InputError(f"{names}: no usable records.", damage.summary())
    damage.check(len(found.labels))
    if found.rejected:
        progress.note(f"left out {len(found.rejected):,} of {len(found.labels):,} records: "
                      f"{damage.summary()}")
    number: dict[str | None, int] = {label: index for index, label in enumerate(groups)}
    stored = StoreIndex(
        sources=sources,
        fields=fields,
        groups=groups,
        group=np.array([number.get(label, NO_GROUP) for label in found.labels], np.int32),
        digest=np.frombuffer(bytes(found.digests), np.uint8).reshape(-1, 16),
    )
    return DataIndex(
        stored=stored,
        rejected=found.rejected,
        conversation=found.conversation,
        ref_logp=found.reference_logps(),
        damage=damage,
    )


def optional_columns(settings: SketchSettings, index: DataIndex) -> list[str]:
    """Which columns a store of these settings and data has beside those that all have."""
    columns = [] if settings.token_weighting == "sum" else ["weighted_logp"]
    if settings.reference is not None or index.ref_logp is not None:
        columns.append("ref_logp")
    return columns


def tell_rejects(
    settings: SketchSettings,
    index: DataIndex,
    entries: Iterable[dict[str, Any]],
    final: bool = True,
) -> None:
    """Write ``--rejects``, where it is asked for; it must be no file of the data.

    What is not ``final`` is not written into a pipe or a device: nothing there can be replaced.
    """
    path = settings.rejects
    if path is None:
        return
    if path.resolve() in [file.path for file in index.files]:
        raise UsageError(f"--rejects {path} is the data.", "name another file")
    check_output("--rejects", path)
    if is_special(path) and not final:
        return
    write_rejects(path, index.files, {entry["row"]: entry for entry in entries})


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
