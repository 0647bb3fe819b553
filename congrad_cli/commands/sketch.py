"""``congrad sketch``: options -> settings, the data read, the work started."""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from congrad_cli import arguments, console
from congrad_cli.display.dry_run import show_dry_run
from congrad_cli.display.progress import TerminalProgress
from congrad_cli.errors import InputError, UsageError
from congrad_cli.options import shared
from congrad_cli.options import sketch as options
from congrad_cli.settings import RecordSettings, SketchSettings

if TYPE_CHECKING:
    from congrad_cli.sketch.index import DataIndex


def sketch(
    data: options.SketchData = None,
    model: options.Model = "",
    store: options.Store = None,
    revision: options.Revision = None,
    chat_template: options.ChatTemplate = None,
    max_length: options.MaxLength = 1024,
    overlong: options.Overlong = "truncate",
    row_size: options.RowSize = None,
    dim: options.Dim = None,
    width: options.Width = "auto",
    leading: options.Leading = 8,
    seed: options.SketchSeed = 0,
    store_dtype: options.StoreDtype = None,
    reference: options.Reference = None,
    token_weighting: options.TokenWeighting = "sum",
    layers: options.Layers = "blocks",
    adapter: options.Adapter = None,
    dtype: options.Dtype = "auto",
    share_prompt: options.SharePrompt = True,
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    batch_tokens: options.BatchTokens = "auto",
    gradient_checkpointing: options.GradientCheckpointing = False,
    bad_records: options.BadRecords = "stop",
    max_bad: options.MaxBad = None,
    rejects: options.Rejects = None,
    shard: options.Shard = None,
    threads: options.SketchThreads = None,
    overwrite: options.Overwrite = False,
    prompt_field: options.PromptField = None,
    chosen_field: options.ChosenField = None,
    rejected_field: options.RejectedField = None,
    id_field: options.IdField = "id",
    shape: options.ShapeName = None,
    group_by: options.GroupBy = "language",
    language_field: options.LanguageField = None,
    language: options.Language = None,
    languages: options.Languages = None,
    detect_language: options.DetectLanguage = False,
    min_confidence: options.MinConfidence = 0.8,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Compress the gradient of every pair into a store; print the store's path."""
    out = console.reserve_stdout()
    if not model:
        raise UsageError("--model is missing.", "congrad sketch data.jsonl --model MODEL")
    if as_json and not dry_run:
        raise UsageError("--json needs --dry-run.")
    best_dim, best_dtype = arguments.row_size(row_size, dim, store_dtype)
    arguments.one_of("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    arguments.one_of("--bad-records", bad_records, ("stop", "skip"))
    arguments.one_of("--overlong", overlong, ("truncate", "skip", "stop"))
    settings = SketchSettings(
        model=model, revision=revision, chat_template=chat_template, max_length=max_length,
        overlong=overlong, dim=dim or best_dim, width=arguments.auto("--width", width),
        leading=leading, seed=seed, store_dtype=store_dtype or best_dtype, reference=reference,
        token_weighting=token_weighting, layers=layers, adapter=adapter, dtype=dtype,
        share_prompt=share_prompt, device=device, device_map=device_map,
        batch_tokens=arguments.auto("--batch-tokens", batch_tokens),
        gradient_checkpointing=gradient_checkpointing, bad_records=bad_records,
        max_bad=arguments.most_bad(max_bad, bad_records), rejects=rejects,
        threads=threads, overwrite=overwrite,
    )  # fmt: skip
    fields = RecordSettings(
        prompt_field=prompt_field, chosen_field=chosen_field, rejected_field=rejected_field,
        id_field=id_field, shape=arguments.shape(shape),
        group_by=arguments.parts("--group-by", group_by), language_field=language_field,
        language=arguments.language(language), languages=arguments.languages(languages),
        detect_language=detect_language, min_confidence=min_confidence,
    )  # fmt: skip
    arguments.check_grouping(fields)
    names = arguments.data_names(data)
    rank, world, waits = arguments.share(shard, os.environ)
    if world > 1 and (names == ["-"] or overwrite):
        what = "--overwrite" if overwrite else "stdin"
        raise UsageError(f"{what} and more than one rank.",
                         "remove the store first" if overwrite else "name a file that all can read")
    progress = TerminalProgress(quiet or rank > 0, verbose)
    _be_calm()
    if dry_run and rank > 0:
        return  # one report is enough
    if dry_run:
        _dry_run(names, fields, settings, out if as_json else None, progress)
        return
    path = arguments.store_for(names, store)
    from congrad_cli.directory import check_directory, piped_data

    check_directory(path)
    piped = piped_data(path, sys.stdin.buffer) if names == ["-"] else nullcontext(None)
    with piped as file:
        index = _read(names, file, fields, settings, progress)
        from congrad_cli.sketch.ranks import Share
        from congrad_cli.sketch.run import run

        complete = run(index, path, settings, progress, Share(rank, world, waits))
    if complete and rank == 0:
        console.print_path(path, out)


def _read(
    names: list[str],
    piped: Path | None,
    fields: RecordSettings,
    settings: SketchSettings,
    progress: TerminalProgress,
) -> "DataIndex":
    """The data's index. What needs no torch comes first: a typo should not cost its import."""
    from congrad_cli.model_source import find_model
    from congrad_cli.records.damage import DamageLimit
    from congrad_cli.records.files import find_files
    from congrad_cli.records.record import DataFile
    from congrad_cli.sketch.index import check_settings, index_data

    check_settings(settings)
    find_model(settings.model, settings.revision, settings.adapter)
    if settings.reference is not None:
        find_model(settings.reference)
    files = find_files(names) if piped is None else [DataFile("stdin", piped)]
    progress.step(f"reading {', '.join(file.name for file in files[:3])}"
                  + (f" and {len(files) - 3} more" if len(files) > 3 else ""))
    damage = DamageLimit(settings.bad_records == "stop", settings.max_bad)
    return index_data(files, fields, damage, progress)


def _dry_run(
    names: list[str],
    fields: RecordSettings,
    settings: SketchSettings,
    out: BinaryIO | None,
    progress: TerminalProgress,
) -> None:
    """Everything of ``sketch`` that needs no weights; nothing is stored."""
    from tempfile import TemporaryDirectory

    from congrad_cli.directory import piped_data

    with TemporaryDirectory(prefix="congrad-") as folder:
        piped = (piped_data(Path(folder), sys.stdin.buffer) if names == ["-"]
                 else nullcontext(None))
        with piped as file:
            patient = replace(settings, bad_records="skip", max_bad=None)
            index = _read(names, file, fields, patient, progress)
            from congrad_cli.sketch.dry_run import dry_run

            report = dry_run(index, settings, progress)
    if out is not None:
        text = json.dumps(report.to_json(), ensure_ascii=False)
        out.write(text.encode(errors="backslashreplace") + b"\n")  # names need not be UTF-8
        out.flush()
    show_dry_run(report)
    if report.refusal:
        raise InputError(f"a sketch would stop: {report.refusal}")


def _be_calm() -> None:
    """No warnings of libraries, no telemetry, no bars that are not ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # windows are tokenised in one call
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
