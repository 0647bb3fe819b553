"""Every option of every command, as frozen dataclasses.

A field marked with :func:`changes_numbers` is part of a store's fingerprint: two stores are
comparable only where all such fields are equal. Fields without the mark (devices, paths, batch
budgets) may change between runs of the same store.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 2
"""Version of the store's layout."""

ROW_SIZES = {"4k": (32768, "1bit"), "8k": (65536, "1bit"), "16k": (32768, "int4")}
"""``--row-size``: the numbers of a sketch and their code that are best for so many bytes a pair."""

RANKINGS = ("score", "mean-score", "score-and-margin", "margin", "margin-per-token", "norm",
            "random")

LOSSES = ("dpo", "lp-dpo", "ipo", "hinge", "robust")

METHODS = ("pcgrad", "mean", "mgda", "upgrad", "dualproj", "cagrad", "imtl-g", "aligned-mtl",
           "nash-mtl")
"""How ``consensus`` reconciles groups; see ``consensus/solver.py``."""

AVERAGES = ("mean", "ema", "trimmed", "median-of-means")
"""How a group's pairs are averaged; see the module ``weights``."""

LENGTHLESS = ("imtl-g", "nash-mtl")
"""Methods whose direction does not depend on how long the groups' gradients are."""

MOST_CLUSTERS = 500
"""K of ``consensus --groups cluster:K`` is at most this."""

WINDOW = 1024
"""Batches are cut inside windows of this many consecutive rows, whatever the run looks like."""


STORE_DTYPES = ("float16", "int8", "int4", "1bit")
"""How a store may code its rows; see the module ``codec``."""


def changes_numbers(default: Any) -> Any:
    """A field whose value changes the sketches themselves."""
    return field(default=default, metadata={"changes_numbers": True})


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """How records are read: where their parts are, and what makes their group."""

    prompt_field: str | None = None  # None, here and below: what the data's shape calls it
    chosen_field: str | None = None
    rejected_field: str | None = None
    id_field: str = "id"
    shape: str | None = None  # None: told by the data itself
    group_by: tuple[str, ...] = ("language",)  # values are joined
    language_field: str | None = None  # None: "language", else "lang", else "locale"
    language: str | None = None  # of every record, whatever its fields say
    languages: tuple[str, ...] = ()  # the only ones allowed; empty: all
    detect_language: bool = False  # where no field and no file name tells
    min_confidence: float = 0.8  # of a detected language


@dataclass(frozen=True, slots=True)
class SketchSettings:
    """Options of ``congrad sketch``."""

    model: str
    revision: str | None = None
    chat_template: str | None = None  # a file, or "plain"; None: the tokenizer's own
    max_length: int = changes_numbers(1024)
    overlong: str = "truncate"  # what becomes of longer pairs: truncate, skip, stop
    dim: int = changes_numbers(32768)
    width: int | None = changes_numbers(None)  # None: chosen for the model
    leading: int = changes_numbers(8)
    seed: int = changes_numbers(0)
    token_weighting: str = changes_numbers("sum")
    layers: str = changes_numbers("blocks")
    adapter: str | None = None  # its content is part of the model's fingerprint
    store_dtype: str = changes_numbers("int4")
    reference: str | None = None
    dtype: str = "auto"
    share_prompt: bool = True
    device: str = "auto"
    device_map: str | None = None
    batch_tokens: int | None = None  # None: what the device holds
    gradient_checkpointing: bool = False
    bad_records: str = "stop"
    max_bad: float | None = None  # below 1 a share of all records, else a number
    rejects: Path | None = None
    threads: int | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class ConsensusSettings:
    """Options of ``congrad consensus``; ``filter`` reads them back from the consensus file."""

    method: str = "pcgrad"
    orders: int = 32
    seed: int = 0
    average: str = "mean"  # one of AVERAGES
    trim: float = 0.05  # of "trimmed": the share of a group's pairs that is left out
    ema_decay: float = 0.9
    ema_batch: int = 8
    pair_norm: str = "unit"  # or "raw" (the paper), or "clip:Q"
    normalize_groups: str = "none"
    weights: str = "uniform"  # or "size", or a JSON object: group -> weight
    min_pairs: int = 1  # of a group that takes part
    groups: str = "data"  # or "cluster:K"
    merge_groups: float = 0.0  # the least cosine of groups that become one; 0: none do
    require_descent: bool = False
    loss: str = "dpo"
    beta: float = 0.1
    length_penalty: float = 0.01
    label_smoothing: float = 0.1
    allow_partial: bool = False
    name: str = "default"


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """Options of ``congrad filter``: one rule, for all pairs or inside each group."""

    rank_by: str = "score"  # one of RANKINGS
    seed: int | None = None  # of "random"; None: 0
    min_score: float | None = None
    keep_ratio: float | None = None
    keep: int | None = None
    quotas: Path | None = None  # a JSON object: group -> number, or share below 1
    per_group: bool = False
    keep_at_least: int | None = None
    confidence: float | None = None  # in standard errors of the score
    leave_one_out: bool = True
    leave_group_out: bool = False
    leave_out_by: str | None = None  # a field: pairs with one value leave each other out
    dedup: float | None = None  # least cosine of gradients that count as one
    allow_partial: bool = False
    loss: str | None = None  # None, here and below: the consensus' own
    beta: float | None = None
    length_penalty: float | None = None
    label_smoothing: float | None = None
    consensus: str = "default"  # or another store's: STORE or STORE:NAME
    data: tuple[str, ...] = ()  # files or globs; none: where they were
    output: Path | None = None
    dropped: Path | None = None
    scores: Path | None = None
    group_cosines: bool = False  # in the score file
    summary: Path | None = None
    annotate: bool = False  # kept and dropped records say what was decided
    max_drop_rate: float | None = None  # of the sketched pairs; above it, exit code 6
    min_per_group: int | None = None
    max_conflict: float | None = None  # share of the pairs of groups


def fingerprint_fields(settings: SketchSettings) -> dict[str, Any]:
    """The fields of ``settings`` that change the sketches, by name.

    Of ``overlong`` only ``skip`` is one: where a run does not stop, ``stop`` is ``truncate``.
    """
    result = {
        item.name: getattr(settings, item.name)
        for item in fields(settings)
        if item.metadata.get("changes_numbers")
    }
    return result | ({"overlong": "skip"} if settings.overlong == "skip" else {})
