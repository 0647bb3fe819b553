"""``congrad loop`` as users run it: two real rounds of the bundled model, and what is refused."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from test_cli_pipe import bad, good

SAMPLE = "sample_data/loop.toml"


@pytest.fixture(scope="module")
def loop(forked_congrad, sample_data):
    """Runs ``congrad loop`` on the sample configuration into a folder."""

    def loop(folder: Path, *args):
        return forked_congrad("loop", sample_data / "loop.toml", "--set", f"run={folder}", *args)

    return loop


@pytest.fixture(scope="module")
def finished(loop, tmp_path_factory):
    """Two rounds: what the command gave, and their folder. Read only: tests that write copy it."""
    folder = tmp_path_factory.mktemp("loop") / "run"
    return good(loop(folder)), folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the run, in another place."""
    return Path(shutil.copytree(finished[1], tmp_path / "moved"))


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def weights(model: Path) -> dict:
    return load_file(model / "model.safetensors")


def test_two_rounds_end_with_the_second_model(finished):
    done, folder = finished
    model = folder / "round-2" / "08-train" / "model"
    assert done.stdout.decode() == f"{model}\n"
    first = folder / "round-1" / "08-train" / "model"
    assert (model / "chat_template.jinja").is_file()
    one, two = weights(first), weights(model)
    assert one.keys() == two.keys()
    assert any((one[name] != two[name]).any() for name in one)


def test_every_round_is_told_of_by_language(finished):
    text = finished[0].stderr.decode()
    assert "Traceback" not in text
    for title in ("the initial model, on held-out data", "round 1", "round 2, on held-out data"):
        assert title in text
    lines = [line.split() for line in text.splitlines()]
    table = lines[lines.index(["round", "2"]) + 2 :][:3]
    assert [line[0] for line in table] == ["de", "en", "es"]
    kept = [int(line[3]) for line in table]
    assert sum(kept) == len(json_lines(finished[1] / "round-2/07-filter/kept.jsonl"))


def test_metrics_have_a_line_a_round(finished):
    lines = json_lines(finished[1] / "metrics.jsonl")
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert [line["model"] for line in lines] == [
        None, "round-1/08-train/model", "round-2/08-train/model"]
    assert {row["measure"] for row in lines[1]["evaluation"]} >= {
        "preference-accuracy", "preference-margin"}
    for number in (1, 2):
        stages = lines[number]["stages"]
        assert stages["prompts"]["prompts"] == 12
        assert stages["candidates"]["candidates"] == 36
        assert stages["filter"]["kept"] == len(
            json_lines(finished[1] / f"round-{number}/07-filter/kept.jsonl"))


def test_the_second_round_learns_from_what_the_first_model_wrote(finished, forked_congrad):
    """Its answers weigh more under the first round's model than under the initial one."""
    folder = finished[1]
    candidates = folder / "round-2/02-candidates/results.jsonl"
    judged = {}
    for name, model in (("own", folder / "round-1/08-train/model"), ("other", None)):
        output = folder.parent / f"{name}.jsonl"
        more = [] if model is None else ["--model", model]
        good(forked_congrad("loop", "judge", candidates, "-o", output, "--config",
                            folder / "config.toml", *more))
        judged[name] = output.read_bytes()
    assert judged["own"] == (folder / "round-2/03-judgements/results.jsonl").read_bytes()
    assert judged["own"] != judged["other"]


def test_kept_lines_are_those_of_the_three_commands(finished, forked_congrad, tmp_path, tiny_model):
    folder, store = finished[1], tmp_path / "store"
    config = tomllib.loads((folder / "config.toml").read_text())
    sketch, rule, loss = config["sketch"], config["filter"], config["loss"]
    good(forked_congrad(
        "sketch", folder / "round-1/04-pairs/pairs.jsonl", "--model", tiny_model, "-s", store,
        "--dim", sketch["dim"], "--width", sketch["width"], "--max-length", sketch["max_length"],
        "--device", "cpu", "--threads", 1))
    good(forked_congrad("consensus", store, "--loss", loss["name"], "--beta", loss["beta"],
                        "--length-penalty", loss["length_penalty"]))
    kept = good(forked_congrad("filter", store, "--keep-ratio", rule["keep_ratio"], "--per-group"))
    assert kept.stdout == (folder / "round-1/07-filter/kept.jsonl").read_bytes()
    pairs = (folder / "round-1/04-pairs/pairs.jsonl").read_bytes().splitlines(keepends=True)
    dropped = (folder / "round-1/07-filter/dropped.jsonl").read_bytes().splitlines(keepends=True)
    assert sorted(kept.stdout.splitlines(keepends=True) + dropped) == sorted(pairs)


def test_pairs_alone_are_those_of_the_round(finished, forked_congrad, tmp_path):
    folder, output = finished[1], tmp_path / "pairs.jsonl"
    round_1 = folder / "round-1"
    args = (round_1 / "02-candidates/results.jsonl", round_1 / "03-judgements/results.jsonl",
            "-o", output, "--config", folder / "config.toml")  # fmt: skip
    done = good(forked_congrad("loop", "pairs", *args))
    assert done.stdout.decode() == f"{output}\n"
    assert output.read_bytes() == (round_1 / "04-pairs/pairs.jsonl").read_bytes()
    bad(forked_congrad("loop", "pairs", *args), 2, "is there already")


def train_alone(forked_congrad, finished, output: Path, tiny_model, *program, **how) -> Path:
    """The model that ``loop train`` makes of the first round's kept pairs."""
    kept = finished[1] / "round-1/07-filter/kept.jsonl"
    done = good(forked_congrad(
        *program, "loop", "train", kept, "-o", output, "--model", tiny_model, "--config",
        finished[1] / "config.toml", **how))
    assert done.stdout.decode() == f"{output}/model\n"
    return output / "model"


def test_training_alone_takes_pairs_and_gives_a_model(
    forked_congrad, finished, tiny_model, tmp_path
):
    program = Path(__file__).parent / "killed_loop.py"  # its training takes no time
    model = train_alone(forked_congrad, finished, tmp_path / "training", tiny_model, "never",
                        program=program)
    assert (model / "config.json").is_file()


@pytest.mark.slow
def test_training_alone_gives_the_weights_of_the_round(
    forked_congrad, finished, tiny_model, tmp_path
):
    made = weights(train_alone(forked_congrad, finished, tmp_path / "training", tiny_model))
    theirs = weights(finished[1] / "round-1/08-train/model")
    assert made.keys() == theirs.keys()
    assert all((made[name] == theirs[name]).all() for name in made)


def test_a_run_continues_from_its_own_configuration_wherever_it_is(copy, forked_congrad):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    done = good(forked_congrad("loop", copy / "config.toml"))
    assert done.stdout.decode() == f"{copy}/round-2/08-train/model\n"
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_moved_run_filters_anew_to_the_same_lines(copy, forked_congrad):
    kept = (copy / "round-2/07-filter/kept.jsonl").read_bytes()
    config = copy / "config.toml"
    good(forked_congrad("loop", config, "--restart-from", "2/filter", "--until", "2/filter"))
    assert (copy / "round-2/07-filter/kept.jsonl").read_bytes() == kept
    assert not (copy / "round-2/08-train").exists()


def test_a_filter_that_keeps_nothing_says_why(copy, forked_congrad):
    config = copy / "config.toml"
    text = config.read_text().replace("per_group = true\n", "")
    config.write_text(text.replace("keep_ratio = 0.5", "min_score = 2.0"))
    bad(forked_congrad("loop", config, "--restart-from", "1/filter"), 3,
        "1/filter: none of", "pairs was kept: below-min-score", "lower filter.min_score")


def test_a_run_of_another_configuration_is_refused(loop, finished):
    bad(loop(finished[1], "--set", "generate.temperature=0.5"), 2,
        "generate.temperature was 1.0 and is 0.5", "--restart-from 1/candidates")


def test_a_dry_run_says_what_is_there(loop, finished, tmp_path):
    text = good(loop(finished[1], "--dry-run")).stderr.decode()
    assert text.count(" done") == 19
    new = good(loop(tmp_path / "new", "--dry-run", "--set", "prompts.per_language=2"))
    assert new.stdout == b""
    assert new.stderr.decode().count(" to do") == 19
    assert not (tmp_path / "new").exists()


def test_candidates_are_written_and_judged_from_files_to_files(
    forked_congrad, tiny_model, tmp_path
):
    prompts, found = tmp_path / "prompts.jsonl", tmp_path / "candidates.jsonl"
    prompts.write_text('{"prompt": "Der Himmel", "language": "de", "id": "a"}\n'
                       '{"prompt": "The sky", "language": "en", "id": "b"}\n')
    sets = ("--set", "generate.candidates=2", "--set", "generate.max_tokens=8",
            "--set", "generate.temperature=1", "--set", "model.device=cpu")  # fmt: skip
    args = ("loop", "generate", prompts, "-o", found, "--model", tiny_model, *sets)
    done = good(forked_congrad(*args))
    assert done.stdout.decode() == f"{found}\n"
    assert {line["key"]: len(line["candidates"]) for line in json_lines(found)} == {"a": 2, "b": 2}
    assert sorted(tmp_path.iterdir()) == sorted([prompts, found])
    bad(forked_congrad(*args), 2, "is there already")
    first = found.read_bytes()
    found.unlink()
    good(forked_congrad(*args))
    assert found.read_bytes() == first


def test_a_stage_alone_needs_its_model(forked_congrad, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "language": "en"}\n')
    bad(forked_congrad("loop", "generate", tmp_path / "prompts.jsonl", "-o", tmp_path / "x"), 2,
        "--model is missing")


@pytest.mark.parametrize("first", [(), ("run",)])
def test_the_word_run_may_be_left_out(forked_congrad, tmp_path, first):
    bad(forked_congrad("loop", *first, tmp_path / "no.toml"), 2, "no.toml: No such file")
    bad(forked_congrad("loop", *first, "--dry-run", tmp_path / "no.toml"), 2, "No such file")


def test_the_sample_configuration_is_shipped_with_the_package(sample_data):
    project = tomllib.loads((sample_data.parent / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert shipped[SAMPLE] == f"congrad_cli/{SAMPLE}"
