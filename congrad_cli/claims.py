"""Files of which each has one owner, without flock and across hosts; ``locks`` builds on them.

Such a file says who owns it. It appears exclusively, and counts while its owner lives: a process
of this machine that still runs, or one elsewhere that touched the file lately by the file
server's own clock.

A file that exists is changed or removed only by the holder of its *claim*: a second such file,
named by a digest of the content in question. Of many who find the same stale file one gets the
claim, looks again, and replaces the file in one rename; all others lose. So no file is ever
absent, or another's, for a moment. A claim whose holder was killed is itself replaced under a
claim of its own.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

NO_LINKS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP,
            errno.EOPNOTSUPP, errno.EXDEV)  # fmt: skip
"""What file systems without hard links answer to link(2). Where the cause is another one, the
way around fails with it too."""

NO_RESOURCES = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the machine lacks, and no fault of a file."""

_UNREADABLE = (errno.EACCES, errno.ELOOP, errno.ENXIO, errno.EOPNOTSUPP)  # links, sockets, rights
_MAX_CONTENT = 4096
_TRIES = 100  # a lock may be released, and taken again, while we look


@dataclass(frozen=True, slots=True)
class LockInfo:
    """Who holds a lock. All but ``age`` is the content of the file."""

    host: str
    machine: str  # what tells hosts of one name apart: the boot, and the PIDs' namespace
    pid: int
    start: int | None  # when the process began, in clock ticks since the boot; Linux only
    world: int
    since: int  # when the lock was taken, in seconds since 1970 by the owner's clock
    token: str
    age: float = 0.0  # seconds since the last sign of life, by the file server's clock

    def content(self) -> bytes:
        """The bytes of the lock file."""
        fields = asdict(self)
        del fields["age"]
        return json.dumps(fields, sort_keys=True).encode() + b"\n"


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` for a file that nobody else writes: ``.NAME.TOKEN.HOST.PID.tmp``.

    The token is there because containers of one host name often have the same PID.
    """
    name = path.name.lstrip(".")[:40]
    return path.with_name(
        f".{name}.{secrets.token_hex(4)}.{temporary_ending(_host(), os.getpid())}"
    )


def temporary_ending(host: str, pid: int) -> str:
    """How the temporary names of a process end: ``HOST.PID.tmp``."""
    return f"{re.sub(r'[^A-Za-z0-9-]', '-', host)[:24]}.{pid}.tmp"


def left_behind(path: Path) -> bool:
    """Whether this is a temporary name of a process of this host that is gone.

    Of containers with one host name, one may take another's process for gone.
    """
    pid = path.name.removesuffix(".tmp").rpartition(".")[2]
    return (
        re.fullmatch("[0-9]{1,9}", pid) is not None
        and path.name.endswith("." + temporary_ending(_host(), int(pid)))
        and not _process(int(pid))[0]
    )


class HeldError(Exception):
    """Somebody lives who has it: ``info``, or nobody knows who."""

    def __init__(self, info: LockInfo | None, age: float) -> None:
        super().__init__()
        self.info, self.age = info, age


@dataclass(frozen=True, slots=True)
class Found:
    """A lock, or something in its place, at one moment."""

    content: bytes  # nothing where it is no file, or may not be read
    mtime: float
    folder: bool

    def info(self, now: float) -> LockInfo | None:
        """Who holds it, where that can be read."""
        return _parse(self.content, max(now - self.mtime, 0.0))

    def alive(self, now: float, stale_after: float) -> bool:
        """Whether it counts. Read ``now`` before looking: a pause between must not make it old."""
        info = self.info(now)
        if info is not None and (info.host, info.machine) == (_host(), _machine()):
            runs, start = _process(info.pid)
            if not runs:
                return False
            if start is not None and info.start is not None:
                return start == info.start
        return now - self.mtime <= stale_after


def take(path: Path, info: LockInfo, stale_after: float) -> None:
    """Make ``path`` the file of ``info``, which is new or replaces a stale one.

    Raises :class:`HeldError` where another's file is there, or where another is about to replace
    it, and OSError where no file can be written.
    """
    content, now, found = info.content(), 0.0, None
    temporary = temporary_name(path)
    try:
        _write_new(temporary, content)
        for _ in range(_TRIES):
            if _create(temporary, path, content):
                return
            now = touched(temporary)
            if (found := look(path)) is None:
                continue
            if found.alive(now, stale_after):
                break
            with claim(path, found.content, info, stale_after):
                if _still_stale(temporary, path, found.content, stale_after):
                    with contextlib.suppress(FileNotFoundError):  # done, and the answer swallowed
                        temporary.replace(path)
                    if holds(path, content):
                        return
    finally:
        temporary.unlink(missing_ok=True)
    raise HeldError(found.info(now), now - found.mtime) if found else HeldError(None, 0.0)


def _create(temporary: Path, path: Path, content: bytes) -> bool:
    """Make ``path`` exist with ``content``; returns whether it does, or is another's.

    The file itself tells: where a network swallowed an answer, the second try finds its own.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with contextlib.suppress(FileExistsError):
            _write_new(path, content)
    return holds(path, content)


def _still_stale(temporary: Path, path: Path, content: bytes, stale_after: float) -> bool:
    """With the claim in hand: whether ``path`` still has ``content``, and nobody who lives."""
    now, found = touched(temporary), look(path)
    if found is None or found.content != content or found.alive(now, stale_after):
        return False
    if found.folder:  # no rename replaces one; it may hold somebody's files
        path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.moved"))
    return not found.folder


@contextlib.contextmanager
def claim(path: Path, content: bytes, info: LockInfo, stale_after: float) -> Iterator[None]:
    """Be the only one who may change or remove ``path`` while its content is ``content``.

    Raises as :func:`take` does. The content may have changed before: look again inside.
    """
    key = hashlib.sha256(path.name.encode() + b"\0" + content).hexdigest()[:16]
    rank = path.name.lstrip(".").partition(".")[0]
    place = path.with_name(f".{rank}.{key}.claim")
    take(place, info, stale_after)
    try:
        yield
    finally:
        if holds(place, info.content()):
            place.unlink()


def _write_new(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def holds(path: Path, content: bytes) -> bool:
    """Whether ``content`` is what ``path`` has now."""
    found = look(path)
    return found is not None and found.content == content


def look(path: Path) -> Found | None:
    """What is at ``path``. Opening it makes a network's file system ask its server."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            return Found(b"", status.st_mtime, stat.S_ISDIR(status.st_mode))
        return None
    try:
        status = os.fstat(file)
        content = os.read(file, _MAX_CONTENT) if stat.S_ISREG(status.st_mode) else b""
        return Found(content, status.st_mtime, stat.S_ISDIR(status.st_mode))
    finally:
        os.close(file)


def _parse(content: bytes, age: float) -> LockInfo | None:
    """The content of a lock file; None where it is torn, or anybody's."""
    try:
        fields = json.loads(content)
        info = LockInfo(**fields, age=age)
    except (ValueError, TypeError, RecursionError):
        return None
    texts, numbers = (info.host, info.machine, info.token), (info.pid, info.world, info.since)
    fine = (
        all(isinstance(text, str) and text.isprintable() for text in texts)
        and all(type(number) is int and 0 < number < 1 << 33 for number in numbers)
        and (info.start is None or type(info.start) is int)
    )
    return info if fine else None


def touched(file: Path) -> float:
    """The time by the clock that dates files, told by touching a file of ours."""
    os.utime(file)
    return file.stat().st_mtime


def server_time(folder: Path) -> float:
    """The time by the clock that dates the folder's files; ours where none can be made there."""
    temporary = temporary_name(folder / "clock")
    try:
        temporary.touch()
        return temporary.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


# --- processes -------------------------------------------------------------------------------


def myself(world: int) -> LockInfo:
    """What this process writes into its next lock."""
    pid = os.getpid()
    return LockInfo(
        host=_host(), machine=_machine(), pid=pid, start=_process(pid)[1], world=world,
        since=int(time.time()), token=secrets.token_hex(16),
    )  # fmt: skip


@cache
def _host() -> str:
    import socket

    name = socket.gethostname()
    return "".join(letter if letter.isprintable() else "?" for letter in name) or "?"


@cache
def _machine() -> str:
    """Tells apart what has one host name: containers, clones. Empty where there is no /proc."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _process(pid: int) -> tuple[bool, int | None]:
    """Whether a process runs on this machine, and when it began, where that is known."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False, None
    except PermissionError:
        pass  # another user's
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:  # no Linux, or one that hides other users' processes
        return True, None
    state, *fields = text.rpartition(")")[2].split()
    return state not in "ZX", int(fields[18])  # a zombie only waits to be counted
