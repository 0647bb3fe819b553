"""``congrad verify``: problems on stderr, and a verdict or a JSON object on stdout."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from congrad_cli import arguments, console
from congrad_cli.display.progress import MESSAGES_SHOWN, TerminalProgress
from congrad_cli.errors import NumericsError, StoreError, UsageError
from congrad_cli.options import shared, sketch
from congrad_cli.options import store as options

if TYPE_CHECKING:
    from congrad_cli.exactness import Agreement
    from congrad_cli.repair import Report

SCHEMA = "congrad.verify/1"


def verify(
    store: shared.StoreArgument = None,
    repair: options.Repair = False,
    quick: options.Quick = False,
    exact: options.Exact = None,
    model: options.ExactModel = None,
    revision: sketch.Revision = None,
    adapter: sketch.Adapter = None,
    chat_template: sketch.ChatTemplate = None,
    device: sketch.Device = "auto",
    data: shared.FilterData = None,
    seed: options.ExactSeed = 0,
    threads: sketch.SketchThreads = None,
    as_json: options.ReportJson = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Check every file of a store, byte by byte; set aside what is damaged."""
    out = console.reserve_stdout()
    if exact is not None and not model:
        raise UsageError("--exact needs --model.", "congrad verify STORE --exact 32 --model MODEL")
    path = arguments.store_from(store)
    progress = TerminalProgress(quiet, verbose)
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
        found = _report_json(path, report, quick)
        console.print_json(found | ({"exact": agreement.to_json()} if agreement else {}), out)
    else:
        out.write(_verdict(report).encode() + b"\n")
        out.flush()
    if report.open:
        raise typer.Exit(StoreError.exit_code)
    if agreement and agreement.trouble:
        raise NumericsError(f"the stored rows are far off: {agreement.trouble[0]}.",
                            *agreement.trouble[1:MESSAGES_SHOWN],
                            "is it the same version of the model's code, and of torch?")


def _report_json(path: Path, report: "Report", quick: bool) -> dict[str, Any]:
    """What ``verify --json`` prints."""
    return {
        "schema": SCHEMA,
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


def _show_findings(report: "Report", progress: TerminalProgress) -> None:
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
    what = (f"{console.counted(report.shards, 'shard')}, {console.counted(report.pairs, 'pair')}, "
            f"{report.size / 1e6:,.1f} MB")
    if not report.problems:
        return f"OK: {what}"
    found, mended = len(report.problems), len(report.problems) - len(report.open)
    repaired = f", {mended:,} repaired" * bool(mended)
    return f"{console.counted(found, 'problem')}{repaired}; in order: {what}"


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
