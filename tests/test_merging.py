"""``consensus --merge-groups``: groups that agree become one, by a rule that can be checked."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import normalised

from congrad_cli.consensus.merging import SHOWN, merge_alike, merged_names
from congrad_cli.consensus.run import run
from congrad_cli.direction import read_consensus
from congrad_cli.errors import UsageError
from congrad_cli.progress import Silent
from congrad_cli.settings import ConsensusSettings
from congrad_cli.store import GradientStore

LETTERS = "abcdefgh"


@st.composite
def cosines(draw, distinct=False):
    """A symmetric table of cosines; few values, so that equal ones come up, unless ``distinct``."""
    count = draw(st.integers(1, 8))
    among = list(combinations(range(count), 2))
    values = (np.random.default_rng(draw(st.integers(0, 2**32))).permutation(len(among)) / 30
              if distinct else
              draw(st.lists(st.integers(-2, 4), min_size=len(among), max_size=len(among))))
    table = np.eye(count)
    for (one, other), value in zip(among, values, strict=True):
        table[one, other] = table[other, one] = value / (1 if distinct else 4)
    return table


def by_hand(table, least):
    """Complete linkage, every set looked at again in every step."""
    sets = [{one} for one in range(len(table))]
    while True:
        joined = [(min(table[a, b] for a in one for b in other), one, other)
                  for one, other in combinations(sets, 2)]
        value, one, other = max(joined, key=lambda found: found[0], default=(-1, set(), set()))
        if value < least:
            return {frozenset(group) for group in sets}
        sets = [group for group in sets if group not in (one, other)] + [one | other]


def merged(table, least, names=LETTERS, allowed=None):
    count = len(table)
    allowed = np.ones(count, bool) if allowed is None else np.array(allowed)
    return merge_alike(list(names)[:count], table, allowed, least)


@given(table=cosines(distinct=True), least=st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_sets_are_those_of_complete_linkage_by_hand(table, least):
    found = merged(table, least)
    assert {frozenset(group) for group in found} == by_hand(table, least)


@given(table=cosines(), least=st.sampled_from([0.25, 0.5, 1.0]))
def test_every_two_groups_of_a_set_agree_and_no_two_sets_could_be_one(table, least):
    found = merged(table, least)
    assert sorted(one for group in found for one in group) == list(range(len(table)))
    for group in found:
        assert all(table[a, b] >= least for a, b in combinations(group, 2))
    for one, other in combinations(found, 2):
        assert min(table[a, b] for a in one for b in other) < least


@given(table=cosines(), data=st.data())
def test_the_order_of_the_groups_changes_nothing(table, data):
    """Equal cosines are decided by the groups' names."""
    order = data.draw(st.permutations(range(len(table))))
    moved = merged(table[np.ix_(order, order)], 0.25, [LETTERS[one] for one in order])
    assert ({frozenset(LETTERS[order[one]] for one in group) for group in moved}
            == {frozenset(LETTERS[one] for one in group) for group in merged(table, 0.25)})


@given(table=cosines(), data=st.data())
def test_groups_that_are_not_allowed_stay_alone(table, data):
    allowed = data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table)))
    found = merged(table, 0.25, allowed=allowed)
    inside = np.flatnonzero(allowed)
    alone = {frozenset([one]) for one in range(len(table)) if not allowed[one]}
    rest = merged(table[np.ix_(inside, inside)], 0.25, [LETTERS[one] for one in inside])
    assert {frozenset(group) for group in found} == alone | {
        frozenset(inside[group].tolist()) for group in rest}


@pytest.mark.parametrize(("names", "sets", "expected"), [
    (["nl", "de", "th"], [[1, 0], [2]], ["de+nl", "th"]),
    (["a" * 30, "b" * 30], [[0, 1]], ["a" * 30 + "+" + "b" * 30]),
    ([f"cluster-{n:03d}" for n in range(9)], [list(range(9))],
     ["cluster-000+cluster-001+cluster-002+6 more"]),
    (["a", "b", "a+b"], [[0, 1], [2]], ["a+b'", "a+b"]),
])
def test_the_names_of_merged_groups(names, sets, expected):
    assert merged_names(names, sets) == expected


@given(names=st.lists(st.text("ab+", min_size=1, max_size=SHOWN), min_size=2, max_size=12,
                      unique=True), data=st.data())
def test_no_two_groups_have_one_name(names, data):
    cut = data.draw(st.integers(1, len(names)))
    sets = [list(range(cut)), *([one] for one in range(cut, len(names)))]
    found = merged_names(names, sets)
    assert len(set(found)) == len(sets)


def four_groups(count=80, dim=64):
    """Rows of four groups: de and nl alike, th and vi alike; sizes differ."""
    rng = np.random.default_rng(0)
    groups = rng.choice(["de", "nl", "th", "vi"], count, p=[0.4, 0.3, 0.2, 0.1])
    base = rng.standard_normal((2, dim))
    family = np.isin(groups, ["th", "vi"]).astype(int)
    return normalised(base[family] + 0.5 * rng.standard_normal((count, dim))), groups


@pytest.mark.parametrize("average", ["mean", "ema"])
def test_merged_groups_are_averaged_over_all_their_pairs_again(make_store, average):
    """As if the data had named them so."""
    rows, groups = four_groups()
    norms = np.random.default_rng(1).lognormal(size=80)
    path = make_store(rows, norms, list(groups))
    options = ConsensusSettings(merge_groups=0.8, average=average, ema_batch=2)
    summary = run(path, options, Silent())
    assert summary.names == ["de+nl", "th+vi"]
    assert summary.grouping.merged == {"de+nl": ["de", "nl"], "th+vi": ["th", "vi"]}

    named = ["de+nl" if one in ("de", "nl") else "th+vi" for one in groups]
    same = make_store(rows, norms, named)
    run(same, ConsensusSettings(average=average, ema_batch=2), Silent())
    one, other = (read_consensus(store, "default", GradientStore.open(store))
                  for store in (path, same))
    assert one.names == other.names
    np.testing.assert_array_equal(one.members.label, other.members.label)
    np.testing.assert_array_equal(one.members.share, other.members.share)
    for name in ("direction", "gradients", "coefficients"):
        np.testing.assert_allclose(
            getattr(one.consensus, name), getattr(other.consensus, name), rtol=1e-6, atol=1e-9)


def test_groups_below_min_pairs_are_not_merged_away(make_store):
    """They could otherwise take part under another name."""
    rows, groups = four_groups()
    few = int((groups == "vi").sum()) + 1
    path = make_store(rows, groups=list(groups))
    summary = run(path, ConsensusSettings(merge_groups=0.8, min_pairs=few), Silent())
    assert summary.names == ["de+nl", "th", "vi"]
    assert list(summary.left_out) == ["vi"]


def test_nothing_is_merged_that_does_not_agree(make_store):
    rows, groups = four_groups()
    path = make_store(rows, groups=list(groups))
    summary = run(path, ConsensusSettings(merge_groups=1.0), Silent())
    assert summary.names == ["de", "nl", "th", "vi"]
    assert summary.grouping.to_json() == {}


def test_weights_name_the_merged_groups(make_store):
    rows, groups = four_groups()
    path = make_store(rows, groups=list(groups))
    options = {"merge_groups": 0.8, "method": "mean"}
    weights = json.dumps({"de+nl": 1, "th+vi": 0})
    summary = run(path, ConsensusSettings(weights=weights, **options), Silent())
    assert list(summary.left_out) == ["th+vi"]
    with pytest.raises(UsageError, match="'de', which is no group") as caught:
        run(path, ConsensusSettings(weights='{"de": 1}', **options), Silent())
    assert "de+nl" in " ".join(caught.value.hints)


def test_clusters_can_be_merged_as_well(make_store):
    """Too many clusters of two families of rows go back to two."""
    rows, groups = four_groups()
    path = make_store(rows, groups=list(groups))
    summary = run(path, ConsensusSettings(groups="cluster:6", merge_groups=0.5), Silent())
    assert len(summary.names) == 2
    found = read_consensus(path, "default", GradientStore.open(path)).members.label
    family = np.isin(groups, ["th", "vi"])
    assert len(np.unique(np.stack([found, family]), axis=1).T) == 2
    assert sum(map(len, summary.grouping.merged.values())) == 6


def test_the_command_says_what_it_merged_and_filter_goes_by_it(congrad, make_store, tmp_path):
    rows, groups = four_groups()
    path = make_store(rows, groups=list(groups))
    done = congrad("consensus", path, "--merge-groups", "0.8")
    assert done.returncode == 0, done.stderr.decode()
    assert b"merged 2 groups into de+nl: de, nl." in done.stderr
    quotas = tmp_path / "quotas.json"
    quotas.write_text('{"de+nl": 2, "th+vi": 1}')
    kept = congrad("filter", path, "--quotas", quotas)
    assert kept.returncode == 0, kept.stderr.decode()
    assert kept.stdout.count(b"\n") == 3
    assert congrad("consensus", path, "--merge-groups", "1.5").returncode == 2
