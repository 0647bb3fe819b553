"""Text from a model in this process, by transformers' ``generate``.

Each text is drawn with random numbers of its own seed, one for each step, so neither the other
rows of its batch nor the order of batches matters, but for the rounding of floats.

A prompt that fills the model's context gets empty, unfinished texts; a text that reaches the end
of the context is unfinished. No prompt is ever cut: without its beginning it asks something else.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from congrad_cli.errors import ModelError, NumericsError
from congrad_cli.loop.batches import Batches, release_memory
from congrad_cli.loop.loading import KEYS, Checkpoint
from congrad_cli.loop.model_access import Answer, Completion, Request, Sampling
from congrad_cli.loop.tokens import is_plain, prompt_ids

CHUNK_BATCHES = 4
"""Requests in a chunk for each row of a batch: enough to find rows of like length."""

NOTHING = Completion("", finished=False, tokens=0)
"""Where the prompt leaves no room."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One text to be written."""

    request: int
    place: int  # among the request's seeds
    seed: int
    ids: list[int]
    limit: int  # tokens that may be written
    plain: bool


class TransformersBackend:
    """Writes ``batch`` texts at a time. Holds the model."""

    def __init__(
        self, checkpoint: Checkpoint, batch: int, note: Callable[[str], None]
    ) -> None:
        self._checkpoint = checkpoint
        self._chunk = CHUNK_BATCHES * batch
        self._batches = Batches(batch, note)
        self._note = note
        self._ends = end_tokens(checkpoint)
        padding = checkpoint.tokenizer.pad_token_id
        self._padding = int(padding if padding is not None else min(self._ends, default=0))
        # generate fills in what we leave open from the model's own; nothing of it may come through
        checkpoint.model.generation_config = GenerationConfig()

    @property
    def chunk(self) -> int:
        """How many requests it likes at a time."""
        return self._chunk

    def complete(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers, of each kind of sampling those with the longest prompts first."""
        found: list[dict[int, Completion]] = [{} for _ in requests]
        groups: dict[tuple[Sampling, int | None], list[_Row]] = defaultdict(list)
        for number, request in enumerate(requests):
            rows = self._rows(number, request)
            if rows and rows[0].limit < 1:
                self._note(f"the prompt of {request.key} leaves no room in the model's context")
                yield Answer(request.key, (NOTHING,) * len(rows))
            else:
                groups[request.sampling, self._common_limit(rows)].extend(rows)
        for (sampling, _), rows in groups.items():
            rows.sort(key=lambda row: (-len(row.ids), row.request, row.place))
            write = partial(self._write, sampling)
            for batch, texts in self._batches.work(rows, lambda _: 1, write):
                for row, text in zip(batch, texts, strict=True):
                    found[row.request][row.place] = text
                for number in dict.fromkeys(row.request for row in batch):
                    request, texts_of = requests[number], found[number]
                    if len(texts_of) == len(request.seeds):
                        places = range(len(request.seeds))
                        yield Answer(request.key, tuple(texts_of[place] for place in places))

    def close(self) -> None:
        """Let go of the model."""
        del self._checkpoint
        release_memory()

    def _rows(self, number: int, request: Request) -> list[_Row]:
        """One row for each seed of a request."""
        tokenizer = self._checkpoint.tokenizer
        ids = prompt_ids(request.messages, tokenizer)
        if not ids:
            raise ModelError(f"the prompt of {request.key} has no tokens to go on from.")
        plain = is_plain(request.messages, tokenizer)
        limit, context = request.sampling.max_tokens, self._checkpoint.context
        if context is not None:
            limit = min(limit, context - len(ids))
        return [
            _Row(number, place, seed, ids, limit, plain)
            for place, seed in enumerate(request.seeds)
        ]

    def _common_limit(self, rows: Sequence[_Row]) -> int | None:
        """What rows of a batch must have in common, where the model has a table of positions.

        A row that is done goes on as padding, one position a step, until its whole batch is done.
        """
        return rows[0].limit if rows and self._checkpoint.positions is not None else None

    def _write(self, sampling: Sampling, rows: Sequence[_Row]) -> list[Completion]:
        """The texts of one batch."""
        width = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), self._padding)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):  # padding stands at the left: all go on at the right
            ids[number, width - len(row.ids) :] = torch.tensor(row.ids)
            mask[number, width - len(row.ids) :] = 1
        limits = [row.limit for row in rows]
        draws = SeededDraws(sampling, [row.seed for row in rows], width)
        device = self._checkpoint.device
        with torch.inference_mode():
            written: Tensor = self._checkpoint.model.generate(  # [B, width + steps]
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._how(max(limits)),
                logits_processor=LogitsProcessorList([draws]),
                stopping_criteria=StoppingCriteriaList([_Limits(width, limits)]),
            )
        draws.check()
        return [
            self._completion(row, tokens)
            for row, tokens in zip(rows, written[:, width:].tolist(), strict=True)
        ]

    def _how(self, steps: int) -> GenerationConfig:
        """``SeededDraws`` leaves one token in each row, so the likeliest one is taken."""
        return GenerationConfig(
            max_new_tokens=steps, do_sample=False, num_beams=1, use_cache=True,
            eos_token_id=sorted(self._ends) or None, pad_token_id=self._padding,
        )  # fmt: skip

    def _completion(self, row: _Row, tokens: list[int]) -> Completion:
        """What ``tokens`` say up to the first one that ends a text, or to the row's limit."""
        tokens = tokens[: row.limit]
        end = next((at for at, token in enumerate(tokens) if token in self._ends), None)
        said = tokens if end is None else tokens[:end]
        count = len(tokens) if end is None else end + 1
        return Completion(self._text(row, said), finished=end is not None, tokens=count)

    def _text(self, row: _Row, tokens: list[int]) -> str:
        decode = partial(
            self._checkpoint.tokenizer.decode,
            skip_special_tokens=True, clean_up_tokenization_spaces=False,
        )  # fmt: skip
        if row.plain:  # some tokenizers drop the space before the first word of what they decode
            before, whole = decode(row.ids), decode(row.ids + tokens)
            if whole.startswith(before):
                return str(whole[len(before) :])
        return str(decode(tokens))


class SeededDraws(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token in each row, drawn with a number of the row's seed and the step.

    Temperature and top-p are transformers' own. The number falls somewhere into the distribution,
    cumulated over the vocabulary; rounding decides only where it falls onto the edge of a token.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], width: int) -> None:
        self._seeds = seeds
        self._width = width  # of the prompts
        self._greedy = sampling.temperature == 0
        self._sound: Tensor | None = None
        self._warpers = LogitsProcessorList()
        if not self._greedy and sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if not self._greedy and sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(float(sampling.top_p)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [B, T], scores [B, V] -> [B, V]"""
        sound = ~scores.isnan().any()
        self._sound = sound if self._sound is None else self._sound & sound
        if self._greedy:
            return scores
        step = input_ids.shape[1] - self._width
        numbers = torch.tensor(
            [uniform(seed, step) for seed in self._seeds], dtype=torch.float64
        )
        tokens = draw(self._warpers(input_ids, scores), numbers)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def check(self) -> None:
        """Raise where a number was none; asked once at the end, since a GPU waits for it."""
        if self._sound is not None and not self._sound:
            raise NumericsError(
                "the model's logits are not numbers.",
                f"the weights are damaged, or too large for this precision: try {KEYS.dtype} "
                "float32",
            )


def draw(scores: Tensor, numbers: Tensor) -> Tensor:
    """Scores [B, V] and numbers [B] in [0, 1) -> tokens [B], by the inverse of the distribution."""
    exact = torch.float32 if scores.device.type == "mps" else torch.float64  # mps has no other
    cumulated = scores.softmax(-1, dtype=exact).cumsum(-1)
    points = numbers.to(cumulated)[:, None] * cumulated[:, -1:]
    tokens = torch.searchsorted(cumulated, points, right=True).squeeze(1)
    last = (cumulated < cumulated[:, -1:]).sum(1)  # the last token that can come at all
    return torch.minimum(tokens, last)


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1), the same for the same seed and step wherever it is asked for."""
    digest = sha256(f"{seed} {step}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> 11) / (1 << 53)


class _Limits(StoppingCriteria):  # type: ignore[misc]
    """Each row is done at a limit of its own."""

    def __init__(self, width: int, limits: Sequence[int]) -> None:
        self._ends = torch.tensor([width + limit for limit in limits])

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """-> [B] bool"""
        return (input_ids.shape[1] >= self._ends).to(input_ids.device)


def end_tokens(checkpoint: Checkpoint) -> frozenset[int]:
    """All that end a text: the tokenizer's, the model's, and those its makers generate with."""
    said = [checkpoint.tokenizer.eos_token_id]
    for settings in (checkpoint.model.config, checkpoint.model.generation_config):
        found = getattr(settings, "eos_token_id", None)
        said.extend(found if isinstance(found, list | tuple) else [found])
    return frozenset(int(token) for token in said if token is not None)
