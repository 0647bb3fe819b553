"""The three commands as users run them: what goes to stdout, what is kept, what fails and how."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from safetensors.numpy import load_file
from synthetic import random_rows

from congrad_cli.codec import Codec
from congrad_cli.store import GradientStore
from congrad_cli.store_index import find_digests, read_index

CONGRAD = f"{shlex.quote(sys.executable)} -m congrad_cli"
ROOT = Path(__file__).resolve().parent.parent


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Runs bash in ``folder``; ``congrad`` is the package under test."""
    text = f'set -o pipefail\ncongrad() {{ {CONGRAD} "$@"; }}\n{script}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, check=False
    )


def good(done: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[bytes]:
    assert done.returncode == 0, done.stderr.decode()
    return done


def bad(done, code: int, *words: str) -> str:
    """The one message of a command that failed as it should; nothing came out of it."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert text.count("congrad: error: ") == 1
    assert "Traceback" not in text
    for word in words:
        assert word in text
    assert done.stdout == b""
    return text[text.index("congrad: error: ") :]


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def shards(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "shards").iterdir()}


def is_ordered_part(part: list[bytes], whole: list[bytes]) -> bool:
    """Whether ``part`` is ``whole`` with lines left out."""
    rest = iter(whole)
    return all(line in rest for line in part)


@pytest.fixture
def synthetic(make_store, forked_congrad):
    """A store of 20 pairs of 4 languages with a consensus, made without a model."""
    store = make_store(random_rows(20, 8), groups=["de", "en", "sw", "th"] * 5)
    good(forked_congrad("consensus", store, "-q"))
    return store


# --- the pipe --------------------------------------------------------------------------------


def test_the_pipe_keeps_some_lines_as_they_were(
    small_pairs, small_lines, small_store, tiny_model, tmp_path, forked_congrad
):
    """The README's one line in a real shell, and the same steps one by one."""
    script = (
        f"congrad sketch {small_pairs} --model {tiny_model} --store S {' '.join(SMALL)}"
        " | congrad consensus | congrad filter --keep-ratio 0.5 > kept.jsonl"
    )
    done = good(shell(script, tmp_path))
    kept = (tmp_path / "kept.jsonl").read_bytes().splitlines(keepends=True)
    assert len(kept) == 12
    assert is_ordered_part(kept, small_lines)
    assert b"Traceback" not in done.stderr

    assert shards(tmp_path / "S") == shards(small_store)  # made by a fork: forks test the same
    alone = tmp_path / "alone"
    shutil.copytree(small_store, alone)
    assert good(forked_congrad("consensus", alone)).stdout == f"{alone}\n".encode()
    assert good(forked_congrad("filter", alone, "--keep-ratio", "0.5")).stdout == b"".join(kept)


def test_a_failing_step_leaves_the_result_empty(make_store, tmp_path):
    """Never a part of the data that looks like all of it; and every step says that it failed."""
    half = make_store(random_rows(3, 4), shards=[[0]])
    for steps, codes in (
        ("congrad sketch d.jsonl -m m --dtype int8 | congrad consensus | congrad filter", "2 4 4"),
        (f"echo {half} | congrad consensus | congrad filter", "0 4 4"),
        (f"echo {half} | cat | congrad filter", "0 0 4"),
    ):
        script = f'{steps} > kept.jsonl; echo "$? ${{PIPESTATUS[*]}}"'
        done = shell(script, tmp_path)
        assert done.stdout.decode() == f"4 {codes}\n"  # of the whole pipe, and of each step
        assert (tmp_path / "kept.jsonl").read_bytes() == b""
        failed = codes.count("4") + codes.count("2")
        assert done.stderr.count(b"congrad: error: ") == failed
        assert b"Traceback" not in done.stderr


def test_a_bad_model_stops_every_step_of_the_pipe(forked_congrad, small_pairs, tmp_path):
    (tmp_path / "model").mkdir()
    first = forked_congrad("sketch", small_pairs, "-m", "./model", "-s", "S", cwd=tmp_path)
    bad(first, 8, "./model: a folder without config.json.")
    assert not (tmp_path / "S").exists()
    second = forked_congrad("consensus", stdin=first.stdout)
    bad(second, 4, "no store path arrived on stdin")
    bad(forked_congrad("filter", stdin=second.stdout), 4, "no store path arrived on stdin")


def test_bad_data_stops_every_step_of_the_pipe(forked_congrad, tiny_model, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_bytes(b"{}\n")
    first = forked_congrad("sketch", data, "--model", tiny_model, cwd=tmp_path)
    bad(first, 3, "d.jsonl:1: ")
    second = forked_congrad("consensus", stdin=first.stdout)
    bad(second, 4, "no store path arrived on stdin")
    bad(forked_congrad("filter", stdin=second.stdout), 4, "no store path arrived on stdin")
    assert not (tmp_path / "d.congrad").exists()


def test_sketch_prints_the_stores_path_and_does_finished_work_once(
    forked_congrad, small_pairs, store_copy, tiny_model
):
    """The path is absolute, so that the next step may run anywhere."""
    before = {path: path.stat().st_mtime_ns for path in store_copy.rglob("*") if path.is_file()}
    again = ("sketch", small_pairs, "-m", tiny_model, "-s", store_copy.name, *SMALL)
    done = good(forked_congrad(*again, cwd=store_copy.parent))
    assert done.stdout == f"{store_copy}\n".encode()
    assert b"loading" not in done.stderr  # the weights were not needed
    after = {path: path.stat().st_mtime_ns for path in store_copy.rglob("*") if path.is_file()}
    assert after == before


def test_quiet_commands_say_nothing(forked_congrad, small_pairs, store_copy, tiny_model):
    """Neither do the libraries."""
    commands = (
        ("sketch", small_pairs, "-m", tiny_model, "-s", store_copy, *SMALL),
        ("consensus", store_copy),
        ("filter", store_copy, "--min-score", "-2"),
    )
    for command in commands:
        assert good(forked_congrad(*command, "--quiet")).stderr == b""


def test_an_empty_language_is_counted_without_noise(make_store, forked_congrad):
    """Python's own warnings are noise to a user."""
    store = make_store(random_rows(4, 6), groups=["de", "de", "sw", "sw"], skipped=[2, 3])
    for command in (["consensus", store], ["filter", store]):
        done = good(forked_congrad(*command))
        assert b"Warning" not in done.stderr
    assert b"no-room 2" in done.stderr


@pytest.mark.parametrize("name", [b" with space ", "ünï".encode(), b"\xff\xfe"])
def test_any_store_path_travels_through_the_pipe(make_store, forked_congrad, tmp_path, name):
    """A path is bytes; it need not be text in anybody's encoding."""
    store = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    shutil.copytree(make_store(random_rows(3, 4)), store)
    path = os.fsencode(store) + b"\n"
    done = good(forked_congrad("consensus", stdin=path))
    assert done.stdout == path
    kept = good(forked_congrad("filter", "--min-score", "-2", stdin=done.stdout)).stdout
    assert kept.count(b"\n") == 3


def test_stray_output_cannot_reach_the_data():
    """Libraries print, compiled code writes to descriptor 1, and child processes inherit it."""
    script = """
import os
from congrad_cli.console import reserve_stdout
out = reserve_stdout()
print("stray", flush=True)
os.write(1, b"stray")
os.system("echo stray")
out.write(b"data")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"data"
    assert done.stderr.count(b"stray") == 3


# --- what sketch writes ----------------------------------------------------------------------


def test_the_shards_hold_the_contracts_tensors(small_store, small_lines):
    """Names, types and shapes are a public contract: other tools read these files."""
    (file,) = (small_store / "shards").iterdir()
    assert file.name == "r000-00000.safetensors"
    found = load_file(file)
    n, dim = len(small_lines), 512
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
        "direction": ("float16", (n, dim)),
        "norm": ("float32", (n,)),
        "logp": ("float32", (n, 2)),
        "tokens": ("int32", (n, 3)),
        "digest": ("uint8", (n, 16)),
    }
    lengths = np.linalg.norm(found["direction"].astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-3)  # float16
    assert (found["norm"] > 0).all()
    assert (found["logp"] < 0).all()
    assert (found["tokens"] > 0).all()
    index = load_file(small_store / "index.safetensors")
    assert {name: (array.dtype.name, array.shape) for name, array in index.items()} == {
        "group": ("int32", (n,)), "digest": ("uint8", (n, 16))}
    assert sorted(map(bytes, index["digest"])) == sorted(map(bytes, found["digest"]))
    languages = [json.loads(line)["language"] for line in small_lines]
    groups = read_index(small_store).groups
    assert groups == sorted(set(languages))
    assert [groups[label] for label in index["group"]] == languages


@pytest.mark.parametrize("store_dtype", ["int8", "int4", "1bit"])
def test_rows_can_be_stored_in_fewer_bytes(
    forked_congrad, small_pairs, small_store, tiny_model, tmp_path, store_dtype
):
    """The same sketch, coded; and the two are different stores."""
    store = tmp_path / "coded"
    command = ("sketch", small_pairs, "--model", tiny_model, "--store", store, *SMALL)
    good(forked_congrad(*command, "--store-dtype", store_dtype))
    found, plain = (load_file(next((path / "shards").iterdir())) for path in (store, small_store))
    np.testing.assert_array_equal(found["norm"], plain["norm"])
    codec = Codec(store_dtype, 512, 8)
    expected = codec.encode(plain["direction"].astype(np.float32))
    assert found["direction"].dtype == expected["direction"].dtype
    same = found["direction"] == expected["direction"]
    assert same.mean() > 0.9  # the plain row was rounded to float16 before
    np.testing.assert_allclose(found["scale"], expected["scale"], rtol=0.02)
    bad(forked_congrad(*command), 4, f"store: store_dtype {store_dtype}")
    good(forked_congrad("consensus", store))
    good(forked_congrad("filter", store))


def test_an_unknown_store_dtype_is_a_usage_error(forked_congrad, small_pairs, tiny_model, tmp_path):
    done = forked_congrad("sketch", small_pairs, "--model", tiny_model, "--store", tmp_path / "s",
                          "--store-dtype", "int2")
    bad(done, 2, "--store-dtype int2", "float16, int8, int4, 1bit")
    assert not (tmp_path / "s").exists()


def test_optional_tensors_hold_reference_and_weighted_log_probabilities(
    forked_congrad, small_lines, tiny_model, tmp_path
):
    """The data brings the reference's sums; averaging divides both sides by their lengths."""
    data, store = tmp_path / "d.jsonl", tmp_path / "d.congrad"
    given = np.array([[-10.0 - row, -20.0] for row in range(4)], np.float32)
    data.write_text("".join(
        json.dumps(json.loads(line) | {
            "ref_chosen_logps": float(ref[0]), "ref_rejected_logps": float(ref[1])
        }) + "\n"
        for line, ref in zip(small_lines, given, strict=False)
    ))
    command = ("sketch", data, "-m", tiny_model, *SMALL, "--token-weighting", "mean")
    first = good(forked_congrad(*command))
    (file,) = (store / "shards").iterdir()
    found = load_file(file)
    for name in ("ref_logp", "weighted_logp"):
        assert (found[name].dtype, found[name].shape) == (np.float32, (4, 2))
    lengths = found["tokens"][:, 1:]
    row = find_digests(found["digest"], read_index(store).digest)
    np.testing.assert_allclose(found["ref_logp"], given[row] / lengths, rtol=1e-6)
    np.testing.assert_allclose(found["weighted_logp"], found["logp"] / lengths, rtol=1e-5)
    good(forked_congrad("consensus", "--loss", "ipo", stdin=first.stdout))
    done = good(forked_congrad("filter", store, "--min-score", "-2"))
    assert done.stdout == data.read_bytes()

    data.write_bytes(data.read_bytes() + small_lines[5])
    before = shards(store)
    bad(forked_congrad(*command, "--overwrite"), 3, "d.jsonl:5: some records have ref_chosen")
    assert shards(store) == before  # what cannot be replaced is not removed


def test_the_same_sketch_twice_is_the_same_bytes(
    forked_congrad, small_pairs, small_store, tiny_model, tmp_path
):
    """Everything later rests on it: resuming, comparing stores, finding what changed."""
    copy = tmp_path / "elsewhere.jsonl"  # names and places are not in the bytes either
    shutil.copy(small_pairs, copy)
    good(forked_congrad("sketch", copy, "-m", tiny_model, "-s", tmp_path / "again", *SMALL))
    assert shards(tmp_path / "again") == shards(small_store)


def test_another_seed_needs_another_store_or_overwrite(
    forked_congrad, small_pairs, store_copy, tiny_model
):
    """Sketches of two seeds have nothing to do with each other."""
    command = ("sketch", small_pairs, "-m", tiny_model, "-s", store_copy, *SMALL, "--seed", "1")
    before = shards(store_copy)
    text = bad(forked_congrad(*command), 4, "made with other settings")
    assert "seed 0" in text
    assert "seed 1" in text
    assert "--overwrite" in text
    assert shards(store_copy) == before
    done = good(forked_congrad(*command, "--overwrite"))
    assert done.stdout == f"{store_copy}\n".encode()
    after = shards(store_copy)
    assert after.keys() == before.keys()
    assert after != before


def test_other_data_needs_another_store(forked_congrad, small_lines, store_copy, tiny_model):
    """Data that has nothing in common with the store is a mistake; see test_sketch_resume."""
    other = store_copy.parent / "other.jsonl"
    renamed = [json.loads(line) | {"id": f"other-{row}"} for row, line in enumerate(small_lines)]
    other.write_text("".join(json.dumps(fields) + "\n" for fields in renamed))
    bad(forked_congrad("sketch", other, "-m", tiny_model, "-s", store_copy, *SMALL), 4,
        "made with other data")  # fmt: skip


def test_the_store_lies_beside_the_data_by_default(
    forked_congrad, small_lines, tiny_model, tmp_path
):
    (tmp_path / "few.pairs.jsonl").write_bytes(small_lines[0] + small_lines[1])
    command = ("sketch", "few.pairs.jsonl", "-m", tiny_model, *SMALL)
    done = good(forked_congrad(*command, cwd=tmp_path))
    assert done.stdout == f"{tmp_path / 'few.pairs.congrad'}\n".encode()
    assert (tmp_path / "few.pairs.congrad" / "store.json").is_file()


def test_piped_data_goes_all_the_way(forked_congrad, small_lines, tiny_model, tmp_path):
    """Each line is spelt differently on purpose; every byte of it must come back."""
    pairs = [json.loads(line) for line in small_lines[:6]]
    lines = [
        b"\xef\xbb\xbf" + small_lines[0],  # a byte-order mark
        json.dumps(pairs[1]).encode() + b"\r\n",  # escapes, a carriage return
        json.dumps(dict(reversed(pairs[2].items())), separators=(" ,", ": ")).encode() + b" \t\n",
        json.dumps(pairs[3] | {"extra": [1.50, None]}, ensure_ascii=False).encode() + b"\n",
        small_lines[4],
        small_lines[5].rstrip(b"\n"),  # no newline at the end
    ]
    data = b"\n" + lines[0].removeprefix(b"\xef\xbb\xbf") + b"  \n" + b"".join(lines[1:])
    first = good(forked_congrad(
        "sketch", "-", "-m", tiny_model, "-s", "piped", *SMALL, stdin=data, cwd=tmp_path))
    second = good(forked_congrad("consensus", stdin=first.stdout))
    everything = good(forked_congrad("filter", "--min-score", "-2", stdin=second.stdout))
    assert everything.stdout == data[1:].replace(b"  \n", b"")
    half = good(forked_congrad("filter", "--keep", "3", "--dropped", tmp_path / "dropped.jsonl",
                               stdin=second.stdout))
    out = half.stdout + b"\n" + (tmp_path / "dropped.jsonl").read_bytes()
    assert Counter(out.split(b"\n")) - Counter([b""]) == (
        Counter(data.split(b"\n")) - Counter([b"", b"  "]))

    other = forked_congrad("sketch", "-", "-m", tiny_model, "-s", "piped", *SMALL,
                           stdin=small_lines[7], cwd=tmp_path)
    bad(other, 4, "other data")
    again = good(forked_congrad("filter", "--min-score", "-2", tmp_path / "piped"))
    assert again.stdout == everything.stdout  # the store still has its lines
    (tmp_path / "piped").rename(tmp_path / "moved")  # they move with it
    again = good(forked_congrad("filter", "--min-score", "-2", tmp_path / "moved"))
    assert again.stdout == everything.stdout


def test_data_from_a_pipe_needs_a_store(forked_congrad, tiny_model):
    bad(forked_congrad("sketch", "-", "-m", tiny_model, stdin=b"{}"), 2, "needs --store DIR")


# --- what filter keeps -----------------------------------------------------------------------


def test_kept_and_dropped_are_the_input(forked_congrad, agreed_store, small_lines, tmp_path):
    dropped = tmp_path / "dropped.jsonl"
    kept = good(forked_congrad("filter", agreed_store, "--keep", "9", "--dropped", dropped)).stdout
    parts = [data.splitlines(keepends=True) for data in (kept, dropped.read_bytes())]
    assert [len(part) for part in parts] == [9, len(small_lines) - 9]
    assert all(is_ordered_part(part, small_lines) for part in parts)
    assert Counter(parts[0] + parts[1]) == Counter(small_lines)


def test_the_score_file_tells_about_every_pair(
    forked_congrad, agreed_store, small_lines, tmp_path
):
    scores = tmp_path / "scores.jsonl"
    done = good(forked_congrad("filter", agreed_store, "--scores", scores))
    entries = json_lines(scores)
    assert {tuple(entry) for entry in entries} == {
        ("row", "source", "line", "id", "group", "score", "error", "keep", "reason")}
    records = [json.loads(line) for line in small_lines]
    for row, (entry, record) in enumerate(zip(entries, records, strict=True)):
        assert (entry["row"], entry["line"]) == (row, row + 1)
        assert (entry["id"], entry["group"]) == (record["id"], record["language"])
        assert -1 <= entry["score"] <= 1
        assert 0 < entry["error"] < 1
        assert entry["keep"] == (entry["score"] >= 0)  # the default rule
        assert entry["reason"] == ("kept" if entry["keep"] else "below-min-score")
    kept = [line for line, entry in zip(small_lines, entries, strict=True) if entry["keep"]]
    assert done.stdout == b"".join(kept)


def test_output_goes_to_a_file_where_one_is_named(forked_congrad, agreed_store, tmp_path):
    """The same bytes, through a symbolic link too, and an older file gives way."""
    plain = good(forked_congrad("filter", agreed_store, "--keep", "5")).stdout
    target, link = tmp_path / "kept.jsonl", tmp_path / "link.jsonl"
    target.write_text("old")
    link.symlink_to(target)
    for path in (target, link):
        assert good(forked_congrad("filter", agreed_store, "--keep", "5", "-o", path)).stdout == b""
        assert target.read_bytes() == plain
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.jsonl", "link.jsonl"]


def kept_groups(done) -> Counter:
    records = [json.loads(line) for line in good(done).stdout.splitlines()]
    return Counter(record.get("lang") or record["language"] for record in records)


def test_every_rule_keeps_as_many_as_it_says(forked_congrad, synthetic):
    def kept(*rule):
        return kept_groups(forked_congrad("filter", synthetic, *rule))

    assert kept("--min-score", "-2").total() == 20
    assert kept("--min-score", "1.5").total() == 0
    assert kept("--keep", "7").total() == 7
    assert kept("--keep", "99").total() == 20
    assert kept("--keep-ratio", "0.33").total() == 7
    assert kept("--keep-ratio", "0").total() == 0
    assert kept("--keep", "2", "--per-group") == dict.fromkeys(("de", "en", "sw", "th"), 2)
    assert kept("--keep-ratio", "0.5", "--per-group") == dict.fromkeys(("de", "en", "sw", "th"), 3)
    default, named = kept(), kept("--min-score", "0")
    assert default == named


def test_leave_one_out_can_be_switched_off(forked_congrad, synthetic, tmp_path):
    """A pair's own share flatters it, so every score falls without it."""
    found = []
    for name in ("--leave-one-out", "--no-leave-one-out"):
        scores = tmp_path / name
        good(forked_congrad("filter", synthetic, name, "--scores", scores))
        found.append([entry["score"] for entry in json_lines(scores)])
    assert all(fair < flattered for fair, flattered in zip(*found, strict=True))


def test_another_consensus_can_be_named(forked_congrad, synthetic, tmp_path):
    good(forked_congrad("consensus", synthetic, "--name", "plain", "--method", "mean"))
    found = []
    for name in ("default", "plain"):
        scores = tmp_path / name
        good(forked_congrad("filter", synthetic, "--consensus", name, "--scores", scores))
        found.append([entry["score"] for entry in json_lines(scores)])
    assert found[0] != found[1]
    bad(forked_congrad("filter", synthetic, "--consensus", "none"), 4, "named 'none'")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (("--keep", "3", "--min-score", "0"), "--min-score and --keep are two rules"),
        (("--keep", "3", "--keep-ratio", "0.5"), "--keep-ratio and --keep are two rules"),
        (("--keep-ratio", "7"), "not between 0 and 1"),
        (("--keep", "-1"), "--keep -1 is negative"),
        (("--min-score", "nan"), "--min-score nan"),
    ],
)
def test_a_rule_without_sense_is_a_usage_error(forked_congrad, synthetic, rule, words):
    bad(forked_congrad("filter", synthetic, *rule), 2, words)


# --- the data must be what was sketched ------------------------------------------------------


def test_changed_data_is_refused_with_its_line(forked_congrad, synthetic):
    """The scores belong to other lines; writing any would be a lie."""
    data = synthetic.parent / "data.jsonl"
    lines = data.read_bytes().splitlines(keepends=True)
    keep_all = ("filter", synthetic, "--min-score", "-2")
    for changed, words in (
        ([*lines[:4], lines[4].replace(b"Question", b"Riddle"), *lines[5:]], "data.jsonl:5: "),
        ([lines[1], lines[0], *lines[2:]], "data.jsonl:1: "),
        (lines[:-1], "19 records"),
        ([*lines, lines[0]], "data.jsonl:21: "),
    ):
        data.write_bytes(b"".join(changed))
        bad(forked_congrad(*keep_all), 4, words, "--data FILE")
    data.write_bytes(b"\n".join(lines))  # blank lines do not count
    assert good(forked_congrad(*keep_all)).stdout == b"".join(lines)


def test_moved_data_is_found_with_an_option(forked_congrad, synthetic, tmp_path):
    data, moved = synthetic.parent / "data.jsonl", tmp_path / "moved.jsonl"
    lines = data.read_bytes()
    data.rename(moved)
    text = bad(forked_congrad("filter", synthetic), 4, str(data), "--data FILE")
    assert len(text.splitlines()) == 2
    done = good(forked_congrad("filter", synthetic, "--data", moved, "--min-score", "-2"))
    assert done.stdout == lines


def test_a_missing_store_or_consensus_says_what_to_run(forked_congrad, make_store, tmp_path):
    bad(forked_congrad("consensus", tmp_path / "none"), 4, "is not a store", "congrad sketch DATA")
    store = make_store(random_rows(3, 4))
    bad(forked_congrad("filter", store), 4, "no consensus", f"congrad consensus {store}")


# --- outputs that cannot be written ----------------------------------------------------------


@pytest.mark.parametrize("option", ["--output", "--dropped", "--scores"])
def test_an_output_in_a_missing_folder_leaves_nothing_half_written(
    forked_congrad, synthetic, tmp_path, option
):
    outputs = {"--output": "kept", "--dropped": "dropped", "--scores": "scores"}
    paths = {name: tmp_path / file for name, file in outputs.items()}
    paths[option] = tmp_path / "missing" / "file"
    arguments = [part for pair in paths.items() for part in pair]
    bad(forked_congrad("filter", synthetic, *arguments), 2, str(paths[option]))
    assert list(tmp_path.iterdir()) == []


def test_an_output_must_not_be_the_data_or_another_output(forked_congrad, synthetic, tmp_path):
    """The second would silently win, and the data may be the only copy."""
    data = synthetic.parent / "data.jsonl"
    before = data.read_bytes()
    bad(forked_congrad("filter", synthetic, "-o", data), 2, "the data that was sketched")
    link = tmp_path / "link"
    link.symlink_to(data)
    bad(forked_congrad("filter", synthetic, "--scores", link), 2, "the data that was sketched")
    out = tmp_path / "out"
    bad(forked_congrad("filter", synthetic, "-o", out, "--dropped", out), 2, "--output as well")
    assert data.read_bytes() == before
    assert not out.exists()


def test_pipes_and_devices_are_written_into_not_replaced(make_store, tmp_path):
    """``--dropped >(gzip > dropped.gz)`` works, and root's ``-o /dev/null`` spares the device."""
    store = make_store(random_rows(6, 4))
    script = f"""
        congrad consensus {store} -q > path
        congrad filter {store} -q --keep 2 --dropped >(cat > dropped) > kept
        mkfifo fifo; cat fifo > scores &
        congrad filter {store} -q --keep 2 -o /dev/null --scores fifo; wait
    """
    good(shell(script, tmp_path))
    assert (tmp_path / "kept").read_bytes().count(b"\n") == 2
    assert (tmp_path / "dropped").read_bytes().count(b"\n") == 4
    assert len(json_lines(tmp_path / "scores")) == 6
    assert (tmp_path / "fifo").is_fifo()
    assert Path(os.devnull).is_char_device()


def test_a_reader_that_goes_away_ends_filter_silently(synthetic):
    """As ``congrad filter | head -1`` does: 141, what a shell reports for a broken pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "congrad_cli", "filter", str(synthetic), "-q"]
    done = subprocess.run(
        [*command, "--min-score", "-2"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


# --- pairs that cannot be sketched -----------------------------------------------------------


def test_prompts_that_leave_no_room_are_skipped_counted_and_dropped(
    forked_congrad, small_pairs, small_lines, small_store, tiny_model, tmp_path
):
    """As TRL does; but never silently."""
    prompts = GradientStore.open(small_store).column("tokens")[:, 0]
    limit = int(np.median(prompts))
    no_room = {row for row, length in enumerate(prompts) if length >= limit}
    assert 0 < len(no_room) < len(small_lines)
    store, dropped, scores = (tmp_path / name for name in ("s", "dropped", "scores"))
    first = good(forked_congrad(
        "sketch", small_pairs, "-m", tiny_model, "-s", store, *SMALL, "--max-length", limit))
    assert b"skipped (no-room)" in first.stderr
    assert f"no answer fits in {limit}".encode() in first.stderr
    assert len(json_lines(store / "skipped" / "r000.jsonl")) >= len(no_room)
    skipped = GradientStore.open(store).skipped()
    assert {row for row, code in skipped.items() if code == "no-room"} == no_room

    good(forked_congrad("consensus", stdin=first.stdout))
    done = good(forked_congrad("filter", store, "--min-score", "-2", "--dropped", dropped,
                               "--scores", scores))
    assert f"no-room {len(no_room)}".encode() in done.stderr
    assert {small_lines[row] for row in no_room} <= set(
        dropped.read_bytes().splitlines(keepends=True))
    assert Counter((done.stdout + dropped.read_bytes()).splitlines()) == Counter(
        small_pairs.read_bytes().splitlines())
    assert no_room == {entry["row"] for entry in json_lines(scores)
                       if entry["reason"] == "no-room" and entry["score"] is None}


# --- models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conversations(small_lines, tmp_path_factory) -> Path:
    """Six pairs as message lists."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    records = [json.loads(line) for line in small_lines[:6]]
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    path.write_text("".join(
        json.dumps(record | {
            part: [{"role": role, "content": record[part]}] for part, role in roles.items()
        }) + "\n"
        for record in records
    ))  # fmt: skip
    return path


@pytest.fixture
def bare_model(tiny_model, tmp_path) -> Path:
    """The tiny model's folder without chat template and without weights."""
    folder = tmp_path / "bare"
    # transformers 5 saves the template beside the tokenizer's settings, older ones inside
    leave_out = shutil.ignore_patterns("*.jinja", "*.safetensors")
    shutil.copytree(tiny_model, folder, ignore=leave_out)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_bytes())
    content.pop("chat_template", None)
    settings.write_text(json.dumps(content))
    return folder


def test_conversations_use_the_models_own_template(
    forked_congrad, conversations, tiny_model, tmp_path
):
    store = tmp_path / "s"
    first = good(forked_congrad("sketch", conversations, "-m", tiny_model, "-s", store, *SMALL))
    good(forked_congrad("consensus", stdin=first.stdout))
    done = good(forked_congrad("filter", store, "--min-score", "-2"))
    assert done.stdout == conversations.read_bytes()


def test_a_missing_template_is_found_before_the_weights_and_has_a_cure(
    forked_congrad, conversations, bare_model, tiny_model, tmp_path
):
    """The folder has no weights yet: loading 16 GB first only to refuse would be rude."""
    command = ("sketch", conversations, "-m", bare_model, "-s", tmp_path / "s", *SMALL)
    text = bad(forked_congrad(*command), 8, "no chat template", f"{conversations}:1")
    assert "--chat-template FILE" in text
    assert not (tmp_path / "s").exists()
    (bare_model / "model.safetensors").symlink_to(Path(tiny_model) / "model.safetensors")
    good(forked_congrad(*command, "--chat-template", "plain"))


def test_plain_texts_need_no_template(
    forked_congrad, small_lines, bare_model, tiny_model, tmp_path
):
    """Base models have none."""
    (tmp_path / "d.jsonl").write_bytes(small_lines[0])
    (bare_model / "model.safetensors").symlink_to(Path(tiny_model) / "model.safetensors")
    good(forked_congrad("sketch", tmp_path / "d.jsonl", "-m", bare_model, *SMALL))


def test_a_template_that_cannot_be_read_is_a_usage_error(forked_congrad, conversations, tiny_model):
    command = ("sketch", conversations, "-m", tiny_model, "--chat-template", "none.jinja")
    bad(forked_congrad(*command), 2, "--chat-template none.jinja", "No such file")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no-such-org/no-such-model", ("hf download no-such-org/no-such-model", "--model /path")),
        ("./none", ("./none: no such folder",)),
        ("/no/such/folder", ("no such folder",)),
        ("none.gguf", ("none.gguf: no such file",)),
    ],
)
def test_a_model_that_cannot_be_had_is_an_error_with_the_cure(
    forked_congrad, small_pairs, tmp_path, model, words
):
    """The hub is out of reach here: HF_HUB_OFFLINE=1."""
    done = forked_congrad("sketch", small_pairs, "-m", model, "-s", "s", cwd=tmp_path)
    bad(done, 8, model, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sketch", "d.jsonl"), "--model is missing"),
        (("sketch", "d.jsonl", "-m", "m", "--dtype", "int8"), "--dtype int8"),
        (("sketch", "", "-m", "m"), "'' is no file"),
        (("sketch", "-", "d.jsonl", "-m", "m"), "- (stdin) and files together"),
        (("sketch", "d.jsonl", "-m", "m", "--json"), "--json needs --dry-run"),
        (("sketch", "d.jsonl", "-m", "m", "--max-bad", "3"), "needs --bad-records skip"),
        (("sketch", "d.jsonl", "-m", "m", "--shape", "round"), "--shape round"),
        (("sketch", "d.jsonl", "-m", "m", "--group-by", "a,"), "--group-by 'a,'"),
        (("consensus", "s", "--method", "magic"), "--method magic"),
        (("consensus", "s", "--average", "mode"), "--average mode"),
        (("consensus", "s", "--pair-norm", "huge"), "--pair-norm huge"),
    ],
)
def test_options_without_sense_are_usage_errors(forked_congrad, arguments, words):
    bad(forked_congrad(*arguments), 2, words)
