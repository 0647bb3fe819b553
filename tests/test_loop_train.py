"""A training as a process: how it is asked to stop, what its end means, whose its folder is."""

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
from loop_training import BASE, ROWS, Heard, make_spec, save_models, written
from test_parity_trl import PLAIN

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
from congrad_cli.loop.train_spec import TrainSpec, identity, read_spec
from congrad_cli.loop.training_pairs import write_training_pairs
from congrad_cli.progress import Silent


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small model."""
    sample_data = Path(__file__).parent.parent / "sample_data"
    return save_models(tmp_path_factory.mktemp("models"), sample_data)[0]


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
        (['{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}'], ":1: .* half of a character"),
        (["[" * 100_000], ":1: not JSON"),
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


@pytest.mark.parametrize("end", [b"\0" * 40, b"\0\0\n", b'{"step": 3', b'{"step": 3}\n', b"\xff\n"])
def test_metrics_that_a_lost_machine_left_are_cut(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + end)
    train._cut_metrics(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "out", "org/name", "other", LossSection(name="dpo"), lora_rank=4)
    assert read_spec(written(spec)) == (spec, len(PLAIN), None)
