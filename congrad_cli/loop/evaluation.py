"""The last stage of a round: its new model on held-out prompts, pairs and texts.

Round 0 is the initial model. Answers are compared with those of the round before; the judge is
the same one in all rounds: the initial model, or the server that judges.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from congrad_cli.loop import generate
from congrad_cli.loop.digests import digest_files
from congrad_cli.loop.evaluate import RoundItems, measure_round, rows
from congrad_cli.loop.held_out import (
    HeldOutPair,
    HeldOutText,
    read_pairs,
    read_prompts,
    read_texts,
    require_held_out,
)
from congrad_cli.loop.items import Item, Items
from congrad_cli.loop.job import MODEL, Job
from congrad_cli.loop.model_access import Backend
from congrad_cli.loop.plan import EVALUATION, TRAIN
from congrad_cli.loop.prompts import (
    Prompt,
    locate,
    read_pools,
    trained_languages,
)
from congrad_cli.loop.settings import SCORED
from congrad_cli.loop.stage import RESULTS, Inputs, Stage, Worker, digest_file, run_items
from congrad_cli.loop.text_stages import Kind, Made, judge_models
from congrad_cli.loop.verdicts import compare, compare_scores
from congrad_cli.loop.weighing import weigh_pairs, weigh_texts

PARTS = ("answers", "verdicts", "pairs", "texts")
"""The files of items that measures are taken from."""


def evaluation_inputs(job: Job, number: int) -> dict[str, str]:
    """The held-out files, the round's new model, the judge, and the rounds it is compared with."""
    section = job.config.evaluate
    inputs = {"the initial model": job.model_digest(1)}
    for name in ("prompts", "pairs", "text"):
        files = getattr(section, name)
        if files:
            found = locate(files, job.folder)
            inputs[f"evaluate.{name}"] = digest_files(file.path for file in found)
    if number > 0:
        inputs |= judge_models(job, number) | job.output_of(number, TRAIN, MODEL)
        for other in {0, number - 1}:
            inputs |= job.output_of(other, EVALUATION)
    return inputs


def make_evaluation(job: Job, number: int, stage: Stage) -> Made:
    """Everything that the round is measured by, and the measures."""
    section, seed = job.config.evaluate, job.config.run.seed
    pools = read_pools(job.config.prompts, job.folder)
    prompts = read_prompts(section, job.folder, seed)
    pairs, texts = read_pairs(section, job.folder), read_texts(section, job.folder)
    require_held_out(prompts, pairs, pools)
    if prompts:
        _answer(job, number, stage, prompts)
        if section.win_rate and number > 0:
            _compare(job, number, stage)
    _weigh(job, number, stage, pairs, texts)
    seen = trained_languages(job.config.prompts, pools)
    check = None
    if prompts and job.config.pairs.check_language:
        from congrad_cli.loop.language_check import LanguageCheck

        languages = seen | {prompt.language for prompt in prompts}
        check = LanguageCheck(languages, job.config.pairs.min_confidence)
    now, before, initial = (round_items(job, each) for each in (number, number - 1, 0))
    measures = measure_round(now, before if number else None, initial if number else None,
                             job.config.loss.beta, check)
    found = rows(number, measures, seen)
    stage.write_items({"key": f"{row['language']}/{row['measure']}", **row} for row in found)
    names = [RESULTS, *(f"{part}.jsonl" for part in PARTS)]
    return Made({name: digest_file(stage.folder / name) for name in names
                 if (stage.folder / name).exists()}, {"measures": len(found)})


def round_items(job: Job, number: int) -> RoundItems:
    """What is there of a round."""
    folder = job.stage(number, EVALUATION).folder
    files = (folder / f"{part}.jsonl" for part in PARTS)
    return RoundItems(*(Items(file) if file.exists() else () for file in files))


def _answer(job: Job, number: int, stage: Stage, prompts: list[Prompt]) -> None:
    section, seed = job.config.generate, job.seed(number, EVALUATION)

    def work(backend: Backend, chunk: Sequence[Prompt]) -> Iterator[Item]:
        return generate.answers(chunk, backend, section, seed)

    run_items(
        stage, Inputs(prompts, [prompt.id for prompt in prompts], "answers"),
        lambda: job.models(stage).writer(job.about(number + 1), work),
        job.progress)


def _compare(job: Job, number: int, stage: Stage) -> None:
    """The round's answers against those of the round before."""
    config, seed = job.config, job.seed(number, EVALUATION)
    now, before = (job.items(each, EVALUATION, "answers.jsonl") for each in (number, number - 1))
    place = {key: index for index, key in enumerate(before.keys)}

    def others(chunk: Sequence[Item]) -> list[Item]:
        return [before[place[item["key"]]] for item in chunk]

    @contextmanager
    def opened() -> Iterator[Worker[Item]]:
        models = job.models(stage)
        if config.judge.kind in SCORED:
            with models.score_judge(job.about(1)) as judge:
                yield Worker(config.backend.batch,
                             lambda chunk: compare_scores(chunk, others(chunk), judge))
            return
        with models.judge_backend(job.about(1)) as backend:
            yield Worker(backend.chunk, lambda chunk: compare(
                chunk, others(chunk), backend, config.judge, seed))

    run_items(stage, Inputs(now, now.keys, "verdicts"), opened, job.progress)


def _weigh(
    job: Job, number: int, stage: Stage, pairs: list[HeldOutPair], texts: list[HeldOutText]
) -> None:
    """The log-probabilities of held-out pairs and texts under the round's new model."""
    about, models = job.about(number + 1), job.models(stage)
    if pairs:
        run_items(
            stage, Inputs(pairs, [pair.id for pair in pairs], "pairs"),
            lambda: models.scorer(about, lambda scorer, chunk: weigh_pairs(chunk, scorer)),
            job.progress)
    if texts:
        run_items(
            stage, Inputs(texts, [text.id for text in texts], "texts"),
            lambda: models.scorer(about, lambda scorer, chunk: weigh_texts(chunk, scorer)),
            job.progress)


EVALUATION_STAGE = Kind(evaluation_inputs, make_evaluation)
