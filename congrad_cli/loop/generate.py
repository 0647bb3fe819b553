"""Prompts -> candidate answers, several for each."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from congrad_cli.errors import ModelError
from congrad_cli.loop.language_names import english_name
from congrad_cli.loop.model_access import Answer, Backend, Message, Request, Sampling
from congrad_cli.loop.prompts import Prompt
from congrad_cli.loop.seeds import seed_of
from congrad_cli.loop.settings import GenerateSection

TELLING = 4
"""So many prompts whose answers are all equal are no accident."""


def candidates(
    prompts: Sequence[Prompt], backend: Backend, section: GenerateSection, seed: int
) -> Iterator[dict[str, Any]]:
    """One item for each prompt, as each is done.

    ``{"key", "language", "messages", "candidates": [{"text", "finished", "tokens"}, ...]}``; the
    messages are those that the model was asked with, the system message included.

    Raises :class:`ModelError` where sampling has no effect: each of at least four prompts has
    several candidates, drawn with a temperature, that are all equal. Nothing was yielded then.
    """
    asked = {prompt.id: replace(prompt, messages=with_system(prompt, section.system))
             for prompt in prompts}
    sampling = Sampling(section.temperature, section.top_p, section.max_tokens)
    requests = [
        Request(prompt.id, prompt.messages, seeds(seed, prompt.id, section.candidates), sampling)
        for prompt in asked.values()
    ]
    varied = section.temperature == 0 or section.candidates == 1
    held: list[dict[str, Any]] = []
    for answer in backend.complete(requests):
        held.append(_item(asked[answer.key], answer, section.candidates))
        varied = varied or len({each.text for each in answer.completions}) > 1
        if varied:
            yield from held
            held = []
    written = [item for item in held if any(each["tokens"] != 0 for each in item["candidates"])]
    if len(written) >= TELLING:  # where a prompt left no room all answers are empty, and so equal
        raise ModelError(
            f"sampling has no effect: all {section.candidates} answers to each of {len(written)} "
            "prompts are equal.",
            f"asked with: temperature {section.temperature}, and a seed for each answer",
            "a server may ignore both unless the model's generation_config.json has "
            '"do_sample": true; set it there and serve the model again',
        )
    yield from held


def answers(
    prompts: Sequence[Prompt], backend: Backend, section: GenerateSection, seed: int
) -> Iterator[dict[str, Any]]:
    """One answer to each held-out prompt, the likeliest one, as items of :func:`candidates`."""
    return candidates(prompts, backend, replace(section, candidates=1, temperature=0.0), seed)


def with_system(prompt: Prompt, system: str | None) -> tuple[Message, ...]:
    """The prompt's messages with the system message, in which ``{language}`` is filled in.

    It comes before a system message that the prompt has itself, inside the same message: many
    chat templates take only one.
    """
    if system is None:
        return prompt.messages
    content = system.replace("{language}", english_name(prompt.language))
    first, rest = prompt.messages[0], prompt.messages[1:]
    if first["role"] == "system":
        return ({"role": "system", "content": f"{content}\n\n{first['content']}"}, *rest)
    return ({"role": "system", "content": content}, *prompt.messages)


def seeds(seed: int, key: str, count: int, first: int = 0) -> tuple[int, ...]:
    """The seeds of ``count`` samples of an item; ``first`` is the number of those before."""
    return tuple(seed_of(seed, key, sample) for sample in range(first, first + count))


def _item(prompt: Prompt, answer: Answer, count: int) -> dict[str, Any]:
    if len(answer.completions) != count:
        raise ModelError(f"{len(answer.completions)} answers to the prompt {answer.key!r}, "
                         f"{count} were asked for.", "try again, or use another back-end")
    found = [{"text": each.text, "finished": each.finished, "tokens": each.tokens}
             for each in answer.completions]
    return {**prompt.to_json(), "candidates": found}
