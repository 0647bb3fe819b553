"""The trainer's checkpoints: which of them are whole. A kill may come in the middle of one.

The trainer writes ``checkpoint-N`` file by file, from several processes. A last file of ours says
that all are there and how long each is; a checkpoint without it, or with other lengths, is no
checkpoint.
"""

import json
import os
import re
import shutil
from pathlib import Path

MARK = "congrad.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Say that the checkpoint is whole. What it holds reaches the disk first."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != MARK)
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sizes = {str(file.relative_to(checkpoint)): file.stat().st_size for file in files}
    temporary = checkpoint / f".{MARK}.tmp"
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(sizes, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(checkpoint / MARK)


def is_complete(checkpoint: Path) -> bool:
    """Whether all files that the mark names are there with their lengths."""
    try:
        sizes = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def step_of(checkpoint: Path) -> int:
    """The number of optimiser steps in ``checkpoint-N``."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint to go on from; those that are not whole are removed."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    whole = []
    for checkpoint in found:
        if is_complete(checkpoint):
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=step_of, default=None)
