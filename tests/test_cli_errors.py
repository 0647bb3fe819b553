"""Every kind of bad data through the real command: one message with the place, exit code 3.

``test_records.py`` says what the messages must tell; this holds the way to the terminal.
"""

import os
import subprocess
import sys

import pytest
from test_records import BAD, TALK, line


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_ends_with_one_located_message(kind, forked_congrad, tiny_model, tmp_path):
    raw, what, hint = BAD[kind]
    talk = b'"prompt": [' in raw or b'"prompt": {' in raw
    good = line(TALK) if talk else line()  # a file has one shape
    (tmp_path / "data.jsonl").write_bytes(good + b"\n" + raw)
    done = forked_congrad("sketch", "data.jsonl", "--model", tiny_model, "-q", cwd=tmp_path)
    text = done.stderr.decode()
    assert done.returncode == 3, text
    assert done.stdout == b""
    first, *hints = text.splitlines()
    assert first.startswith("congrad: error: data.jsonl:3: ")
    assert what in first
    assert hint in "\n".join(hints)
    assert 1 <= len(hints) <= 2
    assert all(text.startswith("  ") for text in hints)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]  # no store was begun


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.jsonl", None, "missing.jsonl: cannot be read (No such file"),
        ("empty.jsonl", b"", "empty.jsonl: no records"),
        ("blank.jsonl", b"\n \n", "blank.jsonl: no records"),
    ],
)
def test_files_without_pairs_are_named(name, data, message, forked_congrad, tiny_model, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    done = forked_congrad("sketch", name, "--model", tiny_model, "-q", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.decode().startswith(f"congrad: error: {message}")
    assert done.stdout == b""


def test_bad_lines_from_a_pipe_are_called_stdin(forked_congrad, tiny_model, tmp_path):
    command = ("sketch", "-", "--model", tiny_model, "--store", "s", "-q")
    done = forked_congrad(*command, stdin=line() + b"{", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(b"congrad: error: stdin:2: not valid JSON")


def test_a_message_survives_what_it_quotes(congrad, tmp_path):
    """A terminal without UTF-8 must not turn an error of the data into one of ours."""
    store = tmp_path / "dätä \U0001f600"
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    for name in (str(store), os.fsdecode(b"\xff\xfe")):
        done = congrad("consensus", name, env=environment, cwd=tmp_path)
        assert done.returncode == 4
        assert done.stderr.startswith(b"congrad: error: ")
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("closed", "args", "message"), [
    (1, ["show", "STORE"], "stdout is closed"),
    (0, ["show"], "no store: name it"),
    (0, ["sketch", "-m", "MODEL", "-s", "X"], "no data: name a file"),
    (2, ["show", "STORE"], ""),
])  # fmt: skip
def test_streams_that_the_caller_closed(closed, args, message, small_store, tmp_path):
    """Files that are opened must not take the closed stream's number."""
    args = [str(small_store) if arg == "STORE" else arg for arg in args]
    command = [sys.executable, "-m", "congrad_cli", *args]
    done = subprocess.run(  # through a shell: nothing of this process closes its streams
        ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command],
        capture_output=True, check=False, cwd=tmp_path,
    )
    assert done.returncode == (2 if message else 0), done.stderr
    assert message.encode() in done.stderr
    assert b"Traceback" not in done.stderr
    assert bool(done.stdout) == (closed == 2)
