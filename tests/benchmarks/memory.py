"""Peak memory of the sketch on the CPU, each number from a process of its own (Linux).

Prints the peak resident memory beyond what is resident once the model and the batches are there:
of the shared rows without a sketch, of the sketch, and of separate sequences with full logits;
for the pairs of ``cost.py``. Then the peak of whole ``congrad sketch`` runs over 64 bundled pairs
and over the same 64 repeated: batches get fuller until a window of 1,024 rows is full, beyond that
memory must not grow with the number of pairs.

    OMP_NUM_THREADS=1 python tests/benchmarks/memory.py --vocabulary 8192
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

PARTS = ("rows", "sketch", "floor")
MIB = 1 << 20


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_of_part(part: str, args: argparse.Namespace) -> int:
    """In this process: bytes beyond the model that two passes over the pairs take."""
    import torch
    from cost import Variants, Work, random_model, random_pairs

    torch.set_num_threads(1)
    ways = Variants(random_model(args.vocabulary), random_pairs(args.pairs, args.vocabulary))
    entered: dict[str, AbstractContextManager[Work]] = {
        "rows": ways.sketch(0, 0), "sketch": ways.sketch(8, 32), "floor": ways.floor(),
    }  # fmt: skip
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    with entered[part] as work:
        work()
        work()
    return resident("VmHWM") - before


def peak_of_command(data: Path, store: Path, model: str) -> int:
    """Peak bytes of ``congrad sketch``."""
    command = [sys.executable, "-m", "congrad_cli", "sketch", str(data), "--model", model,
               "--store", str(store), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {child.returncode}")
    return usage.ru_maxrss * 1024


def repeated(data: Path, target: Path, pairs: int, times: int) -> Path:
    """The first ``pairs`` records of ``data``, ``times`` over, with ids of their own."""
    with data.open() as source, target.open("w") as file:
        records = [json.loads(text) for text in islice(source, pairs)]
        for turn in range(times):
            for record in records:
                file.write(json.dumps({**record, "id": f"{record['id']}-{turn}"}) + "\n")
    return target


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--data", type=Path, default=Path("sample_data/preferences.jsonl"))
    parser.add_argument("--model", default="sample_data/tiny-model")
    parser.add_argument("--part", choices=PARTS, help="measure one part in this process")
    args = parser.parse_args()
    if args.part:
        print(peak_of_part(args.part, args))
        return
    for part in PARTS:
        command = [sys.executable, __file__, "--part", part, "--pairs", str(args.pairs),
                   "--vocabulary", str(args.vocabulary)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"vocabulary {args.vocabulary}, {part:7} {int(found) / MIB:8.1f} MiB beyond the "
              "model", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 8, 16, 32):
            data = repeated(args.data, Path(folder) / f"{times}.jsonl", 64, times)
            peak = peak_of_command(data, Path(folder) / f"{times}.congrad", args.model)
            print(f"congrad sketch, {64 * times:5,} pairs {peak / MIB:8.1f} MiB in all", flush=True)


if __name__ == "__main__":
    main()
