"""One writer per rank: whoever is killed, wherever it stops, and whatever lies in the folder."""

import dataclasses
import errno
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from locking import assert_free, assert_taken, elsewhere, ended, place, start

from congrad_cli import claims
from congrad_cli.claims import myself
from congrad_cli.errors import StoreError
from congrad_cli.locks import RankLock, live_ranks, others


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch) -> None:
    """No power fails here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["links", "no links"])
def links(request, monkeypatch) -> bool:
    """Both kinds of file systems."""
    if request.param == "no links":

        def refused(*args):
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(os, "link", refused)
    return request.param == "links"


# --- one owner -------------------------------------------------------------------------------


def test_a_second_process_is_told_who_has_the_lock(tmp_path):
    store = tmp_path / "pairs.congrad"
    with start(store) as owner:
        with pytest.raises(StoreError) as refused, RankLock(store, 0, 1):
            pass
        assert refused.value.exit_code == 4
        assert re.fullmatch(
            rf"{re.escape(str(store))} is being written by another process: rank 0, "
            rf"PID {owner.pid} on .+, alive \d+ s ago\.",
            refused.value.message,
        )
        assert re.search(r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", refused.value.hints[0])
        assert "goes stale after 120 s" in refused.value.hints[1]
        assert (store / "locks" / "r000.lock").exists()
        owner.communicate("")
    assert_free(store)


def test_one_process_cannot_have_a_lock_twice(tmp_path, links):
    with RankLock(tmp_path, 0, 1) as lock:
        assert_taken(tmp_path)
        lock.check()
    with lock:
        assert_taken(tmp_path)
    assert_free(tmp_path)


def test_ranks_do_not_disturb_each_other(tmp_path):
    with RankLock(tmp_path, 0, 2), RankLock(tmp_path, 1, 2), RankLock(tmp_path, 1000, 2):
        assert set(live_ranks(tmp_path)) == {0, 1, 1000}
    assert live_ranks(tmp_path) == {}


def test_the_file_says_who_and_is_readable_json(tmp_path, links):
    with RankLock(tmp_path, 3, 4):
        text = (tmp_path / "locks" / "r003.lock").read_text()
    fields = json.loads(text)
    assert list(fields) == ["host", "machine", "pid", "since", "start", "token", "world"]
    assert (fields["pid"], fields["world"]) == (os.getpid(), 4)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_stopped_process_gives_up_its_lock(tmp_path, number, code):
    """A killed one leaves the file, and the next run on this machine need not wait."""
    with start(tmp_path) as owner:
        owner.send_signal(number)
        owner.communicate()
    assert owner.returncode == code
    assert (tmp_path / "locks" / "r000.lock").exists() == (number == signal.SIGKILL)
    assert_free(tmp_path)


def test_an_error_inside_gives_up_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), RankLock(tmp_path, 0, 1):
        raise ZeroDivisionError
    assert_free(tmp_path)


def test_a_forked_child_leaves_the_lock_alone(tmp_path):
    with RankLock(tmp_path, 0, 1) as lock:
        child = os.fork()
        if child == 0:
            lock.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        lock.check()
        assert_taken(tmp_path)


# --- who is alive ----------------------------------------------------------------------------


def test_a_process_that_is_gone_has_no_lock(tmp_path, links):
    place(tmp_path, elsewhere(host=claims._host(), machine=claims._machine(), pid=ended()))
    assert live_ranks(tmp_path) == {}
    assert_free(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times come from /proc")
def test_a_pid_that_was_given_to_another_process_is_not_the_owner(tmp_path):
    mine = myself(1)
    assert mine.start is not None
    place(tmp_path, mine, age=9999)
    assert_taken(tmp_path)  # a process that merely stands still on this machine is alive
    place(tmp_path, dataclasses.replace(mine, start=mine.start - 1))
    assert_free(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times come from /proc")
def test_a_dead_process_that_nobody_has_collected_is_gone(tmp_path):
    """In containers, whose first process often collects none."""
    zombie = os.fork()
    if zombie == 0:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    place(tmp_path, dataclasses.replace(myself(1), pid=zombie, start=None))
    assert_free(tmp_path)
    os.waitpid(zombie, 0)


def test_without_start_times_an_old_lock_of_a_running_pid_is_stale(tmp_path):
    """The PID may be another process's by now; an owner would have touched its lock."""
    mine = dataclasses.replace(myself(1), start=None)
    place(tmp_path, mine, age=100)
    assert_taken(tmp_path)
    place(tmp_path, mine, age=140)
    assert_free(tmp_path)


@pytest.mark.parametrize(
    "changes", [{}, {"host": claims._host()}, {"machine": claims._machine(), "pid": os.getpid()}]
)
def test_a_lock_of_another_host_counts_while_it_is_touched(tmp_path, changes, links):
    """Another host may have our name or our PID: then its PIDs still say nothing."""
    there = elsewhere(**changes)
    place(tmp_path, there, age=100)
    with pytest.raises(StoreError, match=rf"PID {there.pid} on {there.host}, alive 1\d\d s ago"):
        RankLock(tmp_path, 0, 1).__enter__()
    assert 99 < live_ranks(tmp_path)[0].age < 119
    place(tmp_path, there, age=121)
    assert live_ranks(tmp_path) == {}
    assert_free(tmp_path)


def test_our_own_clock_does_not_matter(tmp_path, monkeypatch):
    place(tmp_path, elsewhere(), age=60)
    for wrong in (0.0, 4e9):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong)
        assert 59 < live_ranks(tmp_path)[0].age < 100
        assert_taken(tmp_path)


def test_the_owner_touches_its_lock(tmp_path):
    with RankLock(tmp_path, 0, 1, beat=0.01) as lock:
        path = tmp_path / "locks" / "r000.lock"
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime < 1e9:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        lock.check()


# --- a lock that was lost --------------------------------------------------------------------


@pytest.mark.parametrize("taken", [True, False])
def test_a_lost_lock_is_noticed_and_left_alone(tmp_path, taken):
    with RankLock(tmp_path, 0, 1, beat=0.01) as lock:
        assert not lock.lost
        lock.check()
        path = place(tmp_path, elsewhere())
        if not taken:
            path.unlink()
        deadline = time.monotonic() + 60
        while not lock.lost:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        says = "of rank 0; PID 4711 on node7 is" if taken else "of rank 0\\."
        with pytest.raises(StoreError, match=says):
            lock.check()
    assert path.exists() == taken


def test_a_check_before_the_next_beat_notices_too(tmp_path):
    with RankLock(tmp_path, 0, 1, beat=9999) as lock:
        place(tmp_path, elsewhere())
        with pytest.raises(StoreError):
            lock.check()
        assert lock.lost


def test_a_server_that_does_not_answer_loses_no_lock(tmp_path, monkeypatch):
    def no_answer(*args):
        raise OSError(errno.EIO, "Input/output error")

    with RankLock(tmp_path, 0, 1) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", no_answer)
            lock.check()
        assert not lock.lost
        lock.check()


# --- ranks of one run ------------------------------------------------------------------------


def test_runs_of_different_sizes_exclude_each_other(tmp_path):
    with start(tmp_path, rank=1, world=2) as other:
        others(tmp_path, 0, 2)
        with RankLock(tmp_path, 0, 2):
            pass
        with pytest.raises(
            StoreError,
            match=rf"written by a run of 2 ranks \(rank 1: PID {other.pid} on .+\); this one has 3",
        ):
            RankLock(tmp_path, 0, 3).__enter__()
        assert set(live_ranks(tmp_path)) == {1}, "the refused one holds nothing"
        other.kill()
        other.communicate()
    with RankLock(tmp_path, 0, 3):
        others(tmp_path, 0, 3)


def test_who_writes_is_told_without_writing_where_that_is_not_allowed(tmp_path, monkeypatch):
    assert live_ranks(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
    place(tmp_path, elsewhere(world=7), age=5, rank=6)

    def read_only(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    info = live_ranks(tmp_path)[6]
    assert (info.host, info.pid, info.world) == ("node7", 4711, 7)
    assert 4 < info.age < 60


# --- whatever lies there ---------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = st.fixed_dictionaries(
    dict.fromkeys(json.loads(myself(1).content()), JSON), optional={"age": JSON, "more": JSON}
)
CONTENTS = st.binary(max_size=200) | (JSON | FIELDS).map(lambda value: json.dumps(value).encode())


@settings(max_examples=30)
@given(CONTENTS)
def test_any_content_is_refused_while_new_and_taken_over_when_old(tmp_path_factory, content):
    store = tmp_path_factory.mktemp("any")
    path = place(store, content)
    os.utime(path, (time.time() + 60,) * 2)
    live_ranks(store)
    assert_taken(store)
    place(store, content, age=121)
    assert_free(store)


TORN = [b"", b'{"host": "no', b"[" * 4000, b"x" * 100_000, b"\xff", b'{"pid": 1' + b"0" * 9999]


@pytest.mark.parametrize("content", TORN)
def test_a_torn_lock_is_waited_for(tmp_path, content, links):
    place(tmp_path, content, age=60)
    with pytest.raises(StoreError, match=r"may be in use: .* rank 0 cannot be read, and is 6\d s"):
        RankLock(tmp_path, 0, 1).__enter__()
    assert live_ranks(tmp_path) == {}
    place(tmp_path, content, age=121)
    assert_free(tmp_path)


@pytest.mark.parametrize("pid", [0, -1, True, 1 << 32, 1 << 70])
def test_impossible_pids_are_nobody(tmp_path, pid):
    mine = dataclasses.replace(myself(1), pid=pid, start=None)
    place(tmp_path, mine, age=121)
    assert_free(tmp_path)


def test_what_is_no_file_is_waited_for_and_then_gives_way(tmp_path):
    path = tmp_path / "locks" / "r000.lock"
    path.parent.mkdir()
    old = (time.time() - 121,) * 2
    for target in ("", "nowhere", "."):
        if target:
            path.symlink_to(target)
        else:
            os.mkfifo(path)
        assert_taken(tmp_path)
        os.utime(path, old, follow_symlinks=False)
        assert_free(tmp_path)


def test_a_folder_in_a_locks_place_is_moved_aside_with_what_it_holds(tmp_path, links):
    path = tmp_path / "locks" / "r000.lock"
    path.mkdir(parents=True)
    (path / "notes").write_text("kept")
    assert_taken(tmp_path)
    os.utime(path, (time.time() - 121,) * 2)
    with RankLock(tmp_path, 0, 1) as lock:
        lock.check()
    (moved,) = (tmp_path / "locks").iterdir()
    assert (moved / "notes").read_text() == "kept"


def test_a_store_that_cannot_be_written_is_an_error_of_the_store(tmp_path):
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(StoreError, match=r"r000\.lock cannot be made: "):
        RankLock(tmp_path, 0, 1).__enter__()


def test_a_full_disk_is_no_error_of_the_store_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        RankLock(tmp_path, 0, 1).__enter__()
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_swallowed_answer_is_found_out(tmp_path, monkeypatch):
    """A network may lose the answer and ask again: then the lock is there, and it is ours."""
    link = os.link

    def asked_twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", asked_twice)
    assert_free(tmp_path)


# --- taking over -----------------------------------------------------------------------------


def test_leftovers_of_killed_processes_go(tmp_path):
    """Claims and temporary files, of this machine at once; those of the living stay."""
    dead = elsewhere(host=claims._host(), machine=claims._machine(), pid=ended())
    folder = place(tmp_path, dead).parent
    (folder / ".r000.0123456789abcdef.claim").write_bytes(dead.content())
    (folder / ".r000.lock.01234567.host.5.tmp").write_bytes(dead.content())
    (folder / ".r000.lock.01234567.node7.5.tmp").write_bytes(elsewhere().content())
    with RankLock(tmp_path, 0, 1):
        left = {path.name for path in folder.iterdir()}
    assert left == {"r000.lock", ".r000.lock.01234567.node7.5.tmp"}
