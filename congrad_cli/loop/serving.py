"""A model served by the user's own command, for as long as it is needed."""

import os
import shlex
import signal
import socket
import subprocess
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from congrad_cli.errors import ModelError, UsageError
from congrad_cli.loop.api_key import ApiKey

LOG = "serve.log"
START_SECONDS = 1800.0
"""So long a server may take to be ready: large models are read from slow disks."""

STOP_SECONDS = 10.0
"""So long it may take to stop before it is killed."""

GUARD = 'read _; kill -s TERM -- "-$1"; sleep 10; kill -s KILL -- "-$1"'
"""Run by sh: its input ends when this process does, in whatever way."""

POLL_SECONDS = 0.2
TAIL_LINES, TAIL_BYTES = 15, 8192


class ServedModel:
    """A process group of its own that serves a model on a free port of this machine.

    ``{model}`` and ``{port}`` in ``command`` are filled in; no shell reads it. What it says goes
    to ``serve.log`` in ``folder``. It is there when the constructor returns, and gone after
    :meth:`close`, or when this process has ended, even if it was killed.
    """

    def __init__(
        self,
        command: str,
        model: str,
        folder: Path,
        key: ApiKey,
        patience: float = START_SECONDS,
    ) -> None:
        self._key = key
        self._closed = False
        port = _free_port()
        words = _words(command, model, port)
        self.url = f"http://127.0.0.1:{port}/v1"
        self._port = port
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / LOG
        with self._log.open("ab") as log:
            self._begin = log.tell()
            try:
                self._process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise ModelError(
                    f"serve: {words[0]}: {error.strerror}.", "check the command"
                ) from error
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, "guard", str(self._process.pid)], stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            self._wait(patience)
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raise where the server has ended."""
        code = self._process.poll()
        if code is not None:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ModelError(f"the server has ended ({how}).", *self._tail())

    def close(self) -> None:
        """Stop the server and all that it started."""
        if self._closed:  # its number may be another process' by now
            return
        self._closed = True
        try:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        finally:
            self._signal(signal.SIGKILL)  # also what its first process left behind
            self._process.wait()
            if self._guard is not None:
                self._guard.kill()
                self._guard.communicate()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody is left in the group
            os.killpg(self._process.pid, number)

    def _wait(self, patience: float) -> None:
        """Until the server answers."""
        deadline = time.monotonic() + patience
        while not self._ready():
            self.check()
            if time.monotonic() > deadline:
                raise ModelError(
                    f"the server does not answer after {patience:g} s.", *self._tail(),
                    "the command must serve {model} on 127.0.0.1, at {port}",
                )  # fmt: skip
            time.sleep(POLL_SECONDS)

    def _ready(self) -> bool:
        """Whether /health says so, or /v1/models where there is no /health."""
        status = self._get("/health")
        if status is not None and 400 <= status < 500:
            status = self._get("/v1/models")
            return status is not None and status < 500  # one that asks for a key is there as well
        return status is not None and status < 300

    def _get(self, path: str) -> int | None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def _tail(self) -> list[str]:
        """The end of what this server has said, for an error."""
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._begin, end - TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        shown = [f"  {self._key.clean(line)}" for line in lines if line.strip()]
        return [f"its log, {self._log}:", *shown]


def _words(command: str, model: str, port: int) -> list[str]:
    """The command, split as a shell would; what is filled in may hold spaces."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"serve: {command}: {error}.") from error
    if not words or not any("{port}" in word for word in words):
        raise UsageError(
            f"serve: {command}: there is no {{port}} in it.",
            "for example: transformers serve {model} --host 127.0.0.1 --port {port}",
        )
    return [word.replace("{model}", model).replace("{port}", str(port)) for word in words]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
