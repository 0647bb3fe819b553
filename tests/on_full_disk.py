"""A sketch whose disk runs full, in a mount namespace of its own; a program for ``preloaded``.

``FOLDER DATA MODEL`` mounts a disk of 20 MB at FOLDER and prints a line of JSON for each of: a run
with too little room, the store after it, the same command with room, a run elsewhere, both stores.
Where nothing can be mounted the exit code is 77.
"""

import ctypes
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import patched
from torturing import fork

from congrad_cli.cli import main as congrad
from congrad_cli.store import GradientStore

OPTIONS = ("--dim", "65536", "--width", "8", "--leading", "2", "--store-dtype", "float16",
           "--batch-tokens", "300")  # fmt: skip
LEFT = 2_500_000  # bytes; 24 rows take 3.1 MB
NO_MOUNTS = 77
NEW_NAMESPACES = 0x10000000 | 0x00020000  # of users, in which we may mount, and of mounts


def mount(folder: str) -> bool:
    """Mount a small disk that this process alone sees; whether that is allowed."""
    user, group = os.getuid(), os.getgid()
    try:
        if ctypes.CDLL(None).unshare(NEW_NAMESPACES):
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder]
        return subprocess.run(command, check=False).returncode == 0
    except (AttributeError, OSError):  # no Linux, or not allowed
        return False


def run(arguments: list[str], log: Path) -> None:
    """The command, in a process of its own."""
    for number in (1, 2):
        os.dup2(os.open(log.with_suffix(f".{number}"), os.O_CREAT | os.O_WRONLY), number)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["congrad", *arguments]
    try:
        congrad()
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(int(end.code or 0))


def main() -> None:
    """Run out of room, look, make room, go on."""
    folder, data, model = sys.argv[1:]
    if not mount(folder):
        sys.exit(NO_MOUNTS)
    patched.patch({"SHARD_ROWS": 5})
    disk, around = Path(folder), Path(data).parent
    ballast, store, whole = disk / "ballast", disk / "s.congrad", around / "whole.congrad"
    with ballast.open("wb") as file:
        room = os.statvfs(disk)
        file.write(bytes(room.f_bavail * room.f_frsize - LEFT))

    def sketch(into: Path, name: str) -> dict:
        arguments = ["sketch", data, "-m", model, "-s", str(into), *OPTIONS]
        _, status = os.waitpid(fork(partial(run, arguments, around / name)), 0)
        out, err = ((around / f"{name}.{number}").read_text() for number in (1, 2))
        return {"code": os.waitstatus_to_exitcode(status), "out": out, "err": err}

    print(json.dumps(sketch(store, "full")))
    found = GradientStore.open(store)
    print(json.dumps({"rows": len(found), "of": found.rows, "left": hidden(store)}))
    ballast.unlink()
    print(json.dumps(sketch(store, "again")))
    print(json.dumps(sketch(whole, "whole")))
    print(json.dumps({"same": columns(store) == columns(whole), "left": hidden(store)}))


def hidden(store: Path) -> list[str]:
    """The temporary files that are left."""
    return [path.name for path in store.rglob(".*")]


def columns(store: Path) -> list[bytes]:
    """All that the rows are."""
    found = GradientStore.open(store)
    names = ("digest", "direction", "norm", "logp", "tokens")
    return [found.column(name).tobytes() for name in names]


if __name__ == "__main__":
    main()
