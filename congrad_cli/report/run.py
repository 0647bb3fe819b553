"""The report command: a store or a run -> one HTML file."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from congrad_cli.errors import UsageError
from congrad_cli.outputs import check_not_of_store, whole_file
from congrad_cli.progress import Progress
from congrad_cli.report.gather import store_report
from congrad_cli.report.page import page
from congrad_cli.report.run_report import (
    curves,
    is_run,
    last_store,
    read_metrics,
    rounds_table,
    rule_of,
)
from congrad_cli.settings import FilterSettings

FILES = ("output", "dropped", "scores", "summary", "quotas")
"""Settings of ``filter`` that are paths."""


def write_report(
    path: Path, output: Path, settings: FilterSettings, shown: int, progress: Progress
) -> None:
    """Write the report of the store or run at ``path``, with ``shown`` examples of each kind."""
    check_not_of_store("--output", output)
    if is_run(path):
        report = _of_run(path, shown, progress)
    else:
        report = store_report(path, settings, shown, progress)
    with whole_file(output) as file:
        file.write(page(report))


def _of_run(path: Path, shown: int, progress: Progress) -> Any:
    """The last round's store under the rule of its filter, and the rounds before it."""
    rounds = read_metrics(path)
    store = last_store(path)
    if store is None:
        raise UsageError(f"{path}: this run keeps no store: it does not filter.",
                         "set filter.enabled = true")
    rule = rule_of(store)
    settings = FilterSettings() if rule is None else settings_of(rule)
    report = store_report(store, settings, shown, progress)
    last = f"{path.resolve().name}, round {store.parent.parent.name.rpartition('-')[2]}"
    return replace(report, title=last, curves=curves(rounds),
                   rounds=rounds_table(rounds))


def settings_of(summary: Path) -> FilterSettings:
    """The options of the ``filter`` that wrote this summary, without its outputs."""
    try:
        found = json.loads(summary.read_bytes())["settings"]
        known = {item.name for item in fields(FilterSettings)}
        values = {name: value for name, value in found.items() if name in known}
    except OSError as error:
        raise UsageError(f"{summary}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{summary} is no summary of congrad filter.",
                         "filter --summary FILE writes one") from error
    values |= {name: None for name in FILES if name != "quotas"}
    if isinstance(values.get("quotas"), str):
        values["quotas"] = Path(values["quotas"])
    values["data"] = tuple(values.get("data") or ())
    try:
        return FilterSettings(**values)
    except TypeError as error:
        raise UsageError(f"{summary}: {error}.") from error
