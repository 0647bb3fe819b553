"""The training's process: how it is started, listened to, stopped, and what its end means."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from congrad_cli import errors
from congrad_cli.errors import CongradError, ModelError, ResourceError
from congrad_cli.loop.train_spec import TrainSpec
from congrad_cli.progress import Progress

WORKER = "congrad_cli.loop.dpo"
EVENT = b"@congrad "
"""Lines of the worker's stdout that begin so are for us, the rest of the line is JSON."""
WATCHED = "CONGRAD_TRAIN_WATCHED"
"""Set for a worker whose stdin is ours: a byte asks it to stop, its end says that we are gone."""
TERMINATED = 143
LAST_LINES = 8
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
                "MASTER_ADDR", "MASTER_PORT")  # fmt: skip


def run_worker(spec: TrainSpec, progress: Progress) -> None:
    """Run the training to its end. Raises what :func:`congrad_cli.loop.train.train` says."""
    log = spec.output / "train.log"
    with log.open("ab") as file, Worker(spec, progress) as worker:
        worker.listen(file)
        code = worker.process.wait()
        if worker.asked is not None:
            raise KeyboardInterrupt if worker.asked == signal.SIGINT else SystemExit(TERMINATED)
        if code != 0:
            raise _failure(code, worker.failures, worker.last, log)


class Worker:
    """The running process, and its signals: the first asks it to stop, a second one kills it.

    It has a session of its own, so that Ctrl-C reaches us alone. Leaving the block ends it.
    """

    def __init__(self, spec: TrainSpec, progress: Progress) -> None:
        self._progress = progress
        self._before: dict[int, Any] = {}
        self.asked: int | None = None
        self.failures: list[dict[str, Any]] = []
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.process = subprocess.Popen(
            command(spec), env=environment(spec), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> "Worker":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.process.poll() is None:
            self._kill()
        assert self.process.stdin is not None and self.process.stdout is not None
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()
        self.process.wait()

    def listen(self, log: BinaryIO) -> None:
        """Until the process is silent for good: its events to the progress, all else to the log."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(EVENT):
                self._on_event(json.loads(line[len(EVENT) :]))
            elif line.strip():
                log.write(line)
                log.flush()
                self.last.append(line.decode(errors="replace").rstrip()[:200])

    def _on_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "step":
                self._progress.step(event["what"])
            case "start":
                self._progress.start(event["what"], event["total"], event["done"])
            case "advance":
                self._progress.advance(event["count"])
            case "finish":
                self._progress.finish()
            case "note":
                self._progress.note(event["message"])
            case "warn":
                self._progress.warn(event["message"])
            case "error":
                self.failures.append(event)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            self._kill()
            return
        self.asked = number
        self._progress.stopping()
        assert self.process.stdin is not None
        try:
            os.write(self.process.stdin.fileno(), b"s")
        except OSError:  # it has just ended
            return

    def _kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def command(spec: TrainSpec) -> list[str]:
    """The command line that starts the training's process, or the launcher of several."""
    worker = ["-m", WORKER, str(spec.output / "spec.json")]
    processes = str(spec.train.processes)
    if spec.train.launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc_per_node", processes, *worker]  # fmt: skip
    if spec.train.launcher == "accelerate":
        chosen = spec.train.accelerate_config
        config = [] if chosen is None else ["--config_file", chosen]
        return [sys.executable, "-m", "accelerate.commands.launch", *config,
                "--num_processes", processes, *worker]  # fmt: skip
    return [sys.executable, *worker]


def environment(spec: TrainSpec) -> dict[str, str]:
    """Ours, without telemetry and bars; caches of the data go into the training's folder."""
    result = os.environ | {
        "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "TQDM_DISABLE": "1",
        "HF_DATASETS_CACHE": str(spec.output.resolve() / "cache"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1", WATCHED: "1",
    }  # fmt: skip
    if spec.about.threads is not None:
        result["OMP_NUM_THREADS"] = str(spec.about.threads)
    if spec.train.launcher == "none":
        for name in OF_LAUNCHERS:  # left by a scheduler, they would make one process wait for more
            result.pop(name, None)
        if spec.about.device != "cpu":
            result["CUDA_VISIBLE_DEVICES"] = _one_device(spec.about.device)
    return result


def _one_device(name: str) -> str:
    """The GPU of ``cuda:N``, else the first: with several in sight the trainer takes them all."""
    index = name.partition(":")[2]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return index or "0"
    names = visible.split(",")
    return names[int(index)] if index.isdigit() and int(index) < len(names) else names[0]


def _failure(
    code: int, failures: list[dict[str, Any]], last: deque[str], log: Path
) -> CongradError:
    """What the end of the process means. Of several processes the others fail with the first."""
    told = [failure for failure in failures if failure["kind"] is not None]
    for failure in told[:1]:
        kind: type[CongradError] = getattr(errors, failure["kind"])
        return kind(failure["message"], *failure["hints"])
    where = f"its whole log: {log}"
    if code == -signal.SIGKILL or "SIGKILL" in " ".join(last):
        return ResourceError(
            "the training was killed (SIGKILL): memory of this machine has most likely run out.",
            "take less of it: train.lora_rank, fewer processes; or a machine with more",
            where,
        )
    cause = failures[0]["message"] if failures else _ending(code)
    return ModelError(f"the training failed: {cause}", *last, where)


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}." if code < 0 else f"exit code {code}."
