"""Text from a model in this process, by vLLM."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from congrad_cli.errors import ModelError
from congrad_cli.loop.loading import KEYS, source_of
from congrad_cli.loop.model_access import Answer, Completion, Request, Sampling
from congrad_cli.loop.settings import ModelSection

CHUNK = 256
"""Requests at a time; vLLM makes batches of its own."""


class VllmBackend:
    """Writes text with ``vllm.LLM``. Holds the model and most of the GPU's memory."""

    def __init__(self, model: str, about: ModelSection) -> None:
        source = source_of(model, about)
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise ModelError(
                f'kind = "vllm" needs vLLM, which cannot be imported: {_line(error)}',
                "pip install 'congrad-cli[vllm]'",
                'or take kind = "transformers", or kind = "openai" with a server',
            ) from error
        self._sampling: Any = SamplingParams
        self._template: str | None = None
        if about.chat_template is not None:
            from congrad_cli.checkpoint import read_template

            self._template = read_template(about.chat_template, KEYS.chat_template)
        with _explained(f"vLLM cannot load {model}"):
            self._llm: Any = LLM(
                model=model, revision=source.revision, dtype=about.dtype,
                generation_config="vllm",  # the model's own would limit what is asked for
            )  # fmt: skip

    @property
    def chunk(self) -> int:
        """How many requests it likes at a time."""
        return CHUNK

    def complete(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers, in order, when all are there. Each text is drawn with its own seed."""
        wanted = [(request, seed) for request in requests for seed in request.seeds]
        with _explained("vLLM cannot go on"):
            found = iter(self._llm.chat(
                [list(request.messages) for request, _ in wanted],
                [self._params(request.sampling, seed) for request, seed in wanted],
                use_tqdm=False,
                chat_template=self._template,
            ))  # fmt: skip
        for request in requests:
            texts = [next(found).outputs[0] for _ in request.seeds]
            yield Answer(request.key, tuple(
                Completion(text.text, text.finish_reason == "stop", len(text.token_ids))
                for text in texts
            ))  # fmt: skip

    def close(self) -> None:
        """Let go of the model."""
        del self._llm
        gc.collect()

    def _params(self, sampling: Sampling, seed: int) -> Any:
        return self._sampling(
            temperature=sampling.temperature, top_p=sampling.top_p,
            max_tokens=sampling.max_tokens, seed=seed,
        )  # fmt: skip


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{what}: {_line(error)}", "what vLLM has printed says more") from error


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
