"""What may be kept besides the plain rule, against decisions made pair by pair."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import random_rows

from congrad_cli.consensus import run as consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter import policy
from congrad_cli.filter import run as filtering
from congrad_cli.filter.policy import check_rule, decide
from congrad_cli.filter.quotas import group_quotas, read_quotas
from congrad_cli.progress import Silent
from congrad_cli.settings import ConsensusSettings, FilterSettings

NAN = math.nan
SOME_FILE = __file__  # decide asks only whether there is one

values = st.sampled_from([-0.5, -0.1, 0.0, 0.1, 0.25]) | st.just(NAN)
errors = st.sampled_from([0.0, 0.1, 0.2])
pairs = st.lists(st.tuples(values, st.integers(0, 3), errors), max_size=25)
rules = st.sampled_from([
    {}, {"min_score": 0.1}, {"keep": 3}, {"keep_ratio": 0.4}, {"keep": 1, "per_group": True},
    {"keep_ratio": 0.5, "per_group": True}, {"keep": 0},
])  # fmt: skip


def decided(found, counts=None, **rule):
    """What is decided about (score, group, error) triples."""
    score, group, error = (np.array([one[part] for one in found]) for part in range(3))
    return decide(score.astype(float), group.astype(np.int32), FilterSettings(**rule),
                  error.astype(float), counts)


def ranked(found, group=None):
    """Rows with a score, of one group or all, by repeatedly taking the best that is left."""
    left = [row for row, one in enumerate(found)
            if one[0] == one[0] and group in (None, one[1])]
    order = []
    while left:
        best = max(left, key=lambda row: (found[row][0], -row))
        order.append(best)
        left.remove(best)
    return order


@given(found=pairs, rule=rules, least=st.integers(1, 5))
def test_every_group_keeps_at_least_its_best(found, rule, least):
    """What the rule keeps stays kept; what is added is each group's best, and says so."""
    plain, more = decided(found, **rule), decided(found, keep_at_least=least, **rule)
    wanted = {row for group in range(4) for row in ranked(found, group)[:least]}
    by_rule = set(np.flatnonzero(plain.keep).tolist())
    assert set(np.flatnonzero(more.keep).tolist()) == by_rule | wanted
    for row in range(len(found)):
        assert (more.flag[row] == "keep-at-least") == (row in wanted - by_rule)
        assert (more.reason[row] == "kept") == bool(more.keep[row])
        if not more.keep[row]:
            assert more.reason[row] == plain.reason[row] != "kept"


@given(found=pairs, counts=st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_quotas_keep_the_best_of_each_group(found, counts):
    result = decided(found, np.array(counts), quotas=SOME_FILE)
    wanted = {row for group in range(4) for row in ranked(found, group)[: counts[group]]}
    assert set(np.flatnonzero(result.keep).tolist()) == wanted
    for row, (value, *_) in enumerate(found):
        assert result.reason[row] == (
            "kept" if row in wanted else "no-direction" if value != value else "beyond-quota")


@given(found=pairs, least=st.sampled_from([None, -0.3, 0.1]), many=st.sampled_from([0.5, 1.0, 3.0]))
def test_confidence_drops_only_what_is_clearly_below(found, least, many):
    result = decided(found, min_score=least, confidence=many)
    bar = least or 0.0
    for row, (value, _, error) in enumerate(found):
        kept = value >= bar - many * error
        assert result.keep[row] == kept
        assert (result.flag[row] == "uncertain") == (kept and value < bar)


def test_a_pair_without_an_error_is_judged_by_its_score():
    result = decided([(-0.1, 0, NAN), (0.1, 0, NAN), (-0.1, 0, 0.2)], confidence=1.0)
    assert result.keep.tolist() == [False, True, True]


def test_a_groups_best_pair_is_kept_beside_a_worse_one_that_its_error_saves():
    found = [(-0.3, 0, 0.4), (-0.2, 0, 0.1), (-0.9, 1, 0.0)]
    result = decided(found, confidence=1.0, keep_at_least=1)
    assert result.flag == ["uncertain", "keep-at-least", "keep-at-least"]


# --- the file of quotas ----------------------------------------------------------------------


def quotas_of(tmp_path, text, names=("de", "en", "sw"), there=(10, 7, 0)):
    file = tmp_path / "quotas.json"
    file.write_text(text)
    return group_quotas(read_quotas(file), names, np.array(there)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"de": 4, "en": 0.5, "sw": 3}', [4, 4, 0]),  # a started pair is a whole one
        ('{"*": 2}', [2, 2, 0]),
        ('{"*": 0.1, "en": 0}', [1, 0, 0]),
        ('{"de": 100000000000000000000000, "*": 0.0}', [10, 0, 0]),
        ('{"de": 1, "en": 1, "sw": 1, "*": 5}', [1, 1, 0]),
    ],
)
def test_quotas_are_numbers_or_shares(tmp_path, text, expected):
    assert quotas_of(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"fr": 3, "it": 2, "*": 1}', 'groups that are not there: "fr", "it"'),
        ('{"de": 3}', 'nothing of these groups: "en", "sw"'),
        ('{"de": 1.0, "*": 1}', 'quota of "de" is neither a number of pairs nor a share'),
        ('{"*": 2.5}', "neither a number"),
        ('{"*": -1}', "neither a number"),
        ('{"*": true}', "neither a number"),
        ('{"*": "3"}', "neither a number"),
        ('{"*": NaN}', "NaN is not JSON"),
        ('{"*": 1, "*": 2}', "stands twice"),
        ("[3]", "not an object"),
        ("{", "not valid JSON"),
    ],
)
def test_quotas_without_sense_are_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        quotas_of(tmp_path, text)


def test_many_unknown_groups_are_not_all_named(tmp_path):
    text = json.dumps({f"g{number}": 1 for number in range(30)})
    with pytest.raises(UsageError, match=r'"g7" and 22 more\.'):
        quotas_of(tmp_path, text)


# --- what makes no sense ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"quotas": SOME_FILE, "keep": 3}, "--keep and --quotas are two rules"),
        ({"quotas": SOME_FILE, "min_score": 0.1}, "--min-score and --quotas are two rules"),
        ({"quotas": SOME_FILE, "per_group": True}, "--per-group changes nothing"),
        ({"keep_at_least": 0}, "--keep-at-least 0"),
        ({"confidence": 1.0, "keep": 3}, "--confidence speaks of a least score"),
        ({"confidence": 1.0, "quotas": SOME_FILE}, "--confidence speaks of a least score"),
        ({"confidence": 0.0}, "--confidence 0.0 is no number above 0"),
        ({"confidence": NAN}, "--confidence nan is no number above 0"),
        ({"confidence": math.inf}, "--confidence inf is no number above 0"),
    ],
)
def test_combinations_without_sense_are_refused(rule, message):
    with pytest.raises(UsageError, match=message):
        check_rule(FilterSettings(**rule))


@pytest.fixture
def store(make_store):
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((40, 64)) + 0.2 * rng.standard_normal(64)
    path = make_store(rows, groups=["de", "en"] * 20, width=4)
    consensus.run(path, ConsensusSettings(), Silent())
    return path


def test_confidence_needs_errors(make_store):
    path = make_store(random_rows(4, 8))
    consensus.run(path, ConsensusSettings(), Silent())
    with pytest.raises(UsageError, match="--confidence needs the scores' errors"):
        filtering.run(path, FilterSettings(confidence=1.0), io.BytesIO(), Silent())


def test_the_score_file_names_what_was_uncertain(store, tmp_path):
    scores = tmp_path / "scores"
    settings = FilterSettings(confidence=1.0, min_score=0.1, scores=scores)
    summary = filtering.run(store, settings, io.BytesIO(), Silent())
    entries = [json.loads(line) for line in scores.read_bytes().splitlines()]
    flagged = [entry for entry in entries if entry.get("flag") == "uncertain"]
    assert 0 < len(flagged) < sum(summary.kept) < 40
    assert all(entry["score"] < 0.1 <= entry["score"] + entry["error"] for entry in flagged)
    assert all(entry["score"] + entry["error"] < 0.1 for entry in entries if not entry["keep"])


def test_the_command_takes_all_of_them(forked_congrad, store, tmp_path):
    quotas = tmp_path / "quotas.json"
    quotas.write_text('{"de": 3, "*": 0.25}')
    done = forked_congrad("filter", store, "--quotas", quotas, "--keep-at-least", "4", "-q")
    assert done.returncode == 0, done.stderr
    languages = [json.loads(line)["lang"] for line in done.stdout.splitlines()]
    assert sorted(languages) == ["de"] * 4 + ["en"] * 5
    quotas.write_text('{"fr": 3, "*": 1}')
    done = forked_congrad("filter", store, "--quotas", quotas)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b'that are not there: "fr"' in done.stderr
    done = forked_congrad("filter", store, "--confidence", "2", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") > 20


def test_every_reason_and_flag_is_in_the_manual():
    """They are read by scripts, so they are listed."""
    manual = (Path(__file__).parent.parent / "docs" / "commands.md").read_text()
    names = [value for name, value in vars(policy).items()
             if name.isupper() and isinstance(value, str)]
    assert "beyond-quota" in names
    assert "keep-at-least" in names
    assert all(f"`{name}`" in manual for name in names if name != "kept")
