"""What the loop asks of a language model, whoever runs it: write text, and weigh given text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

Message = dict[str, str]
"""``{"role": ..., "content": ...}``"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How text is drawn; temperature 0 takes the likeliest token."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """``len(seeds)`` texts are wanted after ``messages``, one for each seed.

    ``key`` names the request. A prompt for a model without chat is one user message.
    """

    key: str
    messages: tuple[Message, ...]
    seeds: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """One text that a model wrote; ``finished`` is false where max_tokens cut it off."""

    text: str
    finished: bool
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The texts of one request, in the order of its seeds."""

    key: str
    completions: tuple[Completion, ...]


class Backend(Protocol):
    """Writes text. Holds a model or a connection until it is closed."""

    @property
    def chunk(self) -> int:
        """How many requests it likes at a time."""

    def complete(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers, in any order, each as soon as it is there.

        The same requests, given together again, get the same answers wherever that is in the
        back-end's hand (in process). Raises :class:`congrad_cli.errors.ModelError` where the
        model or the server fails for good.
        """

    def close(self) -> None:
        """Let go of the model or the connection."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """log pi(response | messages), summed over the response's tokens, and their number."""

    logp: float
    tokens: int


class Scorer(Protocol):
    """Weighs given text under a model. Holds the model until it is closed."""

    def weigh(self, texts: Sequence[tuple[tuple[Message, ...], str]]) -> list[Weighed]:
        """Of (messages, response) each: the response as the chat template and TRL would have it.

        Messages may be empty: the response is then plain text from its first token on (for
        perplexity). Texts longer than the model takes are cut at their end.
        """

    def close(self) -> None:
        """Let go of the model."""
