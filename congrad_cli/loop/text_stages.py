"""The stages of a round that make text: prompts, candidates, judgements, pairs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from congrad_cli.errors import InputError
from congrad_cli.loop import generate
from congrad_cli.loop.digests import digest_files
from congrad_cli.loop.items import Item, ItemLog, durable, line_of
from congrad_cli.loop.job import Job
from congrad_cli.loop.judge import require_valid
from congrad_cli.loop.model_access import Backend
from congrad_cli.loop.pairs import IDENTICAL, NO_MARGIN, UNFINISHED, WRONG_LANGUAGE, make_pairs
from congrad_cli.loop.plan import CANDIDATES, JUDGEMENTS, PAIRS, PROMPTS
from congrad_cli.loop.prompts import Prompt, locate, read_pools, slice_of_round
from congrad_cli.loop.stage import RESULTS, Inputs, Stage, digest_file, run_items
from congrad_cli.loop.translation import require_translated, translate, translated_prompts

PAIRS_FILE = "pairs.jsonl"
"""The pairs alone, as TRL reads them."""
CURES = {
    UNFINISHED: "unfinished: raise generate.max_tokens",
    WRONG_LANGUAGE: "wrong-language: ask for the language with generate.system",
    IDENTICAL: "identical: raise generate.temperature or generate.candidates",
    NO_MARGIN: "no-margin: lower pairs.margin, or let the judge score more finely",
}
"""What helps where no prompt gives a pair, by the reason."""
HOPELESS, TELLING = 0.95, 32
"""After so many prompts a larger share of judgements without a score ends the work early."""


@dataclass(frozen=True)
class Made:
    """What a stage made: digests by file, and numbers."""

    outputs: dict[str, str]
    counts: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """How a stage is made: its inputs beside those that all have, and the work."""

    inputs: Callable[[Job, int], dict[str, str]]
    work: Callable[[Job, int, Stage], Made]


def by_language(items: Iterable[Item]) -> dict[str, int]:
    """How many items there are of each language."""
    return dict(sorted(Counter(item["language"] for item in items).items()))


# prompts


def prompt_inputs(job: Job, number: int) -> dict[str, str]:
    """The prompts' files."""
    files = locate(job.config.prompts.files, job.folder)
    return {"prompts.files": digest_files(file.path for file in files)}


def round_prompts(job: Job, number: int) -> tuple[list[Prompt], int]:
    """The round's slice of the pools, before any translation, and how many stood there twice."""
    section = job.config.prompts
    pools = read_pools(section, job.folder)
    prompts = slice_of_round(pools, number, section.per_language, job.config.run.seed)
    return prompts, pools.duplicates.total()


def make_prompts(job: Job, number: int, stage: Stage) -> Made:
    """The round's slice of the pools, and translations where they are asked for."""
    section = job.config.prompts
    prompts, duplicates = round_prompts(job, number)
    if duplicates:
        job.progress.note(f"prompts.files: {duplicates:,} prompts stand there more than once")
    if section.translate_from is not None:
        prompts = _with_translations(job, number, stage, prompts)
    items = [prompt.to_json() for prompt in prompts]
    stage.write_items(items)
    return Made({RESULTS: digest_file(stage.results)},
                {"prompts": len(items), "duplicates": duplicates, "languages": by_language(items)})


def _with_translations(
    job: Job, number: int, stage: Stage, prompts: list[Prompt]
) -> list[Prompt]:
    """The prompts, and those of one language in the others; what cannot be used is left out."""
    from congrad_cli.records.languages import canonical

    section, pairs = job.config.prompts, job.config.pairs
    source = canonical(str(section.translate_from))
    targets = [canonical(label) for label in section.translate_into]
    check = None
    if pairs.check_language:
        from congrad_cli.loop.language_check import LanguageCheck

        check = LanguageCheck([source, *targets], pairs.min_confidence)
    wanted = [(prompt, target) for target in targets for prompt in prompts
              if prompt.language == source]
    seed = job.seed(number, PROMPTS)

    def work(backend: Backend, chunk: Sequence[tuple[Prompt, str]]) -> Iterator[Item]:
        for target in dict.fromkeys(target for _, target in chunk):
            some = [prompt for prompt, each in chunk if each == target]
            yield from translate(some, backend, [target], seed, check)

    keys = [f"{prompt.id}>{target}" for prompt, target in wanted]
    items = run_items(
        stage, Inputs(wanted, keys, "translations"),
        lambda: job.models(stage).writer(job.about(number), work), job.progress)
    require_translated(items)
    trained = {canonical(label) for label in section.languages}
    kept = [prompt for prompt in prompts if not trained or prompt.language in trained]
    return kept + translated_prompts(items)


# candidates


def make_candidates(job: Job, number: int, stage: Stage) -> Made:
    """Several answers to every prompt."""
    prompts = job.items(number, PROMPTS)
    section, seed = job.config.generate, job.seed(number, CANDIDATES)

    def work(backend: Backend, chunk: Sequence[Item]) -> Iterator[Item]:
        return generate.candidates(list(map(Prompt.from_json, chunk)), backend, section, seed)

    items = run_items(
        stage, Inputs(prompts, prompts.keys),
        lambda: job.models(stage).writer(job.about(number), work), job.progress)
    count = unfinished = 0
    for item in items:
        count += len(item["candidates"])
        unfinished += sum(not each["finished"] for each in item["candidates"])
    return Made({RESULTS: digest_file(stage.results)},
                {"candidates": count, "unfinished": unfinished})


# judgements


def judge_inputs(job: Job, number: int) -> dict[str, str]:
    """What judgements hang on beside the settings and the round's model."""
    template = job.config.judge.template
    inputs = {} if template is None else {"judge.template": digest_files([Path(template)])}
    return inputs | judge_models(job, number)


def judge_models(job: Job, number: int) -> dict[str, str]:
    """The models that judge beside the round's own."""
    judge, inputs = job.config.judge, {}
    if judge.kind == "initial":
        inputs["the initial model"] = job.model_digest(1)
    if judge.reference is not None:
        inputs["judge.reference"] = job.digest_of_model(judge.reference)
    return inputs


def make_judgements(job: Job, number: int, stage: Stage) -> Made:
    """A score for every candidate, where the judge found one."""
    config = job.config
    candidates = job.items(number, CANDIDATES)
    seed = job.seed(number, JUDGEMENTS)
    looked = False

    def stop_early(log: ItemLog) -> None:
        nonlocal looked
        if not looked and TELLING <= len(log) < len(candidates):
            looked = True
            require_valid(list(log), max(HOPELESS, config.judge.max_invalid))

    items = run_items(
        stage, Inputs(candidates, candidates.keys),
        lambda: job.models(stage).judge(job.about(number), seed),
        job.progress, stop_early)
    require_valid(items, config.judge.max_invalid)
    scores = [score for item in items for score in item["scores"]]
    return Made({RESULTS: digest_file(stage.results)},
                {"judgements": len(scores), "valid": sum(score is not None for score in scores)})


# pairs


def _pairs(job: Job, number: int, languages: list[str]) -> Iterator[Item]:
    """The pair of every prompt, or why there is none."""
    candidates, judgements = job.items(number, CANDIDATES), job.items(number, JUDGEMENTS)
    return make_pairs(candidates, judgements, job.config.pairs, languages)


def make_round_pairs(job: Job, number: int, stage: Stage) -> Made:
    """The best against the worst candidate of every prompt, where that makes a pair."""
    languages = job.done(number, PROMPTS).counts["languages"]
    prompts = job.done(number, PROMPTS).counts["prompts"]
    pairs, reasons = Counter[str](), Counter[str]()
    with durable(stage.results) as result, durable(stage.folder / PAIRS_FILE) as write:
        for item in _pairs(job, number, list(languages)):
            result(line_of(item))
            if item["pair"] is None:
                reasons[item["reason"]] += 1
            else:
                write(line_of(item["pair"]))
                pairs[item["pair"]["language"]] += 1
    if not pairs:
        raise InputError(
            f"{stage.name}: none of {prompts:,} prompts gave a pair: {counted(reasons)}",
            f"see {stage.results}", *(CURES[name] for name in reasons if name in CURES))
    return Made({name: digest_file(stage.folder / name) for name in (RESULTS, PAIRS_FILE)},
                {"pairs": pairs.total(), "languages": dict(sorted(pairs.items())),
                 "reasons": dict(reasons.most_common())})


def counted(reasons: Counter[str] | dict[str, int]) -> str:
    """Such as ``tie 12, too-short 3``, the most frequent first."""
    return ", ".join(f"{name} {count:,}" for name, count in Counter(reasons).most_common()) + "."


TEXT_STAGES: dict[str, Kind] = {
    PROMPTS: Kind(prompt_inputs, make_prompts),
    CANDIDATES: Kind(lambda job, number: job.output_of(number, PROMPTS), make_candidates),
    JUDGEMENTS: Kind(
        lambda job, number: job.output_of(number, CANDIDATES) | judge_inputs(job, number),
        make_judgements),
    PAIRS: Kind(
        lambda job, number: job.output_of(number, CANDIDATES) | job.output_of(number, JUDGEMENTS),
        make_round_pairs),
}
"""The text stages by name."""
