"""Data of every kind through the commands: nothing is lost, and what is left out is said."""

import base64
import gzip
import io
import json
import os
from collections import Counter

import numpy as np
import pytest
from conftest import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import columns, header

from congrad_cli.consensus import run as consensus
from congrad_cli.errors import InputError
from congrad_cli.filter import run as filtering
from congrad_cli.progress import Silent
from congrad_cli.records.containers import suffix_warning
from congrad_cli.records.damage import DamageLimit
from congrad_cli.records.files import find_files
from congrad_cli.records.record import DataFile
from congrad_cli.settings import ConsensusSettings, FilterSettings, RecordSettings
from congrad_cli.sketch.index import index_data
from congrad_cli.store_index import first_of_each, write_index
from congrad_cli.writer import ShardWriter, create_store, write_rejected

BAD = {
    "not-json": b'{"prompt": "a" "b"}\n',
    "not-utf8": b'{"prompt": "\xff"}\n',
    "empty": b'{"prompt": "x", "chosen": "", "rejected": "b", "language": "de"}\n',
    "no-language": b'{"prompt": "x", "chosen": "a", "rejected": "b"}\n',
    "mixed-shapes": b'{"prompt": [{"role": "user", "content": "x"}], "chosen": "a", '
    b'"rejected": "b", "language": "de"}\n',
}


def store_of(folder, names, **fields):
    """A store of random rows for the data, as a sketch without a model would leave it."""
    index = index_data(find_files(names), RecordSettings(**fields), DamageLimit(stop=False))
    path = folder / "pairs.congrad"
    about = header(4)
    create_store(path, about)
    write_index(path, index.stored)
    write_rejected(path, index.rejected)
    rows = np.flatnonzero((index.group >= 0) & first_of_each(index.digest))
    directions = np.random.default_rng(0).standard_normal((index.rows, 4))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    writer = ShardWriter(path, about)
    writer.append(columns(rows, directions, np.ones(index.rows), index.digest))
    writer.commit()
    consensus.run(path, ConsensusSettings(method="mean"), Silent())
    return path, index


def filtered(path, folder, **options):
    """Kept bytes, dropped bytes, score entries."""
    out = io.BytesIO()
    dropped, scores = folder / "dropped", folder / "scores"
    filtering.run(path, FilterSettings(dropped=dropped, scores=scores, **options), out, Silent())
    return out.getvalue(), dropped.read_bytes(), [
        json.loads(line) for line in scores.read_bytes().splitlines()]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
pair = st.fixed_dictionaries(
    {"prompt": texts, "chosen": texts.map("a{}".format), "rejected": texts.map("b{}".format),
     "language": st.sampled_from(["de", "eng", "th"])},
    optional={"extra": st.none() | texts | st.integers() | st.lists(texts, max_size=2)},
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(pair, min_size=1, max_size=6),
    ascii_only=st.booleans(),
    container=st.sampled_from(["lines", "gzip", "array"]),
    end=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
)
def test_any_valid_records_come_back_byte_for_byte(
    pairs, ascii_only, container, end, tmp_path_factory
):
    """Whatever spelling and container they came in, keeping all of them is the identity."""
    folder = tmp_path_factory.mktemp("any")
    spelt = [json.dumps(fields, ensure_ascii=ascii_only) for fields in pairs]
    if container == "array":
        content = ("[" + f",{end}".join(spelt) + f"{end}]\n").encode()
    else:
        content = "".join(line + end for line in spelt).encode()
    data = folder / "pairs.data"
    data.write_bytes(gzip.compress(content) if container == "gzip" else content)
    path, _ = store_of(folder, [str(data)])
    # without leave-one-out: the only pair there is has no others to be compared with
    kept, dropped, entries = filtered(path, folder, min_score=-2.0, leave_one_out=False)
    wanted = content if container == "array" else content.replace(b"\n\n", b"\n")
    assert kept == wanted
    assert dropped == (b"[]\n" if container == "array" else b"")
    assert [entry["reason"] for entry in entries] == ["kept"] * len(pairs)


def test_kept_and_dropped_are_the_input_whatever_was_bad(tmp_path, small_lines):
    """Also records that were never sketched: a user who finds one missing must find it there."""
    lines = [line for pair in zip(small_lines, [*BAD.values()] * 9, strict=False) for line in pair]
    (tmp_path / "d.jsonl").write_bytes(b"".join(lines))
    path, index = store_of(tmp_path, [str(tmp_path / "d.jsonl")])
    kept, dropped, entries = filtered(path, tmp_path, keep=7)
    assert kept.count(b"\n") == 7
    assert Counter(kept.splitlines() + dropped.splitlines()) == Counter(
        b"".join(lines).splitlines())
    reasons = Counter(entry["reason"] for entry in entries)
    assert reasons["kept"] == 7
    assert {code: reasons[code] for code in BAD} == index.damage.codes
    bad = [entry for entry in entries if entry["reason"] in BAD]
    assert {(entry["score"], entry["keep"]) for entry in bad} == {(None, False)}
    assert [entry["line"] for entry in entries] == list(range(1, len(lines) + 1))


def test_data_that_changed_is_not_filtered(tmp_path, small_lines):
    """A line that has become bad, or good, would shift or hide what was decided."""
    data = tmp_path / "d.jsonl"
    data.write_bytes(b"".join([*small_lines[:4], BAD["empty"], *small_lines[4:8]]))
    path, _ = store_of(tmp_path, [str(data)])
    for change in (
        [*small_lines[:3], BAD["empty"], BAD["empty"], *small_lines[4:8]],
        [*small_lines[:4], *small_lines[4:8]],
        [*small_lines[:4], BAD["empty"], *small_lines[4:8], small_lines[9]],
    ):
        data.write_bytes(b"".join(change))
        with pytest.raises(Exception, match=r"not the record that was sketched|has \d+ records"):
            filtered(path, tmp_path, min_score=-2.0)


def test_the_same_pairs_from_another_container_fit_the_store(tmp_path, small_lines):
    """Packing the data after it was sketched, or turning it into an array, changes no pair."""
    data = tmp_path / "d.jsonl"
    data.write_bytes(b"".join(small_lines))
    path, _ = store_of(tmp_path, [str(data)])
    data.unlink()
    for name, content in (
        ("d.jsonl.gz", gzip.compress(b"".join(small_lines))),
        ("d.json", b"[" + b",".join(small_lines) + b"]"),
    ):
        moved = tmp_path / name
        moved.write_bytes(content)
        kept, dropped, entries = filtered(path, tmp_path, min_score=0.0, data=(str(moved),))
        assert sum(entry["keep"] for entry in entries) in range(1, len(small_lines))
        if name == "d.json":
            assert len(json.loads(kept)) + len(json.loads(dropped)) == len(small_lines)
        else:
            assert sorted(kept.splitlines() + dropped.splitlines()) == sorted(
                line.rstrip() for line in small_lines)


def test_bad_records_are_skipped_and_given_back(tmp_path, small_lines, tiny_model, forked_congrad):
    data = tmp_path / "d.jsonl"
    data.write_bytes(b"".join([small_lines[0], *BAD.values(), *small_lines[1:6]]))
    options = ("--model", tiny_model, *SMALL)
    done = forked_congrad("sketch", data, *options)
    assert done.returncode == 3
    assert b"d.jsonl:2: not valid JSON" in done.stderr
    assert b"or pass --bad-records skip" in done.stderr
    assert not (tmp_path / "d.congrad").exists()
    rejects = tmp_path / "rejects.jsonl"
    done = forked_congrad("sketch", data, *options, "--bad-records", "skip", "--rejects", rejects)
    assert done.returncode == 0, done.stderr
    assert b"left out 5 of 11 records" in done.stderr
    entries = [json.loads(line) for line in rejects.read_bytes().splitlines()]
    assert [entry["code"] for entry in entries] == list(BAD)
    assert [entry["line"] for entry in entries] == [2, 3, 4, 5, 6]
    raws = [entry["raw"].encode() if "raw" in entry else base64.b64decode(entry["raw_base64"])
            for entry in entries]
    assert raws == list(BAD.values())
    again = forked_congrad("sketch", data, *options, "--bad-records", "skip")
    assert again.returncode == 0
    assert b"loading" not in again.stderr  # nothing is left to do


@pytest.mark.parametrize(("most", "code"), [("5", 0), ("4", 3), ("49%", 0), ("0.45", 3)])
def test_more_bad_records_than_allowed_stop_the_run(tmp_path, small_lines, most, code):
    from congrad_cli import arguments

    data = tmp_path / "d.jsonl"
    data.write_bytes(b"".join([*BAD.values(), *small_lines[:6]]))
    limit = DamageLimit(stop=False, most=arguments.most_bad(most, "skip"))
    if code == 0:
        assert index_data(find_files([str(data)]), RecordSettings(), limit).damage.bad == 5
        return
    with pytest.raises(InputError, match=r"5.* records are bad, more than --max-bad"):
        index_data(find_files([str(data)]), RecordSettings(), limit)


@pytest.mark.parametrize("value", ["-1", "1.5", "100%", "x", "nan", ""])
def test_a_limit_that_makes_no_sense_is_a_usage_error(value, forked_congrad, small_pairs):
    done = forked_congrad("sketch", small_pairs, "--model", "m", "--bad-records", "skip",
                          f"--max-bad={value}")
    assert done.returncode == 2, done.stderr
    assert b"--max-bad" in done.stderr


def test_ties_are_left_out_and_never_an_error(tmp_path, small_lines):
    data = tmp_path / "d.jsonl"
    row = {"context": "q", "response1": "a", "response2": "b", "language": "en"}
    data.write_text("".join(json.dumps(row | {"overall_preference": preference}) + "\n"
                            for preference in (-1, 0, 3, 0)))
    index = index_data(find_files([str(data)]), RecordSettings())
    assert index.group.tolist() == [0, -1, 0, -1]
    assert index.damage.codes == {"tie": 2}
    assert index.damage.bad == 0


def groups_of(names, **fields):
    index = index_data(find_files(names), RecordSettings(**fields))
    return [index.groups[label] for label in index.group]


def test_groups_come_from_fields_names_patterns_and_texts(tmp_path, sample_data):
    pairs = [json.loads(line) for line in (sample_data / "preferences.jsonl").open("rb")]
    german = next(pair for pair in pairs if pair["language"] == "de" and not pair["planted"])
    bare = {name: german[name] for name in ("prompt", "chosen", "rejected")} | {"domain": "help"}
    (tmp_path / "th").mkdir()
    for name in ("pairs.deu_Latn.jsonl", "th/train.jsonl", "plain.jsonl"):
        (tmp_path / name).write_text(json.dumps(bare) + "\n")
    assert groups_of([str(tmp_path / "pairs.deu_Latn.jsonl")]) == ["de"]
    assert groups_of([str(tmp_path / "{lang}" / "train.jsonl")]) == ["th"]
    assert groups_of([str(tmp_path / "plain.jsonl")], language="German") == ["de"]
    assert groups_of([str(tmp_path / "plain.jsonl")], detect_language=True) == ["de"]
    assert groups_of([str(tmp_path / "plain.jsonl")], group_by=("domain",)) == ["help"]
    both = {"group_by": ("language", "domain"), "language": "de"}
    assert groups_of([str(tmp_path / "plain.jsonl")], **both) == ["de/help"]
    with pytest.raises(InputError, match=r"plain\.jsonl:1: no language"):
        groups_of([str(tmp_path / "plain.jsonl")])
    with pytest.raises(InputError, match="language 'de' is not in --languages"):
        groups_of([str(tmp_path / "plain.jsonl")], language="de", languages=("en", "th"))
    with pytest.raises(InputError, match="no group: no field 'topic'"):
        groups_of([str(tmp_path / "plain.jsonl")], group_by=("topic",))


def test_names_of_one_language_are_one_group(tmp_path):
    path = tmp_path / "d.jsonl"
    labels = ["en", "EN", "eng", "eng_Latn", "English", "pt-br"]
    path.write_text("".join(
        json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "lang": label}) + "\n"
        for label in labels))
    assert groups_of([str(path)]) == ["en"] * 5 + ["pt-BR"]


@pytest.mark.parametrize("change", [
    lambda lines: [*lines, lines[0]],
    lambda lines: lines[:-1],
    lambda lines: [lines[1], lines[0], *lines[2:]],
    lambda lines: [*lines[:2], lines[2].replace(b"bad", b"worse"), *lines[3:]],
], ids=["longer", "shorter", "reordered", "another bad record"])  # fmt: skip
def test_data_that_changes_between_the_passes_is_refused(tmp_path, small_lines, change):
    lines = [*small_lines[:2], b"bad\n", *small_lines[2:4]]
    data = tmp_path / "pairs.jsonl"
    data.write_bytes(b"".join(lines))
    index = index_data(find_files([str(data)]), RecordSettings(), DamageLimit(stop=False))
    assert [record.row for record in index.records()] == [0, 1, 3, 4]
    data.write_bytes(b"".join(change(lines)))
    with pytest.raises(InputError, match=r"pairs\.jsonl.*changed while it was being read"):
        list(index.records())


def test_a_pipe_gets_the_rejects_once(tmp_path, small_lines, tiny_model, forked_congrad):
    data, pipe = tmp_path / "d.jsonl", tmp_path / "pipe"
    data.write_bytes(b"".join([small_lines[0], b"bad\n", *small_lines[1:3]]))
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # there is one from start to end
    try:
        done = forked_congrad("sketch", data, "--model", tiny_model, *SMALL,
                              "--bad-records", "skip", "--rejects", pipe)
        assert done.returncode == 0, done.stderr
        entries = os.read(reader, 1 << 16).splitlines()
    finally:
        os.close(reader)
    assert [json.loads(entry)["raw"] for entry in entries] == ["bad\n"]


def test_a_file_name_may_be_no_utf8(tmp_path, small_lines, tiny_model, forked_congrad):
    data = tmp_path / os.fsdecode(b"d\xff.jsonl")
    data.write_bytes(b"".join([small_lines[0], b"bad\n", *small_lines[1:3]]))
    rejects = tmp_path / "rejects"
    done = forked_congrad("sketch", data, "--model", tiny_model, *SMALL,
                          "--bad-records", "skip", "--rejects", rejects)
    assert done.returncode == 0, done.stderr
    store = tmp_path / os.fsdecode(b"d\xff.congrad")
    assert json.loads(rejects.read_bytes())["source"] == str(data)
    assert forked_congrad("consensus", store).returncode == 0
    done = forked_congrad("filter", store, "--min-score", "-1")
    assert done.stdout == b"".join(small_lines[:3]), done.stderr


def test_a_dry_run_foretells_that_too_much_is_bad(
    tmp_path, small_lines, tiny_model, forked_congrad
):
    talk = [json.loads(line) for line in small_lines[:4]]
    for record in talk:
        record["prompt"] = [{"role": "user", "content": record["prompt"]}]
    talk[1]["prompt"][0]["content"] = talk[2]["prompt"][0]["content"] = "no"
    data, template = tmp_path / "d.jsonl", tmp_path / "t.jinja"
    data.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in talk))
    template.write_text(
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}{% endfor %}")
    options = ("sketch", data, "--model", tiny_model, *SMALL, "--chat-template", template,
               "--bad-records", "skip")
    for most, code in (("1", 3), ("49%", 3), ("2", 0), ("50%", 0)):
        dry = forked_congrad(*options, "--max-bad", most, "--dry-run", "--json")
        assert dry.returncode == code, dry.stderr
        said = json.loads(dry.stdout)["refusal"]
        assert (said is not None) == (code == 3)
        assert said is None or "records are bad, more than --max-bad" in said
    real = forked_congrad(*options, "--max-bad", "1")
    assert real.returncode == 3


@pytest.mark.parametrize(
    "option", [("--languages", "de"), ("--language", "de"), ("--language-field", "lang"),
               ("--detect-language",)])  # fmt: skip
def test_what_is_said_of_languages_is_not_passed_over(option, forked_congrad, small_pairs):
    done = forked_congrad("sketch", small_pairs, "--model", "m", "--group-by", "item", *option)
    assert done.returncode == 2
    assert f"{option[0]} does nothing with --group-by item".encode() in done.stderr


def test_damage_of_which_nothing_is_left_writes_nothing(tmp_path, small_lines):
    zipped, data = tmp_path / "z.jsonl", tmp_path / "d.jsonl"
    zipped.write_bytes(b"PK\x03\x04 and so on")
    data.write_bytes(b"".join([*small_lines[:7], b"bad\n"]))
    path, _ = store_of(tmp_path, [str(zipped), str(data)])
    assert filtered(path, tmp_path, min_score=-1.0)[:2] == (b"".join(small_lines[:7]), b"bad\n")


def test_what_stands_behind_an_array_is_given_back_line_by_line(tmp_path, small_lines):
    """As in files of arrays laid end to end."""
    array = b"[" + b",".join(line.strip() for line in small_lines[:2]) + b"]"
    data = tmp_path / "d.json"
    data.write_bytes(array + b"\n\n" + array + b"\r\n" + b"tail")
    path, index = store_of(tmp_path, [str(data)])
    assert index.damage.codes == {"not-json": 2}
    assert [(entry["row"], entry["line"]) for entry in index.rejected] == [(2, 3), (3, 4)]
    dropped = filtered(path, tmp_path, min_score=-2.0, leave_one_out=False)[1]
    assert dropped == b"[" + array + b"\r\n,tail]\n"


def test_an_empty_element_leaves_no_hole(tmp_path, small_lines):
    data = tmp_path / "d.json"
    data.write_bytes(b"[" + b",".join(line.strip() for line in small_lines[:2]) + b",]")
    path, _ = store_of(tmp_path, [str(data)])
    dropped = filtered(path, tmp_path, min_score=-2.0, leave_one_out=False)[1]
    assert json.loads(dropped) == []


def test_piped_data_of_any_kind_promises_no_kind(tmp_path, small_lines):
    data = tmp_path / "stdin-0123.jsonl"
    data.write_bytes(gzip.compress(small_lines[0]))
    assert suffix_warning(DataFile("stdin", data)) is None


def test_a_stricter_limit_holds_for_what_was_skipped_before(
    tmp_path, small_lines, tiny_model, forked_congrad
):
    data, template = tmp_path / "d.jsonl", tmp_path / "t.jinja"
    talk = [json.loads(line) for line in small_lines[:3]]
    for record in talk:
        record["prompt"] = [{"role": "user", "content": record["prompt"]}]
    talk[1]["prompt"][0]["content"] = "no"
    data.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in talk))
    template.write_text(
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}{% endfor %}")
    command = ("sketch", data, "--model", tiny_model, *SMALL, "--chat-template", template,
               "--bad-records", "skip")
    assert forked_congrad(*command, "--max-bad", "1").returncode == 0
    done = forked_congrad(*command, "--max-bad", "0")
    assert done.returncode == 3
    assert b"1 of 3 records are bad" in done.stderr
    assert forked_congrad(*command).returncode == 0
