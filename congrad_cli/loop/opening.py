"""The models that a stage needs, as the configuration says: opened when needed, and closed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from congrad_cli.loop.items import Item
from congrad_cli.loop.judge import ImplicitRewardJudge, Judge, LogProbJudge
from congrad_cli.loop.model_access import Backend, Scorer
from congrad_cli.loop.rubric import RubricJudge
from congrad_cli.loop.settings import SCORED, BackendSection, LoopConfig, ModelSection
from congrad_cli.loop.stage import Worker


@dataclass(frozen=True)
class Models:
    """Opens models for a stage. ``folder`` is for the log of a model that is served."""

    config: LoopConfig
    folder: Path
    note: Callable[[str], None]

    @contextmanager
    def writer(
        self, about: ModelSection, work: Callable[[Backend, Sequence[Any]], Iterator[Item]]
    ) -> Iterator[Worker[Any]]:
        """``work`` with the back-end that writes candidates."""
        with self._backend(self.config.backend, about) as backend:
            yield Worker(backend.chunk, lambda chunk: work(backend, chunk))

    @contextmanager
    def scorer(
        self, about: ModelSection, work: Callable[[Scorer, Sequence[Any]], Iterator[Item]]
    ) -> Iterator[Worker[Any]]:
        """``work`` with a model that weighs texts."""
        with self._scorer(about) as scorer:
            yield Worker(self.config.backend.batch, lambda chunk: work(scorer, chunk))

    @contextmanager
    def judge(self, about: ModelSection, seed: int) -> Iterator[Worker[Item]]:
        """The judge of candidates in a round whose model is ``about``."""
        config = self.config
        if config.judge.kind in SCORED:
            with self.score_judge(about) as judge:
                yield Worker(config.backend.batch, judge.judge)
            return
        by = config.model if config.judge.kind == "initial" else about
        with self.judge_backend(by) as backend:
            yield Worker(backend.chunk, RubricJudge(backend, config.judge, seed).judge)

    @contextmanager
    def judge_backend(self, about: ModelSection) -> Iterator[Backend]:
        """What writes judgements."""
        with self._backend(self.config.judge.backend or self.config.backend, about) as backend:
            yield backend

    @contextmanager
    def score_judge(self, about: ModelSection) -> Iterator[Judge]:
        """The judge by log-probabilities under ``about``."""
        config = self.config
        with ExitStack() as stack:
            policy = stack.enter_context(self._scorer(about))
            if config.judge.kind == "log-prob":
                yield LogProbJudge(policy)
                return
            base = ModelSection(str(config.judge.reference), None, about.chat_template,
                                about.dtype, about.device, about.threads)
            reference = stack.enter_context(self._scorer(base))
            yield ImplicitRewardJudge(policy, reference, config.loss.beta)

    @contextmanager
    def _backend(self, section: BackendSection, about: ModelSection) -> Iterator[Backend]:
        from congrad_cli.loop.backends import open_backend

        opened = open_backend(section, about.path, about, self.folder, self.note)
        with closing(opened) as backend:
            yield backend

    @contextmanager
    def _scorer(self, about: ModelSection) -> Iterator[Scorer]:
        from congrad_cli.loop.scorer import open_scorer

        longest = self.config.train.max_length
        with closing(open_scorer(about.path, about, longest, self.note)) as scorer:
            yield scorer
