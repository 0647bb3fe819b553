"""Single stages from files to a file, each resumable: generate, judge, pairs, train.

While one is under way, what is done lies in ``OUTPUT.unfinished``; the same command goes on there.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from congrad_cli.errors import InputError, UsageError
from congrad_cli.locks import RankLock
from congrad_cli.loop import generate
from congrad_cli.loop.changes import values_of
from congrad_cli.loop.config import apply_changes, build, read_values
from congrad_cli.loop.config_checks import check_config
from congrad_cli.loop.digests import digest_files, digest_model
from congrad_cli.loop.items import Item, Items, durable, line_of
from congrad_cli.loop.judge import require_valid
from congrad_cli.loop.model_access import Backend
from congrad_cli.loop.opening import Models
from congrad_cli.loop.pairs import count_reasons, make_pairs
from congrad_cli.loop.plan import CANDIDATES, JUDGEMENTS, TRAIN
from congrad_cli.loop.prompts import Prompt, locate, read_pools
from congrad_cli.loop.seeds import seed_of
from congrad_cli.loop.settings import LoopConfig
from congrad_cli.loop.stage import Inputs, Stage, digest_of, run_items
from congrad_cli.loop.train import TrainSpec, train
from congrad_cli.progress import Progress

ENDING = ".unfinished"
CANDIDATE_FIELDS = {"language": str, "messages": list, "candidates": list}
"""What an item of candidates has beside its key."""


def stage_config(
    file: Path | None, changes: Sequence[str], given: Mapping[str, str | None],
    needed: Sequence[str] = (),
) -> LoopConfig:  # fmt: skip
    """The sections of a configuration file, where one is named, with the command's own values."""
    values = read_values(file) if file else {}
    own = [f"{name}={value}" for name, value in given.items() if value is not None]
    apply_changes(values, [*changes, *own])
    config = build(values)
    check_config(config, needed)
    return config


def run_generate(
    files: Sequence[str], output: Path, config: LoopConfig, progress: Progress
) -> None:
    """Candidates for all prompts of the files, languages in turn."""
    section = replace(config.prompts, files=tuple(files))
    pools = read_pools(section, Path.cwd())
    prompts = [prompt for _, pool in sorted(pools.items()) for prompt in pool]
    seed = seed_of(config.run.seed, 1, CANDIDATES)

    def work(backend: Backend, chunk: Sequence[Prompt]) -> Iterator[Item]:
        return generate.candidates(chunk, backend, config.generate, seed)

    data = digest_files(file.path for file in locate(section.files, Path.cwd()))
    made_of = _made_of(config, CANDIDATES, {"the prompts": data})
    with _unfinished(output, CANDIDATES, made_of) as stage:
        models = Models(config, stage.folder, progress.note)
        run_items(stage, Inputs(prompts, [prompt.id for prompt in prompts]),
                  lambda: models.writer(config.model, work), progress)


def run_judge(candidates: Path, output: Path, config: LoopConfig, progress: Progress) -> None:
    """Judgements of a file of candidates."""
    items = _read(candidates, CANDIDATE_FIELDS, "generate")
    seed = seed_of(config.run.seed, 1, JUDGEMENTS)
    made_of = _made_of(config, JUDGEMENTS, {"the candidates": digest_files([candidates])})
    with _unfinished(output, JUDGEMENTS, made_of) as stage:
        models = Models(config, stage.folder, progress.note)
        found = run_items(stage, Inputs(items, items.keys),
                          lambda: models.judge(config.model, seed), progress)
        require_valid(found, config.judge.max_invalid)


def run_pairs(
    candidates: Path, judgements: Path, output: Path, config: LoopConfig, progress: Progress
) -> None:
    """The pairs of two such files; why prompts gave none is told."""
    items = _read(candidates, CANDIDATE_FIELDS, "generate")
    scores = _read(judgements, {"scores": list}, "judge")
    _refuse_existing(output)
    languages = sorted({item["language"] for item in items})
    made = list(make_pairs(items, scores, config.pairs, languages))
    pairs = [item["pair"] for item in made if item["pair"] is not None]
    with durable(output) as write:
        for pair in pairs:
            write(line_of(pair))
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in count_reasons(made).items())
    progress.note(f"{len(pairs):,} pairs of {len(made):,} prompts"
                  + (f"; none of: {reasons}" if reasons else ""))


def run_train(
    pairs: Path, reference: str | None, output: Path, config: LoopConfig, progress: Progress
) -> Path:
    """Train on a file of pairs; the model's folder."""
    model = config.model.path
    spec = TrainSpec(
        pairs=pairs, model=model, reference=reference or model, output=output, train=config.train,
        loss=config.loss, about=config.model, seed=seed_of(config.run.seed, 1, TRAIN),
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    try:
        with RankLock(output, 0, 1):
            return train(spec, progress)
    finally:
        for folder in (output / "locks", output):
            with suppress(OSError):  # something is in it
                folder.rmdir()


def _read(path: Path, fields: Mapping[str, type], command: str) -> Items:
    """The items of a file that another stage wrote. Raises :class:`InputError` for another file."""
    items = Items(path)
    for item in items:
        if missing := [name for name, kind in fields.items()
                       if not isinstance(item.get(name), kind)]:
            raise InputError(f"{path}: the item {item['key']!r} has no usable {missing[0]!r}.",
                             f"pass the file that 'congrad loop {command}' wrote")
    return items


def _made_of(config: LoopConfig, stage: str, data: dict[str, str]) -> dict[str, str]:
    sections = {f"[{section}]": digest_of(values)
                for section, values in values_of(config, stage).items()}
    files = [config.judge.template] if stage == JUDGEMENTS and config.judge.template else []
    about = config.model
    if about.chat_template not in (None, "plain"):
        files.append(str(about.chat_template))
    return data | sections | {
        "the model": digest_model(about.path, about.revision) if about.path else "",
        "the templates": digest_files(map(Path, files)),
        "judge.reference": digest_model(config.judge.reference) if config.judge.reference else "",
    }


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise UsageError(f"{output} is there already.", "remove it, or name another file")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.parent}.")


@contextmanager
def _unfinished(output: Path, name: str, made_of: dict[str, str]) -> Iterator[Stage]:
    """The folder of what is done so far, ours alone; in the end its results are the output."""
    _refuse_existing(output)
    folder = output.with_name(output.name + ENDING)
    folder.mkdir(exist_ok=True)
    with RankLock(folder, 0, 1) as lock:
        stage = Stage(folder, name, lock.check, f"remove {folder} to begin anew")
        stage.finished(made_of)
        stage.begin(made_of)
        yield stage
        stage.results.replace(output)
    shutil.rmtree(folder)
