"""The loop: every stage of every round in order; running it again continues it."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from congrad_cli import arguments
from congrad_cli.errors import InputError, UsageError
from congrad_cli.locks import RankLock
from congrad_cli.loop.batches import release_memory
from congrad_cli.loop.changes import CONFIG, check_same_run
from congrad_cli.loop.config_text import HEADER, run_text
from congrad_cli.loop.evaluation import EVALUATION_STAGE
from congrad_cli.loop.job import MODEL, Job
from congrad_cli.loop.language_check import require_package
from congrad_cli.loop.loading import KEYS, source_of
from congrad_cli.loop.metrics import RoundMetrics, round_metrics, write_metrics
from congrad_cli.loop.plan import (
    CONSENSUS,
    EVALUATION,
    FILTER,
    PAIRS,
    SKETCH,
    TRAIN,
    Step,
    after,
    begun_steps,
    find_step,
    forget,
    steps,
    sweep,
)
from congrad_cli.loop.settings import SCORED, BackendSection, LoopConfig
from congrad_cli.loop.stage import Stage, digest_file, digest_of
from congrad_cli.loop.text_stages import PAIRS_FILE, TEXT_STAGES, Kind, Made, counted, round_prompts
from congrad_cli.loop.train import TrainSpec, require_packages, train
from congrad_cli.model_source import find_model
from congrad_cli.progress import Progress
from congrad_cli.records.record import DataFile
from congrad_cli.settings import ConsensusSettings, FilterSettings, RecordSettings, SketchSettings
from congrad_cli.store_index import read_index
from congrad_cli.tensors import replace_file

STORE = "store"
KEEP_MORE = "lower filter.min_score, or set filter.keep_ratio or filter.keep_at_least"
ALONE = ("there are no other pairs to agree with: more prompts or candidates, or a lower "
         "pairs.margin, make more")
KEPT, DROPPED, SCORES, SUMMARY = "kept.jsonl", "dropped.jsonl", "scores.jsonl", "summary.json"


@dataclass(frozen=True)
class Preview:
    """What a run would do."""

    steps: list[tuple[str, str]]  # each step, and what there is of it
    prompts: dict[str, int]  # in the first round that is not done, by language
    models: dict[str, str]  # what each round starts from, and what writes and judges
    translated: tuple[str, ...]  # languages that the model translates prompts into


@dataclass(frozen=True)
class Request:
    """What of the run is wanted: up to a step, and a step that is made anew."""

    until: str | None = None
    restart_from: str | None = None


def run(
    config: LoopConfig,
    request: Request,
    progress: Progress,
    show: Callable[[RoundMetrics], None] = lambda _: None,
) -> Path | None:
    """Run what is not done yet; the folder of the newest model that was trained.

    Every round that is complete is handed to ``show``. Raises :class:`UsageError` where the run's
    folder holds a run of another configuration, and :class:`StoreError` where another process
    runs it, or something that is done was made of other inputs than there are now.
    """
    wanted = _wanted(config, request)
    job = Job(config, progress)
    check_start(job)
    with _owned(job) as job:
        sweep(job.folder)
        gone = _to_remove(job, request)
        for step in sorted(gone, reverse=True):
            progress.note(f"removing {step.folder(job.folder)}")
            forget(job.folder, step)
        if gone:
            write_metrics(job)
        replace_file(job.folder / CONFIG, run_text(config))
        _check_later_needs(job, wanted)
        for step in wanted:
            with _told(job, step):
                make(job, step, request.restart_from is not None)
            if step == last_of_round(config, step.number):
                show(round_metrics(job, step.number))
                write_metrics(job)
        return job.last_model()


def preview(config: LoopConfig, request: Request, progress: Progress) -> Preview:
    """What :func:`run` would do. Raises what it would raise before any model is loaded."""
    wanted = _wanted(config, request)
    job = Job(config, progress)
    check_start(job)
    gone = _to_remove(job, request)
    states, number = [], None
    for step in wanted:
        stage = job.stage(step.number, step.stage)
        state = "made anew" if step in gone else stage.state()
        states.append((step.name, state))
        if state != "done" and number is None:
            number = max(step.number, 1)
    prompts, _ = round_prompts(job, number or config.run.rounds)
    models = {f"round {number}": job.about(number).path for number in job.rounds() if number}
    return Preview(
        states,
        dict(sorted(Counter(prompt.language for prompt in prompts).items())),
        models | {"writes": _by(config.backend), "judges": _judged_by(config)},
        config.prompts.translate_into,
    )


def _by(backend: BackendSection) -> str:
    return backend.serve or backend.url or f"{backend.kind}, in this process"


def _judged_by(config: LoopConfig) -> str:
    kind = config.judge.kind
    by = "" if kind in SCORED else f" ({_by(config.judge.backend or config.backend)})"
    return kind + by


def _wanted(config: LoopConfig, request: Request) -> list[Step]:
    """The steps up to the one that is asked for."""
    until = find_step(request.until, "--until", config) if request.until else None
    return [step for step in steps(config) if until is None or step <= until]


def _to_remove(job: Job, request: Request) -> set[Step]:
    """What is made anew; what stays must be of this configuration."""
    begun, gone = set(begun_steps(job.folder)), set[Step]()
    if request.restart_from:
        # a stage that is switched off now is there from before, and is where its values began
        anew = after(find_step(request.restart_from, "--restart-from", job.config, begun))
        gone = {step for step in begun if anew(step)}
    # with a restart evaluations follow what changed, see make(): nothing is made of them
    follow = {step for step in begun if request.restart_from and step.stage == EVALUATION}
    check_same_run(job.folder, job.config, begun - gone - follow)
    return gone


def make(job: Job, step: Step, restarted: bool = False) -> None:
    """Make one step, where it is not done. In a run that is ``restarted`` from a step evaluations
    of other inputs are made anew, too."""
    stage, kind = job.stage(step.number, step.stage), KINDS[step.stage]
    inputs = job.made_of(step.number, step.stage) | kind.inputs(job, step.number)
    if restarted and step.stage == EVALUATION and stage.changed(inputs):
        forget(job.folder, step)
    if stage.finished(inputs):
        return
    job.progress.step(stage.name)
    stage.begin(inputs)
    made = kind.work(job, step.number, stage)
    stage.finish(inputs, made.outputs, made.counts)


@contextmanager
def _told(job: Job, step: Step) -> Iterator[None]:
    """Say where the run was stopped."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        job.progress.note(f"stopped in {step.name}; the same command continues.")
        raise


def last_of_round(config: LoopConfig, number: int) -> Step:
    """The step that ends a round."""
    return max(step for step in steps(config) if step.number == number)


def check_start(job: Job) -> None:
    """Raise what would stop the run later for sure, before anything is loaded or written."""
    from congrad_cli.filter.run import check_settings

    config = job.config
    try:
        check_settings(_filter_settings(job, Path()))
    except UsageError as error:
        raise UsageError(f"[filter]: {error.message}", *error.hints) from error
    for path in (config.judge.template, config.model.chat_template):
        if path not in (None, "plain") and not Path(str(path)).is_file():
            raise UsageError(f"{path}: no such file.")
    folder = job.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"run.folder: {folder} is a file.", "name a folder")
    if folder.is_dir() and _foreign(folder):
        raise UsageError(f"run.folder: {folder} holds other things than a run.",
                         "name a folder that is new or empty")
    source_of(config.model.path, config.model)
    if config.judge.reference is not None:
        find_model(config.judge.reference, options=replace(KEYS, model="[judge] reference ="))
    round_prompts(job, config.run.rounds)  # pools that are too small are told of now
    looked, learned = config.sketch.max_length, config.train.max_length
    if config.filter.enabled and looked != learned:
        job.progress.warn(f"pairs are chosen by their first {looked:,} tokens (sketch.max_length), "
                          f"and trained on their first {learned:,} (train.max_length)")
    openai = config.backend
    if openai.kind == "openai" and openai.model and not openai.serve and config.run.rounds > 1:
        job.progress.warn(
            f"backend.model is {openai.model!r} in every round: no round's candidates come from "
            "the model that was trained before; backend.serve would serve it")


def _check_later_needs(job: Job, wanted: Sequence[Step]) -> None:
    """Refuse what later stages could not do, before candidates were written for hours.

    Packages must be there, and a chat template: pairs are conversations for sketch and training.
    """
    left = {step.stage for step in wanted if not job.stage(step.number, step.stage).done()}
    if PAIRS in left and job.config.pairs.check_language:
        require_package()
    if TRAIN in left:
        require_packages(job.config.train)
    if not left & {SKETCH, TRAIN}:
        return
    from congrad_cli.checkpoint import load_tokenizer, require_template

    about = job.config.model
    source = source_of(about.path, about)
    require_template(load_tokenizer(source, about.chat_template), source, "a pair of the loop")


def _foreign(folder: Path) -> bool:
    """Whether the folder is no run, nor empty. A configuration of the user's own is no run's."""
    path = folder / CONFIG
    if path.is_file() and (
        path.read_bytes().startswith(HEADER.encode()) or any(folder.glob("round-*"))
    ):
        return False
    return any(item.name != "locks" and not item.match(".*.tmp") for item in folder.iterdir())


@contextmanager
def _owned(job: Job) -> Iterator[Job]:
    """The run as ours alone. A folder that nothing came into goes again."""
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        with RankLock(job.folder, 0, 1) as lock:
            yield replace(job, check=lock.check)
    finally:
        for folder in (job.folder / "locks", job.folder):
            with suppress(OSError):  # something is in it
                folder.rmdir()


# sketch, consensus, filter, train


def make_sketch(job: Job, number: int, stage: Stage) -> Made:
    """The gradients of the round's pairs under its model."""
    from congrad_cli.sketch import run as sketch

    config, about = job.config, job.about(number)
    dim, store_dtype = arguments.row_size(config.sketch.row_size, config.sketch.dim, None)
    margins = config.train.reference == "initial" and number > 1
    settings = SketchSettings(
        model=about.path, revision=about.revision, chat_template=about.chat_template,
        max_length=config.sketch.max_length, dim=config.sketch.dim or dim,
        width=config.sketch.width, seed=config.sketch.seed, layers=config.sketch.layers,
        store_dtype=store_dtype, dtype=about.dtype, device=about.device, threads=about.threads,
        reference=job.reference(number) if margins else None,
        batch_tokens=config.sketch.batch_tokens, bad_records="skip",
    )  # fmt: skip
    pairs = DataFile(PAIRS_FILE, pairs_of(job, number))
    sketch.run_files([pairs], RecordSettings(), stage.folder / STORE, settings, job.progress)
    release_memory()  # the training is a process of its own, on the same device
    return Made({STORE: _store_digest(stage.folder / STORE)}, {})


def _store_digest(store: Path) -> str:
    """Of the store as the sketch left it: what its header says, and its shards."""
    files = [store / "store.json", *sorted((store / "shards").glob("*.safetensors"))]
    return digest_of([[file.name, digest_file(file)] for file in files])


def pairs_of(job: Job, number: int) -> Path:
    """The file of a round's pairs."""
    return job.stage(number, PAIRS).folder / PAIRS_FILE


def store_of(job: Job, number: int) -> Path:
    """The store of a round's gradients; the consensus lies in it."""
    return job.stage(number, SKETCH).folder / STORE


def make_consensus(job: Job, number: int, stage: Stage) -> Made:
    """The direction that is good for every language."""
    from congrad_cli.consensus.run import run as find

    config, loss = job.config.consensus, job.config.loss
    settings = ConsensusSettings(
        method=config.method, orders=config.orders, seed=config.seed, average=config.average,
        pair_norm=config.pair_norm, normalize_groups=config.normalize_groups,
        min_pairs=config.min_pairs, loss=loss.name, beta=loss.beta,
        length_penalty=loss.length_penalty,
    )  # fmt: skip
    found = find(store_of(job, number), settings, job.progress)
    certificate = found.certificate
    counts = {
        "conflicts": certificate.conflicts,
        "least_cosine": certificate.least,
        "languages": dict(zip(found.names, found.cosine.tolist(), strict=True)),
    }
    return Made({CONSENSUS: digest_file(_consensus_file(job, number))}, counts)


def _consensus_file(job: Job, number: int) -> Path:
    return store_of(job, number) / "consensus" / "default.safetensors"


def _filter_settings(job: Job, folder: Path, data: Sequence[Path] = ()) -> FilterSettings:
    config = job.config.filter
    return FilterSettings(
        rank_by=config.rank_by, min_score=config.min_score, keep_ratio=config.keep_ratio,
        per_group=config.per_group, keep_at_least=config.keep_at_least,
        data=tuple(map(str, data)), output=folder / KEPT, dropped=folder / DROPPED,
        scores=folder / SCORES, summary=folder / SUMMARY,
    )  # fmt: skip


def make_filter(job: Job, number: int, stage: Stage) -> Made:
    """The pairs that agree with the consensus."""
    from congrad_cli.filter.run import run as keep

    store, pairs = store_of(job, number), pairs_of(job, number)
    place = (store / read_index(store).sources[0].path).resolve()
    moved = [] if place == pairs.resolve() else [pairs]  # the run's folder has another name now
    settings = _filter_settings(job, stage.folder, moved)
    found = keep(store, settings, io.BytesIO(), job.progress).to_json()
    if not found["kept"]:
        raise InputError(f"{stage.name}: none of {found['records']:,} pairs was kept: "
                         + counted(found["reasons"]),
                         f"see {stage.folder / SCORES}",
                         ALONE if set(found["reasons"]) == {"no-direction"} else KEEP_MORE)
    return Made({name: digest_file(stage.folder / name) for name in (KEPT, DROPPED, SCORES)},
                {name: found[name] for name in ("kept", "dropped", "reasons", "borderline")}
                | {"languages": found["groups"]})


def _trained_on(job: Job) -> tuple[str, str]:
    """The stage and the file whose pairs are learnt."""
    return (FILTER, KEPT) if job.config.filter.enabled else (PAIRS, PAIRS_FILE)


def make_model(job: Job, number: int, stage: Stage) -> Made:
    """The round's own model: DPO on the kept pairs."""
    source, name = _trained_on(job)
    about = job.about(number)
    model = train(TrainSpec(
        pairs=job.stage(number, source).folder / name, model=about.path,
        reference=job.reference(number), output=stage.folder, train=job.config.train,
        loss=job.config.loss, about=about, seed=job.seed(number, TRAIN),
    ), job.progress)  # fmt: skip
    return Made({MODEL: job.digest_of_model(str(model))}, {})


def _sketch_inputs(job: Job, number: int) -> dict[str, str]:
    margins = job.config.train.reference == "initial" and number > 1
    return job.output_of(number, PAIRS, PAIRS_FILE) | (
        {"the initial model": job.model_digest(1)} if margins else {})


def _train_inputs(job: Job, number: int) -> dict[str, str]:
    initial = job.config.train.reference == "initial"
    return job.output_of(number, *_trained_on(job)) | (
        {"the initial model": job.model_digest(1)} if initial else {})


KINDS: dict[str, Kind] = TEXT_STAGES | {
    SKETCH: Kind(_sketch_inputs, make_sketch),
    CONSENSUS: Kind(lambda job, number: job.output_of(number, SKETCH, STORE), make_consensus),
    FILTER: Kind(
        lambda job, number: job.output_of(number, CONSENSUS, CONSENSUS)
        | job.output_of(number, PAIRS, PAIRS_FILE), make_filter),
    TRAIN: Kind(_train_inputs, make_model),
    EVALUATION: EVALUATION_STAGE,
}
"""How every stage is made."""
