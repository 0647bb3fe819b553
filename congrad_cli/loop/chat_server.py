"""One request to a server's /chat/completions, within a deadline; http of the standard library."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from congrad_cli import __version__
from congrad_cli.errors import ModelError, UsageError
from congrad_cli.loop.api_key import ApiKey

MAX_BODY = 1 << 26
"""Bytes of an answer; a server that sends more is broken."""


class Later(Exception):
    """A request failed in a way that may pass; ``after`` seconds if the server says so."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server sent."""

    status: int
    body: bytes
    after: float | None  # seconds of Retry-After
    location: str | None

    def json(self) -> Any:
        """The body's value; :class:`Later` where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise Later("the answer is not JSON") from None


class Calls:
    """The connections that are open for one purpose; :meth:`end` cuts them, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._ended = threading.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing is wanted any more."""
        return self._ended.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the end."""
        self._ended.wait(seconds)

    def end(self) -> None:
        """Cut all connections; there will be no new ones."""
        with self._lock:
            self._ended.set()
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def connected(self, connection: HTTPConnection) -> Iterator[socket.socket]:
        """``connection``, open within."""
        connection.connect()
        sock: socket.socket = connection.sock
        try:
            with self._lock:
                if self.ended:
                    raise Later("stopped")
                self._open.add(sock)
            yield sock
        finally:
            with self._lock:
                self._open.discard(sock)


class ChatServer:
    """Where a server is, and the key it wants. Proxies of the environment are not used."""

    def __init__(self, url: str, key: ApiKey, timeout: float) -> None:
        self.url = url
        self._key = key
        self._timeout = timeout
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"url {url}: pass http://HOST:PORT/v1.")
        if parts.username is not None or parts.password is not None:
            raise UsageError(
                "url holds a name or a password, which would end up in the run's files.",
                f"take it out; a key is read from the environment: ${key.variable}",
            )
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = parts.path.rstrip("/") + "/chat/completions"
        if parts.query:
            self._path += f"?{parts.query}"

    def post(self, payload: dict[str, Any], calls: Calls) -> Reply:
        """Send ``payload`` and read the whole answer; :class:`Later` where none comes."""
        headers = {
            "Content-Type": "application/json", "Connection": "close",
            "User-Agent": f"congrad/{__version__}", **self._key.headers(),
        }  # fmt: skip
        deadline = time.monotonic() + self._timeout
        kind = HTTPSConnection if self._secure else HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        try:
            with calls.connected(connection) as sock:
                sock.settimeout(_left(deadline))
                connection.request("POST", self._path, json.dumps(payload).encode(), headers)
                reply = connection.getresponse()
                return Reply(
                    reply.status, _read(reply, sock, deadline),
                    _seconds(reply.getheader("Retry-After")), reply.getheader("Location"),
                )  # fmt: skip
        except TimeoutError:
            raise Later(f"no answer within {self._timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            reason = self._key.clean(error.verify_message)
            raise ModelError(
                f"{self.url}: its certificate is not trusted: {reason}.",
                "set SSL_CERT_FILE to the authority's certificate",
            ) from None
        except (OSError, HTTPException) as error:
            reason = self._key.clean(getattr(error, "strerror", None) or str(error))
            raise Later(f"no connection ({reason or type(error).__name__})") from None
        finally:
            connection.close()

    def message(self, reply: Reply) -> str:
        """What the server says went wrong, in one line without the key."""
        try:
            found = json.loads(reply.body)
        except (ValueError, RecursionError):
            return self._key.clean(reply.body.decode(errors="replace"))
        for name in ("error", "detail", "message"):
            if isinstance(found, dict) and found.get(name):
                found = found[name]
        return self._key.clean(found if isinstance(found, str) else json.dumps(found))

    def refusal(self, reply: Reply, model: str) -> ModelError:
        """The error for an answer that will not change."""
        said = self.message(reply)
        where = f"{self.url}: HTTP {reply.status}"
        if reply.status in (401, 403):
            has = "it is set, but not accepted" if self._key else "it is not set"
            cure = f"set {self._key.variable} to a key of this server ({has})"
        elif 300 <= reply.status < 400:
            return ModelError(
                f"{where}: it sends us elsewhere.",
                f"saw: Location {self._key.clean(reply.location or 'missing')}",
                "put the final address into url",
            )
        elif reply.status in (404, 405):
            cure = f"check url, which mostly ends in /v1, and the model's name: {model}"
        else:
            cure = (
                f"check the model's name ({model}), and that prompt and max_tokens fit into its "
                "context"
            )
        return ModelError(f"{where}: {said or 'no reason given'}", cure)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _read(reply: HTTPResponse, sock: socket.socket, deadline: float) -> bytes:
    """The whole body. The deadline is for all of it: a socket's own timeout is for each piece."""
    body, promised = bytearray(), reply.length  # None where it ends with the connection
    while promised is None or len(body) < promised:
        sock.settimeout(_left(deadline))
        piece = reply.read1(1 << 16)
        if not piece:
            break
        body += piece
        if len(body) > MAX_BODY:
            raise HTTPException(f"an answer of more than {MAX_BODY >> 20} MiB")
    if promised is not None and len(body) < promised:
        raise HTTPException("the answer was cut off")
    return bytes(body)


def _seconds(header: str | None) -> float | None:
    """Of a Retry-After header: a number, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
