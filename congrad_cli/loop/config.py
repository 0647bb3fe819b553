"""The loop's configuration: a TOML file and ``--set`` on top, as a checked :class:`LoopConfig`.

Paths in the file are relative to the file, those of ``--set`` to the current folder. In a
:class:`LoopConfig` they are absolute; a model's path that is none is a name on the hub.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from glob import escape
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from congrad_cli.errors import UsageError
from congrad_cli.loop.config_checks import check_config
from congrad_cli.loop.settings import BackendSection, LoopConfig

SECTIONS: dict[str, Any] = get_type_hints(LoopConfig) | {"judge.backend": BackendSection}
"""The class of every section, by the name in its header."""

FILES = ("run.folder", "prompts.files", "judge.template", "train.accelerate_config",
         "evaluate.prompts", "evaluate.pairs", "evaluate.text")
"""Keys that hold paths."""
MODELS = ("model.path", "judge.reference")
"""Keys that hold a folder or a file, or a name on the hub."""
TEMPLATE = "model.chat_template"
"""A file, or the word plain."""
SHORT = {"run": "run.folder"}
"""Names that ``--set`` takes for others."""

Values = dict[str, dict[str, Any]]
"""What was given, by section and key."""


def read_config(path: Path, changes: Sequence[str] = ()) -> LoopConfig:
    """The configuration at ``path`` with every ``--set`` of ``changes`` applied, checked.

    Raises :class:`UsageError` for a file that is none, an unknown section or key, a wrong type,
    a value out of range, and values that make no sense together.
    """
    values = read_values(path)
    apply_changes(values, changes)
    config = build(values)
    check_config(config)
    return config


def read_values(path: Path) -> Values:
    """What the file says, by section and key; types and names are checked, paths absolute."""
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.",
                         "congrad loop CONFIG.toml; see docs/loop.md for what is in it") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}).") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: no valid TOML: {error}.") from error
    values: Values = {}
    base = path.absolute().parent
    for section, keys in _sections(str(path), content):
        for key, value in keys.items():
            _put(values, str(path), section, key, value, base)
        values.setdefault(section, {})
    return values


def apply_changes(values: Values, changes: Sequence[str]) -> None:
    """Put every ``section.key=value`` into ``values``."""
    for change in changes:
        name, equals, text = change.partition("=")
        name = SHORT.get(name.strip(), name.strip())
        section, dot, key = name.rpartition(".")
        if not (equals and dot):
            raise UsageError(f"--set {change}: section.key=value is needed.",
                             "such as --set generate.candidates=8")
        known = SECTIONS[_known_section(f"--set {name}", section)]
        hint = get_type_hints(known).get(key)
        _put(values, f"--set {name}", section, key, _parsed(text.strip(), hint), Path.cwd())


def build(values: Mapping[str, Mapping[str, Any]]) -> LoopConfig:
    """The dataclasses of values that are checked one by one; what is not given is the default."""
    given = {name: SECTIONS[name](**keys) for name, keys in values.items()}
    if (backend := given.pop("judge.backend", None)) is not None:
        given["judge"] = replace(given.get("judge", SECTIONS["judge"]()), backend=backend)
    return LoopConfig(**given)


def _sections(where: str, content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The file's sections by name, the one inside ``[judge]`` on its own."""
    result = []
    for name, keys in content.items():
        _known_section(where, name)
        _require_table(where, name, keys)
        inner = dict(keys)
        if name == "judge" and "backend" in inner:
            backend = inner.pop("backend")
            _require_table(where, "judge.backend", backend)
            result.append(("judge.backend", backend))
        result.append((name, inner))
    return result


def _require_table(where: str, name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: {name} is a section, and here it is {_seen(value)}.",
                         f"write [{name}] and its keys below")


def _known_section(where: str, name: str) -> str:
    if name not in SECTIONS:
        raise UsageError(f"{where}: there is no section [{name}].", *_nearest(name, SECTIONS),
                         f"there are {', '.join(SECTIONS)}")
    return name


def _put(values: Values, where: str, section: str, key: str, value: Any, base: Path) -> None:
    """Check one value and put it where it belongs."""
    hints = get_type_hints(SECTIONS[section])
    if f"{section}.{key}" in SECTIONS:
        raise UsageError(f"{where}: [{section}.{key}] is a section.",
                         f"name a key of it, such as {section}.{key}.kind")
    if key not in hints:
        at = [f"[{name}]" for name, kind in SECTIONS.items() if key in get_type_hints(kind)]
        raise UsageError(f"{where}: [{section}] has no key {key}.", *_nearest(key, hints),
                         *([f"{key} is a key of {', '.join(at)}"] if at else []))
    typed = _typed(f"{where}: {section}.{key}", hints[key], value)
    values.setdefault(section, {})[key] = _placed(f"{section}.{key}", typed, base)


def _nearest(name: str, known: Mapping[str, object]) -> list[str]:
    found = difflib.get_close_matches(name, list(known), 1)
    return [f"did you mean {found[0]}?"] if found else []


def _parsed(text: str, hint: Any) -> Any:
    """The text of a ``--set`` as TOML has it; a bare word is a text, and so is all of a text key.

    Quotes and brackets are TOML's also there.
    """
    wants_text = str in (hint, *get_args(hint)) and get_origin(hint) is not tuple
    if wants_text and not text.startswith(('"', "'", "[", "{")):
        return text
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text


def _typed(where: str, hint: Any, value: Any) -> Any:
    """The value as its key has it. Raises :class:`UsageError` for another type."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is tuple:
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return tuple(value)
        elif kind is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        elif type(value) is kind:
            return value
    names = " or ".join(_NAMES[get_origin(kind) or kind] for kind in kinds if kind in _NAMES
                        or get_origin(kind) in _NAMES)
    raise UsageError(f"{where}: {names} is needed, and here it is {_seen(value)}.")


_NAMES: dict[Any, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false",
    tuple: "a list of texts",
}  # fmt: skip


def _seen(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"the list {value!r:.60}"
    kind = {bool: "", str: "the text ", int: "the number ", float: "the number "}.get(
        type(value), f"a {type(value).__name__}, ")
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{kind}{shown:.60}"


def _placed(name: str, value: Any, base: Path) -> Any:
    """Paths as absolute ones; everything else as it is."""
    if name in FILES:
        if isinstance(value, tuple):
            return tuple(_pattern(item, base) for item in value)
        return _absolute(value, base) if value else value
    if name in MODELS and value:
        return _absolute(value, base) if _is_local(value, base) else value
    if name == TEMPLATE and value not in (None, "plain"):
        return _absolute(value, base)
    return value


def _is_local(model: str, base: Path) -> bool:
    """Whether a model is a file or a folder here, or looks like one, and no name on the hub."""
    looks = model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf")
    return looks or model.count("/") > 1 or (base / model).exists()


def _pattern(value: str, base: Path) -> str:
    """A file, or a pattern for files; what looks like one in the folder's own name is none."""
    plain = _absolute(value, base)
    return plain if Path(plain).exists() else _absolute(value, Path(escape(str(base))))


def _absolute(value: str, base: Path) -> str:
    return os.path.normpath(base / Path(value).expanduser())


def flat(config: LoopConfig) -> dict[str, Any]:
    """Every value by ``section.key``; of ``judge.backend`` only where it is there."""
    result = {}
    for name in SECTIONS:
        section = config.judge.backend if name == "judge.backend" else getattr(config, name)
        if section is None:
            continue
        for field in fields(section):
            if f"{name}.{field.name}" not in SECTIONS:
                result[f"{name}.{field.name}"] = getattr(section, field.name)
    return result
