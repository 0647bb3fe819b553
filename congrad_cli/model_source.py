"""Where a model comes from. Without torch, so that a wrong path is reported at once."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from congrad_cli.errors import ModelError


@dataclass(frozen=True, slots=True)
class OptionNames:
    """What the user calls the options that an error about a model names."""

    model: str = "--model"
    chat_template: str = "--chat-template"
    device: str = "--device"
    dtype: str = "--dtype"


SHELL = OptionNames()


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: what ``from_pretrained`` takes, and what the user wrote."""

    name: str
    location: str
    gguf_file: str | None
    revision: str | None
    adapter: str | None = None  # a PEFT adapter's folder
    options: OptionNames = SHELL

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for every ``from_pretrained``. Repository code is never run."""
        arguments: dict[str, Any] = {"trust_remote_code": False}
        if self.gguf_file:
            arguments["gguf_file"] = self.gguf_file
        if self.revision:
            arguments["revision"] = self.revision
        return arguments


def find_model(
    name: str,
    revision: str | None = None,
    adapter: str | None = None,
    options: OptionNames = SHELL,
) -> ModelSource:
    """A folder, a ``.gguf`` file, or else a name on the hub; and the folder of an adapter."""
    source = _find_base(name, revision, options)
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise ModelError(
            f"--adapter {adapter}: a folder with adapter_config.json is needed.",
            "pass the folder that PEFT's save_pretrained wrote",
        )
    return replace(source, adapter=adapter, options=options)


def _find_base(name: str, revision: str | None, options: OptionNames) -> ModelSource:
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{name}: no such file.", "pass a .gguf file that exists")
        return ModelSource(name, str(path.parent), path.name, None)
    if path.is_file():
        raise ModelError(f"{name} is a file.", f"pass its folder: {options.model} {path.parent}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(
            f"{name}: a folder without config.json.",
            "pass the folder that save_pretrained wrote, or a .gguf file",
        )
    looks_local = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
    if looks_local and not path.exists():
        raise ModelError(f"{name}: no such folder.", "check the path")
    return ModelSource(name, name, None, revision)
