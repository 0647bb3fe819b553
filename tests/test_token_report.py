"""The dry run: what it counts, against pairs tokenised one by one, and the size it foretells."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import header
from transformers import AutoTokenizer

from congrad_cli.progress import Silent
from congrad_cli.records.record import Record
from congrad_cli.settings import STORE_DTYPES, WINDOW, SketchSettings
from congrad_cli.sketch.token_report import EXAMPLES, QUANTILES, TokenReport, measure, store_bytes
from congrad_cli.sketch.tokens import Skip, TokenizedPair, tokenize
from congrad_cli.tensors import Arrays
from congrad_cli.writer import ShardWriter, create_store

LIMIT = 40


@pytest.fixture(scope="module")
def tokenizer(sample_data: Path):
    """The bundled one."""
    return AutoTokenizer.from_pretrained(sample_data / "tiny-model")


@pytest.fixture(scope="module")
def records(sample_data: Path) -> list[Record]:
    """More than a window of pairs; the rows of two were rejected when they were read."""
    lines = [json.loads(line) for line in (sample_data / "preferences.jsonl").open("rb")]
    lines = (lines * 3)[: WINDOW + 50]
    return [
        Record(row, "data.jsonl", row + 1, b"", line["prompt"], line["chosen"], line["rejected"],
               line["language"], None)
        for row, line in enumerate(lines) if row not in (3, WINDOW)
    ]  # fmt: skip


def report_of(records: list[Record], tokenizer, progress=None, **options) -> TokenReport:
    groups = sorted({record.group for record in records})
    group = np.full(max(record.row for record in records) + 1, -1, np.int32)
    for record in records:
        group[record.row] = groups.index(record.group)
    settings = SketchSettings(model="m", **options)
    return measure(iter(records), groups, group, tokenizer, settings, progress or Silent())


def test_the_report_counts_what_tokenising_one_by_one_gives(records, tokenizer) -> None:
    report = report_of(records, tokenizer, max_length=LIMIT)
    found = [tokenize(record, tokenizer, LIMIT) for record in records]
    whole = [tokenize(record, tokenizer, 1 << 20) for record in records]
    names = sorted({record.group for record in records})
    assert [group.name for group in report.groups] == names
    for part in (report.overall, *report.groups):
        mine = [
            (item, full) for item, full in zip(found, whole, strict=True)
            if part is report.overall or item.record.group == part.name
        ]
        pairs = [(item, full) for item, full in mine if isinstance(item, TokenizedPair)]
        codes = [item.code for item, _ in mine if isinstance(item, Skip)]
        assert part.pairs == len(pairs)
        assert part.skipped == {code: codes.count(code) for code in set(codes)}
        assert part.tokens == sum(item.length for item, _ in pairs)
        longer = [full for _, full in pairs
                  if len(full.prompt) + max(len(full.chosen), len(full.rejected)) > LIMIT]
        assert part.truncated == len(longer)
        for name, lengths in {
            "prompt": [len(full.prompt) for _, full in pairs],
            "chosen": [len(full.chosen) for _, full in pairs],
            "rejected": [len(full.rejected) for _, full in pairs],
            "row": [item.length for item, _ in pairs],
        }.items():
            assert getattr(part, name) == by_counting(lengths)
    assert report.overall.truncated > 0
    assert {"no-room", "same-tokens"} <= set(report.overall.skipped)
    assert report.stop is None


def by_counting(lengths: list[int]) -> dict[str, int]:
    """The first of the sorted lengths at which at least the share has been passed."""
    ordered = sorted(lengths)
    return {
        name: next(
            length for place, length in enumerate(ordered, 1) if place >= share * len(ordered)
        )
        for name, share in QUANTILES.items()
    } if ordered else {}


def test_a_group_without_pairs_has_no_lengths(records, tokenizer) -> None:
    report = report_of(records[:20], tokenizer, max_length=1)
    assert report.overall.pairs == 0 and report.overall.row == {}
    assert report.overall.skipped == {"no-room": 20} and report.longest == 0


def test_skips_are_shown_a_few_for_each_code(records, tokenizer) -> None:
    report = report_of(records, tokenizer, max_length=LIMIT, overlong="skip")
    assert report.overall.truncated == 0 and report.overall.skipped["overlong"] > EXAMPLES
    shown = report.examples["overlong"]
    assert len(shown) == EXAMPLES
    first = next(
        item for item in (tokenize(record, tokenizer, LIMIT, "skip") for record in records)
        if isinstance(item, Skip) and item.code == "overlong"
    )
    assert shown[0] == f"data.jsonl:{first.record.line}: {first.message}"


def test_what_would_stop_a_sketch_is_told_and_stops_nothing(records, tokenizer) -> None:
    truncated = report_of(records, tokenizer, max_length=LIMIT)
    report = report_of(records, tokenizer, max_length=LIMIT, overlong="stop")
    assert report.stop is not None and report.stop.startswith("data.jsonl:")
    assert sum(report.overall.skipped.values()) + report.overall.pairs == len(records)
    assert report.overall.pairs < truncated.overall.pairs


@pytest.mark.parametrize("bad_records", ["stop", "skip"])
def test_a_refused_conversation_stops_as_the_option_says(
    bad_records: str, sample_data: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sample_data / "tiny-model")
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    turns = [[{"role": "user", "content": text}] for text in "abc"]
    record = Record(0, "data.jsonl", 9, b"", *turns, "en", None)
    report = report_of([record], tokenizer, bad_records=bad_records)
    assert report.overall.skipped == {"template": 1}
    where = "data.jsonl:9: the chat template refuses this conversation: no"
    assert report.stop == (f"{where}." if bad_records == "stop" else None)
    assert report.examples == {"template": [where]}


def test_the_report_is_json_and_progress_counts_every_record(records, tokenizer) -> None:
    class Counting(Silent):
        done = 0

        def advance(self, count: int) -> None:
            self.done += count

    progress = Counting()
    report = report_of(records, tokenizer, progress, max_length=LIMIT)
    assert progress.done == len(records)
    back = json.loads(json.dumps(report.to_json()))
    assert back["overall"]["row"]["p50"] == report.overall.row["p50"]
    assert [group["name"] for group in back["groups"]] == [group.name for group in report.groups]
    assert back["groups"][0]["skipped"] == report.groups[0].skipped


@pytest.mark.parametrize("dtype", STORE_DTYPES)
def test_the_store_has_the_foretold_size(dtype: str, tmp_path: Path) -> None:
    rows, dim, width = 300, 2048, 16
    settings = SketchSettings(model="m", dim=dim, width=width, store_dtype=dtype)
    made = header(rows, dim, ["x"], width=width, store_dtype=dtype)
    made.optional.append("ref_logp")
    create_store(tmp_path / "s", made)
    writer = ShardWriter(tmp_path / "s", made)
    numbers = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    columns: Arrays = {
        "row": np.arange(rows), **made.codec.encode(numbers), "norm": np.ones(rows, np.float32),
        "logp": np.zeros((rows, 2), np.float32), "tokens": np.ones((rows, 3), np.int32),
        "group": np.zeros(rows, np.int32), "digest": np.zeros((rows, 16), np.uint8),
        "ref_logp": np.zeros((rows, 2), np.float32),
    }  # fmt: skip
    writer.append(columns)
    writer.commit()
    (shard,) = (tmp_path / "s" / "shards").iterdir()
    head = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
    assert store_bytes(settings, rows, ["ref_logp"]) == shard.stat().st_size - head


@pytest.mark.parametrize("dim", [32768, 12, 24])
def test_without_a_width_the_size_is_that_of_the_widest(dim: int) -> None:
    def size(width: int | None) -> int:
        return store_bytes(SketchSettings(model="m", dim=dim, width=width), 10)

    widest = {32768: 64, 12: 4, 24: 8}[dim]
    assert size(None) == size(widest) == size(1) + 10 * 2 * (widest - 1)
