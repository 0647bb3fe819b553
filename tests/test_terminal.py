"""What people see on stderr while they wait, and beside the numbers."""

import io
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from congrad_cli.console import table
from congrad_cli.display import progress as display_progress
from congrad_cli.display.blocks import LEVELS, PLAIN, blocks
from congrad_cli.display.progress import MESSAGES_SHOWN, TerminalProgress


def told(capsys):
    return capsys.readouterr().err


def wait_for(capsys, text):
    """What stderr says until the text is in it; fails after a while."""
    said, until = "", time.monotonic() + 20
    while text not in said and time.monotonic() < until:
        time.sleep(0.01)
        said += told(capsys)
    assert text in said
    return said


def test_a_step_in_which_nothing_is_counted_says_that_it_goes_on(capsys, monkeypatch):
    monkeypatch.setattr(display_progress, "HEARTBEAT_SECONDS", 0.01)
    progress = TerminalProgress(quiet=False)
    progress.step("averaging 9 pairs")
    wait_for(capsys, "congrad: averaging 9 pairs: still at it, 0:00\n")
    progress.done()
    time.sleep(0.05)
    told(capsys)
    time.sleep(0.1)
    assert not told(capsys)  # what is over is not talked about


def test_quiet_is_quiet(capsys, monkeypatch):
    monkeypatch.setattr(display_progress, "HEARTBEAT_SECONDS", 0.01)
    progress = TerminalProgress(quiet=True, verbose=True)
    progress.step("averaging")
    progress.note("something")
    progress.start("sketch", 3)
    progress.finish()
    time.sleep(0.1)
    assert not told(capsys)


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_shows_every_note_and_how_long_steps_took(capsys, verbose):
    progress = TerminalProgress(quiet=False, verbose=verbose)
    progress.step("reading")
    for number in range(MESSAGES_SHOWN + 4):
        progress.note(f"note {number}", "odd")
    progress.tell_hidden()
    progress.done()
    said = told(capsys)
    assert (f"note {MESSAGES_SHOWN + 3}" in said) == verbose
    assert ("4 more notes of the kind odd" in said) != verbose
    assert bool(re.search(r"congrad: reading: \d+\.\d\d s\n", said)) == verbose


@given(counts=st.lists(st.integers(0, 1000), max_size=20))
def test_blocks_are_as_high_as_their_counts(counts):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    drawn = blocks(counts, stream)
    heights = [LEVELS.index(one) + 1 if one != " " else 0 for one in drawn]
    assert len(heights) == len(counts)
    for count, height in zip(counts, heights, strict=True):
        assert (height == 0) == (count == 0)
        assert count != max(counts) or not count or height == len(LEVELS)
    ordered = sorted(zip(counts, heights, strict=True))
    assert [height for _, height in ordered] == sorted(heights)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_streams_without_blocks_get_plain_characters(encoding):
    drawn = blocks([0, 1, 8], io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert drawn == f" {PLAIN[0]}{PLAIN[-1]}"


@pytest.mark.parametrize("counts", [[3, 0, 0, 0], [0, 0, 3, 0], [0, 1, 0, 2]])
def test_a_histogram_stands_in_its_column_as_it_was_drawn(counts):
    """Spaces are bins: a table that moves them moves the picture."""
    stream = io.StringIO()
    table("t", ("group", "pairs", "0 to 1"), [("de", "3", blocks(counts)),
                                              ("en", "3", blocks([1, 1, 1, 1]))],
          stream=stream, pictures=True)
    lines = stream.getvalue().splitlines()
    start = lines[3].index(blocks([1, 1, 1, 1]))
    assert lines[2][start : start + 4].ljust(4) == blocks(counts)
