"""Which values of a run's configuration may change once there is something of the run."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from congrad_cli.errors import UsageError
from congrad_cli.loop.config import FILES, MODELS, TEMPLATE, build, flat, read_values
from congrad_cli.loop.plan import (
    CANDIDATES,
    CONSENSUS,
    EVALUATION,
    FILTER,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    SKETCH,
    STAGES,
    TRAIN,
    Step,
)
from congrad_cli.loop.settings import SCORED, LoopConfig

CONFIG = "config.toml"

FREE = {
    "run.folder", "run.rounds", "model.device", "model.threads", "judge.max_invalid",
    "sketch.batch_tokens", "train.device_batch", "train.gradient_checkpointing",
    "train.precompute_reference", "train.save_steps", "train.launcher", "train.processes",
    "train.accelerate_config",
    *(f"{section}.{key}" for section in ("backend", "judge.backend")
      for key in ("batch", "url", "serve", "api_key_env", "concurrency", "timeout", "retries")),
}  # fmt: skip
"""Keys that say where and how fast, and change nothing that is done."""

USED: dict[str, tuple[str, ...]] = {
    "run": STAGES,
    "model": STAGES,
    "prompts": (PROMPTS,),
    "backend": (PROMPTS, CANDIDATES, JUDGEMENTS, EVALUATION),
    "generate": (CANDIDATES, EVALUATION),
    "judge": (JUDGEMENTS, EVALUATION),
    "judge.backend": (JUDGEMENTS, EVALUATION),
    "pairs": (PAIRS,),
    "loss": (CONSENSUS, FILTER, TRAIN),
    "sketch": (SKETCH,),
    "consensus": (CONSENSUS,),
    "filter": (FILTER,),
    "train": (TRAIN,),
    "evaluate": (EVALUATION,),
}
"""Which stages a section's values are part of."""

ALSO: dict[str, tuple[str, ...]] = {
    "loss.beta": (EVALUATION, CONSENSUS, FILTER, TRAIN),
    "train.reference": (SKETCH, TRAIN),
    "train.max_length": (EVALUATION, TRAIN),  # texts that are weighed are cut there, too
    "filter.enabled": (SKETCH, CONSENSUS, FILTER, TRAIN),
    # answers to held-out prompts are one each, the likeliest; answers are compared by a rule of
    # their own, once
    **dict.fromkeys(("generate.candidates", "generate.temperature", "generate.top_p"),
                    (CANDIDATES,)),
    **dict.fromkeys(("judge.samples", "judge.min_valid"), (JUDGEMENTS,)),
    "pairs.check_language": (PROMPTS, PAIRS, EVALUATION),  # translations are checked alike
    "pairs.min_confidence": (PROMPTS, PAIRS, EVALUATION),
}
"""Keys that other stages use than their section says."""


def used_by(name: str, judge: str = "self") -> tuple[str, ...]:
    """The stages whose results hang on a key's value; none for a free one, and none for a path.

    What lies at a path is an input of the stages that read it; it may lie elsewhere. ``judge`` is
    the kind of judge.
    """
    if name in FREE or name in (*FILES, *MODELS, TEMPLATE):
        return ()
    if ((judge in SCORED and name == "train.max_length")
            or (judge == "implicit-reward" and name == "loss.beta")):
        return (JUDGEMENTS, *ALSO[name])
    return ALSO.get(name) or USED[name.rpartition(".")[0]]


def values_of(config: LoopConfig, stage: str) -> dict[str, dict[str, Any]]:
    """What a stage's results hang on, by section and key."""
    result: dict[str, dict[str, Any]] = {}
    for name, value in flat(config).items():
        section, _, key = name.rpartition(".")
        if stage in used_by(name, config.judge.kind):
            result.setdefault(section, {})[key] = value
    return result


def check_same_run(run: Path, config: LoopConfig, begun: Collection[Step]) -> None:
    """Raise :class:`UsageError` where values changed that something in the run was made with.

    ``begun`` are the steps that there is something of, and will stay.
    """
    path = run / CONFIG
    if not path.exists():
        if begun:
            raise UsageError(f"{run} holds rounds, and no {CONFIG}.", "pass another run.folder")
        return
    before = build(read_values(path))
    last = max((step.number for step in begun), default=0)
    if config.run.rounds < last:
        raise UsageError(f"run.rounds is {config.run.rounds}, and round {last} has begun in {run}.",
                         "rounds may grow; to make fewer, pass another run.folder")
    stages, kind = {step.stage for step in begun}, config.judge.kind
    changed = {name: text for name, text in differences(before, config)
               if stages & set(used_by(name, kind))}
    if changed:
        raise UsageError(
            f"{run} was made with another configuration: {'; '.join(changed.values())}.",
            "put the values back, or pass another run.folder",
            f"--restart-from {_first(changed, kind, begun)} makes anew what was made with them",
        )


def differences(before: LoopConfig, now: LoopConfig) -> Iterator[tuple[str, str]]:
    """Every key with another value, and the change in words."""
    old, new = flat(before), flat(now)
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            yield name, f"{name} was {_shown(old.get(name))} and is {_shown(new.get(name))}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"{list(value)!r:.60}"
    return "not set" if value is None else f"{value!r:.60}"


def _first(names: Collection[str], judge: str, begun: Collection[Step]) -> str:
    """The first step that used one of these keys; evaluations come with any other one."""
    stages = {stage for name in names for stage in used_by(name, judge)}
    steps = [step for step in begun if step.stage in stages]
    return min(steps, key=lambda step: (step.stage == EVALUATION, step)).name
