"""Commits on file systems that lack hard links, or cannot sync a folder; and names for a while."""

import errno
import os
import stat

import pytest

from congrad_cli import claims
from congrad_cli.tensors import commit_file, replace_file

NO_LINKS = [errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP,
            errno.EOPNOTSUPP, errno.EXDEV]  # fmt: skip


def failing(code):
    """A system call that answers ``code``."""

    def fail(*args):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", NO_LINKS)
def test_without_hard_links_a_commit_is_whole_and_still_refuses_a_second(
    tmp_path, monkeypatch, code
):
    monkeypatch.setattr(os, "link", failing(code))
    file = tmp_path / "shard"
    commit_file(file, b"first")
    with pytest.raises(FileExistsError, match="shard"):
        commit_file(file, b"second")
    assert file.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [file]


def test_without_hard_links_a_dangling_link_counts_as_there(tmp_path, monkeypatch):
    """As it does for link(2)."""
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    (tmp_path / "shard").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        commit_file(tmp_path / "shard", b"data")
    assert (tmp_path / "shard").is_symlink()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_real_failure_of_the_link_is_an_error(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "link", failing(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        commit_file(tmp_path / "shard", b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [commit_file, replace_file])
@pytest.mark.parametrize(
    ("code", "known"),
    [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.ENOSYS, True), (errno.EIO, False)],
)
def test_a_folder_that_cannot_be_synced_is_fine_and_one_that_fails_is_not(
    tmp_path, monkeypatch, write, code, known
):
    fsync = os.fsync

    def of_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    if known:
        write(tmp_path / "shard", b"data")
        assert (tmp_path / "shard").read_bytes() == b"data"
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            write(tmp_path / "shard", b"data")


@pytest.mark.parametrize("write", [commit_file, replace_file])
def test_a_file_that_cannot_be_synced_is_not_committed(tmp_path, monkeypatch, write):
    """What folders are forgiven, data is not."""
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        write(tmp_path / "shard", b"data")
    assert list(tmp_path.iterdir()) == []


def test_temporary_names_tell_host_and_process_and_are_never_the_same(tmp_path, monkeypatch):
    """Containers of one host name often have one PID; a killed one leaves its file behind."""
    monkeypatch.setattr(claims, "_host", lambda: "node/7.cluster ü")
    first, second = (claims.temporary_name(tmp_path / "r000-00001.safetensors") for _ in "12")
    assert first != second
    name, token, host, pid, end = first.name.rsplit(".", 4)
    assert (name, host) == (".r000-00001.safetensors", "node-7-cluster--")
    assert (int(pid), end, len(token)) == (os.getpid(), "tmp", 8)


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path):
    file = tmp_path / ("ü" * 121 + ".safetensors")  # 254 bytes; 255 are allowed
    commit_file(file, b"data")
    assert file.read_bytes() == b"data"
