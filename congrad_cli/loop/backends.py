"""The back-end that ``[backend]`` or ``[judge.backend]`` asks for."""

from collections.abc import Callable
from pathlib import Path

from congrad_cli.errors import UsageError
from congrad_cli.loop.model_access import Backend
from congrad_cli.loop.settings import BACKENDS, BackendSection, ModelSection


def open_backend(
    section: BackendSection,
    model: str,
    about: ModelSection,
    folder: Path,
    note: Callable[[str], None] = lambda _: None,
) -> Backend:
    """Load ``model``, serve it, or name it to a server that runs, as ``section`` says.

    A model that is served writes its log into ``folder``. ``note`` is told what happens to a
    request that does not go as asked.
    """
    if section.kind == "transformers":
        from congrad_cli.loop.loading import load
        from congrad_cli.loop.transformers_backend import TransformersBackend

        return TransformersBackend(load(model, about), section.batch, note)
    if section.kind == "vllm":
        from congrad_cli.loop.vllm_backend import VllmBackend

        return VllmBackend(model, about)
    if section.kind == "openai":
        from congrad_cli.loop.openai_backend import open_openai

        return open_openai(section, model, folder, note)
    raise UsageError(f"backend kind {section.kind}: pass one of {', '.join(BACKENDS)}.")
