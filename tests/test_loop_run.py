"""The run of a loop with models that say what the test wants: what is made, opened and refused."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pytest
from chat_stub import Stub
from scripted import ScriptedBackend, ScriptedScorer

from congrad_cli.errors import CongradError, InputError, ModelError, StoreError, UsageError
from congrad_cli.locks import RankLock
from congrad_cli.loop import backends, run, scorer
from congrad_cli.loop.config import read_config
from congrad_cli.loop.job import Job
from congrad_cli.loop.model_access import Completion
from congrad_cli.loop.plan import STAGES, Step, step_of, steps
from congrad_cli.progress import Silent
from congrad_cli.records import detect

CONFIG = """
[run]
folder = "run"
[model]
path = "model"
[prompts]
files = ["prompts.jsonl"]
per_language = 4
[backend]
batch = 3
[generate]
candidates = 3
[judge]
samples = 1
retries = 0
[pairs]
check_language = false
"""


class Told(Silent):
    """Keeps what was said."""

    def __init__(self):
        self.warnings, self.notes = [], []

    def warn(self, message, kind=""):
        self.warnings.append(message)

    def note(self, message, kind=""):
        self.notes.append(message)


class Backends:
    """Opens scripted back-ends, and knows which models were opened and which are open."""

    def __init__(self):
        self.opened, self.open, self.asked = [], 0, 0
        self.stop_after = None

    def say(self, text, seed):
        """A judgement, a translation or an answer, by what is asked."""
        if self.asked == self.stop_after:
            raise KeyboardInterrupt
        self.asked += 1
        if text.startswith("You grade"):
            return f"Fine.\nScore: {seed % 6}"
        if text.startswith("Translate"):
            return f"<translated>Satz {seed % 1000}</translated>"
        return f"An answer, {seed % 1000}."

    def __call__(self, section, model, about, folder, note=None):
        self.opened.append(Path(model).name)
        self.open += 1
        backend = ScriptedBackend(self.say, chunk=section.batch)
        backend.close = self.close
        return backend

    def scorer(self, model, about, max_length, note):
        self.opened.append(f"{Path(model).name} weighs")
        self.open += 1
        name = Path(model).name
        found = ScriptedScorer(lambda text: -float(crc32(f"{name} {text}".encode()) % 50))
        found.close = self.close
        return found

    def close(self):
        self.open -= 1


@pytest.fixture
def models(monkeypatch):
    """What opens models, in place of real ones."""
    models = Backends()
    monkeypatch.setattr(backends, "open_backend", models)
    monkeypatch.setattr(scorer, "open_scorer", models.scorer)
    return models


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Reads the configuration beside files that it needs, with changes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    rows = [{"id": f"{language}{number}", "language": language, "prompt": f"{language} {number}?"}
            for number in range(8) for language in ("en", "de")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "loop.toml").write_text(CONFIG)
    return lambda *changes: read_config(tmp_path / "loop.toml", changes)


def start(config, until="1/pairs", restart=None, progress=None):
    return run.run(config, run.Request(until, restart), progress or Silent())


def items(config, step, name="results.jsonl"):
    number, stage = step.split("/")
    path = Job(config, Silent()).stage(int(number), stage).folder / name
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder):
    """Everything in a run but what tells the time."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != "DONE.json"}  # fmt: skip


def test_a_round_goes_from_prompts_to_pairs(config, models):
    settings = config()
    assert start(settings) is None  # nothing was trained
    prompts = items(settings, "1/prompts")
    assert {prompt["language"] for prompt in prompts} == {"de", "en"}
    assert len(prompts) == 8
    candidates = items(settings, "1/candidates")
    assert [each["key"] for each in candidates] == [prompt["key"] for prompt in prompts]
    scores = {each["key"]: each["scores"] for each in items(settings, "1/judgements")}
    answers = {each["key"]: [one["text"] for one in each["candidates"]] for each in candidates}
    pairs = items(settings, "1/pairs", "pairs.jsonl")
    assert pairs
    for pair in pairs:
        texts, given = answers[pair["id"]], scores[pair["id"]]
        assert given[texts.index(pair["chosen"][0]["content"])] == max(given)
        assert given[texts.index(pair["rejected"][0]["content"])] == min(given)


def test_models_are_opened_for_a_stage_and_closed_after_it(config, models):
    start(config(), "1/candidates")
    assert (models.opened, models.open) == (["model"], 0)
    start(config(), "1/pairs")
    assert (models.opened, models.open) == (["model"] * 2, 0)
    start(config(), "1/pairs")
    assert len(models.opened) == 2  # all is done


@pytest.mark.parametrize("stop_after", [0, 1, 5, 23, 24, 30])
def test_an_interrupted_run_goes_on_to_the_same_files(
    config, models, tmp_path, stop_after
):
    start(config("run=whole"))
    models.stop_after = models.asked + stop_after
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        start(config(), progress=told)
    assert "the same command continues" in told.notes[-1]
    assert models.open == 0
    models.stop_after = None
    start(config())
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "run")


def test_rounds_have_prompts_of_their_own(config, models):
    settings = config()
    start(settings, "1/prompts")
    job = Job(settings, Silent())
    first = {prompt["key"] for prompt in items(settings, "1/prompts")}
    second = {prompt.id for prompt in run.round_prompts(job, 2)[0]}
    assert len(first) == len(second) == 8
    assert not first & second


def test_prompts_that_stand_there_twice_are_taken_once_and_told_of(config, models, tmp_path):
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "en 1?", "language": "en"}\n' * 2)
    told = Told()
    start(config(), "1/prompts", progress=told)
    assert any("2 prompts stand there more than once" in note for note in told.notes)


def test_prompts_are_translated_by_the_model_once(config, models):
    settings = config('prompts.languages=["en"]', "prompts.translate_from=en",
                      'prompts.translate_into=["sw", "hi"]')
    models.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        start(settings, "1/prompts")
    models.stop_after = None
    start(settings, "1/prompts")
    found = items(settings, "1/prompts")
    languages = [prompt["language"] for prompt in found]
    assert {name: languages.count(name) for name in languages} == {"en": 4, "sw": 4, "hi": 4}
    assert all(prompt["messages"][0]["content"].startswith("Satz") for prompt in found
               if prompt["language"] != "en")
    # the chunk in hand is asked for again, and nothing of those before
    assert models.asked == 5 + 8 - 3
    assert len(items(settings, "1/prompts", "translations.jsonl")) == 8


def test_a_language_that_is_only_translated_from_is_not_trained_on(config, models):
    settings = config('prompts.languages=["de"]', "prompts.translate_from=en",
                      'prompts.translate_into=["de"]')
    start(settings, "1/prompts")
    languages = [prompt["language"] for prompt in items(settings, "1/prompts")]
    assert languages == ["de"] * 8


@pytest.mark.parametrize(("changes", "opened"), [
    (["judge.kind=self"], ["model", "model"]),
    (["judge.kind=initial"], ["model", "model"]),
    (["judge.kind=log-prob"], ["model", "model weighs"]),
    (["judge.kind=implicit-reward", "judge.reference=other"],
     ["model", "model weighs", "other weighs"]),
])
def test_every_kind_of_judge_opens_what_it_needs(
    config, models, tmp_path, changes, opened
):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    settings = config(*changes)
    start(settings)
    assert (models.opened, models.open) == (opened, 0)
    assert items(settings, "1/pairs", "pairs.jsonl")


def test_a_later_round_starts_from_the_model_of_the_one_before(config):
    job = Job(config("model.revision=main"), Silent())
    assert (Path(job.about(1).path).name, job.about(1).revision) == ("model", "main")
    assert job.about(2).path == str(job.folder / "round-1/08-train/model")
    assert job.about(2).revision is None
    assert job.reference(2) == job.about(2).path
    other = Job(config("train.reference=initial"), Silent())
    assert other.reference(2) == other.about(1).path


def test_a_round_without_a_pair_says_why(config, models):
    models.say = lambda text, seed: "Score: 3" if text.startswith("You grade") else f"{seed}"
    said = "1/pairs: none of 8 prompts gave a pair: no-margin 8."
    with pytest.raises(InputError, match=re.escape(said)):
        start(config())
    models.say = lambda text, seed: Completion(f"cut {seed}", False)
    with pytest.raises(ModelError, match="none of 24 answers can be judged"):
        start(config("run=other"))


def test_a_judge_that_gives_no_scores_stops_the_run_early(config, models, tmp_path):
    rows = [{"prompt": f"{number}?", "language": "en"} for number in range(90)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = []

    def say(text, seed):
        if text.startswith("You grade"):
            judged.append(text)
            return "I do not know."
        return f"{seed}"

    models.say = say
    settings = config("prompts.per_language=90", "run.rounds=1")
    with pytest.raises(ModelError, match="hold no score"):
        start(settings)
    assert 32 * 3 <= len(judged) < 40 * 3
    models.say = lambda text, seed: f"Score: {seed % 6}"
    start(settings)  # what is there counts; the rest is judged now
    assert items(settings, "1/pairs", "pairs.jsonl")


def test_servers_write_and_judge_and_the_key_is_in_no_file(config, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("WRITER_KEY", "s3cret-writer")
    monkeypatch.setenv("JUDGE_KEY", "s3cret-judge")

    def answer(handler, payload, number):
        judges = payload["messages"][-1]["content"].startswith("You grade")
        handler.say(*(f"Score: {number % 6}" if judges else f"Answer {number} {place}."
                      for place in range(payload.get("n", 1))))

    with Stub(answer) as writer, Stub(answer) as judge:
        settings = config(
            "backend.kind=openai", f"backend.url={writer.url}", "backend.api_key_env=WRITER_KEY",
            "judge.kind=endpoint", "judge.backend.kind=openai", f"judge.backend.url={judge.url}",
            "judge.backend.model=large", "judge.backend.api_key_env=JUDGE_KEY",
        )  # fmt: skip
        start(settings)
    assert items(settings, "1/pairs", "pairs.jsonl")
    assert {payload["model"] for payload in writer.payloads} == {settings.model.path}
    assert {payload["model"] for payload in judge.payloads} == {"large"}
    assert {headers["Authorization"] for headers in judge.headers} == {"Bearer s3cret-judge"}
    for content in files_of(Path(settings.run.folder)).values():
        assert b"s3cret" not in content
    assert "s3cret" not in "".join(capfd.readouterr())


# what is refused


def refused(settings, *request, **more) -> str:
    with pytest.raises(CongradError) as caught:
        start(settings, *request, **more)
    return "\n".join((caught.value.message, *caught.value.hints))


def test_prompts_that_changed_are_told_of_by_name(config, models, tmp_path):
    start(config())
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "more", "language": "en"}\n')
    said = refused(config())
    assert "round-1/01-prompts was made of other inputs: prompts.files changed" in said
    assert "--restart-from 1/prompts" in said


def test_prompts_that_moved_are_the_same_prompts(config, models, tmp_path):
    start(config())
    (tmp_path / "data").mkdir()
    (tmp_path / "prompts.jsonl").rename(tmp_path / "data" / "p.jsonl")
    start(config("prompts.files=['data/p.jsonl']"))
    assert len(models.opened) == 2


def test_another_model_at_the_same_place_is_told_of(config, models, tmp_path):
    start(config())
    (tmp_path / "model" / "config.json").write_text('{"other": 1}')
    assert "the model changed" in refused(config())


def test_a_changed_value_is_refused_and_taken_with_a_restart(config, models):
    start(config())
    before = items(config(), "1/candidates")
    said = refused(config("pairs.margin=1", "generate.candidates=4"))
    assert "generate.candidates was 3 and is 4" in said
    assert "pairs.margin was 0.0 and is 1.0" in said
    assert "--restart-from 1/candidates" in said
    assert items(config(), "1/candidates") == before  # nothing was removed
    assert "generate.candidates" in refused(config("generate.candidates=4"), restart="1/pairs")
    start(config("generate.candidates=4"), restart="1/candidates")
    assert {len(each["candidates"]) for each in items(config(), "1/candidates")} == {4}
    assert "candidates = 4" in (Path(config().run.folder) / "config.toml").read_text()


def test_a_filter_that_is_switched_off_goes_by_the_step_that_the_refusal_names(config, models):
    start(config())
    job, off = Job(config(), Silent()), config("filter.enabled=false")
    for stage in ("sketch", "consensus", "filter"):
        finished(job, 1, stage)
    assert "--restart-from 1/sketch" in refused(off)
    pairs = items(off, "1/pairs")
    start(off, restart="1/sketch")
    assert {path.name for path in (job.folder / "round-1").iterdir()} == {
        "01-prompts", "02-candidates", "03-judgements", "04-pairs"}
    assert items(off, "1/pairs") == pairs
    with pytest.raises(UsageError, match="no such step"):  # there is nothing of it any more
        start(off, restart="1/sketch")


def test_what_is_tried_and_refused_leaves_the_kept_configuration(config, models):
    start(config())
    text = (Path(config().run.folder) / "config.toml").read_bytes()
    refused(config("generate.candidates=4"))
    assert (Path(config().run.folder) / "config.toml").read_bytes() == text


def test_a_run_that_another_process_runs_is_left_alone(config, models):
    settings = config()
    start(settings, "1/prompts")
    before = files_of(Path(settings.run.folder))
    with RankLock(Path(settings.run.folder), 0, 1), pytest.raises(StoreError, match="by another"):
        start(settings)
    assert files_of(Path(settings.run.folder)) == before


def test_too_few_prompts_for_the_last_round_are_told_of_at_once(config, models):
    said = refused(config("run.rounds=3"))
    assert "too few for round 3" in said
    assert not models.opened
    assert not Path(config().run.folder).exists()


@pytest.mark.parametrize(("changes", "said"), [
    (["run=model"], "holds other things than a run"),
    (["run=prompts.jsonl"], "is a file"),
    (["model.path=./nothing"], "no such folder"),
    (["judge.template=nothing.jinja"], "no such file"),
    (["model.chat_template=nothing.jinja"], "no such file"),
    (["prompts.files=['nothing.jsonl']"], "nothing.jsonl"),
])
def test_what_would_fail_later_is_refused_before_anything_is_written(
    config, models, tmp_path, changes, said
):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert said in refused(config(*changes))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_served_model_that_never_changes_is_warned_of(config, models):
    told = Told()
    start(config("backend.kind=openai", "backend.url=http://h/v1", "backend.model=m"),
          progress=told)
    assert any("in every round" in warning for warning in told.warnings)


# making anew, and previews


def test_an_evaluation_is_made_anew_alone(config):
    settings = config("evaluate.text=['t.jsonl']")
    later = [step for step in steps(settings) if run.after(step_of(1, "evaluation"))(step)]
    assert [step.name for step in later] == ["1/evaluation", "2/evaluation"]
    later = [step for step in steps(settings) if run.after(step_of(1, "train"))(step)]
    assert [step.name for step in later[:2]] == ["1/train", "1/evaluation"]
    assert len(later) == 2 + len(STAGES)


def test_evaluations_of_former_values_are_made_anew_with_the_rest(config, models, tmp_path):
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"prompt": "held out", "language": "en"}\n')
    first = f"evaluate.prompts=['{held_out}']"
    start(config(first))
    answers = items(config(first), "0/evaluation", "answers.jsonl")
    said = refused(config(first, "generate.max_tokens=99"))
    assert "--restart-from 1/candidates" in said
    start(config(first, "generate.max_tokens=99"), restart="1/candidates")
    assert items(config(first), "0/evaluation", "answers.jsonl") == answers  # the script's
    done = Job(config(first), Silent()).stage(0, "evaluation").folder / "DONE.json"
    made = done.stat().st_mtime_ns
    start(config(first, "generate.max_tokens=99", "pairs.margin=0.5"), restart="1/pairs")
    assert done.stat().st_mtime_ns == made  # of no value that changed
    start(config(first, "generate.max_tokens=99", "judge.samples=2", "judge.max_tokens=9"),
          restart="1/judgements")
    assert done.stat().st_mtime_ns == made  # the initial model's answers are not judged
    start(config(first, "generate.max_tokens=99", "pairs.margin=0.5"), restart="1/judgements")
    held_out.write_text('{"prompt": "another", "language": "en"}\n')
    assert "evaluate.prompts changed" in refused(config(first, "generate.max_tokens=99",
                                                        "pairs.margin=0.5"))
    start(config(first, "generate.max_tokens=99", "pairs.margin=0.5"), restart="1/pairs")
    assert items(config(first), "0/evaluation", "answers.jsonl") != answers


def test_a_step_that_was_killed_while_it_was_removed_is_gone_whole(config, models, monkeypatch):
    """Half a model that stayed where it was would pass for the whole one."""
    start(config())
    folder = Job(config(), Silent()).stage(1, "pairs").folder
    remove = shutil.rmtree

    def killed(path):
        next(Path(path).iterdir()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        start(config(), restart="1/pairs")
    assert not list(folder.parent.glob("04-*"))
    monkeypatch.setattr(shutil, "rmtree", remove)
    start(config())
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        "01-prompts", "02-candidates", "03-judgements", "04-pairs"]


def test_a_preview_says_what_is_done_and_touches_nothing(config, models):
    settings = config()
    models.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        start(settings)
    before = files_of(Path(settings.run.folder))
    opened = len(models.opened)
    preview = run.preview(settings, run.Request("1/pairs"), Silent())
    # the chunk in hand answers from its end: three requests a prompt
    assert preview.steps == [("1/prompts", "done"), ("1/candidates", "begun, 1 items"),
                             ("1/judgements", "to do"), ("1/pairs", "to do")]
    assert preview.prompts == {"de": 4, "en": 4}
    assert preview.models["round 2"].endswith("round-1/08-train/model")
    again = run.preview(settings, run.Request("1/pairs", "1/prompts"), Silent())
    assert [state for _, state in again.steps[:2]] == ["made anew"] * 2
    assert files_of(Path(settings.run.folder)) == before
    assert len(models.opened) == opened


def test_a_preview_of_a_new_run_makes_no_folder(config, models):
    settings = config()
    assert {state for _, state in run.preview(settings, run.Request(), Silent()).steps} == {"to do"}
    assert not Path(settings.run.folder).exists()


# what the other commands are told


def finished(job, number, stage, **outputs) -> None:
    """Say that a stage is done."""
    at = job.stage(number, stage)
    at.begin({})
    at.finish({}, outputs, {"languages": {}})


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("reference", ["previous", "initial"])
@pytest.mark.parametrize("enabled", [True, False])
def test_training_is_told_the_pairs_and_the_models(
    config, monkeypatch, number, reference, enabled
):
    changes = [f"train.reference={reference}", f"filter.enabled={str(enabled).lower()}",
               "loss.beta=0.3"]  # fmt: skip
    job = Job(config(*changes), Silent())
    finished(job, 1, "train", model="digest")
    finished(job, number, "pairs", **{"pairs.jsonl": "p"})
    finished(job, number, "filter", **{"kept.jsonl": "k"})
    specs = []
    monkeypatch.setattr(run, "train", lambda spec, _: specs.append(spec) or Path(spec.model))
    stage = replace(job.stage(number, "train"), folder=job.folder / "training")
    run.make_model(job, number, stage)
    (spec,) = specs
    start_of = [job.folder.parent / "model", job.folder / "round-1/08-train/model"][number - 1]
    assert spec.model == spec.about.path == str(start_of)
    assert spec.reference == str(start_of if reference == "previous" else
                                 job.folder.parent / "model")
    folder, name = ("07-filter", "kept.jsonl") if enabled else ("04-pairs", "pairs.jsonl")
    assert spec.pairs == job.folder / f"round-{number}" / folder / name
    assert (spec.loss.beta, spec.output) == (0.3, stage.folder)
    assert f"{number}/{folder[3:]} ({name})" in run.KINDS["train"].inputs(job, number)


@pytest.mark.parametrize(("number", "reference", "margins"), [
    (1, "previous", False), (2, "previous", False), (1, "initial", False), (2, "initial", True)])
def test_a_sketch_measures_margins_where_the_reference_is_another_model(
    config, monkeypatch, number, reference, margins
):
    from congrad_cli.sketch import run as sketch

    told = []
    monkeypatch.setattr(sketch, "run_files", lambda *what: told.append(what))
    monkeypatch.setattr(run, "_store_digest", lambda store: "digest")
    job = Job(config(f"train.reference={reference}", "sketch.dim=512", "model.threads=1",
                     "sketch.width=8"), Silent())
    finished(job, 1, "train", model="digest")
    finished(job, number, "pairs", **{"pairs.jsonl": "p"})
    stage = job.stage(number, "sketch")
    run.make_sketch(job, number, stage)
    files, _, store, settings, _ = told[0]
    assert store == stage.folder / "store"
    assert files[0].path == job.folder / f"round-{number}/04-pairs/pairs.jsonl"
    assert settings.model == job.about(number).path
    assert settings.reference == (str(job.folder.parent / "model") if margins else None)
    assert ("the initial model" in run.KINDS["sketch"].inputs(job, number)) == margins
    assert (settings.dim, settings.width, settings.store_dtype) == (512, 8, "int4")


def test_the_loss_of_the_training_is_that_of_the_consensus(config, monkeypatch):
    from congrad_cli.consensus import run as consensus

    told = []

    def find(store, settings, progress):
        told.append(settings)
        raise InterruptedError

    monkeypatch.setattr(consensus, "run", find)
    job = Job(config("loss.name=lp-dpo", "loss.beta=0.4", "loss.length_penalty=0.05",
                     "consensus.method=mean", "consensus.min_pairs=3"), Silent())
    with pytest.raises(InterruptedError):
        run.make_consensus(job, 1, job.stage(1, "consensus"))
    (settings,) = told
    assert (settings.loss, settings.beta, settings.length_penalty) == ("lp-dpo", 0.4, 0.05)
    assert (settings.method, settings.min_pairs) == ("mean", 3)


@pytest.mark.parametrize(("package", "changes", "until"), [
    ("py3langid", ["pairs.check_language=true"], "1/pairs"),
    ("trl", [], "1/train"),
    ("peft", ["train.lora_rank=4"], "1/train"),
])
def test_a_package_that_a_later_stage_needs_is_asked_for_before_any_candidate(
    config, models, monkeypatch, package, changes, until
):
    from congrad_cli.loop import train

    real = train.find_spec
    monkeypatch.setattr(train, "find_spec", lambda name: None if name == package else real(name))
    for name in (package, f"{package}.langid"):
        monkeypatch.setitem(sys.modules, name, None)
    detect._load.cache_clear()
    said = refused(config(*changes), until)
    assert package in said
    assert "pip install" in said
    assert not models.opened


def test_a_model_without_a_chat_is_refused_before_any_candidate(
    config, models, tmp_path, tiny_model
):
    for file in Path(tiny_model).iterdir():
        if "template" not in file.name:
            (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    said = refused(config(), "1/sketch")
    assert "no chat template" in said
    assert "[model] chat_template" in said
    assert not models.opened
    start(config(), "1/pairs")  # text alone needs none


@pytest.mark.parametrize(("reasons", "cure"), [
    ({"no-direction": 1}, "more prompts"), ({"beyond-keep-ratio": 1}, "filter.keep_at_least"),
    ({"no-direction": 1, "below-min-score": 2}, "filter.min_score")])
def test_a_filter_that_keeps_nothing_names_what_helps(config, monkeypatch, tmp_path, reasons, cure):
    from congrad_cli.filter import run as filter_run

    found = SimpleNamespace(to_json=lambda: {"kept": 0, "records": 3, "reasons": reasons})
    index = SimpleNamespace(sources=[SimpleNamespace(path="pairs.jsonl")])
    monkeypatch.setattr(filter_run, "run", lambda *_: found)
    monkeypatch.setattr(run, "read_index", lambda _: index)
    job = Job(config(), Silent())
    with pytest.raises(InputError) as caught:
        run.make_filter(job, 1, job.stage(1, "filter"))
    assert cure in caught.value.hints[-1]


@pytest.mark.parametrize(("changes", "warns"), [
    ([], False), (["train.max_length=64"], True),
    (["train.max_length=64", "sketch.max_length=64"], False),
    (["train.max_length=64", "filter.enabled=false"], False)])
def test_choosing_by_other_tokens_than_are_learned_is_warned_of(config, changes, warns):
    told = Told()
    run.check_start(Job(config(*changes), told))
    assert any("sketch.max_length" in warning for warning in told.warnings) == warns


def test_a_configuration_of_the_users_own_is_not_written_over(config, models, tmp_path):
    (tmp_path / "run").mkdir()
    own = tmp_path / "run" / "config.toml"
    own.write_text("# my notes\n" + CONFIG.replace('folder = "run"', 'folder = "."'))
    with pytest.raises(UsageError, match="holds other things than a run"):
        start(config())
    assert own.read_text().startswith("# my notes")


def test_rules_of_the_filter_are_checked_at_the_start(config, models):
    with pytest.raises(UsageError, match=r"\[filter\]"):
        start(config("filter.rank_by=random", "filter.keep_at_least=1"))


def test_steps_sort_as_they_are_made():
    assert Step(1, 8) < Step(2, 0)
    assert step_of(1, "pairs") < step_of(1, "sketch")
