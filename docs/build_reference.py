"""Writes docs/reference.md from the code: every command, option, exit code and file.

Run it after a change of the command line: ``python docs/build_reference.py``. A test compares.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from congrad_cli import errors
from congrad_cli.cli import INTERRUPTED, READER_GONE, TERMINATED, app
from congrad_cli.codec import Codec
from congrad_cli.header import OPTIONAL_COLUMNS, shard_columns
from congrad_cli.settings import FORMAT, STORE_DTYPES

KINDS = {int: "N", float: "X", Path: "PATH"}
"""What stands for a value that has no name of its own."""
TARGET = Path(__file__).with_name("reference.md")
HEAD = """# Reference

Every command, option, exit code and file, written by `docs/build_reference.py` from the code.

"""


def reference() -> str:
    """The whole page."""
    root: Any = get_command(app)
    parts = [HEAD, "## Commands\n\n"]
    for name, command in root.commands.items():
        parts += _command(f"congrad {name}", command)
    return "".join([*parts, _exit_codes(), _store()])


def _command(path: str, command: Any) -> Iterator[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params
               if param.param_type_name == "option" and not param.hidden]
    words = " ".join(_word(param) for param in arguments)
    yield f"### `{path}`\n\n{_text(command.help)}\n\n```\n{path} {words} [OPTIONS]\n```\n\n"
    if arguments:
        yield "| argument | meaning |\n|---|---|\n"
        yield from (f"| `{_word(param)}` | {_text(param.help)} |\n" for param in arguments)
        yield "\n"
    if options:
        yield "| option | default | meaning |\n|---|---|---|\n"
        yield from (f"| {_names(param)} | {_default(param)} | {_text(param.help)} |\n"
                    for param in options)
        yield "\n"
    for name, inner in getattr(command, "commands", {}).items():
        yield from _command(f"{path} {name}", inner)


def _word(param: Any) -> str:
    name = (param.metavar or param.name.upper()).strip("[]")
    many = "..." if param.nargs == -1 else ""
    return f"{name}{many}" if param.required else f"[{name}{many}]"


def _names(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    if param.is_flag:
        return names
    value = _text(param.metavar or KINDS.get(param.type_descriptor.annotation, "TEXT"))
    variable = f" (or `{param.envvar}`)" if param.envvar else ""
    return f"{names} `{value}`{variable}"


def _default(param: Any) -> str:
    value = param.default
    if param.required:
        return "required"
    if value is None or value is False or value in ("", []):
        return ""
    if value is True:
        return f"`{param.opts[0]}`"
    return f"`{value}`"


def _text(text: str | None) -> str:
    """One line, safe in a cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def _exit_codes() -> str:
    kinds = [kind for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, errors.CongradError)]
    rows = {0: "done", INTERRUPTED: "Ctrl-C", TERMINATED: "SIGTERM",
            READER_GONE: "the reader of the pipe has gone"}
    rows |= {kind.exit_code: _text((kind.__doc__ or "").splitlines()[0]) for kind in kinds
             if kind is not errors.CongradError}
    rows[1] = "A bug, or an error of the system that has no code of its own."
    lines = [f"| {code} | {rows[code]} |\n" for code in sorted(rows)]
    return "## Exit codes\n\n| code | meaning |\n|---|---|\n" + "".join(lines) + "\n"


def _store() -> str:
    """What the tensors of a shard are, for every code of rows."""
    lines = [f"## The store, format {FORMAT}\n\n",
             "Tensors of a shard, `shards/rRRR-NNNNN.safetensors`, of n pairs with D numbers in r "
             "sub-sketches:\n\n| tensor | type | shape |\n|---|---|---|\n"]
    dim, width = 64, 4
    for code in STORE_DTYPES:
        for name, (kind, tail) in Codec(code, dim, width).columns().items():
            shape = ", ".join(["n", *map(_symbol, tail)])
            lines.append(f"| `{name}` ({code}) | {kind.__name__} | [{shape}] |\n")
    header: Any = type("Header", (), {"codec": Codec("float16", dim, width),
                                      "optional": list(OPTIONAL_COLUMNS)})()
    for name, (kind, tail) in shard_columns(header).items():
        if name not in header.codec.columns():
            shape = ", ".join(["n", *map(str, tail)])
            there = " (optional)" if name in OPTIONAL_COLUMNS else ""
            lines.append(f"| `{name}`{there} | {kind.__name__} | [{shape}] |\n")
    return "".join(lines)


def _symbol(number: int) -> str:
    return {64: "D", 32: "D/2", 8: "D/8", 4: "r", 1: "1"}.get(number, str(number))


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    sys.stderr.write(f"wrote {TARGET}\n")
