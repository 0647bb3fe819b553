"""A model that cannot be had: exit 8 and the cure, whatever the reason."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors as hub
from synthetic import parse_line

from congrad_cli import checkpoint
from congrad_cli.errors import CongradError, InputError, ModelError, UsageError
from congrad_cli.model_source import ModelSource, find_model
from congrad_cli.sketch.tokens import Skip, tokenize


def raised_by_transformers(cause: Exception) -> OSError:
    """transformers wraps the hub's errors in OSError."""
    try:
        try:
            raise cause
        except Exception as inner:
            raise OSError("some long story\nof several lines") from inner
    except OSError as error:
        return error


@pytest.mark.parametrize(
    ("kind", "message", "cures"),
    [
        (hub.GatedRepoError, "is gated", ("huggingface.co/org/m", "HF_TOKEN", "--model /path")),
        (hub.RepositoryNotFoundError, "is not on the hub",
         ("huggingface.co/org/m", "HF_TOKEN", "--model /path")),
        (hub.LocalEntryNotFoundError, "cannot be reached",
         ("hf download org/m", "HF_HUB_OFFLINE", "--model /path")),
    ],
)
def test_hub_errors_name_the_cure(
    kind: type[Exception], message: str, cures: tuple[str, ...]
) -> None:
    source = ModelSource("org/m", "org/m", None, None)
    cause = kind.__new__(kind)  # their constructors want a response of the hub's own client
    with pytest.raises(ModelError) as error, checkpoint.explained(source):
        raise raised_by_transformers(cause)
    assert message in error.value.message and "\n" not in error.value.message
    assert error.value.exit_code == 8
    for cure in cures:
        assert any(cure in hint for hint in error.value.hints)


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"without config\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "nowhere.gguf"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="no such"):
        find_model(name)


def test_pickled_weights_are_refused(tmp_path: Path, sample_data: Path) -> None:
    for file in (sample_data / "tiny-model").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    source = find_model(str(tmp_path))
    with pytest.raises(ModelError) as error:
        checkpoint.load_model(source, torch.device("cpu"), torch.float32)
    assert any("safetensors" in hint for hint in error.value.hints)


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path, sample_data: Path) -> None:
    for file in (sample_data / "tiny-model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {
        "AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    source = find_model(str(tmp_path))
    with pytest.raises(ModelError):
        checkpoint.load_model(source, torch.device("cpu"), torch.float32)
    assert not (tmp_path / "ran").exists()


def test_a_conversation_that_the_template_refuses_is_named(sample_data: Path) -> None:
    source = find_model(str(sample_data / "tiny-model"))
    tokenizer = checkpoint.load_tokenizer(source, None)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    turn = [{"role": "user", "content": "a"}]
    answers = [[{"role": "assistant", "content": text}] for text in "bc"]
    raw = json.dumps(
        {"prompt": turn, "chosen": answers[0], "rejected": answers[1], "language": "en"}
    ).encode()
    record = parse_line(raw, 7)
    skip = tokenize(record, tokenizer, 64)
    assert isinstance(skip, Skip) and skip.code == "template"
    with pytest.raises(InputError, match=r"data.jsonl:7: .*roles must alternate"):
        raise skip.error


def test_unreadable_template_file_and_impossible_device(tmp_path: Path, sample_data: Path) -> None:
    source = find_model(str(sample_data / "tiny-model"))
    with pytest.raises(UsageError, match="cannot be read"):
        checkpoint.load_tokenizer(source, str(tmp_path / "missing.jinja"))
    with pytest.raises(CongradError, match="--device warp"):
        checkpoint.choose_device("warp")


def test_dtype_auto_is_float32_on_the_cpu(sample_data: Path) -> None:
    source = find_model(str(sample_data / "tiny-model"))
    assert checkpoint.choose_dtype(source, "auto", torch.device("cpu")) == torch.float32
    assert checkpoint.choose_dtype(source, "auto", torch.device("cuda")) == torch.bfloat16
    assert checkpoint.choose_dtype(source, "bfloat16", torch.device("cpu")) == torch.bfloat16
