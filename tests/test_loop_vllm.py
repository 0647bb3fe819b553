"""The back-end on vLLM, which is not installed: what it would be asked, by a stand-in."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from congrad_cli.checkpoint import PLAIN_TEMPLATE
from congrad_cli.errors import ModelError, UsageError
from congrad_cli.loop.backends import open_backend
from congrad_cli.loop.model_access import Answer, Completion, Request, Sampling
from congrad_cli.loop.settings import BackendSection, ModelSection

SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=16)


@dataclass
class SamplingParams:
    """Takes what vLLM's takes, and nothing else."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16


@dataclass
class Fake:
    """What was asked of the stand-in."""

    made: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    refuse: Exception | None = None


@pytest.fixture
def vllm(monkeypatch) -> Fake:
    fake = Fake()

    class LLM:
        def __init__(self, model: str, *, revision: str | None = None, dtype: str = "auto",
                     generation_config: str = "auto") -> None:
            if fake.refuse:
                raise fake.refuse
            fake.made.append({"model": model, "revision": revision, "dtype": dtype,
                              "generation_config": generation_config})

        def chat(self, messages, sampling_params=None, use_tqdm=True, lora_request=None,
                 chat_template=None):
            if fake.refuse:
                raise fake.refuse
            fake.asked.append((messages, sampling_params, use_tqdm, chat_template))
            return [
                SimpleNamespace(outputs=[SimpleNamespace(
                    text=f"{talk[-1]['content']} {params.seed}", token_ids=[1] * params.seed,
                    finish_reason="length" if params.seed > 5 else "stop",
                )])
                for talk, params in zip(messages, sampling_params, strict=True)
            ]  # fmt: skip

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return fake


def backend(model="org/model", **about):
    section = BackendSection(kind="vllm")
    return open_backend(section, model, ModelSection(path="org/model", **about), Path())


def test_every_seed_is_a_conversation_of_its_own_and_answers_keep_their_order(vllm):
    talk = [{"role": "user", "content": "a"}]
    other = [{"role": "system", "content": "be short"}, {"role": "user", "content": "b"}]
    writer = backend(revision="abc", dtype="bfloat16")
    answers = list(writer.complete([
        Request("one", tuple(talk), (4, 6), SAMPLING), Request("two", tuple(other), (5,), SAMPLING),
    ]))  # fmt: skip
    assert answers == [
        Answer("one", (Completion("a 4", True, 4), Completion("a 6", False, 6))),
        Answer("two", (Completion("b 5", True, 5),)),
    ]
    assert vllm.made == [{"model": "org/model", "revision": "abc", "dtype": "bfloat16",
                          "generation_config": "vllm"}]
    [(messages, params, use_tqdm, template)] = vllm.asked
    assert messages == [talk, talk, other] and use_tqdm is False and template is None
    assert params == [
        SamplingParams(temperature=0.7, top_p=0.9, max_tokens=16, seed=seed) for seed in (4, 6, 5)]
    assert writer.chunk > 1
    writer.close()


def test_the_chat_template_is_handed_over(vllm, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("own {{ messages }}")
    request = Request("k", ({"role": "user", "content": "a"},), (1,), SAMPLING)
    for option in ("plain", str(file)):
        list(backend(chat_template=option).complete([request]))
    assert [asked[3] for asked in vllm.asked] == [PLAIN_TEMPLATE, "own {{ messages }}"]
    with pytest.raises(UsageError, match="cannot be read"):
        backend(chat_template=str(tmp_path / "missing.jinja"))


def test_what_vllm_refuses_is_a_model_error(vllm):
    vllm.refuse = ValueError("The model's max seq len (4096) is too large.\nMore text")
    with pytest.raises(ModelError, match=r"vLLM cannot load org/model: The model's max .* large\."):
        backend()
    vllm.refuse = None
    writer = backend()
    vllm.refuse = ValueError("The decoder prompt is longer than the maximum model length")
    with pytest.raises(ModelError, match="vLLM cannot go on: The decoder prompt is longer"):
        list(writer.complete([Request("k", (), (1,), SAMPLING)]))


def test_without_vllm_the_error_says_how_to_install_it():
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "from congrad_cli.loop.vllm_backend import VllmBackend, ModelError, ModelSection\n"
        "try:\n    VllmBackend('org/model', ModelSection())\n"
        "except ModelError as error:\n    print(error.message, *error.hints, sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert 'kind = "vllm" needs vLLM' in done.stdout
    assert "pip install 'congrad-cli[vllm]'" in done.stdout


def test_a_path_that_does_not_exist_is_not_left_to_vllm(vllm):
    with pytest.raises(ModelError, match="no such folder"):
        backend("/no/such/model")
    assert not vllm.made
