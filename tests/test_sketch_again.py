"""The same store with data that has changed: only what is new is sketched."""

import json
import shutil

import numpy as np
import pytest
from conftest import SMALL

from congrad_cli.progress import Silent
from congrad_cli.store import GradientStore, require_complete, shard_files


@pytest.fixture
def again(forked_congrad, small_store, tiny_model, tmp_path):
    """Sketches other lines into a copy of the store; gives the store and what was said."""
    path = tmp_path / "s.congrad"
    shutil.copytree(small_store, path)
    counter = iter(range(100))

    def run(lines, *options):
        data = tmp_path / f"data-{next(counter)}.jsonl"
        data.write_bytes(b"".join(lines))
        done = forked_congrad("sketch", data, "-m", tiny_model, "-s", path, *SMALL, *options)
        assert done.returncode == 0, done.stderr
        return GradientStore.open(path), done.stderr

    return run


def rows_by_digest(store):
    (block,) = store.blocks()
    return dict(zip(map(bytes, store.column("digest")), block.direction, strict=True))


def test_data_in_another_order_and_place_costs_nothing(again, small_store, small_lines):
    before = GradientStore.open(small_store)
    store, said = again(small_lines[::-1])
    assert b"loading" not in said
    assert len(shard_files(store.path)) == 1
    np.testing.assert_array_equal(store.column("digest"), before.column("digest")[::-1])
    np.testing.assert_array_equal(store.column("norm"), before.column("norm")[::-1])


def test_vanished_records_are_left_alone(again, small_lines):
    store, said = again(small_lines[5:])
    assert b"loading" not in said
    assert len(store) == store.rows == len(small_lines) - 5
    store, said = again(small_lines)  # they are still there when they come back
    assert b"loading" not in said
    assert len(store) == len(small_lines)


def test_new_records_are_sketched_and_the_others_kept(again, small_store, small_lines):
    fresh = [json.dumps(json.loads(line) | {"id": f"new-{row}"}).encode() + b"\n"
             for row, line in enumerate(small_lines[:3])]
    store, said = again([fresh[0], *small_lines, *fresh[1:]])
    assert b"24 of 27 pairs are in the store already" in said
    require_complete(store, False, Silent())
    assert len(shard_files(store.path)) == 2
    old, now = rows_by_digest(GradientStore.open(small_store)), rows_by_digest(store)
    assert len(now) == 27
    for digest, row in old.items():
        np.testing.assert_array_equal(now[digest], row)


def test_other_groups_cost_nothing(again, small_lines):
    store, said = again(small_lines, "--group-by", "language,language")
    assert b"loading" not in said
    assert all("/" in group for group in store.groups)
    store, said = again(small_lines, "--language", "xx")
    assert b"loading" not in said
    assert store.groups == ["xx"]


def test_a_record_that_stands_twice_is_sketched_once(again, small_lines, forked_congrad):
    store, said = again([*small_lines, small_lines[0]])
    assert b"loading" not in said
    assert len(store) == store.rows == len(small_lines) + 1
    fresh = json.dumps(json.loads(small_lines[0]) | {"id": "twice"}).encode() + b"\n"
    store, _ = again([*small_lines, fresh, fresh])
    assert len(store) == store.rows == len(small_lines) + 2
    assert [len(np.unique(store.column("digest"), axis=0))] == [len(small_lines) + 1]
    done = forked_congrad("consensus", store.path)
    assert done.returncode == 0, done.stderr
    kept = forked_congrad("filter", store.path, "--min-score", "-2")
    assert kept.stdout.splitlines()[-2:] == [fresh.strip()] * 2


def test_what_is_refused_for_its_damage_changes_nothing(
    forked_congrad, small_lines, tiny_model, tmp_path
):
    """A store must not point at data that no run has accepted."""
    talk = {"language": "en", "prompt": [{"role": "user", "content": "Hi"}],
            "chosen": [{"role": "assistant", "content": "Hello!"}],
            "rejected": [{"role": "assistant", "content": "No."}]}
    bad = talk | {"prompt": [{"role": "user", "content": "no"}]}
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{% if m.content == 'no' %}"
                        "{{ raise_exception('never') }}{% endif %}{{ m.content }}{% endfor %}")
    data, store = tmp_path / "d.jsonl", tmp_path / "d.congrad"
    data.write_text("".join(json.dumps(fields) + "\n" for fields in (talk, bad)))
    command = ("sketch", data, "-m", tiny_model, *SMALL, "--chat-template", template,
               "--bad-records", "skip")
    assert forked_congrad(*command).returncode == 0
    index = (store / "index.safetensors").read_bytes()
    data.write_text("".join(json.dumps(fields) + "\n" for fields in (bad, talk)))
    done = forked_congrad(*command, "--max-bad", "0")
    assert done.returncode == 3, done.stderr
    assert (store / "index.safetensors").read_bytes() == index
