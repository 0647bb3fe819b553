"""Tokens of many records at once, against calls for each text as TRL makes them; long pairs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as training
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from congrad_cli.checkpoint import PLAIN_TEMPLATE
from congrad_cli.errors import InputError
from congrad_cli.model_source import find_model
from congrad_cli.records.record import Record
from congrad_cli.settings import WINDOW
from congrad_cli.sketch import tokens
from congrad_cli.sketch.tokens import (
    Skip,
    takes_many,
    tokenize,
    tokenize_all,
    windows,
)
from congrad_cli.tokenization import common_prefix

CORPUS = ["the cat sat on the mat", "der Hund bellt", "猫は窓のそばで寝ています。", "a  b\n\nc 123"]
STRICT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] == 'bad' %}{{ raise_exception('no bad words.\nreally') }}{% endif %}"
    "{% if message['content'] == 'odd' %}{{ message['content'] + 1 }}{% endif %}"
    "<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def train(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    return tokenizer


def like_gpt2() -> PreTrainedTokenizerFast:
    """Byte-level BPE without special tokens around a text; none of its own, so no end either."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, training.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def like_llama() -> PreTrainedTokenizerFast:
    """Unigram with a beginning token, saved with truncation and padding, as some files are."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    train(tokenizer, training.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=64)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def like_bert() -> PreTrainedTokenizerFast:
    """Lower case, whole words, and special tokens at both ends."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train(tokenizer, training.WordPieceTrainer(
        vocab_size=150, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", unk_token="[UNK]")


class Characters(PreTrainedTokenizer):
    """A slow tokenizer: code points modulo 500."""

    def __init__(self, **options: Any) -> None:
        super().__init__(eos_token="</s>", **options)

    @property
    def vocab_size(self) -> int:
        return 500

    def get_vocab(self) -> dict[str, int]:
        return {chr(number): number for number in range(500)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token) % 500

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


class OwnEncoding(PreTrainedTokenizerFast):
    """As CodeLlama's: a single text is treated in a way that a list of them is not."""

    def _encode_plus(self, text: Any, *args: Any, **more: Any) -> Any:
        return super()._encode_plus(
            text.upper() if isinstance(text, str) else text, *args, **more)


class OwnTemplate(PreTrainedTokenizerFast):
    """As mistral-common's: what is tokenised is not what is rendered."""

    def apply_chat_template(self, conversation: Any, tokenize: bool = True, **_: Any) -> Any:
        text = "".join(message["content"] for message in conversation)
        return {"input_ids": [7, *self(text)["input_ids"]]} if tokenize else text


def own(kind: type[PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return kind(tokenizer_object=like_gpt2().backend_tokenizer)


BUILT = {
    "gpt2": like_gpt2, "llama": like_llama, "bert": like_bert, "slow": Characters,
    "own encoding": lambda: own(OwnEncoding), "own template": lambda: own(OwnTemplate),
}  # fmt: skip
ALONE = ("slow", "own encoding", "own template")


@pytest.fixture(scope="module")
def tokenizers(sample_data: Path) -> dict[str, Any]:
    found = {name: build() for name, build in BUILT.items()}
    for tokenizer in found.values():
        tokenizer.chat_template = STRICT_TEMPLATE
    bundled = AutoTokenizer.from_pretrained(sample_data / "tiny-model")
    return found | {"bundled": bundled}


def record_of(row: int, prompt: Any, chosen: Any, rejected: Any, **template: Any) -> Record:
    return Record(row, "data.jsonl", row + 1, b"", prompt, chosen, rejected, "en", None,
                  template=template)


def conversation(row: int, texts: tuple[str, str, str], **template: Any) -> Record:
    prompt, chosen, rejected = (
        [{"role": role, "content": text}]
        for role, text in zip(("user", "assistant", "assistant"), texts, strict=True)
    )
    return record_of(row, prompt, chosen, rejected, **template)


def expected(record: Record, tokenizer: Any) -> list[list[int]]:
    """Prompt, prompt + chosen, prompt + rejected by one call each, as TRL's ``_tokenize``."""
    if record.conversational:
        return [
            tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, **record.template, **more
            )["input_ids"]
            for messages, more in (
                (record.prompt, {"add_generation_prompt": True}),
                (record.prompt + record.chosen, {}), (record.prompt + record.rejected, {}),
            )
        ]  # fmt: skip
    end = tokenizer.eos_token or ""
    closed = [
        text if text.endswith(end) else text + end for text in (record.chosen, record.rejected)
    ]
    texts = [record.prompt, *(record.prompt + text for text in closed)]
    return [tokenizer(text)["input_ids"] for text in texts]


def assert_as_one_by_one(records: list[Record], tokenizer: Any, limit: int) -> int:
    """Compare with separate calls; how many pairs there were to compare."""
    found = tokenize_all(records, tokenizer, limit)
    assert [item.record for item in found] == records
    pairs = 0
    for record, item in zip(records, found, strict=True):
        prompt, *both = expected(record, tokenizer)
        start = min(
            next((at for at, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
                 min(len(prompt), len(whole)))
            for whole in both
        )
        if isinstance(item, Skip):
            cut = [whole[start:limit] for whole in both]
            assert item.error is None
            assert (start >= limit) == (item.code == "no-room")
            assert item.code == "no-room" or cut[0] == cut[1] or min(map(len, cut)) < 2
            continue
        pairs += 1
        assert item.prompt == prompt[:start]
        assert [item.chosen, item.rejected] == [whole[start:limit] for whole in both]
        assert item.whole_lengths == tuple(map(len, both))
        assert item.truncated == (max(map(len, both)) > limit)
    return pairs


pieces = st.sampled_from([*"abc  the Hund\n猫です。é\u0301\u200d", "<s>", "</s>", "[SEP]"])
texts = st.lists(pieces, max_size=20).map("".join)
three = st.tuples(texts, texts, texts)


@pytest.mark.parametrize("name", [*BUILT, "bundled"])
@given(st.lists(st.tuples(three, st.booleans()), max_size=6), st.integers(1, 30))
@settings(max_examples=25)
def test_many_at_once_give_the_ids_of_one_by_one(
    tokenizers: dict[str, Any], name: str, drawn: list[Any], limit: int
) -> None:
    records = [
        conversation(row, parts) if chat else record_of(row, *parts)
        for row, (parts, chat) in enumerate(drawn)
    ]
    assert_as_one_by_one(records, tokenizers[name], limit)


@pytest.mark.parametrize("name", [*BUILT, "bundled"])
def test_tokenizers_with_code_of_their_own_are_asked_one_by_one(
    tokenizers: dict[str, Any], name: str
) -> None:
    assert takes_many(tokenizers[name]) == (name not in ALONE)
    records = [record_of(0, "the cat", " sat", " der"), conversation(1, ("the cat", "a", "b"))]
    assert assert_as_one_by_one(records, tokenizers[name], 100) == 2


@pytest.mark.parametrize("split", [False, True])
def test_the_backend_is_set_up_as_the_tokenizers_own_call_would(split: bool) -> None:
    record = record_of(0, "the cat sat on", " the mat <end>" * 9, " der Hund")
    tokenizer = like_gpt2()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.split_special_tokens = split
    found = tokenize(record, tokenizer, 1000)  # before any call of its own
    prompt, chosen, rejected = expected(record, tokenizer)
    assert (found.prompt + found.chosen, found.prompt + found.rejected) == (chosen, rejected)
    assert found.prompt == prompt[: len(found.prompt)]
    assert (tokenizer.eos_token_id in chosen) != split


def test_calls_are_cut_by_characters_and_no_text_is_lost(
    tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CALL_CHARACTERS", 25)
    records = [record_of(row, "the cat " * row, f" {row}", " no") for row in range(1, 9)]
    assert assert_as_one_by_one(records, tokenizers["gpt2"], 1000) == 8


def test_arguments_that_change_more_than_the_template_are_heeded(
    tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers["llama"]
    parts = ("the <s> cat", "sat on", "the mat")
    plain = conversation(0, parts)
    limit = len(tokenize(plain, tokenizer, 1000).prompt) + 3
    limited = conversation(1, parts, truncation=True, max_length=limit)
    named = conversation(2, parts, bos_token="x")
    assert assert_as_one_by_one([plain, limited, named], tokenizer, 1000) == 3
    assert tokenize(limited, tokenizer, 1000).whole_lengths == (limit, limit)


@pytest.mark.parametrize(
    ("word", "template", "reason"),
    [("bad", {}, "no bad words"), ("odd", {}, "can only concatenate str"),
     ("good", {"tokenize": False}, "multiple values for keyword argument 'tokenize'"),
     ("good", {"messages": []}, "multiple values for keyword argument 'messages'"),
     ("good", {"return_tensors": "np"}, "")],
)  # fmt: skip
def test_a_refused_conversation_is_one_located_error_and_spoils_no_other(
    tokenizers: dict[str, Any], word: str, template: dict[str, Any], reason: str
) -> None:
    tokenizer = tokenizers["gpt2"]
    healthy = [conversation(row, ("the cat", "sat", "mat")) for row in (0, 2)]
    broken = conversation(1, ("der Hund", "bellt", word), **template)
    first, refused, last = tokenize_all([healthy[0], broken, healthy[1]], tokenizer, 64)
    assert (first, last) == tuple(tokenize(record, tokenizer, 64) for record in healthy)
    assert isinstance(refused, Skip) and refused.code == refused.error.code == "template"
    assert refused.message.startswith("the chat template refuses this conversation: ")
    assert reason in refused.message and "\n" not in refused.message
    assert refused.error.message == f"data.jsonl:2: {refused.message}."
    assert refused.stops("stop") and not refused.stops("skip")


def test_the_roles_of_what_was_refused_are_shown(tokenizers: dict[str, Any]) -> None:
    refused = tokenize(conversation(0, ("der Hund", "bellt", "bad")), tokenizers["gpt2"], 64)
    assert refused.error.hints[0] == "saw: roles user, assistant"
    refused = tokenize(conversation(0, ("bad", "bellt", "laut")), tokenizers["gpt2"], 64)
    assert refused.error.hints[0] == "saw: roles user"


def answers(tokenizer: Any, *lengths: int) -> Record:
    """A pair of byte-level texts with so many tokens: no two letters of "xq" merge."""
    prompt, chosen, rejected = ("xq" * length for length in lengths)
    record = record_of(9101, prompt[: lengths[0]], chosen[: lengths[1]], rejected[: lengths[2]])
    assert [len(ids) for ids in expected(record, tokenizer)] == [
        lengths[0], lengths[0] + lengths[1], lengths[0] + lengths[2]]  # fmt: skip
    return record


def test_a_longer_pair_is_cut_and_tells_how_long_it_was(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["gpt2"]
    pair = tokenize(answers(tokenizer, 10, 1230, 7), tokenizer, 1024)
    assert (len(pair.prompt), len(pair.chosen), len(pair.rejected)) == (10, 1014, 7)
    assert pair.whole_lengths == (1240, 17) and pair.truncated
    exact = tokenize(answers(tokenizer, 10, 1014, 7), tokenizer, 1024)
    assert exact.whole_lengths == (1024, 17) and not exact.truncated


@pytest.mark.parametrize(
    ("lengths", "message"),
    [((10, 1230, 7), "chosen has 1,240 tokens with the prompt, more than 1,024"),
     ((10, 7, 1015), "rejected has 1,025 tokens with the prompt, more than 1,024"),
     ((10, 1230, 1290),
      "chosen has 1,240 and rejected has 1,300 tokens with the prompt, more than 1,024")],
)  # fmt: skip
def test_a_longer_pair_can_be_skipped_or_stop(
    tokenizers: dict[str, Any], lengths: tuple[int, int, int], message: str
) -> None:
    tokenizer = tokenizers["gpt2"]
    record = answers(tokenizer, *lengths)
    assert tokenize(record, tokenizer, 1024, "skip") == Skip(record, "overlong", message)
    stopped = tokenize(record, tokenizer, 1024, "stop")
    assert (stopped.code, stopped.message) == ("overlong", message)
    assert stopped.stops("stop") and stopped.stops("skip")
    told = message.replace("than 1,024", "than --max-length 1,024.")
    assert stopped.error.message == f"data.jsonl:9102: {told}"
    assert isinstance(stopped.error, InputError) and stopped.error.code == "overlong"
    prompt, chosen, rejected = lengths
    assert stopped.error.hints == (
        f"saw: {prompt:,} tokens in the prompt, {prompt + chosen:,} with chosen, "
        f"{prompt + rejected:,} with rejected",
        "--max-length raises the limit; --overlong truncate cuts such pairs, skip leaves them out",
    )


@pytest.mark.parametrize("overlong", ["truncate", "skip", "stop"])
def test_pairs_that_fit_are_the_same_whatever_becomes_of_others(
    tokenizers: dict[str, Any], overlong: str
) -> None:
    tokenizer = tokenizers["gpt2"]
    record = answers(tokenizer, 10, 1014, 7)
    assert tokenize(record, tokenizer, 1024, overlong) == tokenize(record, tokenizer, 1024)


def test_a_prompt_without_room_is_skipped_unless_it_is_to_stop(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["gpt2"]
    record = answers(tokenizer, 1187, 5, 6)
    message = "the prompt alone has 1,187 tokens, so no answer fits in 1,024"
    for overlong in ("truncate", "skip"):
        assert tokenize(record, tokenizer, 1024, overlong) == Skip(record, "no-room", message)
    stopped = tokenize(record, tokenizer, 1024, "stop")
    assert stopped.stops("skip") and stopped.code == "no-room"
    assert stopped.error.message == (
        "data.jsonl:9102: the prompt alone has 1,187 tokens, so no answer fits in "
        "--max-length 1,024."
    )


lists = st.lists(st.integers(0, 2), max_size=12)


@given(lists, lists, lists)
def test_the_common_prefix_is_the_longest_shared_beginning(
    shared: list[int], left: list[int], right: list[int]
) -> None:
    left, right = shared + left, shared + right
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert left[length : length + 1] != right[length : length + 1] or length == min(
        len(left), len(right))


def test_windows_are_runs_of_consecutive_rows() -> None:
    rows = [*range(3, WINDOW), *range(2 * WINDOW, 2 * WINDOW + 5)]
    records = [record_of(row, "a", "b", "c") for row in rows]
    assert list(windows(iter(records))) == [records[: WINDOW - 3], records[WINDOW - 3 :]]


@pytest.mark.slow
@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE])
def test_a_real_tokenizer_gives_the_ids_of_one_by_one(
    sample_data: Path, template: str | None
) -> None:
    """Of the model that ``CONGRAD_TEST_MODEL`` names, on all sample pairs."""
    source = find_model(os.environ["CONGRAD_TEST_MODEL"])
    tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments())
    tokenizer.chat_template = template or tokenizer.chat_template or PLAIN_TEMPLATE
    lines = [json.loads(line) for line in (sample_data / "preferences.jsonl").open("rb")]
    parts = [(line["prompt"], line["chosen"], line["rejected"]) for line in lines]
    records = [
        *(record_of(row, *three) for row, three in enumerate(parts)),
        *(conversation(len(parts) + row, three) for row, three in enumerate(parts)),
    ]
    assert assert_as_one_by_one(records, tokenizer, 1024) > 800
