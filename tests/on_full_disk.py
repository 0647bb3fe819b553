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
from torturing import congrad, fork

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
        out, err = around / f"{name}.out", around / f"{name}.err"
        _, status = os.waitpid(fork(partial(congrad, arguments, out, err)), 0)
        return {"code": os.waitstatus_to_exitcode(status), "out": out.read_text(),
                "err": err.read_text()}  # fmt: skip

    print(json.dumps(sketch(store, "full")), flush=True)
    found = GradientStore.open(store)
    print(json.dumps({"rows": len(found), "of": found.rows, "left": hidden(store)}), flush=True)
    ballast.unlink()
    print(json.dumps(sketch(store, "again")), flush=True)
    print(json.dumps(sketch(whole, "whole")), flush=True)
    print(json.dumps({"same": columns(store) == columns(whole), "left": hidden(store)}), flush=True)


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
