"""Runs ``congrad`` commands in forks of one process that has imported torch already.

Importing torch and transformers takes 8 CPU seconds here, sketching two dozen short pairs less
than one. A fork is still a process of its own: the real entry point with its own arguments,
file descriptors 0, 1, 2 and exit code, which an in-process runner could not give.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import patched

PRELOADED = (
    "congrad_cli.cli",
    "congrad_cli.consensus.run",
    "congrad_cli.filter.run",
    "congrad_cli.sketch.run",
    "pydantic.type_adapter",
    "rich.progress",
    "rich.table",
    "safetensors.numpy",
    "transformers.integrations.sdpa_attention",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
)
"""What the commands import when they run, the tiny model's own code included."""


class PreloadedCongrad:
    """The side of the tests: starts the server at the first command, stops it at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> "PreloadedCongrad":
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait(timeout=60)
            self._server.stdout.close()

    def run(
        self,
        *args: object,
        stdin: bytes = b"",
        cwd: Path | None = None,
        terminal: str | None = None,
        program: Path | None = None,
        **constants: float,
    ) -> subprocess.CompletedProcess[bytes]:
        """As ``subprocess.run`` with captured output.

        With ``terminal``, the name of one, that is the command's stdin and stderr, and it gets its
        signals. ``constants`` are those of the module ``patched``. ``program`` is run instead of
        ``congrad``: a file of Python.
        """
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        streams = [self._folder / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_bytes(stdin)
        request = {
            "args": list(map(str, args)),
            "streams": list(map(str, streams)),
            "cwd": str(cwd or Path.cwd()),
            "terminal": terminal,
            "program": program and str(program),
            "constants": constants,
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        out, err = (stream.read_bytes() for stream in streams[1:])
        return subprocess.CompletedProcess(request["args"], code, out, err)


CLIENT = """#!{python} -SE
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({place!r})
words = chr(0).join([os.getcwd(), *sys.argv[1:]]).encode()
socket.send_fds(server, [words], [0, 1, 2])
for number in 0, 1, 2:
    os.close(number)
os._exit(int(server.recv(16) or b"1"))
"""


@contextlib.contextmanager
def congrad_program(folder: Path) -> Iterator[Path]:
    """A program ``congrad`` in the folder, for shells: it hands itself over to a server's fork."""
    place, program = folder / "socket", folder / "congrad"
    program.write_text(CLIENT.format(python=sys.executable, place=str(place)))
    program.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, __file__, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        server.stdout.readline()
        yield program
        server.kill()


def serve_shells(place: str) -> None:
    """One fork for each connection, which brings words and streams; the exit code goes back."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    _preload()
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        words, streams, _, _ = socket.recv_fds(client, 1 << 16, 3)
        if os.fork() == 0:
            listener.close()
            child = os.fork()
            if child == 0:
                client.close()
                _take_over(words.decode().split("\0"), streams)
            for stream in streams:
                os.close(stream)  # or pipes would never end
            _, status = os.waitpid(child, 0)
            client.send(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        client.close()
        for stream in streams:
            os.close(stream)


def _take_over(words: list[str], streams: list[int]) -> NoReturn:
    """Be ``congrad`` with these words, the first of which is its folder."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 (file descriptors)
    sys.stderr = open(2, "w", errors="backslashreplace")  # noqa: SIM115
    os.chdir(words[0])
    sys.argv = ["congrad", *words[1:]]
    _end_as(_run_main)


def _preload() -> None:
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # other versions may not have it; saves less then
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or every fork's collector would touch, and so copy, all of this memory


def serve() -> None:
    """The side of the server: one fork a request, one exit code a line."""
    _preload()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become_congrad(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)  # taking torch apart again would cost another second


def _become_congrad(request: dict[str, Any]) -> NoReturn:
    def begin() -> None:
        stdin, stdout, stderr = request["streams"]
        if terminal := request["terminal"]:
            os.setsid()  # or the terminal would not become ours when it is opened
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
            os.environ["TERM"] = "xterm"
            stdin = stderr = terminal
        modes = (os.O_RDONLY, *2 * [os.O_WRONLY | os.O_CREAT | os.O_TRUNC])
        for number, (path, mode) in enumerate(zip((stdin, stdout, stderr), modes, strict=True)):
            os.dup2(os.open(path, mode, 0o600), number)
        sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 (file descriptors)
        sys.stderr = open(2, "w", errors="backslashreplace")  # noqa: SIM115
        os.chdir(request["cwd"])
        patched.patch(request["constants"])
        sys.argv = [request["program"] or "congrad", *request["args"]]
        if request["program"]:
            runpy.run_path(request["program"], run_name="__main__")
        else:
            _run_main()

    _end_as(begin)


def _run_main() -> None:
    from congrad_cli.cli import main

    main()


def _end_as(work: Callable[[], None]) -> NoReturn:
    """Do the work, and end this process as an interpreter would."""
    code: Any = 1
    try:
        work()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # a traceback is what a user would see; the tests look for it
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve_shells(sys.argv[1]) if len(sys.argv) > 1 else serve()
