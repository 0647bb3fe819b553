"""Real trainings: killed and gone on with, stopped, in two processes, without precomputing."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from loop_training import (
    ROWS,
    Heard,
    at_step,
    fork_ranks,
    fork_worker,
    make_spec,
    prepared,
    save_models,
    written,
)
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from congrad_cli.loop import dpo, dpo_events, train
from congrad_cli.loop.train_checkpoints import mark_complete, newest_complete


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small model."""
    sample_data = Path(__file__).parent.parent / "sample_data"
    return save_models(tmp_path_factory.mktemp("models"), sample_data)[0]


@pytest.fixture(scope="module")
def uninterrupted(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a training that nothing disturbed."""
    spec = make_spec(tmp_path_factory.mktemp("whole") / "out", policy, rows=ROWS)
    written(spec)
    trainer, tokenizer = dpo.prepare(spec)
    dpo.steps(trainer, None)
    dpo.finish(spec, trainer, tokenizer)
    return spec.output / "model"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder."""
    return {name: tensor for file in folder.glob("*.safetensors")
            for name, tensor in load_file(file).items()}  # fmt: skip


def assert_same_weights(one: Path, other: Path, start: str, tolerance: float) -> None:
    """Equal up to ``tolerance`` of how far training has moved each tensor."""
    ones, others, before = weights(one), weights(other), weights(Path(start))
    assert ones.keys() == others.keys() == before.keys()
    assert any(not torch.equal(ones[name], before[name]) for name in ones)
    for name, tensor in ones.items():
        moved = float((tensor - before[name]).norm())
        assert float((tensor - others[name]).norm()) <= tolerance * moved


def test_a_killed_training_goes_on_to_the_same_model(
    policy: str, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL while step 4 is being saved: that checkpoint is not whole, step 2's is taken."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HOME", raising=False)
    spec = make_spec(tmp_path / "out", policy, rows=ROWS)

    def patch() -> None:
        def mark(checkpoint: Path) -> None:
            if checkpoint.name == "checkpoint-4":
                os.kill(os.getpid(), signal.SIGKILL)
            mark_complete(checkpoint)

        dpo_events.mark_complete = mark  # type: ignore[attr-defined]

    status = fork_worker(spec, patch)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    checkpoints = spec.output / "checkpoints"
    assert {path.name for path in checkpoints.glob("checkpoint-*")} == {
        "checkpoint-2", "checkpoint-4"
    }  # fmt: skip

    heard = Heard()
    model = train.train(spec, heard)
    assert model == spec.output / "model"
    assert ("note", "training goes on from step 2") in heard.said
    assert ("start", 24, 8) in heard.said and heard.counted() == 24
    assert_same_weights(model, uninterrupted, policy, 1e-6)
    metrics = [json.loads(line) for line in (spec.output / "metrics.jsonl").open()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "rewards/margins", "grad_norm"} <= line.keys() for line in metrics)
    assert GenerationConfig.from_pretrained(model).do_sample is True
    template = AutoTokenizer.from_pretrained(policy).chat_template
    assert template and AutoTokenizer.from_pretrained(model).chat_template == template
    assert not checkpoints.exists() and not (spec.output / "cache").exists()
    assert not (tmp_path / "home").exists(), "nothing lands in the user's home"


@pytest.mark.parametrize("rank", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_train_the_same_model(
    rank: int, policy: str, uninterrupted: Path, tmp_path: Path
) -> None:
    """Each takes half of every batch; all weights, and adapters."""
    two = make_spec(tmp_path / "two", policy, rows=ROWS, launcher="torchrun", processes=2,
                    lora_rank=rank)  # fmt: skip
    assert fork_ranks(two) == [0, 0]
    one = uninterrupted
    if rank:
        alone = make_spec(tmp_path / "one", policy, rows=ROWS, lora_rank=rank)
        assert fork_worker(alone) == 0
        one = alone.output / "model"
    assert_same_weights(two.output / "model", one, policy, 1e-4)
    metrics = [json.loads(line)["step"] for line in (two.output / "metrics.jsonl").open()]
    assert metrics == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_torchrun_trains_the_same_model(policy: str, uninterrupted: Path, tmp_path: Path) -> None:
    """The launcher itself. Slow because three processes import torch."""
    spec = make_spec(tmp_path / "out", policy, rows=ROWS, launcher="torchrun", processes=2)
    heard = Heard()
    assert_same_weights(train.train(spec, heard), uninterrupted, policy, 1e-4)
    assert heard.counted() == 24


def test_a_killed_training_of_adapters_goes_on_to_the_same_model(
    policy: str, tmp_path: Path
) -> None:
    """With dropout: the checkpoint holds the random numbers' state too."""
    ends = {"whole": None, "in a step": at_step(3, kill), "while writing": kill_while_writing}
    models = []
    for name, patch in ends.items():
        spec = make_spec(tmp_path / name, policy, rows=ROWS, lora_rank=4, lora_dropout=0.3,
                         max_steps=4)  # fmt: skip
        if patch is not None:
            assert os.WTERMSIG(fork_worker(spec, patch)) == signal.SIGKILL
            assert (newest_complete(spec.output / "checkpoints") or Path()).name == "checkpoint-2"
        assert fork_worker(spec) == 0
        models.append(weights(spec.output / "model"))
    start = weights(Path(policy))
    assert all(model.keys() == start.keys() for model in models)
    assert any(not torch.equal(models[0][name], start[name]) for name in start)
    assert all(torch.equal(models[0][name], model[name]) for name in start for model in models)


def kill_while_writing() -> None:
    """All steps are done; a checkpoint of the last one would be gone on from beyond it."""
    dpo.finish = lambda *_: kill()  # type: ignore[assignment]


def kill() -> None:
    """End this process as the machine's memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_signal_ends_the_worker_after_its_step_with_a_checkpoint(
    policy: str, tmp_path: Path
) -> None:
    spec = make_spec(tmp_path / "out", policy)
    stop = at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status = fork_worker(spec, stop)
    assert os.waitstatus_to_exitcode(status) == 143
    assert not (spec.output / "model").exists()
    newest = newest_complete(spec.output / "checkpoints")
    assert newest is not None and newest.name == "checkpoint-3"


def test_without_precomputing_the_same_is_learned(policy: str, tmp_path: Path) -> None:
    """For lp-dpo the reference's forward is our own call."""
    states = []
    for precompute in (True, False):
        spec = make_spec(tmp_path / str(precompute), policy, max_steps=2,
                         precompute_reference=precompute)  # fmt: skip
        trainer = prepared(spec)
        dpo.steps(trainer, None)
        states.append(trainer.model.state_dict())
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=1e-4, atol=1e-5)
