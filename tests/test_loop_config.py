"""The loop's configuration: what it refuses, how, and that what it writes says the same."""

import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from congrad_cli.errors import UsageError
from congrad_cli.loop.changes import FREE, check_same_run, used_by
from congrad_cli.loop.config import FILES, MODELS, SECTIONS, build, flat, read_config, read_values
from congrad_cli.loop.config_checks import CHOICES, NEEDED, RANGES
from congrad_cli.loop.config_text import _value, run_text, to_toml
from congrad_cli.loop.plan import STAGES, find_step, step_of, steps
from congrad_cli.loop.prompts import locate
from congrad_cli.loop.settings import LoopConfig

MINIMAL = '[run]\nfolder = "out"\n[model]\npath = "org/name"\n[prompts]\nfiles = ["p.jsonl"]\n'
KEYS = {f"{name}.{key}": hint for name, kind in SECTIONS.items()
        for key, hint in get_type_hints(kind).items() if f"{name}.{key}" not in SECTIONS}


@pytest.fixture
def write(tmp_path):
    """Writes a configuration: the minimal one, or other text."""

    def write(text: str = MINIMAL, name: str = "loop.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refused(path, *changes) -> str:
    """What is said of a configuration that cannot be: message and hints."""
    with pytest.raises(UsageError) as caught:
        read_config(path, changes)
    return "\n".join((caught.value.message, *caught.value.hints))


def test_the_smallest_configuration_takes_defaults_for_the_rest(write, tmp_path):
    config = read_config(write())
    assert config.run.folder == str(tmp_path / "out")
    assert config.prompts.files == (str(tmp_path / "p.jsonl"),)
    assert config.model.path == "org/name"
    assert (config.loss.name, config.judge.backend, config.run.rounds) == ("lp-dpo", None, 2)


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_needed_is_asked_for_by_name(write, name):
    key = name.partition(".")[2]
    path = write("\n".join(line for line in MINIMAL.splitlines() if not line.startswith(key)))
    assert f"{name} is missing" in refused(path)


@pytest.mark.parametrize(("text", "said"), [
    ("[generat]\n", ("no section [generat]", "did you mean generate?")),
    ("[generate]\ncandidate = 3\n", ("[generate] has no key candidate", "mean candidates?")),
    ("[backend]\nmax_tokens = 3\n", ("no key max_tokens", "[generate], [judge]")),
    ("generate = 3\n", ("generate is a section", "the number 3")),
    ("[judge]\nbackend = 'x'\n", ("judge.backend is a section", "the text 'x'")),
    ("[judge.backend]\nkid = 'x'\n", ("[judge.backend] has no key kid", "did you mean kind?")),
    ("[generate]\ncandidates = '3'\n", ("generate.candidates: a whole number", "the text '3'")),
    ("[generate]\ncandidates = true\n", ("a whole number is needed", "it is true")),
    ("[generate]\ncandidates = 3.5\n", ("a whole number is needed", "the number 3.5")),
    ("[generate]\ntemperature = false\n", ("generate.temperature: a number", "false")),
    ("[pairs]\ncheck_language = 1\n", ("true or false is needed", "the number 1")),
    ("[prompts]\nlanguages = 'de'\n", ("prompts.languages: a list of texts", "the text 'de'")),
    ("[prompts]\nlanguages = ['de', 3]\n", ("a list of texts is needed", "the list ['de', 3]")),
    ("[generate]\nsystem = 2020-01-01\n", ("generate.system: a text", "a date")),
    ("[generate]\nsystem = {a = 1}\n", ("generate.system: a text", "a table")),
    ("x = [\n", ("no valid TOML",)),
])  # fmt: skip
def test_a_wrong_name_or_type_says_where_and_what_was_seen(write, text, said):
    message = refused(write(text))
    assert all(part in message for part in (*said, "loop.toml")), message


def test_a_file_that_is_none_is_no_traceback(tmp_path):
    assert "No such file" in refused(tmp_path / "nothing.toml")
    assert "Is a directory" in refused(tmp_path)
    (tmp_path / "bad.toml").write_bytes(b"# \xff\n")
    assert "not UTF-8" in refused(tmp_path / "bad.toml")


@pytest.mark.parametrize(("change", "said"), [
    ("generate.candidates=x", "--set generate.candidates: generate.candidates: a whole number"),
    ("generate.candidate=3", "did you mean candidates?"),
    ("generat.candidates=3", "did you mean generate?"),
    ("judge.backend=openai", "[judge.backend] is a section"),
    ("generate.candidates", "section.key=value is needed"),
    ("candidates=3", "section.key=value is needed"),
    ("prompts.languages=de", "a list of texts"),
])
def test_a_change_that_cannot_be_says_which_one(write, change, said):
    assert said in refused(write(), change)


def test_changes_take_toml_and_bare_words(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config(write(), (
        "generate.candidates=8", "generate.temperature=1", "pairs.check_language = false",
        'prompts.languages=["de", "en"]', "judge.kind=log-prob", "run=elsewhere",
        "generate.system=Answer in {language}, = or not", "model.path=2",
        'model.revision="3"', "generate.candidates=9",
    ))  # fmt: skip
    assert (config.generate.candidates, config.generate.temperature) == (9, 1.0)
    assert config.pairs.check_language is False
    assert (config.prompts.languages, config.judge.kind) == (("de", "en"), "log-prob")
    assert config.run.folder == str(tmp_path / "elsewhere")
    assert config.generate.system == "Answer in {language}, = or not"
    assert (config.model.path, config.model.revision) == ("2", "3")


def test_a_change_cannot_bring_a_second_key(write):
    config = read_config(write(), ("generate.system=a\ncandidates = 9",))
    assert config.generate.system == "a\ncandidates = 9"
    assert "a whole number" in refused(write(), "run.rounds=3\nfolder = 'x'")


def test_paths_are_relative_to_the_file_and_those_of_changes_to_the_current_folder(
    write, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = MINIMAL.replace("org/name", "model") + "[judge]\ntemplate = '../t.jinja'\n"
    config = read_config(write(text), ("evaluate.text=['x.jsonl']", "run.folder=/abs"))
    assert config.model.path == str(tmp_path / "model")
    assert config.judge.template == str(tmp_path.parent / "t.jinja")
    assert config.evaluate.text == (str(tmp_path / "here/x.jsonl"),)
    assert config.run.folder == "/abs"


@pytest.mark.parametrize(("path", "local"), [
    ("org/name", False), ("gpt2", False), ("./gpt2", True), ("a/b/c", True), ("m.gguf", True)])
def test_a_model_that_is_no_path_stays_a_name_on_the_hub(write, tmp_path, path, local):
    config = read_config(write(MINIMAL.replace("org/name", path)))
    assert Path(config.model.path).is_absolute() == local


def test_every_number_has_its_range_and_every_checked_key_exists():
    """A key that is forgotten here would take any value."""
    numbers = {name for name, hint in KEYS.items()
               if not name.startswith("judge.backend.")
               and {int, float} & {hint, *get_args(hint)}}
    assert numbers == set(RANGES)
    assert set(CHOICES) | set(FILES) | set(MODELS) | FREE <= set(KEYS)


@pytest.mark.parametrize("name", [name for name in RANGES if name != "filter.min_score"])
def test_a_number_out_of_range_is_refused_by_name(write, name):
    low = RANGES[name].least - (0 if RANGES[name].open else 1)
    value = int(low) if int in (KEYS[name], *get_args(KEYS[name])) else float(low)
    assert f"{name} is {value}" in refused(write(), f"{name}={value}")


@pytest.mark.parametrize("name", CHOICES)
def test_a_word_that_is_no_choice_is_refused_with_the_choices(write, name):
    message = refused(write(), f"{name}=nonsense")
    assert f"{name} is 'nonsense'; it is one of {CHOICES[name][0]}" in message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_is_finite(write, value):
    for name in ("filter.min_score", "generate.temperature", "backend.timeout"):
        assert f"{name} is {value}" in refused(write(), f"{name}={value}")


@pytest.mark.parametrize(("changes", "said"), [
    (["prompts.translate_into=['de']"], "needs prompts.translate_from"),
    (["prompts.translate_from=en"], "needs prompts.translate_into"),
    (["prompts.translate_from=en", "prompts.translate_into=['de', 'en']"], "translated from"),
    (["judge.min_valid=4"], "only judge.samples = 3"),
    (["judge.kind=endpoint"], "needs a server"),
    (["judge.kind=endpoint", "judge.backend.kind=openai", "judge.backend.serve=x"],
     "needs a server"),
    (["judge.kind=endpoint", "judge.backend.kind=openai", "judge.backend.url=http://h/v1"],
     "set judge.backend.model"),
    (["judge.kind=implicit-reward"], "needs judge.reference"),
    (["judge.reference=a/b"], "judge.reference does nothing"),
    (["judge.kind=log-prob", "judge.backend.kind=openai", "judge.backend.url=http://h/v1"],
     "[judge.backend] does nothing"),
    (["backend.kind=openai"], "needs backend.url or backend.serve"),
    (["backend.url=http://h/v1"], "backend.url does nothing"),
    (["backend.kind=openai", "backend.url=h:80/v1"], "an address such as"),
    (["judge.backend.batch=0"], "judge.backend.batch is 0"),
    (["filter.min_score=0", "filter.keep_ratio=0.5"], "two rules"),
    (["filter.per_group=true"], "changes nothing"),
    (["sketch.dim=512", "sketch.row_size=4k"], "set one"),
    (["sketch.dim=512", "sketch.width=7"], "not a multiple"),
    (["sketch.width=7"], "sketch.dim = 32768 is not a multiple"),
    (["train.processes=2"], "needs train.launcher"),
    (["train.accelerate_config=x.yaml"], "does nothing with train.launcher"),
    (["train.batch=6", "train.device_batch=4"], "not a multiple"),
    (["train.reference=initial", "model.revision=main"], "takes no model.revision"),
])  # fmt: skip
def test_values_that_make_no_sense_together_are_refused(write, changes, said):
    assert said in refused(write(), *changes)


def test_a_judge_of_its_own_back_end_is_taken(write):
    config = read_config(write(MINIMAL + (
        '[judge]\nkind = "endpoint"\n[judge.backend]\nkind = "openai"\nurl = "http://h:1/v1"\n'
        'model = "m"\n')))
    assert config.judge.backend.url == "http://h:1/v1"
    assert config.backend.kind == "transformers"


def test_a_password_in_an_address_is_refused_and_not_repeated(write):
    message = refused(write(), "backend.kind=openai", "backend.url=http://me:s3cret@h/v1")
    assert "password" in message
    assert "s3cret" not in message


def test_a_pattern_is_one_behind_a_folder_whose_name_looks_like_one(tmp_path):
    folder = tmp_path / "old [1] data"
    folder.mkdir()
    for name in ("a.de.jsonl", "[b].de.jsonl"):
        (folder / name).touch()
    config = folder / "loop.toml"
    for name, there in (("*.jsonl", ["[b].de.jsonl", "a.de.jsonl"]),
                        ("[b].de.jsonl", ["[b].de.jsonl"]), ("a.{lang}.jsonl", ["a.de.jsonl"])):
        config.write_text(MINIMAL.replace("p.jsonl", name))
        files = read_config(config).prompts.files
        assert [file.path.name for file in locate(files, Path("/"))] == there


@pytest.mark.parametrize("section", ["backend", "judge.backend"])
def test_a_key_in_the_place_of_its_variable_is_refused_and_not_repeated(write, section):
    message = refused(write(), "judge.kind=self", f"{section}.api_key_env=sk-proj-s3cret")
    assert f"{section}.api_key_env is no name of a variable" in message
    assert "s3cret" not in message


def test_an_api_key_never_reaches_the_runs_configuration(write, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    config = read_config(write(), ("backend.kind=openai", "backend.url=http://h/v1",
                                   "backend.api_key_env=MY_KEY"))
    assert b"MY_KEY" in run_text(config)
    assert b"s3cret" not in run_text(config)


def values_of_type(hint):
    """Any value that a key of this type may have."""
    if get_origin(hint) is tuple:
        return st.lists(st.text(), max_size=3).map(tuple)
    kinds = {str: st.text(), int: st.integers(-2**63, 2**63 - 1), bool: st.booleans(),
             float: st.floats(allow_nan=False), type(None): st.none()}
    return st.one_of([kinds[kind] for kind in get_args(hint) or (hint,)])


@st.composite
def configurations(draw):
    values = {}
    for name, hint in KEYS.items():
        section, _, key = name.rpartition(".")
        if name not in (*FILES, *MODELS, "model.chat_template"):
            values.setdefault(section, {})[key] = draw(values_of_type(hint))
    if draw(st.booleans()):
        del values["judge.backend"]
    return build(values)


@given(configurations())
def test_what_is_written_is_toml_that_says_the_same(config):
    content = tomllib.loads(to_toml(config))
    found = {}
    for name, value in flat(config).items():
        section, _, key = name.rpartition(".")
        place = content
        for part in section.split("."):
            place = place.get(part, {})
        found[name] = tuple(place[key]) if isinstance(value, tuple) else place.get(key)
    assert found == flat(config)
    assert ("backend" in content["judge"]) == (config.judge.backend is not None)


def test_the_configuration_in_a_run_continues_it_wherever_it_is_moved(write, tmp_path):
    config = read_config(write(MINIMAL.replace("org/name", "./model")))
    moved = tmp_path / "elsewhere" / "moved"
    moved.mkdir(parents=True)
    (moved / "config.toml").write_bytes(run_text(config))
    again = read_config(moved / "config.toml")
    assert again == replace(config, run=replace(config.run, folder=str(moved)))


# what may change in a run


@pytest.fixture
def begun(write, tmp_path):
    """Asks whether a run that was begun takes a configuration with changes."""

    def check(changes, *there, first=()) -> None:
        config = read_config(write(), ("evaluate.text=['t']", *first))
        run = Path(config.run.folder)
        run.mkdir(exist_ok=True)
        (run / "config.toml").write_bytes(run_text(config))
        steps_there = [step_of(*step) for step in there]
        check_same_run(run, read_config(write(), ("evaluate.text=['t']", *first, *changes)),
                       steps_there)

    return check


def test_a_value_that_something_was_made_with_cannot_change(begun):
    with pytest.raises(UsageError) as caught:
        begun(["train.learning_rate=1e-3", "generate.candidates=8"], (1, "candidates"))
    error = caught.value
    assert "generate.candidates was 4 and is 8" in error.message
    assert "learning_rate" not in error.message  # nothing was trained yet
    assert "--restart-from 1/candidates" in error.hints[-1]


def test_values_that_nothing_was_made_with_may_change(begun):
    begun(["train.learning_rate=1e-3", "filter.keep_ratio=0.5", "run.rounds=5"], (1, "pairs"))
    begun(["generate.candidates=8"], (1, "prompts"))
    begun(["loss.beta=0.5"], (1, "pairs"))


def test_an_implicit_reward_is_made_with_beta(begun):
    first = ("judge.kind=implicit-reward", "judge.reference=a/b")
    with pytest.raises(UsageError, match=r"loss\.beta was 0\.1 and is 0\.5"):
        begun(["loss.beta=0.5"], (1, "judgements"), first=first)


def test_where_weighed_texts_are_cut_cannot_change(begun):
    change = ["train.max_length=64"]
    begun(change, (1, "judgements"))
    for first, step in ((("judge.kind=log-prob",), (1, "judgements")), ((), (0, "evaluation"))):
        with pytest.raises(UsageError, match=r"train\.max_length was 1024 and is 64"):
            begun(change, step, first=first)


def test_where_and_how_fast_may_always_change(begun):
    begun(["model.device=cuda", "model.threads=2", "backend.concurrency=2", "backend.timeout=3",
           "train.launcher=torchrun", "train.processes=2"], *[(1, stage) for stage in STAGES])


def test_rounds_may_grow_and_not_be_fewer_than_there_are(begun):
    begun(["run.rounds=9"], (2, "train"))
    with pytest.raises(UsageError, match="round 2 has begun"):
        begun(["run.rounds=1"], (2, "prompts"))


def test_every_key_is_used_by_a_stage_or_free_or_a_path():
    for name in KEYS:
        used = used_by(name)
        free = name in FREE or name in (*FILES, *MODELS, "model.chat_template")
        assert bool(used) != free, name
        assert set(used) <= set(STAGES)


# steps


def test_steps_are_those_that_the_configuration_asks_for(write):
    names = [step.name for step in steps(read_config(write()))]
    assert names == [f"{number}/{stage}" for number in (1, 2) for stage in STAGES[:-1]]
    names = [step.name for step in steps(read_config(write(), (
        "filter.enabled=false", "evaluate.text=['t']", "run.rounds=1")))]
    assert names == ["0/evaluation", "1/prompts", "1/candidates", "1/judgements", "1/pairs",
                     "1/train", "1/evaluation"]


@pytest.mark.parametrize(("text", "said"), [
    ("1", "ROUND/STAGE is needed"), ("pairs", "ROUND/STAGE is needed"),
    ("1/judge", "did you mean judgements?"), ("3/pairs", "no such step"),
    ("1/evaluation", "no such step"), ("0/prompts", "no such step"),
])
def test_a_step_that_is_none_is_refused(write, text, said):
    with pytest.raises(UsageError) as caught:
        find_step(text, "--until", read_config(write()))
    assert said in "\n".join((caught.value.message, *caught.value.hints))


def test_a_step_may_be_named_as_its_folder(write):
    config = read_config(write())
    assert find_step("2/04-pairs", "--until", config) == find_step("2/pairs", "--until", config)


def test_reading_a_file_twice_gives_its_values(write):
    path = write()
    assert read_values(path) == read_values(path)
    assert set(SECTIONS) == {*(field.name for field in fields(read_config(path))), "judge.backend"}


# what docs/loop.md says


def documented() -> dict[str, tuple[str, str]]:
    """Default and meaning of each key in the tables of docs/loop.md."""
    text = (Path(__file__).parent.parent / "docs" / "loop.md").read_text()
    found, section = {}, ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"### `\[([a-z.]+)\]`", line):
            section = heading[1]
        elif section and (row := re.fullmatch(r"\| `([a-z_0-9]+)` \| (.*?) \| ?(.*) ?\|", line)):
            found[f"{section}.{row[1]}"] = (row[2], row[3])
    return found


def test_the_documentation_lists_every_key_with_its_default():
    expected = {
        name: "not set" if value is None else f"`{_value(value)}`"
        for name, value in flat(LoopConfig()).items()
    }
    assert {name: default for name, (default, _) in documented().items()} == expected


def test_the_documentation_names_every_choice():
    for name in ("backend.kind", "judge.kind", "loss.name", "train.launcher", "filter.rank_by",
                 "train.schedule", "model.dtype"):
        meaning = documented()[name][1]
        assert all(choice in meaning for choice in CHOICES[name]), name
