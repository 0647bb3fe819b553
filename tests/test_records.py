"""Reading preference records: what is refused and how, and that lines survive byte for byte."""

import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from synthetic import parse_line, read_all

from congrad_cli.errors import InputError
from congrad_cli.records.languages import canonical
from congrad_cli.records.lines import LineWriter
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import DataFile, Record, Rejected
from congrad_cli.settings import RecordSettings

GOOD = {"id": "a-1", "language": "de", "prompt": "Frage?", "chosen": " Ja.", "rejected": " Nein."}
TALK = {
    "language": "de",
    "prompt": [{"role": "user", "content": "Frage?"}],
    "chosen": [{"role": "assistant", "content": "Ja."}],
    "rejected": [{"role": "assistant", "content": "Nein."}],
}


def line(record=GOOD, **changes) -> bytes:
    """A record's line; a change to None takes the field away."""
    fields = {key: value for key, value in (record | changes).items() if value is not None}
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def parse(raw: bytes, number=1, **settings):
    return parse_line(raw, number, **settings)


def read(path, **settings) -> list:
    return read_all(path, **settings)


def talk(name, *messages) -> bytes:
    return line(TALK, **{name: list(messages)})


# line, what must be said, what must stand in a hint: the thing seen or the cure
BAD = {
    "not-json": (
        b'{"prompt": "a" "chosen": "b"}\n', "not valid JSON (column 16: ", '"chosen": "b"'),
    "cut-off": (b'{"prompt": "a", "cho', "not valid JSON (column 17: ", "one whole JSON object"),
    "not-an-object": (b'["a", "b"]\n', "a JSON list, not an object", '{"prompt": ...'),
    "a-number": (b"12\n", "a JSON number, not an object", '{"prompt": ...'),
    "null": (b"null\n", "a JSON null, not an object", '{"prompt": ...'),
    "nan": (line(score=float("nan")), "NaN is not JSON", "null or a number"),
    "infinity": (line(score=float("-inf")), "-Infinity is not JSON", "null or a number"),
    "endless-number": (b'{"score": 1' + 5000 * b"0" + b"}\n", "thousands of digits", "in quotes"),
    "too-deep": (b'{"a":' * 200_000, "nested too deeply", "a list of messages"),
    "duplicate-key": (
        b'{"prompt": "a", "chosen": "b", "chosen": "c"}\n', "'chosen' stands twice", "keep one"),
    "missing-prompt": (line(prompt=None), "no field 'prompt'", "--prompt-field"),
    "missing-chosen": (line(chosen=None), "no field 'chosen'", "--chosen-field"),
    "missing-rejected": (line(rejected=None), "no field 'rejected'", "--rejected-field"),
    "empty-prompt": (line(prompt=""), "'prompt' is empty", "remove the line"),
    "blank-chosen": (line(chosen=" \t\n"), "'chosen' is empty", 'saw: " \\t\\n"'),
    "empty-list": (talk("rejected"), "'rejected' is empty", "saw: []"),
    "number-as-text": (line(chosen=7), "'chosen' is a JSON number, not text", "saw: 7"),
    "object-as-text": (line(prompt={"a": 1}), "'prompt', message 1: no text in 'role'", "keys a"),
    "true-as-text": (line(rejected=True), "'rejected' is a JSON boolean", "saw: true"),
    "same-texts": (line(rejected=" Ja."), "'chosen' and 'rejected' are the same", 'saw: " Ja."'),
    "same-messages": (
        line(TALK, rejected=TALK["chosen"]), "'chosen' and 'rejected' are the same", "two diff"),
    "mixed-types": (
        line(TALK, prompt="Frage?", chosen="Ja."), "texts and message lists are mixed",
        "prompt is text"),
    "list-as-text": (line(prompt=[1]), "'prompt', message 1: a JSON number", '"role"'),
    "message-no-object": (talk("prompt", "hi"), "'prompt', message 1: a JSON string", '"role"'),
    "message-no-role": (
        talk("chosen", {"content": "a"}), "message 1: no text in 'role'", "saw: keys content"),
    "message-no-content": (
        talk("chosen", TALK["chosen"][0], {"role": "user"}), "message 2: no text in 'content'",
        "saw: keys role"),
    "message-bad-content": (
        talk("prompt", {"role": "user", "content": [1]}), "no text in 'content'", "saw: [1]"),
    "message-empty": (
        talk("prompt", {"role": "user", "content": " "}), "'content' is empty", "remove the line"),
    "no-language": (
        line(language=None), "no field 'language' or 'lang' or 'locale'", "--language de"),
    "empty-language": (line(language=""), "no language: 'language' is empty", "--language de"),
    "language-no-text": (line(language=3), "'language' holds no language", "saw: 3"),
    "ref-logp-positive": (
        line(ref_chosen_logps=1, ref_rejected_logps=-1), "'ref_chosen_logps' is no log-prob",
        "saw: 1"),
    "ref-logp-text": (
        line(ref_chosen_logps=-1, ref_rejected_logps="-1"), "'ref_rejected_logps' is no log-prob",
        'saw: "-1"'),
    "ref-logp-of-one": (
        line(ref_chosen_logps=-1), "'ref_rejected_logps' is no log-prob", "or neither"),
    "ref-logp-endless": (
        line(ref_chosen_logps=-1, ref_rejected_logps=-(10**400)), "is no log-prob", "as numbers"),
    "ref-logp-infinite": (
        line(ref_chosen_logps=-1)[:-2] + b', "ref_rejected_logps": -1e999}', "is no log-prob",
        "as numbers"),
    "latin-1": ("{'ä'}\n".encode("latin-1"), "not UTF-8 (byte 0xe4 at byte 2", "iconv -f LATIN1"),
    "raw-surrogate": (line(chosen="\ud800"), "not UTF-8 (byte 0xed", "iconv"),
    "lone-surrogate": (
        rb'{"prompt": "ab\ud83d", "chosen": "b", "rejected": "c", "lang": "en"}',
        "'prompt' holds a lone surrogate (\\ud83d)", "'ab' before it"),
    "surrogate-in-message": (
        rb'{"prompt": [{"role": "user", "content": "\udc00"}], "chosen": "a", "rejected": "b"}',
        "'prompt' holds a lone surrogate (\\udc00)", "remove it"),
    "surrogate-in-language": (
        rb'{"prompt": "a", "chosen": "b", "rejected": "c", "lang": "\ud83d"}',
        "'lang' holds a lone surrogate", "remove it"),
    "surrogate-in-id": (
        rb'{"id": "\ud83d", "prompt": "a", "chosen": "b", "rejected": "c", "lang": "de"}',
        "'id' holds a lone surrogate", "remove it"),
    "surrogate-beside-content": (
        rb'{"prompt": [{"role": "user", "content": "a", "x": {"y": "\ud83d"}}],'
        rb'"chosen": "a", "rejected": "b"}',
        "'prompt' holds a lone surrogate", "remove it"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_refused_with_its_place_what_was_seen_and_the_cure(kind):
    raw, what, hint = BAD[kind]
    with pytest.raises(InputError) as caught:
        parse(raw, number=7)
    assert caught.value.message.startswith("data.jsonl:7: ")
    assert what in caught.value.message
    assert hint in "\n".join(caught.value.hints)
    assert len(caught.value.message) < 200  # one line of a terminal or two, never the whole record
    assert all("\n" not in part for part in (caught.value.message, *caught.value.hints))


def test_the_good_examples_are_good():
    """Every bad line above is one change away from these."""
    record = parse(line())
    assert (record.prompt, record.chosen, record.rejected) == ("Frage?", " Ja.", " Nein.")
    assert (record.group, record.id, record.conversational) == ("de", "a-1", False)
    talked = parse(line(TALK))
    assert talked.conversational
    assert talked.chosen == TALK["chosen"]


def test_reading_stops_at_the_first_bad_line_and_counts_blank_ones(tmp_path):
    """Editors count blank lines, so the message must; rows count records alone."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n" + line() + b"  \r\n" + line(id="b") + b"\n" + line(chosen="") + b"{")
    found = []
    with pytest.raises(InputError, match=r"^d\.jsonl:6: 'chosen' is empty"):
        found.extend(read(path))
    path.write_bytes(b"\n" + line() + b"  \r\n" + line(id="b"))
    assert [(record.row, record.line, record.id) for record in read(path)] == [
        (0, 2, "a-1"), (1, 4, "b")]


def test_rows_count_on_over_files_and_lines_start_again(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(line() + line())
    records = list(read_records([DataFile(path.name, path) for path in paths], RecordSettings()))
    assert [(record.row, record.source, record.line) for record in records] == [
        (0, "a.jsonl", 1), (1, "a.jsonl", 2), (2, "b.jsonl", 1), (3, "b.jsonl", 2)]


@pytest.mark.parametrize("missing", ["nowhere.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, missing):
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / missing)


def test_a_byte_order_mark_is_accepted_and_given_back(tmp_path):
    """Windows tools write one; it belongs to the first line only."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line() + line())
    assert [record.raw for record in read(path)] == [b"\xef\xbb\xbf" + line(), line()]
    path.write_bytes(line() + b"\xef\xbb\xbf" + line())
    with pytest.raises(InputError, match=r"^d\.jsonl:2: not valid JSON"):
        read(path)


def test_line_separators_inside_strings_end_no_line(tmp_path):
    """str.splitlines would cut here; JSON allows all of these inside a string."""
    odd = line(prompt="a\u2028b\u2029c\x85d")
    path = tmp_path / "d.jsonl"
    path.write_bytes(odd + line())
    first, second = read(path)
    assert (first.prompt, first.raw) == ("a\u2028b\u2029c\x85d", odd)
    assert second.line == 2


def test_carriage_returns_and_a_missing_last_newline_are_kept(tmp_path):
    path = tmp_path / "d.jsonl"
    raw = [line()[:-1] + b"\r\n", line(id="b")[:-1]]
    path.write_bytes(b"".join(raw))
    assert [record.raw for record in read(path)] == raw


def test_fields_may_have_other_names():
    raw = line({"frage": "a", "gut": "b", "schlecht": "c", "sprache": "de", "nr": 4})
    record = parse(raw, prompt_field="frage", chosen_field="gut", rejected_field="schlecht",
                   language_field="sprache", id_field="nr")
    assert (record.prompt, record.chosen, record.rejected, record.group, record.id) == (
        "a", "b", "c", "de", 4)


def test_a_language_field_that_was_named_is_the_only_one_looked_at():
    with pytest.raises(InputError, match="no field 'sprache'"):
        parse(line(), language_field="sprache")


def test_lang_stands_in_for_language_and_white_space_makes_no_group():
    assert parse(line(language=None, lang=" th ")).group == "th"
    assert parse(line(lang="th")).group == "de"


def test_one_language_for_the_whole_file_wins_over_the_fields():
    assert parse(line(language=None), language="sw").group == "sw"
    assert parse(line(), language="sw").group == "sw"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
filled = texts.filter(str.strip)
messages = st.lists(
    st.fixed_dictionaries({"role": filled, "content": filled}, optional={"name": texts}),
    min_size=1, max_size=3,
)
values = st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=2)


def records_of(answers):
    return st.fixed_dictionaries(
        {"prompt": answers, "chosen": answers, "rejected": answers, "language": filled},
        optional={"id": values, "extra": values},
    ).filter(lambda record: record["chosen"] != record["rejected"])


@given(
    records=st.lists(records_of(filled), min_size=1, max_size=4)
    | st.lists(records_of(messages), min_size=1, max_size=4),
    ascii_only=st.booleans(),
    end=st.sampled_from([b"\n", b"\r\n", b" \n"]),
    last=st.booleans(),
)
def test_any_valid_lines_survive_byte_for_byte(records, ascii_only, end, last, tmp_path_factory):
    """What is kept is what came in, whatever its spelling of JSON."""
    lines = [json.dumps(record, ensure_ascii=ascii_only).encode() + end for record in records]
    if not last:
        lines[-1] = lines[-1].rstrip()
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"".join(lines))
    found = read(path)
    assert [record.raw for record in found] == lines
    written = io.BytesIO()
    writer = LineWriter(written)
    for record, source in zip(found, records, strict=True):
        assert record.prompt == source["prompt"]
        assert record.group == canonical(source["language"])
        assert len(record.digest()) == 16
        writer.write(record.raw)
    assert written.getvalue() == path.read_bytes()


fragments = st.sampled_from([
    b'{"prompt":', b'"chosen":', b'"rejected":', b'"lang":', b'"a"', b'"b"', b"[", b"]", b"{", b"}",
    b",", b"\\ud800", b'"', b"NaN", b"1e999", b"-", b"null", b'[{"role":"u","content":"c"}]', b"\0",
    b"\xef\xbb\xbf", b"\xff", b"\n", b"\r", line()[:-1], line(TALK)[:-1],
])


@given(
    data=st.binary(max_size=60) | st.lists(fragments, max_size=12).map(b"".join),
    settings=st.builds(RecordSettings, language=st.none() | st.just("de")),
)
@example(data=b'{"id": "\\ud800",' + line(id=None)[1:], settings=RecordSettings())
@example(data=b"[" * 100_000, settings=RecordSettings())
def test_any_bytes_give_records_or_a_located_error(data, settings, tmp_path_factory):
    """A data file may hold anything; nothing but the two may come out."""
    path = tmp_path_factory.getbasetemp() / "noise.jsonl"
    path.write_bytes(data)
    for record in read_records([DataFile("noise", path)], settings):
        assert 1 <= record.line <= data.count(b"\n") + 1
        if isinstance(record, Record):
            record.digest()
        else:
            assert record.error.message.startswith(f"noise:{record.line}: ")


def nested(depth: int) -> bytes:
    return talk("prompt", {"role": "user", "content": "a", "x": "DEEP"}).replace(
        b'"DEEP"', b"[" * depth + b"]" * depth
    )


def test_nesting_that_is_read_can_be_written_again():
    """The digest writes JSON deeper in the stack than it was read."""
    refused = []
    for depth in range(20, 1200, 20):
        try:
            assert len(parse(nested(depth)).digest()) == 16
        except InputError as error:
            assert "nested too deeply" in error.message
            refused.append(depth)
    assert refused
    assert min(refused) > 60  # tool calls nest too


def test_the_digest_names_the_pair_not_its_spelling_nor_its_group():
    """A reformatted file is the same data, so its store still fits."""
    assert parse(line(language="Deutsch?")).digest() == parse(line()).digest()
    spelt = json.dumps(dict(reversed(GOOD.items())), indent=None, separators=(" , ", " : "))
    assert parse(spelt.encode()).digest() == parse(line()).digest()
    assert parse(line(extra="not read")).digest() == parse(line()).digest()
    turned = [dict(reversed(message.items())) for message in TALK["chosen"]]
    assert parse(line(TALK, chosen=turned)).digest() == parse(line(TALK)).digest()


def test_reference_log_probabilities_are_part_of_the_record():
    """Other numbers are other data: the margins, and so the weights, come from them."""
    given = line(ref_chosen_logps=-3, ref_rejected_logps=-4.5)
    assert parse(given).ref_logp == (-3.0, -4.5)
    assert parse(line()).ref_logp is None
    assert parse(line(ref_chosen_logps=None)).digest() == parse(line()).digest()
    other = line(ref_chosen_logps=-3, ref_rejected_logps=-4.25)
    assert len({parse(raw).digest() for raw in (line(), given, other)}) == 3


@pytest.mark.parametrize("part", ["id", "prompt", "chosen", "rejected"])
def test_the_digest_depends_on_every_part_of_the_pair(part):
    assert parse(line(**{part: "anders"})).digest() != parse(line()).digest()


def test_the_digest_keeps_parts_apart():
    """The same characters cut elsewhere are another pair."""
    moved = line(prompt="Frage", chosen="? Ja.", rejected="? Nein.")
    assert parse(moved).digest() != parse(line()).digest()


def test_written_lines_stay_apart_where_the_last_one_had_no_newline():
    """The input's last line may be written before others (kept, then dropped, then kept)."""
    written = io.BytesIO()
    writer = LineWriter(written)
    for raw in (b"a\r\n", b"b", b"c\n", b"d"):
        writer.write(raw)
    assert written.getvalue() == b"a\r\nb\nc\nd"


def test_what_the_template_gets_besides_is_read_and_part_of_the_digest():
    pair = {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
        "language": "en",
    }
    more = {"tools": json.dumps([{"name": "f"}]), "chat_template_kwargs": {"thinking": False}}

    def read(fields):
        return parse_line(json.dumps(fields).encode())

    assert read(pair).template == {}
    record = read(pair | more)
    assert record.template == {"tools": [{"name": "f"}], "thinking": False}
    assert record.digest() != read(pair).digest()
    for name, bad in (("tools", "x"), ("tools", 3), ("chat_template_kwargs", [])):
        with pytest.raises(InputError, match=rf":1: '{name}'"):
            read(pair | {name: bad})


def test_what_can_only_just_be_read_is_refused_and_not_a_crash(tmp_path):
    path = tmp_path / "d.jsonl"
    for depth in range(900, 1000):
        nested = b"[" * depth + b"]" * depth
        path.write_bytes(b'{"prompt": "p", "chosen": "a", "rejected": "b", "language": '
                         + nested + b"}\n")
        found, = read_records([DataFile("d.jsonl", path)], RecordSettings())
        assert isinstance(found, Rejected) and found.error.code in ("no-language", "too-deep")
