"""Texts written in this process, against plain generate and a slow loop without batch or cache."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from zoo import build, zoo

from congrad_cli.errors import ModelError, NumericsError, ResourceError, UsageError
from congrad_cli.loop import loading
from congrad_cli.loop.backends import open_backend
from congrad_cli.loop.model_access import Request, Sampling
from congrad_cli.loop.settings import BackendSection, ModelSection
from congrad_cli.loop.transformers_backend import TransformersBackend, draw, uniform

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=14)
WARM = Sampling(temperature=0.8, top_p=0.9, max_tokens=14)
HOT = Sampling(temperature=1.0, top_p=1.0, max_tokens=14)
PROMPTS = (
    "Hi", "Wie heißt die Hauptstadt von Frankreich und warum?", "猫は窓のそばで寝ています。なぜ",
    "List the numbers from one to ten, then say which of them are prime, and why that is so.",
    "Why?",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model):
    """Random models of two architectures with the bundled tokenizer, and the bundled model."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = {"bundled": tiny_model}
    for name in ("llama", "gpt2"):
        folder = tmp_path_factory.mktemp(name)
        build(zoo(len(tokenizer))[name]).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = str(folder)
    return found


def backend(folder, batch=8, notes=None, **about):
    section = BackendSection(batch=batch)
    note = [].append if notes is None else notes.append
    return open_backend(
        section, str(folder), ModelSection(path=str(folder), **about), Path(), note)


def ask(text, sampling, seeds=(1,), key=None):
    return Request(key or text, ({"role": "user", "content": text},), seeds, sampling)


def texts(answers):
    return {answer.key: answer.completions for answer in answers}


def plain_ids(tokenizer, text):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
    )["input_ids"]  # fmt: skip


def slow_text(model, tokenizer, ids, sampling, seed):
    """One token after the other from whole forwards of one row, in numpy; and the ids."""
    written = []
    for step in range(sampling.max_tokens):
        with torch.no_grad():
            row = model(input_ids=torch.tensor([ids + written])).logits[0, -1]
        scores = row.double().numpy()
        if sampling.temperature == 0:
            token = int(scores.argmax())
        else:
            scores = np.exp((scores - scores.max()) / sampling.temperature)
            share = scores / scores.sum()
            order = np.argsort(-share)
            before = np.cumsum(share[order]) - share[order]
            share[order[before >= sampling.top_p]] = 0  # keeps the first to reach top_p
            share /= share.sum()
            token = int(np.searchsorted(np.cumsum(share), uniform(seed, step), side="right"))
        written.append(token)
        if token == tokenizer.eos_token_id:
            break
    return tokenizer.decode(written, skip_special_tokens=True), written


@pytest.mark.parametrize("name", ["llama", "gpt2", "bundled"])
def test_the_likeliest_text_is_that_of_plain_generate_one_at_a_time(folders, name):
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    found = texts(backend(folders[name], batch=3).complete([ask(text, GREEDY) for text in PROMPTS]))
    for text in PROMPTS:
        ids = torch.tensor([plain_ids(tokenizer, text)])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=14,
            temperature=None, top_p=None, pad_token_id=0,
        )[0, ids.shape[1] :]  # fmt: skip
        [completion] = found[text]
        assert completion.text == tokenizer.decode(out, skip_special_tokens=True)
        assert completion.tokens == len(out)
        assert completion.finished == (out[-1] == tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("name", "sampling"),
    [("llama", WARM), ("llama", HOT), ("llama", GREEDY), ("gpt2", WARM), ("bundled", WARM)],
)
def test_texts_are_drawn_as_by_a_slow_loop_with_the_same_numbers(folders, name, sampling):
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    requests = [ask(text, sampling, (7, 8)) for text in PROMPTS]
    found = texts(backend(folders[name]).complete(requests))
    for text in PROMPTS:
        for seed, completion in zip((7, 8), found[text], strict=True):
            ids = plain_ids(tokenizer, text)
            expected, written = slow_text(model, tokenizer, ids, sampling, seed)
            assert (completion.text, completion.tokens) == (expected, len(written))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_neither_the_batch_nor_its_order_nor_torchs_own_seed_matters(folders, name):
    requests = [ask(text, sampling, (3, 1), f"{text} {sampling.temperature}")
                for text in PROMPTS for sampling in (WARM, GREEDY)]  # fmt: skip
    torch.manual_seed(1)
    together = texts(backend(folders[name], batch=30).complete(requests))
    torch.manual_seed(2)
    assert texts(backend(folders[name], batch=1).complete(requests)) == together
    assert texts(backend(folders[name], batch=4).complete(requests[::-1])) == together
    assert len({text for answer in together.values() for text in answer}) > len(requests)


def test_the_same_requests_get_the_same_answers_from_the_same_backend(folders):
    writer = backend(folders["llama"])
    requests = [ask(text, HOT, (3, 4)) for text in PROMPTS]
    assert list(writer.complete(requests)) == list(writer.complete(requests))


@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 11),
)
def test_a_draw_is_the_inverse_of_the_cumulated_distribution(scores, number, without):
    row = torch.tensor([scores])
    if without < len(scores):
        row[0, without] = -torch.inf
    token = int(draw(row, torch.tensor([number], dtype=torch.float64)))
    share = row.double().softmax(-1)[0].numpy()
    assert share[token] > 0
    edges = np.concatenate([[0], np.cumsum(share)])
    assert edges[token] - 1e-9 <= number <= edges[token + 1] + 1e-9


def test_draws_have_the_distribution_of_the_scores():
    share = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    scores = torch.tensor(share).log().float().expand(20_000, -1)
    numbers = torch.tensor([uniform(seed, 5) for seed in range(20_000)], dtype=torch.float64)
    counts = Counter(draw(scores, numbers).tolist())
    for token, expected in enumerate(share):
        error = 5 * np.sqrt(expected * (1 - expected) / 20_000)
        assert abs(counts[token] / 20_000 - expected) <= error


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53, 1.0])  # where floats are short it rounds to 1
def test_the_ends_of_the_range_give_tokens_that_can_come(number):
    scores = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    token = draw(scores, torch.tensor([number], dtype=torch.float64))
    assert int(token) == (1 if number == 0 else 2)


def test_numbers_are_spread_and_differ_by_seed_and_step():
    numbers = sorted(uniform(seed, step) for seed in range(40) for step in range(40))
    assert len(set(numbers)) == 1600 and numbers[0] >= 0 and numbers[-1] < 1
    assert max(after - before for before, after in pairwise(numbers)) < 12 / 1600


def changed(folder, target, config):
    """A copy of a model's folder with another generation_config.json."""
    target.mkdir()
    for file in Path(folder).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / "generation_config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("sampling", [WARM, GREEDY])
def test_nothing_comes_through_from_the_models_own_settings(folders, tmp_path, sampling):
    own = changed(folders["llama"], tmp_path / "own", {
        "do_sample": True, "temperature": 0.01, "top_k": 2, "top_p": 0.1, "repetition_penalty": 9.0,
        "max_length": 3, "max_new_tokens": 2, "min_new_tokens": 14, "no_repeat_ngram_size": 1,
        "num_beams": 3, "suppress_tokens": list(range(2, 2000)), "eos_token_id": 1,
        "pad_token_id": 5, "min_p": 0.9, "typical_p": 0.2, "stop_strings": ["a"],
        "forced_eos_token_id": 3000,
    })  # fmt: skip
    requests = [ask(text, sampling, (1, 2)) for text in PROMPTS]
    assert texts(backend(own).complete(requests)) == texts(
        backend(folders["llama"]).complete(requests))


def test_every_token_that_its_makers_end_texts_with_ends_a_text(folders, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    model = AutoModelForCausalLM.from_pretrained(folders["llama"]).eval()
    _, written = slow_text(model, tokenizer, plain_ids(tokenizer, "Hi"), HOT, 1)
    end = next(at for at in range(3, len(written)) if written[at] not in written[:at])
    folder = changed(folders["llama"], tmp_path / "ends", {"eos_token_id": [1, written[end]]})
    [answer] = backend(folder).complete([ask("Hi", HOT)])
    assert answer.completions[0].finished and answer.completions[0].tokens == end + 1
    assert answer.completions[0].text == tokenizer.decode(
        written[:end], skip_special_tokens=True)


def without_padding(folder, target):
    """A copy whose tokenizer has no padding token, as GPT-2's."""
    changed(folder, target, {})
    for name in ("tokenizer_config.json", "config.json"):
        settings = json.loads((target / name).read_text())
        settings.pop("pad_token", None)
        settings.pop("pad_token_id", None)
        (target / name).write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(target).pad_token is None
    return target


def test_a_tokenizer_without_a_padding_token_writes_the_same(folders, tmp_path):
    requests = [ask(text, WARM, (1, 2)) for text in PROMPTS]
    bare = without_padding(folders["gpt2"], tmp_path / "bare")
    assert texts(backend(bare).complete(requests)) == texts(
        backend(folders["gpt2"]).complete(requests))


def test_a_prompt_that_fills_the_context_gets_nothing_and_harms_no_other(folders):
    """GPT-2 has 256 positions and no more: one token too many would be an error."""
    tokenizer = AutoTokenizer.from_pretrained(folders["gpt2"])
    long = Sampling(0.4, 0.5, 40)  # few tokens to draw from: rounding decides nothing
    notes, requests, room = [], [], {}
    for words in (3, 60, 75, 82, 83, 84):
        text = "猫" * words
        room[text] = 256 - len(plain_ids(tokenizer, text))
        requests.append(ask(text, long, (1, 2)))
    assert min(room.values()) < 0 and any(0 < left < 40 for left in room.values())
    together = texts(backend(folders["gpt2"], batch=20, notes=notes).complete(requests))
    alone = texts(backend(folders["gpt2"], batch=1).complete(requests))
    assert together == alone and len(together) == len(requests)
    for text, left in room.items():
        for completion in together[text]:
            assert completion.tokens <= max(0, min(40, left))
            assert completion.finished or completion.tokens == max(0, min(40, left))
            assert left > 0 or completion.text == ""
    assert len(notes) == sum(left <= 0 for left in room.values())


def test_a_text_ends_unfinished_where_the_context_of_a_model_without_a_table_does(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    text = "猫" * 75
    left = 256 - len(plain_ids(tokenizer, text))
    assert 0 < left < 40
    found = texts(backend(folders["llama"]).complete(
        [ask(text, Sampling(1.0, 1.0, 60)), ask("Hi", Sampling(1.0, 1.0, 60))]))
    assert found[text][0].tokens == left and not found[text][0].finished
    assert found["Hi"][0].tokens == 60


def out_of_memory_above(writer, most, monkeypatch):
    """Let the model fail as a GPU does when it gets more than ``most`` rows."""
    model = writer._checkpoint.model
    generate, sizes = model.generate, []

    def limited(input_ids, **more):
        sizes.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return generate(input_ids=input_ids, **more)

    monkeypatch.setattr(model, "generate", limited)
    return sizes


def test_where_memory_runs_out_batches_are_halved_and_texts_stay_the_same(folders, monkeypatch):
    requests = [ask(text, WARM, (1, 2)) for text in PROMPTS]
    expected = texts(backend(folders["llama"]).complete(requests))
    notes = []
    writer = backend(folders["llama"], batch=8, notes=notes)
    sizes = out_of_memory_above(writer, 3, monkeypatch)
    assert texts(writer.complete(requests)) == expected
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    assert notes == ["out of memory with 8 texts at a time: going on with 4",
                     "out of memory with 4 texts at a time: going on with 2"]


def test_where_not_one_text_fits_it_is_an_error_with_the_cure(folders, monkeypatch):
    writer = backend(folders["llama"], batch=2)
    out_of_memory_above(writer, 0, monkeypatch)
    with pytest.raises(ResourceError, match="a single text") as error:
        list(writer.complete([ask("Hi", WARM)]))
    assert "dtype = bfloat16" in error.value.hints[0]


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory(folders, monkeypatch):
    writer = backend(folders["llama"])

    def broken(**_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(writer._checkpoint.model, "generate", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        list(writer.complete([ask("Hi", WARM)]))


@pytest.mark.parametrize("sampling", [WARM, GREEDY])
def test_a_model_whose_logits_are_no_numbers_stops_the_run(folders, sampling):
    writer = backend(folders["llama"])
    with torch.no_grad():
        writer._checkpoint.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NumericsError, match="not numbers"):
        list(writer.complete([ask("Hi", sampling)]))


class TestWithoutChatTemplate:
    """A base model: one user message is a plain text to go on from."""

    @pytest.fixture
    def folder(self, folders, tmp_path):
        found = changed(folders["llama"], tmp_path / "base", {})
        (found / "chat_template.jinja").unlink()
        return found

    def test_a_lone_message_is_gone_on_from(self, folder):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("The sky is")["input_ids"]
        expected, written = slow_text(model, tokenizer, ids, WARM, 1)
        [answer] = backend(folder).complete([ask("The sky is", WARM)])
        whole = tokenizer.decode(ids + written, skip_special_tokens=True)
        assert "The sky is" + answer.completions[0].text == whole
        assert expected in answer.completions[0].text

    def test_the_space_before_the_first_word_is_kept(self, tmp_path):
        """Tokenizers with marks for spaces drop the first one of what they decode."""
        words = ["</s>", *(f"▁{word}" for word in ("the", "cat", "sat", "on", "mat"))]
        plain = Tokenizer(token_models.WordLevel(
            {word: number for number, word in enumerate(words)}, unk_token="</s>"))
        plain.pre_tokenizer = pre_tokenizers.Metaspace()
        plain.decoder = decoders.Metaspace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")
        tokenizer.save_pretrained(tmp_path)
        build(zoo(len(words))["llama"]).save_pretrained(tmp_path)
        [answer] = backend(tmp_path).complete([ask("the cat", HOT, tuple(range(8)))])
        said = [completion.text for completion in answer.completions if completion.text]
        assert len(said) > 3 and all(text.startswith(" ") for text in said)

    def test_a_conversation_is_an_error_with_the_cure(self, folder):
        messages = tuple({"role": role, "content": "a"} for role in ("system", "user"))
        with pytest.raises(ModelError, match="no chat template") as error:
            list(backend(folder).complete([Request("k", messages, (1,), WARM)]))
        assert "saw: roles system, user" in error.value.hints
        assert "[model] chat_template = plain" in error.value.hints[1]

    def test_the_plain_template_makes_it_a_conversation(self, folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = tokenizer("User: Hi\n\nAssistant: ", add_special_tokens=False)["input_ids"]
        expected, _ = slow_text(model, tokenizer, ids, WARM, 1)
        [answer] = backend(folder, chat_template="plain").complete([ask("Hi", WARM)])
        assert answer.completions[0].text == expected

    def test_a_prompt_without_tokens_is_an_error(self, folder):
        with pytest.raises(ModelError, match="no tokens"):
            list(backend(folder).complete([ask("", WARM, key="empty")]))


def test_a_conversation_that_the_template_refuses_is_an_error(folders, tmp_path):
    template = tmp_path / "strict.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ModelError, match="refuses a conversation: roles must alternate"):
        list(backend(folders["llama"], chat_template=str(template)).complete([ask("a", WARM)]))


@pytest.mark.parametrize(
    ("about", "error", "said"),
    [({"chat_template": "missing.jinja"}, UsageError, "[model] chat_template = missing.jinja:"),
     ({"device": "warp"}, UsageError, "[model] device = warp:")],
)  # fmt: skip
def test_errors_name_the_keys_of_the_configuration(folders, about, error, said):
    with pytest.raises(error) as raised:
        backend(folders["llama"], **about)
    assert raised.value.message.startswith(said)


def test_a_model_that_is_not_there_and_a_kind_that_does_not_exist(folders):
    with pytest.raises(ModelError, match="no such folder"):
        backend("/no/such/model")
    with pytest.raises(UsageError, match="pass one of transformers, openai, vllm"):
        open_backend(BackendSection(kind="own"), "m", ModelSection(), Path())


def test_the_revision_is_that_of_the_first_model_alone():
    about = ModelSection(path="org/model", revision="abc")
    assert loading.source_of("org/model", about).revision == "abc"
    assert loading.source_of("org/other", about).revision is None


def test_a_closed_backend_lets_go_of_its_model(folders):
    writer = backend(folders["llama"], batch=5)
    assert isinstance(writer, TransformersBackend) and writer.chunk == 20
    writer.close()
    assert not hasattr(writer, "_checkpoint")
