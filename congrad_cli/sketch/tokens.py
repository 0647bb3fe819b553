"""Record -> TokenizedPair: tokens exactly as TRL's DPOTrainer makes them, a window at a time.

Source: TRL 1.16, ``DPOTrainer._prepare_dataset`` and ``DataCollatorForPreference``. Prompt,
prompt + chosen and prompt + rejected are tokenised apart; the answer starts where the first and
either of the others part ways; plain texts get the end-of-sequence token unless they end with it;
each sequence is cut at ``max_length`` from its end.

A fast tokenizer gets the texts of many records in a call; conversations are rendered first and
then tokenised like texts, without special tokens, which is what ``apply_chat_template`` does with
one of them. Tokenizers with code of their own for either are asked record by record.

Texts are tokenised whole, however long they are. The first ``max_length`` tokens of a text are not
those of its beginning: how a tokenizer splits a word, or a text without spaces, may depend on what
comes after any fixed margin.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from congrad_cli.records.record import BadRecord, Messages, Record
from congrad_cli.settings import WINDOW
from congrad_cli.tokenization import common_prefix, with_end

CALL_CHARACTERS = 1 << 18
"""Of one tokenizer call, unless a single text is longer: what it returns is dozens of times larger
than the texts."""

TOKENISING = frozenset({
    "tokenize", "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding",
    "truncation", "max_length", "sanitize_control_tokens", "tokenizer_kwargs",
})  # fmt: skip
"""Arguments of ``apply_chat_template`` that do more than fill in the template."""

Part = TypeVar("Part")
Three = tuple[Part, Part, Part]
"""Something of prompt, of prompt + chosen and of prompt + rejected, which are tokenised apart."""


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """The token ids of one pair, already cut to ``max_length``."""

    record: Record
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    cut_chosen: int = 0  # tokens that truncation took from the answer's end
    cut_rejected: int = 0

    @property
    def length(self) -> int:
        """Tokens of the shared row."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def truncated(self) -> bool:
        """Whether an answer lost its end."""
        return self.cut_chosen > 0 or self.cut_rejected > 0

    @property
    def whole_lengths(self) -> tuple[int, int]:
        """Tokens of prompt + chosen and of prompt + rejected before truncation."""
        prompt = len(self.prompt)
        return (
            prompt + len(self.chosen) + self.cut_chosen,
            prompt + len(self.rejected) + self.cut_rejected,
        )


@dataclass(frozen=True, slots=True)
class Skip:
    """A pair that gets no sketch, and why.

    ``error`` is there where such a pair may stop the run: it is what the run then ends with.
    """

    record: Record
    code: str
    message: str
    error: BadRecord | None = None

    def stops(self, bad_records: str) -> bool:
        """Whether the run ends here. Damage may be skipped; ``--overlong stop`` has no way out."""
        return self.error is not None and (self.code != "template" or bad_records == "stop")


def tokenize(
    record: Record, tokenizer: Any, max_length: int, overlong: str = "truncate"
) -> TokenizedPair | Skip:
    """Tokenise one pair, or say why it cannot be sketched."""
    return tokenize_all([record], tokenizer, max_length, overlong)[0]


def tokenize_all(
    records: Sequence[Record], tokenizer: Any, max_length: int, overlong: str = "truncate"
) -> list[TokenizedPair | Skip]:
    """Tokenise pairs, in their order; for each that cannot be sketched, say why.

    ``overlong`` says what becomes of a pair with more than ``max_length`` tokens: ``truncate``
    cuts it, ``skip`` skips it, ``stop`` skips it with an error. A pair whose prompt leaves no room
    for an answer cannot be cut and is always skipped, by ``stop`` with an error. A conversation
    that the chat template refuses is skipped with an error. Nothing about a record is raised.
    """
    return [
        found if isinstance(found, Skip) else _pair(record, found, max_length, overlong)
        for record, found in zip(records, _sequences(records, tokenizer), strict=True)
    ]


def windows(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Cut the records into windows of consecutive rows."""
    for _, window in groupby(records, key=lambda record: record.row // WINDOW):
        yield list(window)


def takes_many(tokenizer: Any) -> bool:
    """Whether one call with many texts gives the ids that a call for each would give.

    So it is with fast tokenizers that have no code of their own between text and ids.
    """
    from transformers import PreTrainedTokenizerFast as Fast

    return isinstance(tokenizer, Fast) and all(
        getattr(type(tokenizer), name) is getattr(Fast, name)
        for name in ("__call__", "_encode_plus", "apply_chat_template")
    )


def _sequences(records: Sequence[Record], tokenizer: Any) -> Iterator[Three[list[int]] | Skip]:
    """The ids of every record, in order."""
    many = takes_many(tokenizer)

    def kind(record: Record) -> tuple[bool, bool]:
        return record.conversational, many and not TOKENISING & record.template.keys()

    for (conversational, together), run in groupby(records, kind):
        if not together:
            yield from (_ask_alone(record, tokenizer) for record in run)
            continue
        rendered = [_texts(record, tokenizer) for record in run]
        texts = (text for three in rendered if not isinstance(three, Skip) for text in three)
        # a template writes the special tokens itself
        ids = _ids(texts, tokenizer, add_special_tokens=not conversational)
        for three in rendered:
            yield three if isinstance(three, Skip) else (next(ids), next(ids), next(ids))


def _ids(texts: Iterable[str], tokenizer: Any, add_special_tokens: bool) -> Iterator[list[int]]:
    """The ids of every text, from few calls; a tokenizer's own call sets its backend up like this.

    What it adds to that, offsets and masks, takes longer than the ids.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens

    def ask(call: list[str]) -> Iterator[list[int]]:
        encoded = backend.encode_batch_fast(call, add_special_tokens=add_special_tokens)
        return (encoding.ids for encoding in encoded)

    call: list[str] = []
    size = 0
    for text in texts:
        if call and size + len(text) > CALL_CHARACTERS:
            yield from ask(call)
            call, size = [], 0
        call.append(text)
        size += len(text)
    if call:
        yield from ask(call)


def _ask_alone(record: Record, tokenizer: Any) -> Three[list[int]] | Skip:
    """The ids of one record, from a call for each of its sequences."""
    if record.conversational:
        return _apply_template(
            record, tokenizer, lambda encoded: [int(token) for token in encoded["input_ids"]],
            tokenize=True, return_dict=True,
        )  # fmt: skip
    prompt, chosen, rejected = (
        list(tokenizer(text)["input_ids"]) for text in _plain_texts(record, tokenizer)
    )
    return prompt, chosen, rejected


def _texts(record: Record, tokenizer: Any) -> Three[str] | Skip:
    """What a tokenizer gets of one record."""
    if record.conversational:
        return _apply_template(record, tokenizer, str, tokenize=False)
    return _plain_texts(record, tokenizer)


def _plain_texts(record: Record, tokenizer: Any) -> Three[str]:
    prompt, chosen, rejected = record.prompt, record.chosen, record.rejected
    assert isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str)
    end: str = tokenizer.eos_token or ""
    return prompt, prompt + with_end(chosen, end), prompt + with_end(rejected, end)


def _apply_template(
    record: Record, tokenizer: Any, read: Callable[[Any], Part], **how: Any
) -> Three[Part] | Skip:
    """What the chat template makes of one record's sequences, or its refusal."""
    prompt, chosen, rejected = record.prompt, record.chosen, record.rejected
    assert isinstance(prompt, list) and isinstance(chosen, list) and isinstance(rejected, list)

    result: list[Part] = []
    for messages, more in (
        (prompt, {"add_generation_prompt": True}), (prompt + chosen, {}), (prompt + rejected, {}),
    ):  # fmt: skip
        try:
            made = tokenizer.apply_chat_template(messages, **how, **record.template, **more)
            result.append(read(made))
        except MemoryError:
            raise
        except Exception as error:  # a template is a program from elsewhere: anything may come
            return _refusal(record, messages, error)
    return result[0], result[1], result[2]


def _refusal(record: Record, messages: Messages, cause: Exception) -> Skip:
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
    message = f"the chat template refuses this conversation: {reason}"
    error = BadRecord(
        record.source, record.line, "template", f"{message}.",
        f"saw: roles {', '.join(message['role'] for message in messages)}",
        "mend the line, or pass another --chat-template",
    )  # fmt: skip
    return Skip(record, "template", message, error)


def _pair(
    record: Record, ids: Three[list[int]], max_length: int, overlong: str
) -> TokenizedPair | Skip:
    """Split, check and cut one pair's sequences."""
    prompt, *both = ids
    length = min(common_prefix(prompt, whole) for whole in both)
    if length >= max_length or (overlong != "truncate" and max(map(len, both)) > max_length):
        return _overlong(record, (length, len(both[0]), len(both[1])), max_length, overlong)
    chosen, rejected = (whole[length:max_length] for whole in both)
    if not chosen or not rejected or (length == 0 and 1 in (len(chosen), len(rejected))):
        return Skip(record, "no-tokens", "an answer has no token whose probability is defined")
    if chosen == rejected:
        return Skip(
            record, "same-tokens", f"the answers do not differ within {max_length:,} tokens"
        )
    cut_chosen, cut_rejected = (max(0, len(whole) - max_length) for whole in both)
    return TokenizedPair(record, prompt[:length], chosen, rejected, cut_chosen, cut_rejected)


def _overlong(record: Record, lengths: Three[int], max_length: int, overlong: str) -> Skip:
    """The skip of a pair that is longer than may be; ``lengths`` are those of its sequences."""
    prompt, *both = lengths
    room = prompt < max_length
    if room:
        long = [f"{name} has {length:,}" for name, length in zip(
            ("chosen", "rejected"), both, strict=True) if length > max_length]
        code, what = "overlong", f"{' and '.join(long)} tokens with the prompt, more than"
    else:
        code = "no-room"
        what = f"the prompt alone has {prompt:,} tokens, so no answer fits in"
    message = f"{what} {max_length:,}"
    if overlong != "stop":
        return Skip(record, code, message)
    others = "truncate cuts such pairs, skip leaves them out" if room else "skip leaves it out"
    error = BadRecord(
        record.source, record.line, code, f"{what} --max-length {max_length:,}.",
        "saw: {:,} tokens in the prompt, {:,} with chosen, {:,} with rejected".format(*lengths),
        f"--max-length raises the limit; --overlong {others}",
    )  # fmt: skip
    return Skip(record, code, message, error)
