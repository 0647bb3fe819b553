"""Single stages from files to a file: what is refused."""

import json
from pathlib import Path

import pytest

from congrad_cli.errors import InputError, StoreError
from congrad_cli.locks import RankLock
from congrad_cli.loop import alone
from congrad_cli.loop.alone import run_judge, run_pairs, run_train
from congrad_cli.loop.settings import LoopConfig, ModelSection, PairsSection
from congrad_cli.progress import Silent

CONFIG = LoopConfig(model=ModelSection(path="org/model"), pairs=PairsSection(check_language=False))


def write(path: Path, *items) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def candidates(tmp_path) -> Path:
    texts = [{"text": text, "finished": True, "tokens": 1} for text in "xy"]
    return write(tmp_path / "candidates.jsonl", {
        "key": "a", "language": "en", "messages": [{"role": "user", "content": "?"}],
        "candidates": texts})


@pytest.fixture
def judgements(tmp_path) -> Path:
    return write(tmp_path / "judgements.jsonl", {"key": "a", "scores": [1.0, 2.0]})


def test_files_of_other_stages_are_refused_by_what_they_lack(candidates, judgements, tmp_path):
    output = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"judgements\.jsonl: the item 'a' has no usable 'lang"):
        run_judge(judgements, output, CONFIG, Silent())
    with pytest.raises(InputError, match=r"judgements\.jsonl: the item 'a' has no usable 'lang"):
        run_pairs(judgements, candidates, output, CONFIG, Silent())
    with pytest.raises(InputError, match="has no usable 'scores'") as error:
        run_pairs(candidates, candidates, output, CONFIG, Silent())
    assert "congrad loop judge" in error.value.hints[0]
    assert sorted(tmp_path.iterdir()) == [candidates, judgements]
    run_pairs(candidates, judgements, output, CONFIG, Silent())
    assert json.loads(output.read_text())["chosen"][0]["content"] == "y"


def test_two_trainings_in_one_folder_are_kept_apart(tmp_path, monkeypatch):
    def second(spec, progress):
        with pytest.raises(StoreError):
            run_train(tmp_path / "pairs", None, tmp_path / "out", CONFIG, Silent())
        return spec.output / "model"

    monkeypatch.setattr(alone, "train", second)
    with RankLock(tmp_path, 0, 1), pytest.raises(StoreError, match="rank 0"):
        run_train(tmp_path / "pairs", None, tmp_path, CONFIG, Silent())
    made = run_train(tmp_path / "pairs", None, tmp_path / "out", CONFIG, Silent())
    assert made == tmp_path / "out" / "model"
    assert not (tmp_path / "out").exists()  # nothing was made there
