"""``congrad show``: what is in a store, as text or as JSON on stdout."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from congrad_cli import arguments, console
from congrad_cli.display.blocks import blocks
from congrad_cli.display.compare import show_comparison
from congrad_cli.display.progress import TerminalProgress
from congrad_cli.options import shared
from congrad_cli.options import store as options


def show(
    store: shared.StoreArgument = None,
    compare: options.Compare = None,
    as_json: options.ReportJson = False,
) -> None:
    """Say what is in a store: settings, data, pairs by group, what is missing, consensus."""
    out = console.reserve_stdout()
    if compare is not None:
        _compare(store, compare, out if as_json else None)
        return
    path = arguments.store_from(store)
    from congrad_cli.show import describe

    about = describe(path)
    if as_json:
        console.print_json(about, out)
    else:
        _show_store(about, out)


def _compare(store: Path | None, names: tuple[str, str], out: BinaryIO | None) -> None:
    """The comparison as a table on stderr, and as JSON on ``out``."""
    from congrad_cli.filter.compare import compare
    from congrad_cli.release import store_named

    path = store or store_named(names) or arguments.store_from(None)
    found = compare(path, *names, TerminalProgress(quiet=False))
    show_comparison(found)
    if out is not None:
        console.print_json(found.to_json(), out)


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
            console.table("groups", (
                "group", "records", "sketched", "mean tokens",
                "tokens {} to {}".format(*about["token_range"])), [
                (group["name"], f"{group['records']:,}", f"{group['sketched']:,}",
                 _maybe(group["mean_tokens"], ".1f"), blocks(group["token_histogram"], stream))
                for group in about["groups"]
            ], stream=stream, pictures=True)  # fmt: skip
        for made in about["consensus"]:
            why = made.get("why", "fits")
            fit = why if made["fits"] or about["released"] else f"does not fit: {why}"
            stream.write(console.one_line(f"consensus {made['name']}: {fit}") + "\n")
            for line in _about(made):
                stream.write(console.one_line("  " + line) + "\n")
    finally:
        stream.detach()
        out.flush()


def _about(made: dict[str, Any]) -> Iterator[str]:
    """What is known of a consensus: its main facts, then all of its settings."""
    settings = made.get("settings")
    if "groups" in made and isinstance(settings, dict):
        least = made["least_cosine"]
        yield (f"{settings.get('method')}, {settings.get('pair_norm')} pairs, "
               f"{console.counted(made['groups'], 'group')}"
               + ("" if least is None else
                  f", least cosine {least:+.3f} ({made['least_group']})"))
    if isinstance(settings, dict):
        yield _listed(settings)


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
    stored = (f"{console.counted(about['stored'], 'pair')} in "
              f"{console.counted(about['shards'], 'shard')}")
    if about["released"]:
        stored = "a direction to compare with, no pairs"
    yield "on disk", f"{stored}; {about['bytes'] / 1e6:,.1f} MB in all"
    if about["set_aside"]:
        yield "set aside", f"{console.counted(about['set_aside'], 'file')} in quarantine/"
    for trouble in about["unreadable"]:
        yield "trouble", f"{trouble} See congrad verify."
    for writer in about["writers"]:
        yield "written by", (f"rank {writer['rank']} of {writer['ranks']}, PID {writer['pid']} on "
                             f"{writer['host']}, alive {writer['seconds_ago']:.0f} s ago")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _maybe(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
