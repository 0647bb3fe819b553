"""The client of OpenAI-compatible servers, against one that misbehaves in every way."""

import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from chat_stub import Stub
from hypothesis import given, settings
from hypothesis import strategies as st

from congrad_cli.errors import CongradError, ModelError, UsageError
from congrad_cli.loop import chat_server, openai_backend
from congrad_cli.loop.api_key import ApiKey
from congrad_cli.loop.backends import open_backend
from congrad_cli.loop.model_access import Answer, Completion, Request, Sampling
from congrad_cli.loop.settings import BackendSection, ModelSection

KEY = 'sk-not/a"real+key-0123456789'
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=64)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short pauses, and no key but a test's own."""
    monkeypatch.setattr(openai_backend, "PAUSE", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(content, seeds=(1,), key=None):
    return Request(key or content, ({"role": "user", "content": content},), seeds, SAMPLING)


def backend(url, notes=None, **options):
    options = {"kind": "openai", "url": url, "retries": 2, "timeout": 20.0, **options}
    note = [].append if notes is None else notes.append
    return open_backend(BackendSection(**options), "the-model", ModelSection(), Path(), note)


def one(behave, seeds=(1,), notes=None, **options):
    """What one request gets, and the stub that was asked."""
    with Stub(behave) as stub:
        [answer] = backend(stub.url, notes, **options).complete([ask("hi", seeds)])
    return answer, stub


def fails(behave, seeds=(1,), error=ModelError, **options):
    """The error that one request ends with, and the stub that was asked."""
    with Stub(behave) as stub, pytest.raises(error) as raised:
        list(backend(stub.url, **options).complete([ask("hi", seeds)]))
    return raised.value, stub


def told(error: CongradError) -> str:
    return "\n".join([error.message, *error.hints])


def test_only_fields_that_every_server_knows_are_sent(monkeypatch):
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    answer, stub = one(
        lambda handler, *_: handler.say("a", "b"), seeds=(5, 6), api_key_env="MY_KEY")
    assert answer == Answer("hi", (Completion("a", True), Completion("b", True)))
    assert stub.payloads == [{
        "model": "the-model", "messages": [{"role": "user", "content": "hi"}], "n": 2,
        "temperature": 0.7, "top_p": 0.9, "max_tokens": 64, "seed": 5,
    }]  # fmt: skip
    assert stub.paths == ["/v1/chat/completions"]
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent_and_one_text_needs_no_n():
    _, stub = one(lambda handler, *_: handler.say("a"), model="served-name")
    assert "Authorization" not in stub.headers[0] and "n" not in stub.payloads[0]
    assert stub.payloads[0]["model"] == "served-name"


def test_a_text_that_max_tokens_cut_is_not_finished():
    answer, _ = one(lambda handler, *_: handler.say(
        "half a", reason="length", usage={"completion_tokens": 64}))
    assert answer.completions == (Completion("half a", finished=False, tokens=64),)


def test_no_text_at_all_is_an_answer_too():
    """A model may use up its tokens before it says anything; content is then null."""
    answer, _ = one(lambda handler, *_: handler.say(None, reason="length"))
    assert answer.completions == (Completion("", finished=False),)


def test_half_a_surrogate_pair_becomes_text_that_can_be_written():
    answer, _ = one(lambda handler, *_: handler.say("a\ud800b"))
    assert answer.completions[0].text == "a?b"


def test_what_a_server_that_ignores_n_leaves_out_is_asked_for_one_by_one():
    answer, stub = one(
        lambda handler, payload, _: handler.say(f"seed {payload['seed']}"), seeds=(5, 6, 7))
    assert [text.text for text in answer.completions] == ["seed 5", "seed 6", "seed 7"]
    assert [payload.get("n") for payload in stub.payloads] == [3, None, None]


def test_a_server_that_refuses_n_is_asked_one_by_one():
    def behave(handler, payload, _):
        if "n" in payload:
            handler.fail(422, "n must be 1")
        else:
            handler.say(f"seed {payload['seed']}")

    answer, _ = one(behave, seeds=(5, 6))
    assert [text.text for text in answer.completions] == ["seed 5", "seed 6"]


def test_surplus_choices_are_left():
    answer, _ = one(lambda handler, *_: handler.say("a", "b", "c"), seeds=(5, 6))
    assert [text.text for text in answer.completions] == ["a", "b"]


MISHAPS = {
    "429": lambda handler: handler.fail(429, "slow down"),
    "500": lambda handler: handler.fail(500, "oh"),
    "503": lambda handler: handler.send(503, b"<html>busy</html>"),
    "408": lambda handler: handler.fail(408, "too slow"),
    "cut": lambda handler: handler.cut(),
    "closed": lambda handler: None,
    "garbage": lambda handler: handler.send(200, b"{{{"),
    "deep garbage": lambda handler: handler.send(200, b"[" * 200_000),
    "a list": lambda handler: handler.send(200, b"[1]"),
    "no choices": lambda handler: handler.send(200, b'{"choices": []}'),
    "null choices": lambda handler: handler.send(200, b'{"choices": null}'),
    "an empty choice": lambda handler: handler.send(200, b'{"choices": [{}]}'),
    "content of parts": lambda handler: handler.send(
        200, b'{"choices": [{"message": {"content": [{"text": "a"}]}}]}'),
}  # fmt: skip


@pytest.mark.parametrize("name", MISHAPS)
def test_a_mishap_is_survived(name):
    def behave(handler, payload, number):
        if number < 2:
            MISHAPS[name](handler)
        else:
            handler.say("well")

    notes = []
    answer, stub = one(behave, notes=notes)
    assert answer.completions[0].text == "well" and len(stub.payloads) == 3
    assert len(notes) == 1 and "asking again in" in notes[0]


@pytest.mark.parametrize("name", MISHAPS)
def test_a_mishap_that_stays_ends_the_run(name):
    error, stub = fails(lambda handler, *_: MISHAPS[name](handler))
    assert error.message.startswith(stub.url) and "asked 3 times" in error.message
    assert len(stub.payloads) == 3


@pytest.mark.parametrize("way", ["hang", "drip"])
def test_a_request_ends_at_its_timeout_whatever_comes(way):
    error, stub = fails(lambda handler, *_: getattr(handler, way)(), timeout=0.3, retries=1)
    assert "no answer within 0.3 s; asked 2 times" in error.message
    assert len(stub.payloads) == 2


def test_a_hang_is_survived():
    def behave(handler, payload, number):
        if number == 0:
            handler.hang()
        else:
            handler.say("well")

    answer, _ = one(behave, timeout=0.5)
    assert answer.completions[0].text == "well"


def test_a_server_that_is_not_there():
    with Stub(lambda *_: None) as stub:
        url = stub.url
    with pytest.raises(ModelError, match=r"no connection .*refused.*; asked 2 times") as raised:
        list(backend(url, retries=1).complete([ask("hi")]))
    assert "check that the server runs" in told(raised.value)


def test_retry_after_is_heeded():
    def behave(handler, payload, number):
        if number == 0:
            handler.fail(429, "slow down", Retry_After="0.3")
        else:
            times.append(time.monotonic())
            handler.say("well")

    notes, times = [], []
    begin = time.monotonic()
    one(behave, notes=notes)
    assert re.search(r"slow down; asking again in 0\.3 s", notes[0])
    assert times[0] - begin >= 0.3


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), ("99999", 600, 600), ("Fri, 01 Jan 2999 00:00:00 GMT", 600, 600),
     ("Fri, 01 Jan 1999 00:00:00 GMT", 0, 0.001), ("nan", 0, 0.001), ("soon", 0, 0.001),
     ("-5", 0, 0.001), (None, 0, 0.001)],
)  # fmt: skip
def test_every_form_of_retry_after_is_read(header, least, most):
    assert least <= openai_backend._pause(0, chat_server._seconds(header)) <= most


@given(st.integers(0, 50))
def test_pauses_grow_and_are_spread(attempt):
    pauses = {openai_backend._pause(attempt, None) for _ in range(5)}
    whole = min(openai_backend.LONGEST_PAUSE, openai_backend.PAUSE * 2**attempt)
    assert all(whole / 2 <= pause <= whole for pause in pauses) and len(pauses) > 1


@pytest.mark.parametrize(
    ("status", "cure"),
    [(400, "the model's name (the-model)"), (404, "ends in /v1"), (413, "max_tokens"),
     (402, "max_tokens")],
)
def test_a_refusal_ends_the_run_at_once(status, cure):
    error, stub = fails(lambda handler, *_: handler.fail(status, "no\nsuch thing"))
    assert error.message == f"{stub.url}: HTTP {status}: no such thing"
    assert cure in told(error) and len(stub.payloads) == 1


def test_a_redirect_is_not_followed():
    error, stub = fails(lambda handler, *_: handler.send(307, b"", Location="http://else/v1"))
    assert "http://else/v1" in told(error) and len(stub.payloads) == 1


@pytest.mark.parametrize("body", [b'{"detail": "why"}', b'{"message": "why"}', b'"why"', b"why",
                                  b'{"error": "why"}', b"wh\xff\x1by"])
def test_the_servers_message_is_found_in_every_form(body):
    error, _ = fails(lambda handler, *_: handler.send(400, body))
    assert re.search(r"HTTP 400: wh.{0,2}y$", error.message) and error.message.isprintable()


@pytest.mark.parametrize("status", [401, 403, 429, 500])
@pytest.mark.parametrize("form", [
    KEY, KEY.replace('"', '\\"'), "sk-not%2Fa%22real%2Bkey-0123456789", KEY[:12] + "***",
])  # fmt: skip
def test_a_key_that_the_server_echoes_is_in_no_message(status, form, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    notes = []
    error, _ = fails(lambda handler, *_: handler.send(
        status, f"Bearer {form} is wrong".encode(), Location=KEY), notes=notes)
    shown = "\n".join([told(error), *notes, repr(error)])
    assert "[key]" in shown and not any(part in shown for part in (KEY[:8], "sk-not", KEY[-10:]))
    if status in (401, 403):
        assert "OPENAI_API_KEY" in told(error) and "not accepted" in told(error)


def test_a_key_in_what_is_no_http_is_in_no_traceback_either(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    error, _ = fails(lambda handler, *_: handler.wfile.write(f"{KEY} is wrong\r\n".encode()))
    assert "[key] is wrong" in error.message
    shown = "".join(traceback.format_exception(error))
    assert "sk-not" not in shown and KEY[-10:] not in shown


def test_half_an_answer_is_none_even_if_it_can_be_read():
    """A server that dies after the text and before what it promised."""
    def behave(handler, *_):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [{"message": {"content": "a"}}]}')

    error, _ = fails(behave)
    assert "the answer was cut off" in error.message


def test_a_missing_key_is_said_to_be_missing():
    error, _ = fails(lambda handler, *_: handler.fail(401, "who are you"), api_key_env="THEIR_KEY")
    assert "set THEIR_KEY to a key of this server (it is not set)" in told(error)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk key", "schlüssel"])
def test_what_is_no_key_is_refused_and_not_shown(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ModelError, match="OPENAI_API_KEY holds no API key") as raised:
        backend("http://127.0.0.1:1/v1")
    assert key[:4] not in told(raised.value).replace("to the key alone", "")


keys = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8)


@given(st.text(), st.text(), keys)
@settings(max_examples=25)
def test_no_message_holds_the_key_and_each_is_one_line(before, after, key):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_KEY", key)
        shown = ApiKey("SOME_KEY").clean(before + key + after)
    assert key not in shown.replace("[key]", "\0") and (shown.isprintable() or not shown)


@pytest.mark.parametrize("url", ["127.0.0.1:80/v1", "ftp://host/v1", "http://", "http://h:x/v1",
                                 "http://[::1/v1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UsageError, match="pass http://HOST:PORT/v1"):
        backend(url)


def test_an_address_with_a_password_is_refused_without_showing_it():
    with pytest.raises(UsageError) as raised:
        backend("http://me:secret@host/v1")
    assert "secret" not in told(raised.value)


def test_neither_address_nor_command_is_a_usage_error():
    with pytest.raises(UsageError, match="needs a server"):
        backend(None)


def test_as_many_requests_as_allowed_are_under_way_and_no_more():
    gate = threading.Barrier(3)

    def behave(handler, payload, number):
        gate.wait(30)  # opens only when three are here
        handler.say(payload["messages"][0]["content"])

    requests = [ask(str(number)) for number in range(12)]
    with Stub(behave) as stub:
        answers = list(backend(stub.url, concurrency=3).complete(requests))
        assert stub.most == 3
    assert {answer.key: answer.completions[0].text for answer in answers} == {
        str(number): str(number) for number in range(12)}


def test_answers_come_as_soon_as_they_are_there():
    def behave(handler, payload, number):
        if payload["messages"][0]["content"] == "slow":
            first.wait(30)
        handler.say("text")

    first = threading.Event()
    with Stub(behave) as stub:
        answers = backend(stub.url, concurrency=2).complete([ask("slow"), ask("fast")])
        assert next(answers).key == "fast"
        first.set()
        assert next(answers).key == "slow"


def test_leaving_early_cuts_what_is_under_way():
    def behave(handler, payload, number):
        if payload["messages"][0]["content"] == "fast":
            hanging.wait(30)
            handler.say("text")
            return
        hanging.set()
        assert handler.connection.recv(1) == b""  # returns when the client is gone
        gone.set()

    hanging, gone = threading.Event(), threading.Event()
    with Stub(behave) as stub:
        writer = backend(stub.url, concurrency=2, timeout=600.0)
        answers = writer.complete([ask("slow"), ask("fast")])
        assert next(answers).key == "fast"
        answers.close()
        assert gone.wait(30)
    for thread in threading.enumerate():
        if thread.name == "congrad-request":
            thread.join(30)
            assert not thread.is_alive()


def test_one_request_that_fails_for_good_stops_the_others():
    def behave(handler, payload, number):
        if payload["messages"][0]["content"] == "bad":
            handler.fail(400, "no")
        else:
            handler.hang()

    with Stub(behave) as stub, pytest.raises(ModelError, match="HTTP 400: no"):
        list(backend(stub.url, concurrency=4).complete([*map(ask, "abc"), ask("bad")]))


CALLER = """
import sys
from pathlib import Path
from congrad_cli.loop.backends import open_backend
from congrad_cli.loop.model_access import Request, Sampling
from congrad_cli.loop.settings import BackendSection, ModelSection
section = BackendSection(kind="openai", url=sys.argv[1], timeout=600.0)
requests = [Request(str(n), (), (1,), Sampling(1.0, 1.0, 8)) for n in range(20)]
list(open_backend(section, "m", ModelSection(), Path(".")).complete(requests))
"""


def test_ctrl_c_ends_the_process_while_requests_hang():
    with Stub(lambda handler, *_: handler.hang()) as stub:
        process = subprocess.Popen([sys.executable, "-c", CALLER, stub.url],
                                   stderr=subprocess.PIPE)
        assert stub.asked.wait(30)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT and b"KeyboardInterrupt" in errors


def test_the_client_needs_no_torch():
    code = CALLER.replace("list(open", "open").replace(".complete(requests))", "") + (
        "\nassert not {'torch', 'openai', 'httpx'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, "http://127.0.0.1:1/v1"],
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
