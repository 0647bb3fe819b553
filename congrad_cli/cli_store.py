"""The commands that look at a store: show and verify. Part of the command line, as ``cli`` is."""

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import typer

from congrad_cli import arguments, console, options
from congrad_cli.errors import NumericsError, StoreError, UsageError

if TYPE_CHECKING:
    from congrad_cli.exactness import Agreement
    from congrad_cli.repair import Report

VERIFY_SCHEMA = "congrad.verify/1"


def show(store: options.StoreArgument = None, as_json: options.ReportJson = False) -> None:
    """Say what is in a store: settings, data, pairs by group, what is missing, consensus."""
    out = console.reserve_stdout()
    path = arguments.store_from(store)
    from congrad_cli.show import describe

    about = describe(path)
    if as_json:
        _write_json(about, out)
    else:
        _show_store(about, out)


def verify(  # noqa: PLR0913 (as many parameters as options)
    store: options.StoreArgument = None,
    repair: options.Repair = False,
    quick: options.Quick = False,
    exact: options.Exact = None,
    model: options.ExactModel = None,
    revision: options.Revision = None,
    adapter: options.Adapter = None,
    chat_template: options.ChatTemplate = None,
    device: options.Device = "auto",
    data: options.FilterData = None,
    seed: options.ExactSeed = 0,
    threads: options.SketchThreads = None,
    as_json: options.ReportJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Check every file of a store, byte by byte; set aside what is damaged."""
    out = console.reserve_stdout()
    if exact is not None and not model:
        raise UsageError("--exact needs --model.", "congrad verify STORE --exact 32 --model MODEL")
    path = arguments.store_from(store)
    progress = console.TerminalProgress(quiet)
    from congrad_cli.repair import verify as run

    report = run(path, quick, repair, progress)
    _show_findings(report, progress)
    agreement = None
    if exact is not None and not report.open:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
        from congrad_cli.sketch.exact_check import ExactSettings, compare

        agreement = compare(path, ExactSettings(
            pairs=exact, model=str(model), revision=revision, adapter=adapter,
            chat_template=chat_template, device=device, data=tuple(data or ()), seed=seed,
            threads=threads), progress)  # fmt: skip
        _show_agreement(agreement)
    if as_json:
        found = report_json(path, report, quick)
        _write_json(found | ({"exact": agreement.to_json()} if agreement else {}), out)
    else:
        out.write(_verdict(report).encode() + b"\n")
        out.flush()
    if report.open:
        raise typer.Exit(StoreError.exit_code)
    if agreement and agreement.trouble:
        raise NumericsError(f"the stored rows are far off: {agreement.trouble[0]}.",
                            *agreement.trouble[1:],
                            "is it the same version of the model's code, and of torch?")


def report_json(path: Path, report: "Report", quick: bool) -> dict[str, Any]:
    """What ``verify --json`` prints."""
    return {
        "schema": VERIFY_SCHEMA,
        "path": str(path),
        "ok": not report.open,
        "quick": quick,
        "shards": report.shards,
        "pairs": report.pairs,
        "bytes": report.size,
        "problems": [
            {"file": item.file, "what": item.what, "hint": item.hint,
             "repaired": report.is_repaired(item), "moved_to": report.moved.get(item.file)}
            for item in report.problems
        ],
        "removed": report.removed,
        "notes": [{"file": item.file, "what": item.what, "kind": item.kind}
                  for item in report.findings if not item.problem],
    }  # fmt: skip


def _write_json(value: dict[str, Any], out: BinaryIO) -> None:
    text = json.dumps(value, ensure_ascii=False)
    out.write(text.encode(errors="backslashreplace") + b"\n")  # names need not be UTF-8
    out.flush()


def _show_findings(report: "Report", progress: console.TerminalProgress) -> None:
    """Notes, problems, and what was done about them."""
    for finding in report.findings:
        where = f"{finding.file}: {finding.what}"
        if not finding.problem:
            progress.note(f"{where}{'; removed' * (finding.file in report.removed)}", finding.kind)
            continue
        moved = report.moved.get(finding.file)
        console.say("error", f"{where}.", f"it is in {moved} now" if moved else finding.hint)
    progress.tell_hidden()
    if report.problems and not report.open:
        rows = any(not finding.file.startswith("consensus/") for finding in report.problems)
        sketch = "the same sketch command again, which makes only what is missing, then "
        console.say("verify", f"run {sketch * rows}congrad consensus.")


def _verdict(report: "Report") -> str:
    """The one line that ``verify`` prints."""
    what = (f"{_counted(report.shards, 'shard')}, {_counted(report.pairs, 'pair')}, "
            f"{report.size / 1e6:,.1f} MB")
    if not report.problems:
        return f"OK: {what}"
    mended = len(report.problems) - len(report.open)
    return (f"{_counted(len(report.problems), 'problem')}{f', {mended:,} repaired' * bool(mended)}"
            f"; in order: {what}")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _show_agreement(found: "Agreement") -> None:
    """How stored rows compare with materialised gradients."""
    console.table("stored rows and materialised gradients", ("", "value"), [
        ("pairs", f"{found.pairs:,}"),
        ("cosines: root mean square error", f"{found.rmse:.4f}"),
        ("cosines: error that the sketch expects", _maybe(found.expected, ".4f")),
        ("cosines: largest error", f"{found.largest:.4f}"),
        ("cosines: Spearman of each pair's mean", _maybe(found.spearman, ".3f")),
        ("norms: largest relative error", f"{found.norm_error:.2%}"),
        ("log-probabilities: largest relative error", f"{found.logp_error:.1e}"),
    ])  # fmt: skip


def _maybe(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _show_store(about: dict[str, Any], out: BinaryIO) -> None:
    """All that ``show`` has to say, on ``out``: facts, then groups, then consensus files."""
    stream = io.TextIOWrapper(out, encoding="utf-8", errors="backslashreplace",
                              line_buffering=True)
    try:
        facts = list(_facts(about))
        width = max(len(name) for name, _ in facts)
        for name, value in facts:
            stream.write(f"{name:{width}}  {console.one_line(value)}\n")
        if about.get("groups"):
            stream.write("\n")
            console.table("groups", ("group", "records", "sketched", "mean tokens"), [
                (group["name"], f"{group['records']:,}", f"{group['sketched']:,}",
                 _maybe(group["mean_tokens"], ".1f")) for group in about["groups"]
            ], stream=stream)  # fmt: skip
        for made in about["consensus"]:
            fit = "fits" if made["fits"] else f"does not fit: {made['why']}"
            stream.write(console.one_line(f"consensus {made['name']}: {fit}") + "\n")
            settings = made.get("settings")
            if isinstance(settings, dict):
                stream.write(console.one_line("  " + _listed(settings)) + "\n")
    finally:
        stream.detach()
        out.flush()


def _facts(about: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts about a store that are one line each."""
    row, size = about["row"], about["bytes_per_pair"]
    yield "store", f"{about['path']} (format {about['format']})"
    yield "model", about["model"]
    yield "rows", (f"{row['numbers']:,} numbers in {row['code']}, width {row['width']}"
                   + (f"; {size:,.0f} bytes a pair" if size else ""))
    yield "settings", _listed(about["changed"]) or "all as they are by default"
    yield "made with", _listed(about["versions"])
    for source in about.get("data", ()):
        gone = "" if source["there"] else "; not there any more"
        yield "data", (f"{source['name']}: {source['records']:,} records, "
                       f"{source['shape'] or 'no shape'}{gone}")
    if about.get("read_as"):
        yield "read as", _listed(about["read_as"])
    if "records" in about:
        skipped = sum(about["skipped"].values())
        reasons = f" ({_listed(about['skipped'])})" if skipped else ""
        done = about["sketched"] + skipped
        state = "complete" if about["complete"] else (
            f"incomplete, {done / about['records']:.1%} done, {about['missing']:,} missing")
        yield "pairs", (f"{about['records']:,} records: {about['sketched']:,} sketched, "
                        f"{skipped:,} skipped{reasons}; {state}")
    stored, shards = _counted(about["stored"], "pair"), _counted(about["shards"], "shard")
    yield "on disk", f"{stored} in {shards}; {about['bytes'] / 1e6:,.1f} MB in all"
    if about["set_aside"]:
        yield "set aside", f"{_counted(about['set_aside'], 'file')} in quarantine/"
    for trouble in about["unreadable"]:
        yield "trouble", f"{trouble} See congrad verify."
    for writer in about["writers"]:
        yield "written by", (f"rank {writer['rank']} of {writer['ranks']}, PID {writer['pid']} on "
                             f"{writer['host']}, alive {writer['seconds_ago']:.0f} s ago")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
