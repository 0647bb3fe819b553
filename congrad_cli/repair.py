"""Set aside what is damaged in a store, so that ``sketch`` and ``consensus`` make it again.

Nothing that holds anything is deleted: damaged files move to ``STORE/quarantine/``.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from congrad_cli.locks import RankLock
from congrad_cli.progress import Progress
from congrad_cli.verify import Finding, StoreCheck


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a store and done about it; ``moved`` says where a file is now."""

    findings: list[Finding]
    moved: dict[str, str]
    removed: list[str]
    repaired: bool  # whether --repair was asked for
    shards: int
    pairs: int
    size: int  # bytes of the files that are in order

    @property
    def problems(self) -> list[Finding]:
        """All that is wrong, repaired or not."""
        return [finding for finding in self.findings if finding.problem]

    @property
    def open(self) -> list[Finding]:
        """What is still wrong."""
        return [finding for finding in self.problems if not self.is_repaired(finding)]

    def is_repaired(self, finding: Finding) -> bool:
        """Whether nothing is left to do but to run ``sketch`` or ``consensus``."""
        return self.repaired and (finding.file in self.moved or finding.cure == "run")


def verify(path: Path, quick: bool, repair: bool, progress: Progress) -> Report:
    """Check the store at ``path``, and set aside what is damaged where ``repair`` says so.

    Raises :class:`StoreError` where there is no store, or where it is to be repaired while
    somebody writes to it.
    """
    check = StoreCheck(path, quick, progress, alone=repair)
    if not repair:
        return _report(check, list(check.findings()), {}, [], repair)
    try:
        with RankLock(path, 0, 1):
            findings = list(check.findings())
            moved = set_aside(path, findings)
            removed = [finding.file for finding in findings if finding.cure == "remove"]
            for name in removed:
                (path / name).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # others may have their locks in it
            (path / "locks").rmdir()
    return _report(check, findings, moved, removed, repair)


def set_aside(path: Path, findings: Sequence[Finding]) -> dict[str, str]:
    """Move the files of these findings to ``quarantine/``; returns from where to where.

    Files of folders other than ``shards/`` are named after them. A name that is taken gets a
    number.
    """
    moved: dict[str, str] = {}
    for finding in findings:
        if finding.cure == "set aside" and finding.file not in moved:
            folder = path / "quarantine"
            folder.mkdir(exist_ok=True)
            name = finding.file.removeprefix("shards/").replace("/", "-")
            stem, dot, suffix = name.rpartition(".")
            names = (name if number == 0 else f"{stem}.{number}{dot}{suffix}"
                     for number in count())
            target = next(folder / free for free in names if not os.path.lexists(folder / free))
            (path / finding.file).rename(target)
            moved[finding.file] = target.relative_to(path).as_posix()
    return moved


def _report(
    check: StoreCheck, findings: list[Finding], moved: dict[str, str], removed: list[str],
    repaired: bool,
) -> Report:  # fmt: skip
    size = sum(file.stat().st_size for file in check.shards)
    return Report(findings, moved, removed, repaired, len(check.shards), check.pairs, size)
