"""The configuration as the file that a run keeps: valid TOML that continues the same run."""

import json
from dataclasses import replace
from typing import Any

from congrad_cli.errors import UsageError
from congrad_cli.loop.config import SECTIONS, flat
from congrad_cli.loop.settings import LoopConfig

HEADER = "# What this run is made with; `congrad loop` with this file continues it.\n"


def to_toml(config: LoopConfig) -> str:
    """All values, defaults too, by section; a value that is not set has no line."""
    values = flat(config)
    parts = [HEADER]
    for section in SECTIONS:
        lines = [f"{name.rpartition('.')[2]} = {_value(value)}\n"
                 for name, value in values.items()
                 if name.rpartition(".")[0] == section and value is not None]
        if lines:
            parts.append(f"\n[{section}]\n" + "".join(lines))
    return "".join(parts)


def run_text(config: LoopConfig) -> bytes:
    """The file that lies in the run: its folder is where the file is, so that it may be moved."""
    here = replace(config, run=replace(config.run, folder="."))
    try:
        return to_toml(here).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{error.object!r:.80}: such text cannot be kept as TOML.",
                         "names of files must be UTF-8") from error


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's; of the control characters it leaves out one
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value)


