"""The scripts of ``peer_scripts/``: how long they are, and what they do; ``peers.py`` uses it."""

import ast
import io
import os
import resource
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("peer_scripts")
ROOT = FOLDER.parents[2]
SCRIPTS = {
    "congrad": "congrad_filter.sh",
    "bergson": "bergson_filter.py",
    "dense": "dense_filter.py",
    "autograd": "autograd_filter.py",
}
GRADIENTS = ("*.congrad/shards/*", "index/gradients.bin", "gradients.npy")
"""Where the scripts leave them."""
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
          tokenize.ENCODING, tokenize.ENDMARKER}  # fmt: skip


@dataclass(frozen=True)
class ScriptRun:
    """What one run took and left behind: CPU-seconds of all its processes, bytes of gradients."""

    seconds: float
    bytes: int
    kept: frozenset[bytes]


def code_lines(script: Path) -> int:
    """Lines of a script and of the modules beside it that it imports, each once; no blank lines,
    comments and docstrings."""
    return sum(_own_lines(path) for path in _with_imports(script))


def _with_imports(script: Path) -> set[Path]:
    found, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _beside(path) if path.suffix == ".py" else []
    return found


def _beside(path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        for name in names:
            if (module := path.with_name(f"{name}.py")).exists():
                yield module


def _own_lines(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return sum(bool(line.strip()) and not line.strip().startswith("#")
                   for line in text.splitlines())
    lines = {line for token in tokenize.generate_tokens(io.StringIO(text).readline)
             if token.type not in LAYOUT for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        if documented and ast.get_docstring(node):
            said = node.body[0]
            lines -= set(range(said.lineno, (said.end_lineno or said.lineno) + 1))
    return len(lines)


def run_script(name: str, data: bytes, model: Path, folder: Path) -> ScriptRun:
    """Run a script in an empty ``folder`` on lines of pairs; raises what it ends with."""
    (folder / "pairs.jsonl").write_bytes(data)
    script = FOLDER / SCRIPTS[name]
    command = [str(script)] if script.suffix == ".sh" else [sys.executable, str(script)]
    before = _children()
    done = subprocess.run([*command, "pairs.jsonl", str(model.resolve()), "kept.jsonl"], cwd=folder,
                          env=_environment(folder), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr.decode()[-2000:]}")
    size = sum(path.stat().st_size for place in GRADIENTS for path in folder.glob(place))
    kept = (folder / "kept.jsonl").read_bytes().splitlines(keepends=True)
    return ScriptRun(_children() - before, size, frozenset(kept))


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(folder: Path) -> dict[str, str]:
    """With a ``congrad`` that is this one, whether it is installed or not."""
    command = folder / "bin" / "congrad"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m congrad_cli "$@"\n')
    command.chmod(0o755)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": paths,
                         "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
