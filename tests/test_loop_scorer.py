"""Weights of given texts, against whole forwards of one row each and against TRL's DPOTrainer."""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, processors
from tokenizers import models as token_models
from tokenizers import pre_tokenizers as splits
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from zoo import build, zoo

from congrad_cli import log_probs
from congrad_cli.errors import ResourceError
from congrad_cli.loop import scorer as scoring
from congrad_cli.loop.model_access import Weighed
from congrad_cli.loop.scorer import open_scorer
from congrad_cli.loop.settings import ModelSection

MAX_LENGTH = 60


def said(text):
    return ({"role": "user", "content": text},)


TEXTS = [
    (said("Hi"), "Hello."),
    (said("Wie heißt die Hauptstadt von Frankreich?"), "Paris."),
    (({"role": "system", "content": "Be short."}, *said("猫は？")), "窓のそばで寝ています。"),  # noqa: RUF001
    (said("Count."), "one two three four " * 20),  # cut
    (said("a b c " * 60), "no room for it"),
    (said("Say nothing."), ""),
    ((), "The sky is blue today, and the sea as well."),
    ((), "猫"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model):
    """Models whose heads differ: plain, tied with a table of positions, capped, scaled."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = {"bundled": tiny_model}
    for name in ("llama", "gpt2", "gemma2", "cohere"):
        folder = tmp_path_factory.mktemp(name)
        build(zoo(len(tokenizer))[name]).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = str(folder)
    return found


def scorer(folder, max_length=MAX_LENGTH, notes=None):
    about = ModelSection(path=str(folder))
    return open_scorer(str(folder), about, max_length, ([] if notes is None else notes).append)


def weigh_slowly(model, tokenizer, messages, response, limit=MAX_LENGTH):
    """One row, all logits, float64."""
    def ids_of(talk, **more):
        return tokenizer.apply_chat_template(talk, return_dict=True, **more)["input_ids"]

    if messages:
        prompt = ids_of(list(messages), add_generation_prompt=True)
        ids = ids_of([*messages, {"role": "assistant", "content": response}])
        assert ids[: len(prompt)] == prompt
        start = len(prompt)
    else:
        ids, start = tokenizer(response)["input_ids"], 1
    ids = ids[:limit]
    if start >= len(ids):
        return 0.0, 0
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    table = logits.log_softmax(-1)
    return sum(float(table[at - 1, ids[at]]) for at in range(start, len(ids))), len(ids) - start


def assert_equal(found, expected):
    assert [item.tokens for item in found] == [count for _, count in expected]
    for item, (logp, _) in zip(found, expected, strict=True):
        assert item.logp == pytest.approx(logp, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere", "bundled"])
def test_weights_are_those_of_each_text_alone(folders, name):
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    expected = [weigh_slowly(model, tokenizer, *text) for text in TEXTS]
    assert 0 in [count for _, count in expected]  # the prompt that leaves no room
    assert max(count for _, count in expected) > 40
    assert_equal(scorer(folders[name]).weigh(TEXTS), expected)


def test_weights_are_those_of_trl(folders, tmp_path, sample_data):
    """The log-probabilities that its precomputation files for each pair, cut and uncut."""
    rows = [json.loads(line) for line in (sample_data / "preferences.jsonl").open("rb")][:24]
    rows = [
        {name: [{"role": role, "content": row[name].strip()}] for name, role in (
            ("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))}
        for row in rows
    ]  # fmt: skip
    rows = [{**row, "number": number} for number, row in enumerate(rows)]
    args = DPOConfig(
        output_dir=str(tmp_path), max_length=MAX_LENGTH, bf16=False, use_cpu=True,
        report_to="none", precompute_ref_log_probs=True, disable_tqdm=True,
        dataloader_pin_memory=False, gradient_checkpointing=False,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folders["bundled"])
    trainer = DPOTrainer(
        model=folders["bundled"], args=args, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    kept = list(trainer.train_dataset)
    assert len(kept) > 12
    found = scorer(folders["bundled"])
    for side in ("chosen", "rejected"):
        texts = [(tuple(rows[row["number"]]["prompt"]), rows[row["number"]][side][0]["content"])
                 for row in kept]  # fmt: skip
        for row, weight in zip(kept, found.weigh(texts), strict=True):
            assert weight.logp == pytest.approx(row[f"ref_{side}_logps"], abs=1e-3, rel=1e-5)
            room = MAX_LENGTH - len(row["prompt_ids"])
            assert weight.tokens == min(room, len(row[f"{side}_ids"]))


def test_neither_batches_nor_chunks_of_the_head_matter(folders, monkeypatch):
    expected = scorer(folders["gemma2"]).weigh(TEXTS)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 70)
    monkeypatch.setattr(log_probs, "HEAD_ELEMENTS", 3 * 4096)
    found = scorer(folders["gemma2"]).weigh(TEXTS)
    assert_equal(found, [(item.logp, item.tokens) for item in expected])
    assert scorer(folders["gemma2"]).weigh([]) == []


def test_texts_are_cut_where_the_model_has_no_more_positions(folders):
    model = AutoModelForCausalLM.from_pretrained(folders["gpt2"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["gpt2"])
    text = (said("Count."), "one two three four " * 100)
    expected = weigh_slowly(model, tokenizer, *text, limit=256)
    assert_equal(scorer(folders["gpt2"], max_length=5000).weigh([text]), [expected])


def test_the_token_that_begins_a_text_is_what_the_first_word_follows(folders, tmp_path):
    """A tokenizer that adds one: the first word then has a probability too."""
    words = ["<s>", "</s>", "the", "cat", "sat"]
    plain = Tokenizer(token_models.WordLevel(
        {word: number for number, word in enumerate(words)}, unk_token="</s>"))
    plain.pre_tokenizer = splits.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    build(zoo(len(words))["llama"]).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    def expected(ids, start):
        with torch.no_grad():
            table = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(table[at - 1, ids[at]]) for at in range(start, len(ids))), len(ids) - start

    found = scorer(tmp_path).weigh([((), "the cat sat"), (said("the cat"), " sat"), ((), "")])
    # without a chat template a lone message is a plain text, whose answer TRL closes
    assert_equal(found, [expected([0, 2, 3, 4], 1), expected([0, 2, 3, 4, 1], 3), (0.0, 0)])


def test_where_memory_runs_out_batches_are_halved(folders, monkeypatch):
    texts = [text for text in TEXTS if text[0]]
    expected = scorer(folders["llama"]).weigh(texts)
    whole, sizes, notes = log_probs.BodyAndHead.states, [], []

    def limited(self, input_ids, **more):
        sizes.append(len(input_ids))
        if input_ids.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, input_ids=input_ids, **more)

    monkeypatch.setattr(log_probs.BodyAndHead, "states", limited)
    most = 2 * MAX_LENGTH
    found = scorer(folders["llama"], notes=notes).weigh(texts)
    assert_equal(found, [(item.logp, item.tokens) for item in expected])
    assert sizes[:2] == [5, 2] and len(notes) == 1
    most = 0
    with pytest.raises(ResourceError):
        scorer(folders["llama"]).weigh(texts)


def test_a_model_in_half_precision_is_weighed_in_float32(folders):
    about = ModelSection(path=folders["bundled"], dtype="bfloat16")
    half = open_scorer(folders["bundled"], about, MAX_LENGTH).weigh(TEXTS)
    full = scorer(folders["bundled"]).weigh(TEXTS)
    for left, right in zip(half, full, strict=True):
        assert left.tokens == right.tokens
        assert left.logp == pytest.approx(right.logp, rel=0.02, abs=0.1)
    assert half != full


def test_a_closed_scorer_lets_go_of_its_model(folders):
    found = scorer(folders["llama"])
    assert found.weigh([(said("a"), "b")])[0] != Weighed(0.0, 0)
    found.close()
    assert not hasattr(found, "_checkpoint")
