"""A stage is made once, of one set of inputs, whatever interrupts it."""

import json
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from congrad_cli import __version__
from congrad_cli.errors import InputError, StoreError
from congrad_cli.loop.digests import digest_model
from congrad_cli.loop.items import ItemLog, Items, line_of
from congrad_cli.loop.stage import Inputs, Stage, Worker, digest_file, run_items
from congrad_cli.progress import Silent

KEYS = [f"p{number}" for number in range(7)]
MADE_OF = {"[generate]": "a", "prompts.files": "b"}


class Making:
    """Makes an item of every key, in another order than they come, and notes what it was asked."""

    def __init__(self, chunk=3, stop_after=None):
        self.chunk, self.stop_after = chunk, stop_after
        self.asked, self.opened, self.made = [], 0, 0

    @contextmanager
    def open(self):
        self.opened += 1
        yield Worker(self.chunk, self.work)

    def work(self, keys):
        self.asked.append(list(keys))
        for key in reversed(keys):
            if self.made == self.stop_after:
                raise KeyboardInterrupt
            self.made += 1
            # what a sampling model gives hangs on the chunk it is in
            yield {"key": key, "text": f"ü\u2028\n{key} of {','.join(keys)}"}


def make(folder, making, keys=KEYS, name="results"):
    """The bytes of the stage's results."""
    stage = Stage(Path(folder), "1/candidates")
    assert stage.finished(MADE_OF) is None
    stage.begin(MADE_OF)
    return run_items(stage, Inputs(keys, keys, name), making.open, Silent()).path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[bytes, bytes]:
    """What an uninterrupted stage wrote: its part file and its results."""
    folder = tmp_path_factory.mktemp("whole")
    results = make(folder, Making())
    return (folder / "results.part.jsonl").read_bytes(), results


def test_results_are_in_the_inputs_order_whatever_order_they_came_in(whole):
    part, results = whole
    assert [json.loads(line)["key"] for line in results.splitlines()] == KEYS
    assert [json.loads(line)["key"] for line in part.splitlines()] != KEYS


@given(st.data())
def test_any_prefix_of_the_part_file_is_continued_to_the_same_results(whole, data):
    part, results = whole
    cut = data.draw(st.integers(0, len(part)))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "results.part.jsonl").write_bytes(part[:cut])
        making = Making()
        assert make(folder, making) == results
        assert (Path(folder) / "results.part.jsonl").read_bytes().count(b"\n") == len(KEYS)
        there = part[:cut].count(b"\n")
        assert making.opened == (there < len(KEYS))
        assert len(making.asked) == sum(there < end for end in (3, 6, 7))  # whole chunks are kept


@given(st.binary(min_size=1, max_size=40), st.integers(0, 7))
def test_rubbish_at_the_end_of_the_part_file_is_dropped(whole, rubbish, lines):
    """Power that fails leaves anything in the blocks that were not yet written."""
    part, results = whole
    kept = b"".join(part.splitlines(keepends=True)[:lines])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "results.part.jsonl").write_bytes(kept + b"{" + rubbish)
        assert make(folder, Making()) == results


@pytest.mark.parametrize("made", range(len(KEYS)))
def test_what_was_made_before_an_interrupt_is_kept(whole, tmp_path, made):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Making(stop_after=made))
    log = (tmp_path / "results.part.jsonl").read_bytes()
    assert log == b"".join(whole[0].splitlines(keepends=True)[:made])
    assert not (tmp_path / "results.jsonl").exists()
    assert make(tmp_path, Making()) == whole[1]


@pytest.mark.parametrize("appended", [0, 1, 3, 5, 7])
def test_a_process_that_is_killed_loses_nothing_that_it_had_appended(whole, tmp_path, appended):
    child = os.fork()
    if child == 0:
        making = Making()
        work = making.work

        def fatal(keys):
            for item in work(keys):
                yield item
                if making.made > appended:
                    os.kill(os.getpid(), signal.SIGKILL)

        making.work = fatal
        if appended == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        make(tmp_path, making)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    part = tmp_path / "results.part.jsonl"
    assert (part.read_bytes().count(b"\n") if part.exists() else 0) >= min(appended, 7)
    assert make(tmp_path, Making()) == whole[1]


def test_a_stage_of_other_inputs_is_refused_by_their_names(tmp_path):
    stage = Stage(tmp_path, "1/candidates")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Making(stop_after=1))
    for other, named in (({**MADE_OF, "prompts.files": "c"}, "prompts.files changed"),
                         ({"[generate]": "a"}, "prompts.files changed"),
                         ({**MADE_OF, "new": "x"}, "new changed")):
        with pytest.raises(StoreError, match=named) as caught:
            stage.finished(other)
        assert any("--restart-from 1/candidates" in hint for hint in caught.value.hints)
    stage.finish(MADE_OF, {}, {})
    with pytest.raises(StoreError, match=r"prompts\.files changed"):
        stage.finished({**MADE_OF, "prompts.files": "c"})


def test_a_stage_of_which_there_is_nothing_takes_other_inputs(tmp_path):
    """A model that could not be loaded, or a server that did not start, binds nobody."""
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Making(stop_after=0))
    (tmp_path / "serve.log").write_text("no such model")
    stage = Stage(tmp_path, "1/candidates")
    assert not stage.begun()
    other = {**MADE_OF, "prompts.files": "c"}
    assert stage.finished(other) is None
    stage.begin(other)
    assert json.loads((tmp_path / "inputs.json").read_text()) == other


def test_a_finished_stage_says_what_it_is_made_of_and_came_to(tmp_path):
    stage = Stage(tmp_path, "1/candidates")
    make(tmp_path, Making())
    digest = digest_file(stage.results)
    stage.finish(MADE_OF, {"results.jsonl": digest}, {"candidates": 7})
    done = stage.finished(MADE_OF)
    assert (done.inputs, done.outputs, done.counts) == (
        MADE_OF, {"results.jsonl": digest}, {"candidates": 7})  # fmt: skip
    assert done.versions["congrad"] == __version__
    assert done.versions["torch"]
    assert not list(tmp_path.glob("*.part.jsonl"))


def test_what_a_process_that_died_could_not_remove_goes_when_the_stage_is_seen_again(tmp_path):
    stage = Stage(tmp_path, "1/candidates")
    make(tmp_path, Making())
    stage.finish(MADE_OF, {}, {})
    (tmp_path / "results.part.jsonl").write_text("{}")
    assert stage.finished(MADE_OF)
    assert not list(tmp_path.glob("*.part.jsonl"))


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_results_that_are_no_longer_what_they_were_are_told_of(tmp_path, change):
    stage = Stage(tmp_path, "1/candidates")
    make(tmp_path, Making())
    stage.finish(MADE_OF, {"results.jsonl": digest_file(stage.results)}, {})
    if change == "edit":
        stage.results.write_bytes(stage.results.read_bytes().replace(b"p1", b"p9"))
    else:
        stage.results.unlink()
    with pytest.raises(StoreError, match=r"results\.jsonl is not what 1/cand") as caught:
        stage.finished(MADE_OF)
    assert "--restart-from 1/candidates" in caught.value.hints[0]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"inputs": {}}', "\xff"])
def test_a_damaged_stage_is_told_of_with_its_file(tmp_path, content):
    stage = Stage(tmp_path, "1/candidates")
    (tmp_path / "DONE.json").write_text(content, encoding="latin-1")
    with pytest.raises(StoreError, match=r"DONE\.json"):
        stage.done()


def test_the_state_of_a_stage_is_told_without_touching_it(tmp_path):
    stage = Stage(tmp_path / "new", "1/candidates")
    assert stage.state() == "to do"
    assert not stage.folder.exists()
    stage.begin(MADE_OF)
    assert stage.state() == "to do"
    with pytest.raises(KeyboardInterrupt):
        make(stage.folder, Making(stop_after=4))
    assert stage.state() == "begun, 4 items"
    stage.finish(MADE_OF, {}, {})
    assert stage.state() == "done"


def test_a_stage_whose_run_was_taken_over_writes_nothing_more(tmp_path):
    def lost():
        raise StoreError("another process")

    with pytest.raises(StoreError):
        Stage(tmp_path, "1/candidates", lost).begin(MADE_OF)
    assert not list(tmp_path.iterdir())


def test_two_inputs_of_one_key_are_refused(tmp_path):
    with pytest.raises(InputError, match="two items have the key 'p0'"):
        make(tmp_path, Making(), [*KEYS, "p0"])


@pytest.mark.parametrize("wrong", [
    lambda keys: iter(()), lambda keys: iter([{"key": "another"}])])
def test_work_that_leaves_an_item_out_or_makes_another_is_a_bug_and_not_done(tmp_path, wrong):
    making = Making()
    making.work = wrong
    with pytest.raises(ValueError, match="item"):
        make(tmp_path, making)
    assert not (tmp_path / "results.jsonl").exists()


def test_an_item_that_comes_twice_counts_once(tmp_path, whole):
    making = Making()
    work = making.work
    making.work = lambda keys: (item for item in work(keys) for _ in range(2))
    assert make(tmp_path, making) == whole[1]


def test_a_stage_may_have_several_files_of_items(tmp_path):
    make(tmp_path, Making(), name="pairs")
    make(tmp_path, Making(), KEYS[:2], name="texts")
    assert len(Items(tmp_path / "pairs.jsonl")) == 7
    assert Items(tmp_path / "texts.jsonl").keys == KEYS[:2]


def test_items_are_read_by_place_and_slice(whole, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(whole[1])
    items = Items(tmp_path / "x.jsonl")
    everything = [json.loads(line) for line in whole[1].splitlines()]
    assert list(items) == everything
    assert items[3] == everything[3]
    assert items[-1] == everything[-1]
    assert items[2:5] == everything[2:5]
    with pytest.raises(IndexError):
        items[7]


# digests of models


def write_model(folder: Path, weights: bytes, config: str = "{}") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_model_has_one_digest_wherever_it_lies_and_whatever_its_hidden_files(tmp_path):
    one, two = (write_model(tmp_path / name, b"weights") for name in ("one", "two"))
    (two / "README.md").write_text("what it is")
    (two / ".gitattributes").write_text("lfs")
    assert digest_model(str(one)) == digest_model(str(two))
    (two / "config.json").write_text("{ }")
    assert digest_model(str(one)) != digest_model(str(two))


@pytest.mark.parametrize("size", [1 << 10, 5 << 20])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_training_of_all_weights_changes_the_digest(tmp_path, size, place):
    """Of large files blocks are read: a change of a stretch as large as a tensor is seen."""
    weights = bytearray(size)
    before = digest_model(str(write_model(tmp_path / "before", weights)))
    begin = int(place * size)
    weights[begin : begin + size // 16] = b"x" * len(weights[begin : begin + size // 16])
    assert digest_model(str(write_model(tmp_path / "after", weights))) != before


def test_a_model_on_the_hub_is_its_name_and_revision():
    digests = {digest_model("org/name"), digest_model("org/name", "v2"), digest_model("org/other")}
    assert len(digests) == 3
    assert digest_model("org/name") in digests


def test_a_file_may_be_renamed_and_not_changed(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"weights")
    (tmp_path / "b.gguf").write_bytes(b"weights")
    (tmp_path / "c.gguf").write_bytes(b"Weights")
    one, same, other = (digest_model(str(tmp_path / f"{name}.gguf")) for name in "abc")
    assert one == same != other


@pytest.mark.parametrize("line", [b"[]", b'{"key": 3}', b'{"text": "x"}', b"{", b"\xff"])
def test_a_line_that_is_no_item_is_told_of_with_its_number(tmp_path, line):
    (tmp_path / "x.jsonl").write_bytes(b'{"key": "a"}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"x\.jsonl:2: no JSON object with a key"):
        Items(tmp_path / "x.jsonl")


def test_half_a_surrogate_pair_comes_back(tmp_path):
    """A server may send any escape."""
    item = {"key": "a", "text": "x\ud83d é"}
    with ItemLog(tmp_path / "x.jsonl") as log:
        log.append(item)
    assert list(Items(tmp_path / "x.jsonl")) == [item]
    assert line_of({"key": "é"}) == '{"key": "é"}\n'.encode()
