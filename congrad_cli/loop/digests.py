"""Digests of what a stage is made of: data files, models, templates."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from congrad_cli.errors import InputError
from congrad_cli.loop.stage import digest_file, digest_of

SMALL = 1 << 20
"""Files up to so many bytes are read whole; of larger ones of a model, blocks."""
ENDINGS = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".tiktoken")
"""Of the files that make a model and its tokenizer."""
BLOCKS, BLOCK_BYTES = 64, 1 << 16


def digest_files(paths: Iterable[Path]) -> str:
    """Of the contents of files, in their order; of a folder those of all in it."""
    digests = []
    try:
        for path in paths:
            inside = sorted(each for each in path.rglob("*") if each.is_file())
            digests += [digest_file(each) for each in (inside if path.is_dir() else [path])]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}.") from error
    return digest_of(digests)


def digest_model(model: str, revision: str | None = None) -> str:
    """Of a model's folder or file: names, sizes, and contents; of the weights only blocks.

    That tells another model, or another training of it, and takes no minutes for a large one. A
    name on the hub is its own digest, with the revision.
    """
    path = Path(model)
    if not path.exists():
        return digest_of([model, revision])
    if path.is_file():
        return digest_of([path.stat().st_size, _spots(path)])
    return digest_of([
        [file.name, file.stat().st_size, _spots(file)] for file in sorted(path.iterdir())
        if file.is_file() and file.suffix in ENDINGS
    ])


def _spots(path: Path) -> str:
    """Of a file's bytes, or of evenly spaced blocks of them with the first and the last."""
    size = path.stat().st_size
    if size <= SMALL:
        return digest_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in range(BLOCKS):
            file.seek((size - BLOCK_BYTES) * block // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
