"""A training as a process: its end, its interruptions, its folder. Numbers are in test_loop_dpo."""

import json
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_training import (
    BASE,
    at_step,
    fork_ranks,
    fork_worker,
    make_spec,
    prepared,
    save_models,
    written,
)
from safetensors.torch import load_file
from test_parity_trl import PLAIN, conversational
from transformers import AutoTokenizer, GenerationConfig

from congrad_cli.errors import (
    CongradError,
    InputError,
    ModelError,
    NumericsError,
    ResourceError,
    UsageError,
)
from congrad_cli.loop import dpo, dpo_events, train, train_process
from congrad_cli.loop.settings import LossSection
from congrad_cli.loop.train_checkpoints import is_complete, mark_complete, newest_complete
from congrad_cli.loop.train_process import WATCHED
from congrad_cli.loop.train_spec import TrainSpec, read_spec
from congrad_cli.loop.training_pairs import write_training_pairs
from congrad_cli.progress import Silent

ROWS = [conversational(row) | {"id": index, "meta": {"a": index}} if index % 2 else
        conversational(row) | {"id": str(index), "chosen_score": None}
        for index, row in enumerate(PLAIN)]  # fmt: skip
"""Message lists, and columns of no one type beside them."""


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self, on_step: Callable[[], None] = lambda: None) -> None:
        self.said: list[tuple[Any, ...]] = []
        self._on_step = on_step

    def step(self, what: str) -> None:
        self.said.append(("step", what))
        self._on_step()

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.said.append(("start", total, done))

    def advance(self, count: int) -> None:
        self.said.append(("advance", count))

    def note(self, message: str, kind: str = "") -> None:
        self.said.append(("note", message))

    def warn(self, message: str, kind: str = "") -> None:
        self.said.append(("warn", message))

    def stopping(self) -> None:
        self.said.append(("stopping",))

    def counted(self) -> int:
        """Pairs, those that were done at the start included."""
        return sum(entry[1] if entry[0] == "advance" else entry[2]
                   for entry in self.said if entry[0] in ("advance", "start"))  # fmt: skip


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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["-m", "congrad_cli.loop.dpo"]),
        ({"launcher": "torchrun", "processes": 2},
         ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
          "congrad_cli.loop.dpo"]),
        ({"launcher": "accelerate", "processes": 2, "accelerate_config": "fsdp.yaml"},
         ["-m", "accelerate.commands.launch", "--config_file", "fsdp.yaml", "--num_processes", "2",
          "-m", "congrad_cli.loop.dpo"]),
    ],
)  # fmt: skip
def test_the_launcher_is_that_of_the_settings(
    settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    spec = make_spec(tmp_path / "out", "model", **settings)
    expected = [sys.executable, *words, str(spec.output / "spec.json")]
    assert train_process.command(spec) == expected


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


def test_a_worker_whose_starter_is_gone_ends(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(reader, 0)
        os.close(writer)
        os.environ[WATCHED] = "1"
        stop = dpo_events.Stop()
        stop.in_steps = True
        stop.install()
        signal.pause()
        os._exit(99)
    os.close(reader)
    os.write(writer, b"s")  # a wish to stop is no end
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], TrainSpec]:
    """A spec whose worker runs the given lines of Python in place of a training."""

    def act(code: str) -> TrainSpec:
        start = """
            import json, os, sys, signal
            def tell(event, **fields):
                print("\\n@congrad " + json.dumps({"event": event, **fields}), flush=True)
        """
        script = textwrap.dedent(start) + textwrap.dedent(code)
        monkeypatch.setattr(train_process, "command", lambda spec: [sys.executable, "-c", script])
        return make_spec(tmp_path / "out", str(tmp_path))

    return act


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("tell('error', kind='ResourceError', message='full', hints=['cure']); sys.exit(7)",
         ResourceError, "cure"),
        ("tell('error', kind=None, message='RuntimeError: peer is gone', hints=[])\n"
         "tell('error', kind='NumericsError', message='diverged', hints=[]); sys.exit(1)",
         NumericsError, "diverged"),
        ("tell('error', kind=None, message='KeyError: a', hints=[]); sys.exit(1)",
         ModelError, "KeyError: a"),
        ("print('some words'); sys.exit(3)", ModelError, "some words"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ResourceError, "memory of this machine"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", ModelError, "SIGSEGV"),
        ("sys.exit(0)", ModelError, "without a model"),
    ],
)  # fmt: skip
def test_each_end_of_the_process_has_its_error(
    acted: Callable[[str], TrainSpec], code: str, kind: type[CongradError], text: str
) -> None:
    spec = acted(code)
    with pytest.raises(kind) as caught:
        train.train(spec, Silent())
    assert text in " ".join([caught.value.message, *caught.value.hints])


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_asks_the_process_to_stop(
    acted: Callable[[str], TrainSpec], number: signal.Signals, error: type[BaseException]
) -> None:
    spec = acted("tell('step', what='x'); open('/dev/null'); sys.exit(os.read(0, 1) == b's')")
    before = signal.getsignal(number)
    heard = Heard(on_step=lambda: os.kill(os.getpid(), number))
    with pytest.raises(error):
        train.train(spec, heard)
    assert ("stopping",) in heard.said
    assert signal.getsignal(number) is before


def test_a_second_signal_kills_a_process_that_goes_on(acted: Callable[[str], TrainSpec]) -> None:
    spec = acted("""
        import time
        tell('step', what='first'); os.read(0, 1); tell('step', what='second'); time.sleep(600)
    """)
    heard = Heard(on_step=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train.train(spec, heard)
    assert [entry for entry in heard.said if entry[0] == "step"][-1] == ("step", "second")


def test_a_finished_training_is_not_run_again(
    acted: Callable[[str], TrainSpec], tmp_path: Path
) -> None:
    spec = acted(f"os.mkdir({str(tmp_path / 'out' / 'model')!r})")
    model = train.train(spec, Silent())
    again = acted("sys.exit(1)")
    assert train.train(again, Silent()) == model
    layout = replace(again, train=replace(BASE, device_batch=1, save_steps=7))
    assert train.train(layout, Silent()) == model, "how it runs is not what it learns"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda spec: replace(spec, loss=LossSection(length_penalty=0.5)), "loss.length_penalty"),
        (lambda spec: replace(spec, train=replace(BASE, learning_rate=0.5)),
         "train.learning_rate: 0.01 there, 0.5 now"),
        (lambda spec: replace(spec, seed=4), "seed: 3 there, 4 now"),
        (lambda spec: replace(spec, reference="another/model"), "differs in reference"),
        (lambda spec: spec.pairs.write_text(spec.pairs.read_text() * 2) and spec,
         "differs in pairs"),
    ],
)  # fmt: skip
def test_a_folder_of_another_training_is_refused(
    acted: Callable[[str], TrainSpec], change: Callable[[TrainSpec], TrainSpec], named: str
) -> None:
    spec = acted("sys.exit(1)")
    with pytest.raises(ModelError):
        train.train(spec, Silent())
    with pytest.raises(UsageError) as caught:
        train.train(change(spec), Silent())
    assert named in " ".join([caught.value.message, *caught.value.hints])


def test_a_model_whose_files_changed_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    from congrad_cli.loop.train_spec import identity

    spec = make_spec(tmp_path / "out", str(folder))
    before = identity(spec)
    (folder / "model.safetensors").write_bytes(b"two")
    after = identity(spec)
    assert {name for name in before if before[name] != after[name]} == {"model", "reference"}


@pytest.mark.parametrize("damage", ["no mark", "shorter", "missing", "mark cut"])
def test_a_half_written_checkpoint_is_passed_over(damage: str, tmp_path: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "state").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "state" / "rank0").write_bytes(b"moments")
        mark_complete(folder)
    newest = tmp_path / "checkpoint-10"
    assert newest_complete(tmp_path) == newest
    mark = newest / "congrad.json"
    {
        "no mark": mark.unlink,
        "shorter": lambda: (newest / "state" / "rank0").write_bytes(b"mom"),
        "missing": (newest / "model.safetensors").unlink,
        "mark cut": lambda: mark.write_text(mark.read_text()[:9]),
    }[damage]()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-9"
    assert not newest.exists() and is_complete(tmp_path / "checkpoint-9")


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["{"], ":1: not JSON"),
        (["[]"], ":1: not a JSON object"),
        (['{"prompt": "a", "chosen": "b"}'], ":1: no usable 'rejected'"),
        (['{"prompt": "a", "chosen": [], "rejected": "b"}'], ":1: no usable 'chosen'"),
        (["", json.dumps(PLAIN[0]), json.dumps(ROWS[0])], ":3: texts and message lists are mixed"),
        (['{"prompt": "a", "chosen": [{"role": "b", "content": "c"}], "rejected": "d"}'],
         ":1: texts and message lists are mixed"),
        ([""], "holds no pairs"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_trained_on_are_named(
    lines: list[str], text: str, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(lines))
    with pytest.raises(InputError, match=text):
        write_training_pairs(pairs, tmp_path / "clean.jsonl")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch": 6, "device_batch": 4}, "multiple of 4"),
        ({"batch": 8, "device_batch": 3, "processes": 2, "launcher": "torchrun"}, "multiple of 6"),
        ({"batch": 0}, "cannot be cut"),
        ({"processes": 2}, "needs a launcher"),
    ],
)
def test_a_batch_that_does_not_come_out_is_refused(
    settings: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        train.train(make_spec(tmp_path / "out", "model", **settings), Silent())
    assert text in " ".join([caught.value.message, *caught.value.hints])


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "device_batch"),
        (OSError(28, "No space left on device"), "free some"),
    ],
)
def test_running_out_of_memory_or_disk_is_told_with_a_cure(
    error: Exception, cure: str, policy: str, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(spec: TrainSpec) -> None:
        raise error

    monkeypatch.setattr(dpo, "prepare", fail)
    monkeypatch.setattr(dpo_events.Stop, "install", lambda stop: None)
    assert dpo.main(str(written(make_spec(tmp_path / "out", policy)))) != 0
    lines = capfd.readouterr().out.splitlines()
    told = [json.loads(line.removeprefix("@congrad ")) for line in lines if line[:1] == "@"]
    (failure,) = [event for event in told if event["event"] == "error"]
    assert failure["kind"] == "ResourceError" and cure in " ".join(failure["hints"])


def test_fewer_processes_than_asked_for_are_refused(policy: str, tmp_path: Path) -> None:
    """Some launchers start one process and say nothing."""
    spec = make_spec(tmp_path / "out", policy, processes=2, launcher="accelerate")
    with pytest.raises(UsageError, match="started 1 processes, not 2"):
        dpo._run(spec, 4, None, dpo_events.Stop())


def test_a_device_that_is_not_there_is_refused(policy: str, tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "out", policy)
    spec = replace(spec, about=replace(spec.about, device="xpu:1"))
    with pytest.raises(UsageError, match=r"model.device = xpu:1"):
        dpo.prepare(spec)


def test_a_model_of_unknown_making_is_not_returned(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "out", "model")
    (spec.output / "model").mkdir(parents=True)
    with pytest.raises(UsageError, match="was not made by a training"):
        train.train(spec, Silent())


def test_a_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "out", "org/name", "other", LossSection(name="dpo"), lora_rank=4)
    assert read_spec(written(spec)) == (spec, len(PLAIN), None)


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
