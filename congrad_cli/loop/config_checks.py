"""Values of the loop's configuration that cannot be: alone, and together."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from congrad_cli.errors import UsageError
from congrad_cli.loop.settings import (
    BACKENDS,
    JUDGES,
    LAUNCHERS,
    REFERENCES,
    SCORED,
    TRAIN_LOSSES,
    BackendSection,
    LoopConfig,
)
from congrad_cli.settings import AVERAGES, METHODS, RANKINGS, ROW_SIZES

CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "backend.kind": BACKENDS,
    "judge.kind": JUDGES,
    "loss.name": TRAIN_LOSSES,
    "sketch.row_size": tuple(ROW_SIZES),
    "consensus.method": METHODS,
    "consensus.average": AVERAGES,
    "consensus.normalize_groups": ("none", "unit"),
    "filter.rank_by": RANKINGS,
    "train.reference": REFERENCES,
    "train.schedule": ("linear", "cosine", "constant", "constant_with_warmup", "polynomial",
                       "inverse_sqrt", "cosine_with_restarts"),
    "train.save_dtype": ("auto", "float32", "bfloat16", "float16"),
    "train.launcher": LAUNCHERS,
}
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}", re.IGNORECASE)
NEEDED = ("run.folder", "model.path", "prompts.files")


class Range(NamedTuple):
    """Numbers from ``least`` to ``most``; ``open``: above ``least``."""

    least: float
    most: float = math.inf
    open: bool = False


RANGES: dict[str, Range] = {
    "run.rounds": Range(1), "run.seed": Range(0, 2**31 - 1),
    "model.threads": Range(1),
    "prompts.per_language": Range(1),
    "backend.batch": Range(1), "backend.concurrency": Range(1),
    "backend.timeout": Range(0, open=True), "backend.retries": Range(0),
    "generate.candidates": Range(2), "generate.temperature": Range(0, open=True),
    "generate.top_p": Range(0, 1, open=True), "generate.max_tokens": Range(1),
    "judge.samples": Range(1), "judge.min_valid": Range(1), "judge.retries": Range(0),
    "judge.max_invalid": Range(0, 1), "judge.temperature": Range(0),
    "judge.top_p": Range(0, 1, open=True), "judge.max_tokens": Range(1),
    "pairs.margin": Range(0), "pairs.min_confidence": Range(0, 1), "pairs.min_chars": Range(0),
    "loss.beta": Range(0, open=True), "loss.length_penalty": Range(0),
    "sketch.max_length": Range(2), "sketch.dim": Range(1, 1 << 24), "sketch.width": Range(1),
    "sketch.seed": Range(0, 2**63 - 1), "sketch.batch_tokens": Range(1),
    "consensus.orders": Range(1), "consensus.seed": Range(0), "consensus.min_pairs": Range(1),
    "filter.min_score": Range(-math.inf), "filter.keep_ratio": Range(0, 1),
    "filter.keep_at_least": Range(1),
    "train.learning_rate": Range(0, open=True), "train.epochs": Range(0, open=True),
    "train.max_steps": Range(-1), "train.batch": Range(1), "train.device_batch": Range(1),
    "train.max_length": Range(2), "train.warmup_ratio": Range(0, 1), "train.lora_rank": Range(0),
    "train.lora_alpha": Range(1), "train.lora_dropout": Range(0, 1), "train.save_steps": Range(1),
    "train.processes": Range(1),
    "evaluate.per_language": Range(1),
}  # fmt: skip


def check_config(config: LoopConfig, needed: Sequence[str] = NEEDED) -> None:
    """Raise :class:`UsageError` at the first value that cannot be, or is ``needed`` and missing."""
    for name in needed:
        if not _get(config, name):
            raise UsageError(f"{name} is missing.", f"set it in the file, or pass --set {name}=...")
    for name, allowed in CHOICES.items():
        for place, value in _values(config, name):
            if value is not None and value not in allowed:
                raise UsageError(f"{place} is {value!r}; it is one of {', '.join(allowed)}.")
    for name, bounds in RANGES.items():
        for place, value in _values(config, name):
            if value is not None:
                _check_range(place, value, bounds)
    from congrad_cli.weights import clip_quantile

    clip_quantile(config.consensus.pair_norm)
    _check_together(config)


def _values(config: LoopConfig, name: str) -> Iterator[tuple[str, Any]]:
    """The value of a key, and of the judge's back-end the same key where there is one."""
    yield name, _get(config, name)
    section, _, key = name.partition(".")
    if section == "backend" and config.judge.backend is not None:
        yield f"judge.{name}", getattr(config.judge.backend, key)


def _get(config: LoopConfig, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)


def _check_range(name: str, value: float, bounds: Range) -> None:
    fine = bounds.least < value if bounds.open else bounds.least <= value
    if math.isfinite(value) and fine and value <= bounds.most:
        return
    low = f"above {bounds.least:g}" if bounds.open else f"from {bounds.least:g}"
    high = f" to {bounds.most:g}" if math.isfinite(bounds.most) else ""
    wanted = "a finite number" if math.isinf(bounds.least) else f"a number {low}{high}"
    raise UsageError(f"{name} is {value}; it is {wanted}.")


def _check_together(config: LoopConfig) -> None:
    _check_prompts(config)
    _check_backend("backend", config.backend)
    if config.judge.backend is not None:
        _check_backend("judge.backend", config.judge.backend)
    _check_judge(config)
    _check_filter(config)
    _check_train(config)


def _check_prompts(config: LoopConfig) -> None:
    prompts = config.prompts
    if prompts.translate_into and prompts.translate_from is None:
        raise UsageError("prompts.translate_into needs prompts.translate_from.",
                         "say which language's prompts are translated")
    if prompts.translate_from is not None and not prompts.translate_into:
        raise UsageError("prompts.translate_from needs prompts.translate_into.",
                         "say into which languages they are translated")
    if prompts.translate_from in prompts.translate_into:
        raise UsageError(f"prompts.translate_into has {prompts.translate_from}, the language that "
                         "is translated from.", "leave it out")


def _check_backend(name: str, backend: BackendSection) -> None:
    if not _VARIABLE.fullmatch(backend.api_key_env):  # not shown: it may be the key itself
        raise UsageError(f"{name}.api_key_env is no name of a variable.",
                         "it names the variable of the environment that holds the key, such as "
                         "OPENAI_API_KEY; the key itself stands in no file")
    if backend.kind != "openai":
        for key in ("url", "serve", "model"):
            if getattr(backend, key) is not None:
                raise UsageError(f"{name}.{key} does nothing with {name}.kind = "
                                 f"{backend.kind!r}.", 'set the kind to "openai", or leave it out')
        return
    if backend.url is None and backend.serve is None:
        raise UsageError(f'{name}.kind = "openai" needs {name}.url or {name}.serve.',
                         "the address of a server that runs, or the command that starts one")
    if backend.url is not None:
        _check_url(f"{name}.url", backend.url)


def _check_url(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = parts.password is not None
    except ValueError:
        fine = secret = False
    if secret:  # it would be copied into the run's folder
        raise UsageError(f"{name} holds a password.",
                         "leave it out; keys are read from the variable that api_key_env names")
    if not fine:
        raise UsageError(f"{name} is {url!r}; it is an address such as http://127.0.0.1:8000/v1.")


def _check_judge(config: LoopConfig) -> None:
    judge = config.judge
    if judge.min_valid > judge.samples:
        raise UsageError(f"judge.min_valid is {judge.min_valid}, and there are only "
                         f"judge.samples = {judge.samples} judgements of a candidate.")
    backend = judge.backend or config.backend
    if judge.kind == "endpoint" and (backend.kind != "openai" or backend.url is None):
        raise UsageError('judge.kind = "endpoint" needs a server.',
                         '[judge.backend] with kind = "openai" and url = "http://HOST:PORT/v1"')
    if judge.kind == "endpoint" and backend.model is None:  # else each round's path would be sent
        raise UsageError('judge.kind = "endpoint" needs the name of the model that judges.',
                         "set judge.backend.model to one that the server has")
    if judge.kind == "implicit-reward" and judge.reference is None:
        raise UsageError(
            'judge.kind = "implicit-reward" needs judge.reference.',
            "the model that the rewards are measured from, such as the one before any DPO; "
            "against itself the first model rewards nothing")
    if judge.kind != "implicit-reward" and judge.reference is not None:
        raise UsageError(f"judge.reference does nothing with judge.kind = {judge.kind!r}.",
                         "leave it out")
    if judge.kind in SCORED and judge.backend is not None:
        raise UsageError(f"[judge.backend] does nothing with judge.kind = {judge.kind!r}: "
                         "it needs log-probabilities, which are computed here.", "leave it out")


def _check_filter(config: LoopConfig) -> None:
    rule, sketch = config.filter, config.sketch
    if rule.min_score is not None and rule.keep_ratio is not None:
        raise UsageError("filter.min_score and filter.keep_ratio are two rules.", "set one")
    if rule.per_group and rule.keep_ratio is None:
        raise UsageError("filter.per_group changes nothing where every pair is judged by its own "
                         "score.", "set filter.keep_ratio with it")
    if sketch.row_size is not None and sketch.dim is not None:
        raise UsageError(f"sketch.row_size = {sketch.row_size!r} sets sketch.dim.", "set one")
    dim = sketch.dim or ROW_SIZES[sketch.row_size or "16k"][0]
    if sketch.width is not None and dim % sketch.width:
        raise UsageError(f"sketch.dim = {dim} is not a multiple of sketch.width = {sketch.width}.")


def _check_train(config: LoopConfig) -> None:
    train = config.train
    if train.launcher == "none" and train.processes > 1:
        raise UsageError(f"train.processes = {train.processes} needs train.launcher.",
                         'set it to "torchrun" or "accelerate"')
    if train.accelerate_config is not None and train.launcher != "accelerate":
        raise UsageError(f"train.accelerate_config does nothing with train.launcher = "
                         f"{train.launcher!r}.", 'set it to "accelerate"')
    if train.reference == "initial" and config.model.revision is not None:
        raise UsageError('train.reference = "initial" takes no model.revision.',
                         "download that revision into a folder, and set model.path to it")
    together = train.device_batch * train.processes
    if train.batch % together:
        raise UsageError(f"train.batch = {train.batch} is not a multiple of train.device_batch x "
                         f"train.processes = {together}.")
