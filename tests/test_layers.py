"""The house rule: arrows point down, folders do not know each other, heavy imports stay inside.

Linters cannot see it, so this reads every import of the package, those inside functions too.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import congrad_cli

PACKAGE = Path(congrad_cli.__file__).parent
FOLDERS = ("sketch", "consensus", "filter", "loop", "report")
TOP = ("__main__", "cli", "console")  # what lies above the folders
DOORS = ("", "callable")
"""What Python users come in by: the functions behind are imported when they are called."""
BASE = ("settings", "errors")  # what lies below everything
COMMANDS = ("commands.", "options.", "display.")
"""The shell's side of the folders; ``cli`` puts them together."""
ABOVE = ("demo", "loop.run", "report.gather", "report.run", "report.telling", "api")
"""What brings the folders together: they may use any of them."""
ROUNDS = "loop.run"
WITH_TORCH = (
    "sketch", "loop.transformers_backend", "loop.scorer", "loop.dpo", "checkpoint", "log_probs"
)
"""Only these import torch when they are imported."""
MAX_LINES = 400
HEAVY = ("torch", "transformers", "faiss", "safetensors.torch")

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "sample_data" not in path.parts)


def module_name(path: Path) -> str:
    """``filter.scores`` for congrad_cli/filter/scores.py, ``filter`` for its ``__init__``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
SHARED = [name for name in MODULES if "." not in name and name not in (*FOLDERS, *TOP, *ABOVE, "")]


def _for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(tree: ast.AST, inside: bool) -> Iterator[str]:
    """Dotted names of what the code imports when it runs; ``inside``: also within functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif _for_types_alone(node):
            continue
        elif inside or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported(node, inside)


def targets(name: str, inside: bool = True) -> set[str]:
    """Which modules of the package ``name`` imports, longest known name each."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    names = {full.removeprefix("congrad_cli.") for full in imported(tree, inside)
             if full.startswith("congrad_cli.")}
    return {found for found in names if found in MODULES and found not in FOLDERS}


def level(name: str) -> int:
    """The storey of a module: 4 cli, 3 a folder's run, 2 its inside, 1 shared, 0 the base."""
    above = (*TOP, *ABOVE, "commands", "options", "display")
    if name in above or name.startswith(COMMANDS):
        return 4
    if name in BASE or name == "":
        return 0
    if name.partition(".")[0] in FOLDERS:
        return 3 if name.endswith(".run") else 2
    return 1


def test_the_reader_of_imports_sees_them():
    """Guards the tests below: an empty result would pass them all."""
    assert {"commands.sketch", "commands.filter", "console"} <= targets("cli")
    assert {"sketch.run", "console"} <= targets("commands.sketch")
    assert "sketch.run" not in targets("commands.sketch", inside=False)
    assert "demo" not in targets("console")  # for types only
    assert {"store", "records", "tensors"} <= set(SHARED)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in DOORS])
def test_arrows_point_down(name):
    """A module imports its own storey or lower ones; ``run`` is imported from above only."""
    for target in targets(name):
        assert level(target) <= level(name), f"{name} imports {target}"
        if target.endswith(".run"):
            above = name in ABOVE or name.startswith(COMMANDS)
            assert above, f"{name} imports {target}"


@pytest.mark.parametrize("name", BASE)
def test_the_base_imports_nothing_of_the_package(name):
    assert not targets(name)


@pytest.mark.parametrize("name", MODULES)
def test_no_folder_imports_a_sibling(name):
    folder = name.partition(".")[0]
    if folder in FOLDERS and name not in ABOVE:
        others = {target for target in targets(name) if target.partition(".")[0] in FOLDERS}
        assert all(target.startswith(f"{folder}.") for target in others), others


def test_the_rounds_use_other_folders_by_their_runs_alone():
    others = {target for target in targets(ROUNDS) if target.partition(".")[0] in FOLDERS}
    foreign = {target for target in others if not target.startswith("loop.")}
    assert foreign == {"sketch.run", "consensus.run", "filter.run"}


def test_only_the_command_line_uses_the_terminal():
    users = {name for name in MODULES if "console" in targets(name)}
    assert users == {"cli", *(name for name in MODULES
                              if name.startswith(("commands.", "display.")))}


def test_no_two_modules_need_each_other():
    """A cycle between shared modules would pass the storey test."""
    arrows = {name: targets(name) for name in MODULES}
    while True:
        leaves = {name for name, found in arrows.items() if not found & arrows.keys()}
        if not leaves:
            break
        arrows = {name: found for name, found in arrows.items() if name not in leaves}
    assert not arrows


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(WITH_TORCH)])
def test_heavy_packages_are_not_imported_at_module_level(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found = [full for full in imported(tree, inside=False)
             if any(full == heavy or full.startswith(f"{heavy}.") for heavy in HEAVY)]
    assert not found


@pytest.mark.parametrize("folder", ["consensus", "filter"])
def test_numpy_commands_never_import_torch(folder):
    """Not even inside a function: they run where torch is slow to load or not there."""
    for name in MODULES:
        if name.startswith(folder):
            tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
            assert not [full for full in imported(tree, inside=True) if full.startswith("torch")]


def test_files_stay_short():
    long = {name: count for name, path in MODULES.items()
            if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES}
    assert not long


def test_every_module_says_what_it_is_for():
    silent = [name for name, path in MODULES.items()
              if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


@pytest.mark.parametrize("name", DOORS)
def test_doors_import_nothing_by_themselves(name):
    assert not targets(name, inside=False)


def test_the_tree_in_the_manual_names_every_module():
    """Commands, options and displays are named by their command."""
    manual = (PACKAGE.parent / "docs" / "contributing.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(\w+)\.py\b", manual))
    by_command = ("commands.", "options.", "display.")
    missing = {name for name, path in MODULES.items()
               if path.stem not in named and path.stem != "__init__"
               and not name.startswith(by_command)}
    assert not missing
