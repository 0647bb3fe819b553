"""The loop around the engine: memory that runs out, gradients that are no numbers, look-ahead."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from zoo import build, zoo

from congrad_cli.errors import NumericsError, out_of_memory
from congrad_cli.progress import Silent
from congrad_cli.records.record import BadRecord, DataFile
from congrad_cli.settings import RecordSettings, SketchSettings
from congrad_cli.sketch import run as sketching
from congrad_cli.sketch.ahead import ahead
from congrad_cli.sketch.budget import ROWS, SHARE, fit_tokens
from congrad_cli.sketch.gradients import BatchSketch, PairSketcher
from congrad_cli.sketch.index import index_data
from congrad_cli.sketch.job import SketchJob
from congrad_cli.sketch.pairs import PairBatch
from congrad_cli.sketch.tokens import TokenizedPair
from congrad_cli.sketch.uses import MixedRowsError
from congrad_cli.store import GradientStore, require_complete

RARE = "zebra"


class Told(Silent):
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str, kind: str = "") -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Path:
    """A tiny model with untied embeddings and the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(sample_data / "tiny-model")
    build(zoo(len(tokenizer))["llama"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve pairs of different lengths; the word of the eighth is in no other."""
    lines = [
        {"prompt": f"Question {row}?", "chosen": " yes" * (row + 1), "rejected": " no" * 3,
         "language": "en"}
        for row in range(12)
    ]  # fmt: skip
    lines[7]["prompt"] = f"A {RARE}?"
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def sketch(model: Path, data: Path, store: Path, **options: Any) -> tuple[GradientStore, Told]:
    told = Told()
    settings = SketchSettings(
        model=str(model), dim=512, width=8, leading=2, store_dtype="float16", device="cpu",
        **options,
    )
    index = index_data([DataFile("pairs.jsonl", data)], RecordSettings())
    sketching.run(index, store, settings, told)
    return GradientStore.open(store), told


def directions(store: GradientStore) -> np.ndarray:
    return np.concatenate([block.direction for block in store.blocks()])


def limited(most: int, error: type[Exception]) -> Any:
    """A sketcher that fails on batches of more than ``most`` padded tokens."""
    whole = PairSketcher.sketch

    def attempt(self: PairSketcher, batch: PairBatch) -> BatchSketch:
        if batch.input_ids.numel() > most:
            raise error("tried to allocate too much")
        return whole(self, batch)

    return attempt


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_halves_the_batch_and_loses_no_row(
    error: type[Exception], model: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain, _ = sketch(model, data, tmp_path / "plain")
    monkeypatch.setattr("congrad_cli.sketch.start.check_batches", lambda *_: None)  # two pairs
    monkeypatch.setattr(PairSketcher, "sketch", limited(100, error))
    store, told = sketch(model, data, tmp_path / "small")
    assert store.row.tolist() == list(range(12))
    cosine = (directions(store) * directions(plain)).sum(1)
    assert (cosine > 1 - 1e-3).all()  # float16 rows
    assert "out of memory with" in told.warnings[0] and "going on with" in told.warnings[0]
    assert len(told.warnings) < 4  # what was learned is kept: not every batch fails again


def test_a_pair_that_does_not_fit_alone_ends_with_its_size(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("congrad_cli.sketch.start.check_batches", lambda *_: None)
    monkeypatch.setattr("congrad_cli.sketch.start.compare_layouts", lambda *_: _agreed())
    monkeypatch.setattr(PairSketcher, "sketch", limited(20, MemoryError))
    with pytest.raises(MemoryError, match=r"one pair of \d+ tokens does not fit"):
        sketch(model, data, tmp_path / "store")
    assert len(GradientStore.open(tmp_path / "store")) == 0


def _agreed() -> Any:
    from congrad_cli.sketch.check import LayoutCheck

    return LayoutCheck(0.0, 1e-5)


def test_mixed_rows_are_sketched_one_by_one(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = sketch(model, data, tmp_path / "plain")
    whole = PairSketcher.sketch

    def alone(self: PairSketcher, batch: PairBatch) -> BatchSketch:
        if len(batch.pairs) > 1:
            raise MixedRowsError("experts.0")
        return whole(self, batch)

    monkeypatch.setattr(PairSketcher, "sketch", alone)
    store, told = sketch(model, data, tmp_path / "alone")
    assert store.row.tolist() == list(range(12))
    assert ((directions(store) * directions(plain)).sum(1) > 1 - 1e-3).all()
    assert told.warnings == [
        "experts.0 sees tokens of all pairs together: one pair at a time from here"
    ]


@pytest.fixture
def poisoned(model: Path, tmp_path: Path) -> Path:
    """The model with an infinite embedding of a token that only the eighth pair has."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "poisoned"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(model)
    common = set(tokenizer("A Question 0123456789? yes no" + tokenizer.eos_token)["input_ids"])
    rare = [token for token in tokenizer(RARE)["input_ids"] if token not in common]
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][rare[-1]] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_gradient_that_is_no_number_stops_with_line_and_layer(
    poisoned: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(NumericsError, match=r"pairs\.jsonl:8: .*not finite \(first in model\.lay"):
        sketch(poisoned, data, tmp_path / "store")


def test_bad_gradients_can_be_skipped_and_are_counted(
    model: Path, poisoned: Path, data: Path, tmp_path: Path
) -> None:
    healthy, _ = sketch(model, data, tmp_path / "healthy")
    store, told = sketch(poisoned, data, tmp_path / "store", bad_records="skip")
    assert store.row.tolist() == [row for row in range(12) if row != 7]
    assert store.skipped() == {7: "not-finite"}
    assert told.warnings[0].startswith("pairs.jsonl:8: skipped (not-finite)")
    # the pairs that shared its batch are as they were
    np.testing.assert_array_equal(
        directions(store), np.delete(directions(healthy), 7, axis=0)
    )
    require_complete(store, False, Silent())


TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
REFUSES = "{% if 'zebra' in messages[0]['content'] %}{{ raise_exception('no zebras') }}{% endif %}"


def conversations(data: Path) -> Path:
    """The same pairs as message lists."""
    lines = [json.loads(line) for line in data.read_bytes().splitlines()]
    for line in lines:
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            line[name] = [{"role": role, "content": line[name]}]
    path = data.with_name("conversations.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_refused_conversation_is_damage_that_can_be_skipped(
    model: Path, data: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(REFUSES + TEMPLATE)
    talks = conversations(data)
    with pytest.raises(BadRecord, match=r"pairs\.jsonl:8: the chat template .*: no zebras\."):
        sketch(model, talks, tmp_path / "store", chat_template=str(template))
    store, told = sketch(
        model, talks, tmp_path / "store", chat_template=str(template), bad_records="skip"
    )
    assert store.row.tolist() == [row for row in range(12) if row != 7]
    assert store.skipped() == {7: "template"}
    assert told.warnings == [
        "pairs.jsonl:8: skipped (template): the chat template refuses this conversation: no zebras"
    ]


def test_what_was_skipped_as_damage_does_not_stop_a_later_run(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(REFUSES + TEMPLATE)
    options = {"chat_template": str(template), "share_prompt": False, "batch_tokens": 1}
    talks = conversations(data)
    whole, worked = SketchJob._work_batch, []

    def killed(self: SketchJob, batch: list[TokenizedPair], shared: bool) -> None:
        if len(worked) == 3:
            raise KeyboardInterrupt
        worked.append(batch)
        whole(self, batch, shared)

    monkeypatch.setattr(SketchJob, "_work_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        sketch(model, talks, tmp_path / "store", bad_records="skip", **options)
    monkeypatch.setattr(SketchJob, "_work_batch", whole)
    store, _ = sketch(model, talks, tmp_path / "store", **options)
    assert len(store) == 11
    require_complete(store, False, Silent())


def test_truncation_is_told_once_with_the_longest(model: Path, data: Path, tmp_path: Path) -> None:
    _, told = sketch(model, data, tmp_path / "all")
    assert told.warnings == []
    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths = [
        max(len(tokenizer(line["prompt"] + line[side] + tokenizer.eos_token)["input_ids"])
            for side in ("chosen", "rejected"))
        for line in map(json.loads, data.read_bytes().splitlines())
    ]  # fmt: skip
    limit = max(lengths) - 4
    longer = sum(length > limit for length in lengths)
    assert longer > 1
    store, told = sketch(model, data, tmp_path / "cut", max_length=limit)
    assert len(store) == 12
    assert told.warnings == [
        f"{longer} pairs longer than {limit} tokens were truncated (longest {max(lengths)}). "
        "--max-length raises the limit; --overlong skip drops them."
    ]
    _, told = sketch(model, data, tmp_path / "one", max_length=max(lengths) - 1)
    assert told.warnings[0].startswith(f"1 pair longer than {max(lengths) - 1} tokens was trunc")
    store, told = sketch(model, data, tmp_path / "dropped", max_length=limit, overlong="skip")
    assert len(store) == 12 - longer
    assert set(store.skipped().values()) == {"overlong"}
    assert not any("truncated" in warning for warning in told.warnings)
    with pytest.raises(BadRecord, match=rf"pairs\.jsonl:\d+: .* more than --max-length {limit}\."):
        sketch(model, data, tmp_path / "stop", max_length=limit, overlong="stop",
               bad_records="skip")


def test_ahead_works_one_item_ahead_in_order_and_hands_on_errors() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            if number == 1:
                second.set()
            yield number
        raise ValueError("broken")

    coming = ahead(items())
    assert next(coming) == 0
    assert second.wait(10)  # made while 0 is in use
    assert made == [0, 1]
    assert [next(coming), next(coming)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(coming)


def test_ahead_ends_with_its_items() -> None:
    assert list(ahead(iter([]))) == []
    assert list(ahead(iter([1, 2]))) == [1, 2]


@pytest.mark.parametrize(("slope", "fixed"), [(1000, 0), (50_000, 10**9), (3_000_000, 0)])
def test_the_budget_fits_into_the_free_memory(slope: int, fixed: int) -> None:
    free, tokens = 40 * 10**9, 57
    budget = fit_tokens(lambda rows: fixed + rows * tokens * slope, tokens, free)
    assert ROWS[0] < ROWS[1] and budget in [1 << power for power in range(10, 17)]
    if budget > 1024:
        assert fixed + budget * slope <= SHARE * free
    if 1024 < budget < 65536:
        assert fixed + 2 * budget * slope > SHARE * free


@pytest.mark.parametrize(
    "text",
    ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling",
     "MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory: you tried"],
)  # fmt: skip
def test_memory_that_ran_out_is_known_by_its_texts(text: str) -> None:
    assert out_of_memory(RuntimeError(text))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(ValueError(text))
