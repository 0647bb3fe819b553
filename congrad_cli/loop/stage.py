"""One step of a round in a folder of its own: begun, continued, done, and never made of two inputs.

``inputs.json`` says what the stage is made of, from its first moment. ``results.part.jsonl``
gets a line for each finished item; at the end they become ``results.jsonl`` in the inputs' order,
and ``DONE.json`` appears. A stage with ``DONE.json`` is never touched again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

from congrad_cli import __version__
from congrad_cli.errors import InputError, StoreError
from congrad_cli.loop.items import Item, ItemLog, Items, durable, line_of
from congrad_cli.progress import Progress
from congrad_cli.tensors import replace_file

RESULTS, INPUTS, DONE = "results.jsonl", "inputs.json", "DONE.json"
PART_ENDING = ".part.jsonl"
PACKAGES = ("torch", "transformers", "trl", "peft", "vllm")
_READ_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Done:
    """What a finished stage says of itself."""

    inputs: dict[str, str]  # by what the user calls them, digests
    outputs: dict[str, str]
    counts: dict[str, Any]  # numbers by name, or by language and name
    versions: dict[str, str]
    seconds: float  # of the process that finished it


@dataclass(frozen=True)
class Worker(Generic[T]):
    """What makes items of inputs, ``chunk`` of them at a time; each input's item has its key."""

    chunk: int
    work: Callable[[Sequence[T]], Iterator[Item]]


@dataclass(frozen=True)
class Inputs(Generic[T]):
    """What items are made of, with the key of each, and the name of the items' file."""

    items: Sequence[T]
    keys: Sequence[str]
    name: str = "results"


@dataclass
class Stage:
    """A stage of a run. ``name`` is what the user calls it, such as ``1/candidates``.

    ``check`` may raise where the run is another process' by now; ``anew`` says how it is made
    again.
    """

    folder: Path
    name: str
    check: Callable[[], None] = lambda: None
    anew: str = ""
    _began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.anew = self.anew or f"--restart-from {self.name} makes it again, and what follows it"

    @property
    def results(self) -> Path:
        """The file of its items."""
        return self.folder / RESULTS

    def done(self) -> Done | None:
        """What it says of itself, where it is finished."""
        value = _read_object(self.folder / DONE)
        if value is None:
            return None
        try:
            return Done(**value)
        except TypeError as error:
            raise self._damaged(DONE) from error

    def begun(self) -> bool:
        """Whether there is anything of it: more than its inputs, and logs of what failed."""
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        return any(file.is_dir() or file.stat().st_size for file in files
                   if file.name not in (INPUTS, "locks") and file.suffix not in (".log", ".tmp"))

    def state(self) -> str:
        """``done``, ``begun`` with the number of items there are, or ``to do``."""
        if self.done():
            return "done"
        if not self.begun():
            return "to do"
        parts = list(self.folder.glob(f"*{PART_ENDING}"))
        if not parts:
            return "begun"
        lines = 0
        for part in parts:
            with part.open("rb") as file:
                lines += sum(line.endswith(b"\n") for line in file)
        return f"begun, {lines:,} items"

    def finished(self, inputs: Mapping[str, str]) -> Done | None:
        """What a finished stage says; None where it is to be made or continued.

        Raises :class:`StoreError` where there is something of it that was made of other inputs,
        or where its results are no longer what they were.
        """
        changed, done = self.changed(inputs), self.done()
        if changed:
            raise StoreError(
                f"{self.folder} was made of other inputs: {', '.join(changed)} changed.",
                "put back what was there, or pass another run.folder", self.anew)
        if done:
            self._check_outputs(done)
            self._remove_parts()  # a process may have died before it could
        return done

    def changed(self, inputs: Mapping[str, str]) -> list[str]:
        """The names of inputs that were others when the stage was begun."""
        done = self.done()
        before = done.inputs if done else _read_object(self.folder / INPUTS)
        if before is None or not self.begun():
            return []
        return [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)]

    def begin(self, inputs: Mapping[str, str]) -> None:
        """Make the folder and note what the stage is made of."""
        self._began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check()
        for left in self.folder.glob(".*.tmp"):  # of a killed process: the run is ours alone
            left.unlink(missing_ok=True)
        if not self.begun() or not (self.folder / INPUTS).exists():
            replace_file(self.folder / INPUTS, _json(dict(inputs)))

    def finish(
        self, inputs: Mapping[str, str], outputs: Mapping[str, str], counts: Mapping[str, Any]
    ) -> Done:
        """Say that it is done; outputs are digests by the names of files in the folder."""
        self.check()
        done = Done(dict(inputs), dict(outputs), dict(counts), _versions(),
                    round(time.monotonic() - self._began, 3))
        replace_file(self.folder / DONE, _json(asdict(done)))
        self._remove_parts()
        return done

    def write_items(self, items: Iterable[Item], name: str = RESULTS) -> None:
        """Write a file of items in one go."""
        with durable(self.folder / name) as write:
            for item in items:
                write(line_of(item))

    def _remove_parts(self) -> None:
        for part in self.folder.glob(f"*{PART_ENDING}"):
            part.unlink()

    def _check_outputs(self, done: Done) -> None:
        for name, digest in done.outputs.items():
            path = self.folder / name
            if path.suffix == ".jsonl" and (not path.exists() or digest_file(path) != digest):
                raise StoreError(
                    f"{path} is not what {self.name} wrote: it "
                    + ("changed since." if path.exists() else "is gone."),
                    self.anew)

    def _damaged(self, name: str) -> StoreError:
        return StoreError(f"{self.folder / name} is damaged.", self.anew)


def run_items(
    stage: Stage,
    inputs: Inputs[T],
    opened: Callable[[], AbstractContextManager[Worker[T]]],
    progress: Progress,
    look: Callable[[ItemLog], None] = lambda _: None,
) -> Items:
    """Make the stage's item of every input and write ``NAME.jsonl`` in the inputs' order.

    The inputs are cut into fixed chunks; a chunk whose items are all there is skipped, and items
    that are there are not made twice. ``opened`` is entered only where something is missing.
    ``look`` sees what there is after every chunk, and may raise.
    """
    keys = inputs.keys
    require_unique(keys, stage.name)
    finished = stage.folder / f"{inputs.name}.jsonl"
    with ItemLog(stage.folder / f"{inputs.name}{PART_ENDING}", stage.check) as log:
        if log.dropped:
            progress.note(f"{stage.name}: half a result was dropped ({log.dropped:,} bytes)")
        there = sum(key in log for key in keys)
        if there < len(keys):
            progress.start(f"{stage.name}, {inputs.name}", len(keys), there, "items")
            try:
                with opened() as worker:
                    _work(log, inputs, worker, progress, look)
            finally:
                progress.finish()
        with durable(finished) as write:
            for line in log.lines(keys):
                write(line)
    return Items(finished)


def _work(
    log: ItemLog, inputs: Inputs[T], worker: Worker[T], progress: Progress,
    look: Callable[[ItemLog], None],
) -> None:  # fmt: skip
    """Append what is missing, chunk by chunk."""
    for begin in range(0, len(inputs.keys), worker.chunk):
        chunk = slice(begin, begin + worker.chunk)
        keys = set(inputs.keys[chunk])
        if all(key in log for key in keys):
            continue
        for item in worker.work(inputs.items[chunk]):
            if item["key"] not in keys:
                raise ValueError(f"an item with the key {item['key']!r}, which no input has")
            if item["key"] not in log:
                log.append(item)
                progress.advance(1)
        missing = sorted(key for key in keys if key not in log)
        if missing:
            raise ValueError(f"no item for {len(missing)} inputs, such as {missing[0]!r}")
        look(log)


def require_unique(keys: Sequence[str], what: str) -> None:
    """Raise :class:`InputError` where two inputs have one key."""
    if len(set(keys)) == len(keys):
        return
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise InputError(f"{what}: two items have the key {key!r}.",
                             "every prompt needs an id of its own")
        seen.add(key)


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    """Of what makes results, where it is installed; nothing is imported for that."""
    found = {"congrad": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file that was committed whole; None where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} is damaged: no JSON object.")
    return value
