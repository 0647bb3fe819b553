"""A model served by a command: started, waited for, stopped; also by transformers serve itself."""

import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from congrad_cli.errors import ModelError, UsageError
from congrad_cli.loop.api_key import ApiKey
from congrad_cli.loop.backends import open_backend
from congrad_cli.loop.model_access import Completion, Request, Sampling
from congrad_cli.loop.serving import ServedModel
from congrad_cli.loop.settings import BackendSection, ModelSection

SERVER = '''
"""python server.py WAY MODEL PORT: serves nothing, in several ways."""
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

way, model, port = sys.argv[1:]
print("serving", model, flush=True)
if way == "fails":
    print("no such model: \\x1b[31m" + model, os.environ.get("OPENAI_API_KEY"), flush=True)
    sys.exit(3)
if way == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so will its child
if way in ("family", "stubborn"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
asked = 0

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        known = {"/v1/models": 200} if way == "models" else {"/health": 200, "/v1/models": 500}
        self.end(503 if way == "loading" and asked < 3 else known.get(self.path, 404), b"{}")

    def do_POST(self):
        if way == "dies":
            os._exit(9)
        text = {"content": model}
        self.end(200, json.dumps({"choices": [{"message": text}]}).encode())

    def end(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

if way == "deaf":
    print("child", os.getpid(), flush=True)
    time.sleep(600)
HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
'''
HOLDER = """
import signal, sys
from pathlib import Path
from congrad_cli.loop.api_key import ApiKey
from congrad_cli.loop.serving import ServedModel

def stop(*_):
    raise SystemExit(143)

signal.signal(signal.SIGTERM, stop)
served = ServedModel(sys.argv[1], "m", Path(sys.argv[2]), ApiKey("NO_KEY"))
print("ready", flush=True)
signal.pause()
"""
SAMPLING = Sampling(0.7, 0.9, 8)


@pytest.fixture
def command(tmp_path):
    """A command that serves in some way, from a path with a space in it."""
    script = tmp_path / "a server.py"
    script.write_text(SERVER)

    def build(way: str) -> str:
        return f"{shlex.quote(sys.executable)} '{script}' {way} {{model}} {{port}}"

    return build


@pytest.fixture
def serve(command, tmp_path):
    """Starts such a server; all are stopped at the end."""
    started = []

    def start(way: str, patience: float = 60.0) -> ServedModel:
        served = ServedModel(
            command(way), "a model", tmp_path / "logs", ApiKey("OPENAI_API_KEY"), patience)
        started.append(served)
        return served

    yield start
    for served in started:
        served.close()


def wait_for_end(pid: int) -> None:
    """Return when no process has that number (or only a dead one waits to be collected)."""
    for _ in range(1000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.03)
    raise AssertionError(f"process {pid} is still there")


@pytest.mark.parametrize("way", ["health", "models", "loading"])
def test_a_served_model_answers_under_the_name_it_was_given(way, command, tmp_path):
    section = BackendSection(kind="openai", serve=command(way))
    backend = open_backend(section, "a model", ModelSection(), tmp_path)
    try:
        request = Request("k", ({"role": "user", "content": "hi"},), (1,), SAMPLING)
        [answer] = backend.complete([request])
        assert answer.completions == (Completion("a model", True),)
    finally:
        backend.close()
    assert b"serving a model" in (tmp_path / "serve.log").read_bytes()


def test_a_server_that_ends_early_shows_the_end_of_its_own_log(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "serve.log").write_text("an earlier server\n")
    with pytest.raises(ModelError, match=r"ended \(exit code 3\)") as error:
        serve("fails")
    shown = "\n".join(error.value.hints)
    assert "no such model: ?[31ma model [key]" in shown and "earlier" not in shown
    assert str(tmp_path / "logs" / "serve.log") in shown


def test_a_server_that_dies_under_a_request_is_named_as_the_cause(command, tmp_path, monkeypatch):
    monkeypatch.setattr("congrad_cli.loop.openai_backend.PAUSE", 0.3)  # time to be seen dead
    section = BackendSection(kind="openai", serve=command("dies"), retries=1)
    backend = open_backend(section, "m", ModelSection(), tmp_path)
    with pytest.raises(ModelError, match=r"the server has ended \(exit code 9\)"):
        list(backend.complete([Request("k", (), (1,), SAMPLING)]))
    backend.close()


def child_in(log: Path) -> int:
    """The process that a server has named in its log."""
    return int(log.read_text().split("child ")[1].split()[0])


def test_a_server_that_never_answers_is_stopped(serve, tmp_path):
    with pytest.raises(ModelError, match=r"does not answer after 2 s"):
        serve("deaf", patience=2.0)
    wait_for_end(child_in(tmp_path / "logs" / "serve.log"))


@pytest.mark.parametrize(("way", "number"), [("family", 15), ("stubborn", 9)])
def test_closing_stops_all_that_the_server_started_and_can_be_done_twice(
    way, number, serve, tmp_path, monkeypatch
):
    monkeypatch.setattr("congrad_cli.loop.serving.STOP_SECONDS", 0.3 if number == 9 else 30.0)
    served = serve(way)
    child = child_in(tmp_path / "logs" / "serve.log")
    os.kill(child, 0)
    served.close()
    wait_for_end(child)
    served.close()
    with pytest.raises(ModelError, match=f"signal {number}"):
        served.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_server_goes_with_the_process_that_holds_it(number, command, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, command("family"), tmp_path], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL)
    assert holder.stdout.readline() == b"ready\n"
    holder.send_signal(number)
    assert holder.wait(30) in (143, -signal.SIGINT, -signal.SIGKILL)
    wait_for_end(child_in(tmp_path / "serve.log"))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [("serve {model}", UsageError, "no {port} in it"), ("", UsageError, "no {port}"),
     ("serve '{model} {port}", UsageError, "No closing quotation"),
     ("/no/such/program {port}", ModelError, "No such file")],
)  # fmt: skip
def test_a_command_that_cannot_be_run(text, error, said, tmp_path):
    with pytest.raises(error) as raised:
        ServedModel(text, "m", tmp_path, ApiKey("NO_KEY"))
    assert said in raised.value.message


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="transformers[serving] is not installed",
)
def test_transformers_serve_writes_for_us(tiny_model, tmp_path, monkeypatch):
    """A real server, from the command in the configuration to texts for each seed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = (
        f"{shlex.quote(sys.executable)} -m transformers.cli.transformers serve {{model}} "
        "--device cpu --dtype float32 --host 127.0.0.1 --port {port}"
    )
    section = BackendSection(kind="openai", serve=command, concurrency=2, retries=0)
    backend = open_backend(section, tiny_model, ModelSection(path=tiny_model), tmp_path)
    message = ({"role": "user", "content": "Why is the sky blue?"},)
    requests = [
        Request("drawn", message, (1, 2, 3), Sampling(0.8, 0.95, 12)),
        Request("likeliest", message, (1, 2), Sampling(0.0, 1.0, 12)),
    ]
    try:
        answers = {answer.key: answer.completions for answer in backend.complete(requests)}
    finally:
        backend.close()
    assert len({text.text for text in answers["drawn"]}) > 1
    first, second = answers["likeliest"]
    assert first.text == second.text != ""

    local = open_backend(BackendSection(), tiny_model, ModelSection(path=tiny_model), tmp_path)
    [own] = local.complete(requests[1:])
    assert own.completions[0].text == first.text
    assert own.completions[0].finished == first.finished
