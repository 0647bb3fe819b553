"""The models that a stage needs, as the configuration says, opened when they are needed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from congrad_cli.errors import UsageError
from congrad_cli.loop.digests import digest_files
from congrad_cli.loop.items import Item
from congrad_cli.loop.job import Job
from congrad_cli.loop.judge import ImplicitRewardJudge, Judge, LogProbJudge
from congrad_cli.loop.model_access import Backend, Scorer
from congrad_cli.loop.rubric import RubricJudge
from congrad_cli.loop.settings import BackendSection, LoopConfig, ModelSection
from congrad_cli.loop.stage import Worker

SCORED = ("implicit-reward", "log-prob")
"""Judges that need no text of a judge, but log-probabilities."""


@contextmanager
def opened_writer(
    config: LoopConfig, about: ModelSection, folder: Path,
    work: Callable[[Backend, Sequence[Any]], Iterator[Item]],
) -> Iterator[Worker[Any]]:  # fmt: skip
    """``work`` with the back-end that writes candidates; ``folder`` is for a server's log."""
    with _backend(config.backend, about, folder) as backend:
        yield Worker(backend.chunk, lambda chunk: work(backend, chunk))


@contextmanager
def opened_scorer(
    config: LoopConfig, about: ModelSection, work: Callable[[Scorer, Sequence[Any]], Iterator[Item]]
) -> Iterator[Worker[Any]]:
    """``work`` with a model that weighs texts."""
    with _scorer(config, about) as scorer:
        yield Worker(config.backend.batch, lambda chunk: work(scorer, chunk))


@contextmanager
def opened_judge(
    config: LoopConfig, about: ModelSection, folder: Path, seed: int
) -> Iterator[Worker[Item]]:
    """The judge of candidates in a round whose model is ``about``."""
    if config.judge.kind in SCORED:
        with score_judge(config, about) as judge:
            yield Worker(config.backend.batch, judge.judge)
        return
    by = config.model if config.judge.kind == "initial" else about
    with judge_backend(config, by, folder) as backend:
        yield Worker(backend.chunk, RubricJudge(backend, config.judge, seed).judge)


@contextmanager
def judge_backend(config: LoopConfig, about: ModelSection, folder: Path) -> Iterator[Backend]:
    """What writes judgements."""
    with _backend(config.judge.backend or config.backend, about, folder) as backend:
        yield backend


@contextmanager
def score_judge(config: LoopConfig, about: ModelSection) -> Iterator[Judge]:
    """The judge by log-probabilities under ``about``."""
    with ExitStack() as stack:
        policy = stack.enter_context(_scorer(config, about))
        if config.judge.kind == "log-prob":
            yield LogProbJudge(policy)
            return
        base = ModelSection(str(config.judge.reference), None, about.chat_template, about.dtype,
                            about.device, about.threads)
        reference = stack.enter_context(_scorer(config, base))
        yield ImplicitRewardJudge(policy, reference, config.loss.beta)


def judge_inputs(job: Job, number: int) -> dict[str, str]:
    """What judgements hang on beside the settings and the round's model."""
    judge, inputs = job.config.judge, {}
    if judge.template is not None:
        inputs["judge.template"] = digest_files([Path(judge.template)])
    if judge.kind == "initial":
        inputs["the initial model"] = job.model_digest(1)
    if judge.kind == "implicit-reward":
        if judge.reference is None:
            raise UsageError("judge.reference is missing.")
        inputs["judge.reference"] = job.digest_of_model(judge.reference)
    return inputs


@contextmanager
def _backend(
    section: BackendSection, about: ModelSection, folder: Path
) -> Iterator[Backend]:
    from congrad_cli.loop.backends import open_backend

    with closing(open_backend(section, about.path, about, folder)) as backend:
        yield backend


@contextmanager
def _scorer(config: LoopConfig, about: ModelSection) -> Iterator[Scorer]:
    from congrad_cli.loop.scorer import open_scorer

    with closing(open_scorer(about.path, about, config.train.max_length)) as scorer:
        yield scorer
