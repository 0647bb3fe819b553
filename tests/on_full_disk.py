"""A sketch whose disk runs full, in a mount namespace of its own; a program for ``unshare -rm``.

``python on_full_disk.py FOLDER DATA MODEL`` mounts a disk of 20 MB at FOLDER and prints a line of
JSON for each of: a run with too little room, the store after it, the same command with room.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from preloaded import PreloadedCongrad

from congrad_cli.store import GradientStore

OPTIONS = ("--dim", "65536", "--width", "8", "--leading", "2", "--store-dtype", "float16",
           "--batch-tokens", "300")  # fmt: skip
LEFT = 2_500_000  # bytes; 24 rows take 3.1 MB


def main() -> None:
    """Run out of room, look, make room, go on."""
    folder, data, model = sys.argv[1:]
    disk = Path(folder)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], check=True)
    ballast, store, around = disk / "ballast", disk / "s.congrad", Path(data).parent
    with ballast.open("wb") as file:
        room = os.statvfs(disk)
        file.write(bytes(room.f_bavail * room.f_frsize - LEFT))
    with PreloadedCongrad(around) as server:

        def sketch(into: Path) -> dict:
            done = server.run("sketch", data, "-m", model, "-s", into, *OPTIONS, SHARD_ROWS=5)
            return {"code": done.returncode, "out": done.stdout.decode(),
                    "err": done.stderr.decode()}  # fmt: skip

        print(json.dumps(sketch(store)))
        found = GradientStore.open(store)
        print(json.dumps({"rows": len(found), "of": found.rows,
                          "left": [path.name for path in store.rglob(".*")]}))
        ballast.unlink()
        print(json.dumps(sketch(store)))
        print(json.dumps(sketch(around / "whole")))
        print(json.dumps({"same": columns(store) == columns(around / "whole"),
                          "left": [path.name for path in store.rglob(".*")]}))


def columns(store: Path) -> list[bytes]:
    """All that the rows are."""
    found = GradientStore.open(store)
    names = ("digest", "direction", "norm", "logp", "tokens")
    return [found.column(name).tobytes() for name in names]


if __name__ == "__main__":
    main()
