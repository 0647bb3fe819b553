"""What a report says in words: the verdict, the commands, the facts."""

import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from congrad_cli.consensus.certificate import ROUNDING
from congrad_cli.filter.run import Judged
from congrad_cli.report.content import GroupFacts
from congrad_cli.settings import ConsensusSettings, FilterSettings, SketchSettings
from congrad_cli.store import GradientStore

NAMED_GROUPS = 6
NEVER_SHOWN = ("output", "dropped", "scores", "summary", "data")
"""Options of ``filter`` that say where files go, not what is decided."""


def verdict(judged: Judged, groups: list[GroupFacts]) -> tuple[list[str], bool]:
    """The verdict's lines, and whether no group that takes part gets worse."""
    summary, findings = judged.summary, judged.target.findings
    kept, pairs = sum(summary.kept), sum(summary.pairs)
    worse = [group.name for group in groups
             if group.left_out is None and group.cosine < -ROUNDING]
    lines = [f"Kept {kept:,} of {pairs:,} pairs ({kept / max(pairs, 1):.0%}); "
             + ("a step along the consensus makes no group worse." if not worse else
                f"a step along the consensus makes groups worse: {_some(worse)}.")]
    told = findings.get("certificate")
    told = told if isinstance(told, dict) else {}
    if told.get("pairs"):
        doubt = told.get("unresolved")
        lines.append(f"{told.get('conflicts')} of {told['pairs']} pairs of groups conflict"
                     + (f"; of {doubt} of them the data does not tell the sign" if doubt else "")
                     + ".")
    if isinstance(unsure := told.get("unsure"), list) and unsure:
        lines.append(f"For {_some(list(map(str, unsure)))} the data does not tell whether the "
                     "consensus helps.")
    alone = [group.name for group in groups if group.others is not None and group.others < 0]
    if alone:
        lines.append(f"Against the consensus of the others: {_some(alone)}.")
    if summary.borderline:
        lines.append(f"{summary.borderline:,} pairs are within one error of the threshold.")
    if findings.get("hint"):
        lines.append(str(findings["hint"]))
    lines += [f"A gate is not met: {gate.told}." for gate in summary.gates if not gate.met]
    return lines, not worse and all(gate.met for gate in summary.gates)


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_GROUPS
    return ", ".join(names[:NAMED_GROUPS]) + (f" and {more} more" if more > 0 else "")


def commands(store: GradientStore, made: ConsensusSettings, rule: FilterSettings) -> list[str]:
    """The three commands that give this result again."""
    settings = store.header.fingerprint.get("settings")
    sketched = {name: value for name, value in settings.items() if name != "dtype"} if isinstance(
        settings, dict) else {}
    files = [str((store.path / source.path).resolve()) for source in store.index.sources]
    place = str(store.path)
    read = {name: value for name, value in vars_of(store.index.fields).items() if value}
    return [
        _line("sketch", [*files, "--model", store.header.model, "--store", place],
              SketchSettings, sketched) + _options(type(store.index.fields), read),
        _line("consensus", [place], ConsensusSettings, vars_of(made)),
        _line("filter", [place], FilterSettings,
              {name: value for name, value in vars_of(rule).items() if name not in NEVER_SHOWN}),
    ]


def vars_of(settings: Any) -> dict[str, Any]:
    """A settings object's fields; they have slots and no ``__dict__``."""
    return {item.name: getattr(settings, item.name) for item in fields(settings)}


def _line(command: str, words: list[str], kind: Any, values: dict[str, Any]) -> str:
    return f"congrad {command} {shlex.join(words)}" + _options(kind, values)


def _options(kind: Any, values: dict[str, Any]) -> str:
    """The options that are not what the command does by itself."""
    defaults = {item.name: item.default for item in fields(kind) if item.default is not MISSING}
    words: list[str] = []
    for name, value in values.items():
        if name not in defaults or value in (defaults[name], None):
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            many = isinstance(value, list | tuple)
            words += [option, ",".join(map(str, value)) if many else str(value)]
    return f" {shlex.join(words)}" if words else ""


def facts(judged: Judged) -> list[tuple[str, str]]:
    """Fingerprints and settings, one line each."""
    header, target = judged.store.header, judged.target
    model = header.fingerprint.get("model")
    return [
        ("store", str(judged.store.path)),
        ("model", header.model),
        *((f"model: {name}", str(value)) for name, value in sorted(
            (model if isinstance(model, dict) else {}).items())),
        ("row", f"{header.dim:,} numbers in {header.store_dtype}, {header.width} sub-sketches"),
        ("consensus", f"{target.settings.name} ({target.settings.method}), SHA-256 "
                      f"{target.sha256 or 'unknown'}"),
        ("made with", ", ".join(f"{name} {value}" for name, value in header.versions.items())),
        *(("data", f"{Path(source.path).name}: {source.records:,} records"
                   + (f", {source.shape}" if source.shape else ""))
          for source in judged.store.index.sources),
    ]
