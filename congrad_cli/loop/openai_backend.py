"""Text from a server that speaks OpenAI's /chat/completions.

Only fields that every such server knows are sent: model, messages, n, temperature, top_p,
max_tokens and seed. Whether a seed is heeded is the server's affair.
"""

import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from congrad_cli.errors import ModelError, UsageError
from congrad_cli.loop.api_key import ApiKey
from congrad_cli.loop.chat_server import Calls, ChatServer, Later
from congrad_cli.loop.model_access import Answer, Completion, Request
from congrad_cli.loop.serving import ServedModel
from congrad_cli.loop.settings import BackendSection

CHUNK_ROUNDS = 4
"""Requests in a chunk for each one that may be under way."""

PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a request is sent again: the first pause doubles up to the second."""

LONGEST_AFTER = 600.0
"""A server's Retry-After is heeded up to this."""

PASSING = frozenset({408, 409, 425, 429})
"""With the 5xx: what may pass."""

REFUSED_MANY = frozenset({400, 422})
"""What servers answer that take one choice at a time."""

CUT = ("length", "content_filter", "abort")
"""Reasons to finish of texts that are not whole."""


def open_openai(
    section: BackendSection, model: str, folder: Path, note: Callable[[str], None]
) -> "OpenAIBackend":
    """Name ``model`` to the server at ``url``, or serve it by the command ``serve``."""
    key = ApiKey(section.api_key_env)
    if section.serve is None:
        if section.url is None:
            raise UsageError(
                'kind = "openai" needs a server.',
                "pass url = \"http://HOST:PORT/v1\", or a command that serves {model} on {port}",
            )
        server = ChatServer(section.url, key, section.timeout)
        return OpenAIBackend(server, section.model or model, section, note)
    served = ServedModel(section.serve, model, folder, key)
    server = ChatServer(served.url, key, section.timeout)
    return OpenAIBackend(server, section.model or model, section, note, served)


@dataclass(frozen=True, slots=True)
class _Job:
    """One HTTP request: the texts at ``places`` of a request's seeds."""

    request: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Done:
    """What came of a job; fewer texts than places where the server gives one at a time."""

    job: _Job
    texts: list[Completion]


class OpenAIBackend:
    """Sends up to ``concurrency`` requests at a time. Holds the server, if it was started here."""

    def __init__(
        self,
        server: ChatServer,
        model: str,
        section: BackendSection,
        note: Callable[[str], None],
        served: ServedModel | None = None,
    ) -> None:
        self._server = server
        self._model = model
        self._concurrency = max(1, section.concurrency)
        self._retries = section.retries
        self._note = note
        self._noted: set[str] = set()
        self._served = served

    @property
    def chunk(self) -> int:
        """How many requests it likes at a time."""
        return CHUNK_ROUNDS * self._concurrency

    def complete(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers, each as soon as all its texts are there.

        Threads do the waiting; none of them keeps the process alive, and when this generator
        ends, in whatever way, their connections are cut.
        """
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        news: SimpleQueue[_Done | str | BaseException] = SimpleQueue()
        calls = Calls()
        for number, request in enumerate(requests):
            jobs.put(_Job(number, tuple(range(len(request.seeds)))))
        workers = min(self._concurrency, sum(len(request.seeds) for request in requests))

        def work() -> None:
            while (job := jobs.get()) is not None and not calls.ended:
                try:
                    texts = self._ask(requests[job.request], job, news, calls)
                    news.put(_Done(job, texts))
                except BaseException as error:
                    news.put(error)

        for _ in range(workers):
            threading.Thread(target=work, daemon=True, name="congrad-request").start()
        try:
            yield from self._collect(requests, jobs, news)
        finally:
            calls.end()
            for _ in range(workers):
                jobs.put(None)

    def close(self) -> None:
        """Stop the server, if it was started here."""
        if self._served is not None:
            self._served.close()

    def _collect(
        self,
        requests: Sequence[Request],
        jobs: "SimpleQueue[_Job | None]",
        news: "SimpleQueue[_Done | str | BaseException]",
    ) -> Iterator[Answer]:
        """Put the texts of each request together; what a server left out is asked for again."""
        found: list[dict[int, Completion]] = [{} for _ in requests]
        left = sum(len(request.seeds) for request in requests)
        while left:
            item = news.get()
            if isinstance(item, str):
                self._note(item)
                continue
            if isinstance(item, BaseException):
                if self._served is not None:
                    self._served.check()
                raise item
            number, texts = item.job.request, item.texts
            found[number] |= zip(item.job.places, texts, strict=False)
            left -= len(texts)
            for place in item.job.places[len(texts) :]:
                jobs.put(_Job(number, (place,)))
            if len(found[number]) == len(requests[number].seeds):
                places = range(len(requests[number].seeds))
                yield Answer(requests[number].key, tuple(found[number][at] for at in places))

    def _ask(
        self,
        request: Request,
        job: _Job,
        news: "SimpleQueue[_Done | str | BaseException]",
        calls: Calls,
    ) -> list[Completion]:
        """The texts of one job, after as many attempts as are allowed."""
        payload = self._payload(request, job)
        for attempt in range(self._retries + 1):
            try:
                return self._once(payload, calls)
            except Later as failure:
                last = failure
            if attempt == self._retries or calls.ended:
                break
            pause = _pause(attempt, last.after)
            kind = last.reason.partition(":")[0]
            if kind not in self._noted:  # once of each kind, whatever the number of requests
                self._noted.add(kind)
                news.put(f"{self._server.url}: {last.reason}; asking again in {pause:.1f} s")
            calls.wait(pause)
        raise ModelError(
            f"{self._server.url}: {last.reason}; asked {self._retries + 1} times.",
            "check that the server runs and is well; a longer timeout, more retries or a smaller "
            "concurrency may help",
        )

    def _payload(self, request: Request, job: _Job) -> dict[str, Any]:
        sampling = request.sampling
        payload: dict[str, Any] = {
            "model": self._model,
            "messages": list(request.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": request.seeds[job.places[0]],
        }
        if len(job.places) > 1:
            payload["n"] = len(job.places)
        return payload

    def _once(self, payload: dict[str, Any], calls: Calls) -> list[Completion]:
        """One attempt: up to ``n`` texts, none where the server takes no ``n``."""
        wanted = payload.get("n", 1)
        reply = self._server.post(payload, calls)
        if reply.status == 200:
            return _texts(reply.json(), wanted)
        if reply.status in REFUSED_MANY and wanted > 1:
            return []
        if reply.status in PASSING or reply.status >= 500:
            said = f"HTTP {reply.status}: {self._server.message(reply)}"
            raise Later(said.rstrip(": "), reply.after)
        raise self._server.refusal(reply, self._model)


def _texts(found: Any, wanted: int) -> list[Completion]:
    """The choices of a parsed answer, at most ``wanted``."""
    try:
        choices = found["choices"][:wanted]
        texts = [_text(choice) for choice in choices]
    except (KeyError, TypeError, IndexError, AttributeError):
        raise Later("the answer is no chat completion") from None
    if not texts:
        raise Later("the answer holds no choice")
    if len(choices) == 1 and isinstance(found.get("usage"), dict):
        count = found["usage"].get("completion_tokens")
        if type(count) is int and wanted == 1:
            texts = [Completion(texts[0].text, texts[0].finished, count)]
    return texts


def _text(choice: Any) -> Completion:
    """One choice. Content may be null: a model may use up its tokens before it says anything."""
    content = choice["message"]["content"]
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise TypeError
    content = content.encode(errors="replace").decode()  # half a surrogate pair is no text
    return Completion(content, choice.get("finish_reason") not in CUT)


def _pause(attempt: int, after: float | None) -> float:
    """Seconds before the next attempt, spread so that requests do not come back together."""
    grown: float = min(LONGEST_PAUSE, PAUSE * 2.0**attempt) * random.uniform(0.5, 1.0)
    if after is None or not math.isfinite(after):
        return grown
    return max(grown, min(after, LONGEST_AFTER))
