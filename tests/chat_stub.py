"""A server on loopback that answers /v1/chat/completions as a test tells it to, badly if asked."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stub:
    """``behave(handler, payload, number)`` answers the request with that number, from 0 on."""

    def __init__(self, behave: Callable[["Handler", dict[str, Any], int], None]) -> None:
        self.behave = behave
        self.payloads: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()
        self.released = threading.Event()  # what hangs goes on when the test is over
        self.asked = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.stub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "Stub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request; the methods below are ways to answer it."""

    def do_POST(self) -> None:
        stub: Stub = self.server.stub  # type: ignore[attr-defined]
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            number = len(stub.payloads)
            stub.payloads.append(payload)
            stub.headers.append(dict(self.headers))
            stub.paths.append(self.path)
            stub.under_way += 1
            stub.most = max(stub.most, stub.under_way)
        stub.asked.set()
        with suppress(ConnectionError):
            stub.behave(self, payload, number)
        with stub.lock:
            stub.under_way -= 1

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def say(self, *texts: str | None, reason: str = "stop", **more: Any) -> None:
        """A good answer with these choices."""
        choices = [
            {"index": index, "finish_reason": reason,
             "message": {"role": "assistant", "content": text}}
            for index, text in enumerate(texts)
        ]  # fmt: skip
        self.send(200, json.dumps({"choices": choices, **more}).encode())

    def fail(self, status: int, message: str, **headers: str) -> None:
        """A refusal in OpenAI's form."""
        self.send(status, json.dumps({"error": {"message": message}}).encode(), **headers)

    def hang(self) -> None:
        """No answer until the test is over."""
        self.server.stub.released.wait(60)  # type: ignore[attr-defined]

    def cut(self) -> None:
        """Half an answer."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def drip(self) -> None:
        """An answer that never ends, a piece well within any timeout of a single read."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        while not self.server.stub.released.wait(0.02):  # type: ignore[attr-defined]
            self.wfile.write(b" ")
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""
