"""Names, patterns and folders on the command line become files, or an error with its cure."""

import json
import os

import pytest

from congrad_cli.errors import InputError, UsageError
from congrad_cli.records.containers import read_items
from congrad_cli.records.files import find_files, store_name


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Work in an empty folder, so that names are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}\n")


def found(*arguments):
    return [(file.name, file.language) for file in find_files(arguments)]


def test_files_come_in_the_order_of_the_arguments_under_their_own_names(inside):
    touch(inside, "b.jsonl", "d/a.jsonl", "d/c.jsonl")
    assert found("b.jsonl", "./d/c.jsonl", str(inside / "d/a.jsonl")) == [
        ("b.jsonl", None), ("./d/c.jsonl", None), (str(inside / "d/a.jsonl"), None)]  # fmt: skip
    assert found("b.jsonl", "d/*.jsonl") == [
        ("b.jsonl", None), ("d/a.jsonl", None), ("d/c.jsonl", None)]  # fmt: skip


def test_patterns_reach_into_folders_and_leave_other_things_out(inside):
    touch(inside, "d/a.jsonl", "d/e/b.jsonl", "d/e/c.json", "d/x.jsonl/inner.txt")
    assert found("d/**/*.jsonl") == [("d/a.jsonl", None), ("d/e/b.jsonl", None)]
    assert found("d/[!x].jsonl", "d/e/?.json") == [("d/a.jsonl", None), ("d/e/c.json", None)]


def test_a_name_that_looks_like_a_pattern_is_a_name_where_a_file_has_it(inside):
    touch(inside, "a[1].jsonl", "a1.jsonl", "{lang}.jsonl")
    assert found("a[1].jsonl", "{lang}.jsonl") == [("a[1].jsonl", None), ("{lang}.jsonl", None)]


def test_lang_in_a_pattern_gives_what_it_matched(inside):
    touch(inside, "p-de.jsonl", "p-pt_BR.jsonl", "x/sw/train-0.jsonl", "x/sw/train-1.jsonl",
          "y/de/de.jsonl", "y/de/fr.jsonl")
    assert found("p-{lang}.jsonl") == [("p-de.jsonl", "de"), ("p-pt_BR.jsonl", "pt_BR")]
    assert found(f"{inside}/x/{{lang}}/*.jsonl") == [
        (f"{inside}/x/sw/train-0.jsonl", "sw"), (f"{inside}/x/sw/train-1.jsonl", "sw")]
    assert found(".//**/{lang}/train-[01].js?nl") == [
        ("./x/sw/train-0.jsonl", "sw"), ("./x/sw/train-1.jsonl", "sw")]
    assert found("y/{lang}/{lang}.jsonl") == [("y/de/de.jsonl", "de")]


@pytest.mark.parametrize("pattern", ["p-{lang}*.jsonl", "*{lang}.jsonl", "{lang}{lang}"])
def test_lang_must_have_a_border(pattern):
    with pytest.raises(UsageError, match="cannot be told"):
        find_files([pattern])


def test_a_pattern_without_a_file_is_an_error(inside):
    (inside / "d").mkdir()
    for pattern in ("*.jsonl", "{lang}.jsonl", "d*"):
        with pytest.raises(InputError) as caught:
            find_files([pattern])
        assert caught.value.message == f"{pattern}: no file matches."


def test_a_missing_file_and_a_plain_folder_say_what_they_are(inside):
    with pytest.raises(InputError, match=r"^x\.jsonl: cannot be read \(No such file or directory"):
        find_files(["x.jsonl"])
    (inside / "d").mkdir()
    with pytest.raises(InputError, match=r"^d: a folder, not a file\.$") as caught:
        find_files(["d/"])
    assert caught.value.hints == ("pass 'd/*.jsonl'",)


def test_one_file_under_two_names_is_refused(inside):
    touch(inside, "a.jsonl")
    (inside / "b.jsonl").symlink_to("a.jsonl")
    with pytest.raises(UsageError, match=r"^b\.jsonl is named twice \(as a\.jsonl\)\.$"):
        find_files(["*.jsonl"])
    with pytest.raises(UsageError, match=r"^a\.jsonl is named twice\.$"):
        find_files(["a.jsonl", "a.jsonl"])


def test_what_can_be_read_only_once_is_refused_with_the_cure(inside):
    os.mkfifo(inside / "pipe")
    for name in ("pipe", "/dev/null"):
        with pytest.raises(InputError, match="no regular file") as caught:
            find_files([name])
        assert caught.value.hints == ("pipe it in: '-' reads stdin",)


@pytest.fixture(scope="module")
def datasets():
    """The library, quiet; importing it costs seconds."""
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    return library


ROWS = [{"prompt": f"Frage {i}", "chosen": [{"role": "assistant", "content": "ä"}], "n": None}
        for i in range(5)]  # fmt: skip


def test_a_folder_that_datasets_wrote_gives_its_rows_in_order(inside, datasets):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk("saved", num_shards=2)
    files = find_files(["saved/"])
    assert [file.name for file in files] == [
        "saved/data-00000-of-00002.arrow", "saved/data-00001-of-00002.arrow"]  # fmt: skip
    items = [item for file in files for item in read_items(file)]
    assert [json.loads(item.raw) for item in items] == ROWS
    assert [item.line for item in items] == [1, 2, 3, 1, 2]
    assert store_name(["saved/"]) == inside.joinpath("saved.congrad").relative_to(inside)
    assert found("{lang}") == [(file.name, "saved") for file in files]


def test_a_folder_of_one_split_is_read_and_of_several_is_not(inside, datasets):
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data}).save_to_disk("one")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk("two")
    assert found("one") == [("one/train/data-00000-of-00001.arrow", None)]
    with pytest.raises(InputError, match=r"^two: a folder of 2 splits: train, test\.$") as caught:
        find_files(["two"])
    assert caught.value.hints == ("pass two/train",)
    assert found("two/test") == [("two/test/data-00000-of-00001.arrow", None)]


@pytest.mark.parametrize("state", [b"", b"[]", b"{}", b'{"_data_files": [3]}', b"\xff",
                                   b'{"_data_files": [{"name": 1}]}', b'{"_data_files": null}'])
def test_a_damaged_folder_of_datasets_is_an_error(inside, state):
    (inside / "d").mkdir()
    (inside / "d/state.json").write_bytes(state)
    with pytest.raises(InputError, match=r"^d/state\.json: not as datasets writes it"):
        find_files(["d"])


@pytest.mark.parametrize(("argument", "store"), [
    ("x.jsonl", "x.congrad"), ("x.jsonl.gz", "x.congrad"), ("d/x.v2.json.ZST", "d/x.v2.congrad"),
    ("x.parquet", "x.congrad"), ("x", "x.congrad"), ("x.gz", "x.congrad"), ("x.txt", "x.congrad"),
    ("x.arrow", "x.congrad"),
])  # fmt: skip
def test_a_store_lies_beside_its_file_without_the_suffixes(inside, argument, store):
    touch(inside, argument)
    assert str(store_name([argument])) == store


def test_several_files_have_no_store_of_their_own(inside):
    touch(inside, "a.jsonl", "b.jsonl")
    for arguments in (["a.jsonl", "b.jsonl"], ["*.jsonl"], ["{lang}.jsonl"], ["-"], [], ["none"],
                      ["/dev/stdin"]):
        assert store_name(arguments) is None
    assert store_name(["."]) == inside.parent / f"{inside.name}.congrad"
