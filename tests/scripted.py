"""Models that say what a test wants: a back-end and a scorer without any weights."""

from collections.abc import Callable, Iterator, Sequence

from congrad_cli.loop.model_access import Answer, Completion, Request, Weighed

Say = Callable[[str, int], str | Completion]
"""What is written after a last message with a seed."""


class ScriptedBackend:
    """Answers every request by ``say``, last requests first, and keeps what it was asked."""

    def __init__(self, say: Say, chunk: int = 4) -> None:
        self._say, self.chunk = say, chunk
        self.calls: list[list[Request]] = []

    @property
    def requests(self) -> list[Request]:
        return [request for call in self.calls for request in call]

    def complete(self, requests: Sequence[Request]) -> Iterator[Answer]:
        self.calls.append(list(requests))
        for request in reversed(requests):
            said = (self._say(request.messages[-1]["content"], seed) for seed in request.seeds)
            yield Answer(request.key, tuple(
                one if isinstance(one, Completion) else Completion(one, True, len(one.split()))
                for one in said
            ))

    def close(self) -> None:
        pass


class ScriptedScorer:
    """Weighs a response by ``weigh``; a token is a word."""

    def __init__(self, logp: Callable[[str], float]) -> None:
        self._logp = logp
        self.weighed: list[tuple[tuple[dict[str, str], ...], str]] = []

    def weigh(self, texts):
        self.weighed += texts
        return [Weighed(self._logp(text), len(text.split())) for _, text in texts]

    def close(self) -> None:
        pass


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def item(key, *texts, language="en", prompt="Say something.", **of_all):
    """An item of candidates, each of them finished unless ``of_all`` says otherwise."""
    rest = {"finished": True, "tokens": 3} | of_all
    return {"key": key, "language": language, "messages": [user(prompt)],
            "candidates": [{"text": text, **rest} for text in texts]}
