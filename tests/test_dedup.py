"""Near-duplicates against comparing every pair with every one kept before."""

import io
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from synthetic import memory_store, normalised

from congrad_cli.codec import Codec
from congrad_cli.consensus import run as consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter import distinct, duplicates
from congrad_cli.filter import run as filtering
from congrad_cli.filter.distinct import decide_distinct
from congrad_cli.filter.duplicates import NearDuplicates, decoded_cosine
from congrad_cli.filter.policy import check_rule, decide
from congrad_cli.progress import Silent
from congrad_cli.settings import STORE_DTYPES, ConsensusSettings, FilterSettings

NAN = math.nan
SOME_FILE = __file__  # only whether there is one matters


class Alike:
    """A search that knows which pairs are alike: those of one ``kind``."""

    def __init__(self, kind):
        self.kind, self.kept = np.array(kind), []

    def compare(self, places):
        kind = self.kind[places]
        self.batch = places
        earlier = [next((k for k in self.kept if self.kind[k] == one), -1) for one in kind]
        return np.array(earlier), kind[:, None] == kind

    def keep(self, chosen):
        self.kept += self.batch[chosen].tolist()


pairs = st.lists(st.tuples(
    st.sampled_from([-0.5, -0.1, 0.0, 0.1, 0.25]) | st.just(NAN), st.integers(0, 2),
    st.sampled_from([0.0, 0.2]), st.integers(0, 5)), max_size=20)
rules = st.sampled_from([
    {}, {"min_score": 0.1}, {"keep": 3}, {"keep_ratio": 0.4}, {"keep": 1, "per_group": True},
    {"keep_ratio": 0.5, "per_group": True}, {"keep": 0}, {"quotas": SOME_FILE},
    {"confidence": 1.0}, {"keep": 50},
])  # fmt: skip


def columns_of(found):
    score, group, error, kind = (np.array([one[part] for one in found]) for part in range(4))
    return score.astype(float), group.astype(np.int32), error.astype(float), kind


def one_by_one(found, settings, quotas):
    """Who is kept, and beside whom others are not: the best pair first, each asked for itself."""
    score, group, error, kind = columns_of(found)
    least, room = settings.min_score or 0.0, {}
    for part in range(3):
        size = int((group == part).sum()) if settings.per_group else len(found)
        room[part] = (settings.keep if settings.keep is not None
                      else math.ceil((settings.keep_ratio or 0) * size - 1e-9))
        if settings.quotas:
            room[part] = quotas[part]
    by_number = (settings.keep, settings.keep_ratio, settings.quotas) != (None, None, None)
    kept, twin, used = [], {}, {0: 0, 1: 0, 2: 0}
    for place in sorted(range(len(found)), key=lambda place: (-score[place], place)):
        if score[place] != score[place]:
            continue
        part = int(group[place])
        among = [one for one in kept if group[one] == part]
        taken = used[part] if settings.per_group or settings.quotas else sum(used.values())
        wanted = (taken < room[part] if by_number else
                  score[place] >= least - (settings.confidence or 0) * error[place])
        if not wanted and len(among) >= (settings.keep_at_least or 0):
            continue
        same = [one for one in kept if kind[one] == kind[place]]
        if same:
            twin[place] = same[0]
        else:
            kept.append(place)
            used[part] += bool(wanted)
    return set(kept), twin


@given(found=pairs, rule=rules, least=st.none() | st.integers(1, 3), batch=st.sampled_from([2, 99]))
def test_the_best_that_is_left_takes_the_place_of_a_repeated_pair(found, rule, least, batch):
    settings = FilterSettings(keep_at_least=least, dedup=0.9, **rule)
    quotas = np.array([2, 0, 3])
    score, group, error, kind = columns_of(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct, "BATCH", batch)
        result = decide_distinct(score, group, settings, error,
                                 quotas if settings.quotas else None, Alike(kind))
    kept, twin = one_by_one(found, settings, quotas)
    assert set(np.flatnonzero(result.keep).tolist()) == kept
    assert result.duplicate_of == twin
    for place, reason in enumerate(result.reason):
        assert (reason == "kept") == (place in kept)
        assert (reason == "near-duplicate") == (place in twin)
        assert (reason == "no-direction") == (score[place] != score[place])


@given(found=pairs, rule=rules, least=st.none() | st.integers(1, 3))
def test_where_nothing_repeats_the_rule_alone_decides(found, rule, least):
    """The same pairs, reasons, flags and thresholds."""
    settings = FilterSettings(keep_at_least=least, **rule)
    score, group, error, _ = columns_of(found)
    quotas = np.array([2, 0, 3]) if settings.quotas else None
    plain = decide(score, group, settings, error, quotas)
    result = decide_distinct(score, group, settings, error, quotas, Alike(range(len(found))))
    assert result.keep.tolist() == plain.keep.tolist()
    assert (result.reason, result.flag) == (plain.reason, plain.flag)
    if least is None:
        np.testing.assert_array_equal(result.threshold, plain.threshold)


# --- which rows are alike --------------------------------------------------------------------


def families(count, dim, seed, spread):
    """Rows in families: near one another by ``spread``, some of them turned round."""
    rng = np.random.default_rng(seed)
    parent = rng.standard_normal((10, dim))[rng.integers(0, 10, count)]
    noise = rng.standard_normal((count, dim)) * rng.choice([0, *spread], count)[:, None]
    return normalised((parent + noise) * rng.choice([1, 1, -1], count)[:, None])


@given(seed=st.integers(0, 10**6), store_dtype=st.sampled_from(STORE_DTYPES),
       cosine=st.sampled_from([0.3, 0.9, 0.98, 1.0]), small=st.booleans())
def test_the_search_finds_what_comparing_everything_finds(seed, store_dtype, cosine, small):
    """Whatever is shortened, cut into slabs or searched in batches."""
    rows, weight = families(30, 192, seed, (0.05, 0.2, 0.6)), np.ones(30)
    weight[seed % 30 :: 4] = -1
    store = memory_store(rows, np.ones(30), ["de"] * 30, width=4, store_dtype=store_dtype)
    unit = normalised(np.concatenate([block.direction for block in store.blocks()]))
    table = (unit * weight[:, None]) @ (unit * weight[:, None]).T
    least = decoded_cosine(cosine, store_dtype) - duplicates.ROUNDING
    assume(np.abs(table - least).min() > 2e-7)
    order = np.random.default_rng(seed).permutation(30)
    kept, expected = [], []
    for place in order:
        twins = [one for one in kept if table[one, place] >= least]
        expected.append(twins[0] if twins else -1)
        kept += [] if twins else [place]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(duplicates, "SLAB_ROWS", 4)
            patch.setattr(duplicates, "FEWEST", 1)
            patch.setattr(duplicates, "COLUMNS", 50)
            patch.setattr(duplicates, "BATCH", 3)
        search = NearDuplicates(store, weight, cosine)
        for begin in range(0, 30, 7):
            batch = order[begin : begin + 7]
            earlier, among = search.compare(batch)
            chosen = np.zeros(len(batch), bool)
            for at in range(len(batch)):
                same = np.flatnonzero(among[at, :at] & chosen[:at])
                twin = earlier[at] if earlier[at] >= 0 else batch[same[0]] if len(same) else -1
                found.append(int(twin))
                chosen[at] = twin < 0
            search.keep(chosen)
        search.close()
    assert found == [int(one) for one in expected]


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
@pytest.mark.parametrize("cosine", [0.7, 0.9, 0.98, 0.995])
def test_coded_rows_are_as_alike_as_expected(store_dtype, cosine):
    """Rows of a known cosine, coded, against what the threshold is lowered to."""
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 40, 8192))
    one = normalised(one)
    other = normalised(other - np.vecdot(other, one)[:, None] * one)
    codec = Codec(store_dtype, 8192, 4)
    coded = [normalised(codec.decode(codec.encode(rows.astype(np.float32))))
             for rows in (one, cosine * one + math.sqrt(1 - cosine**2) * other)]
    found = np.vecdot(*coded)
    assert found.mean() == pytest.approx(decoded_cosine(cosine, store_dtype), abs=0.003)
    assert decoded_cosine(1.0, store_dtype) == pytest.approx(1, abs=1e-12)


def test_the_threshold_of_signs_is_the_arcsine_law():
    for cosine in (0.1, 0.5, 0.98):
        assert decoded_cosine(cosine, "1bit") == pytest.approx(2 / math.pi * math.asin(cosine))


# --- the command -----------------------------------------------------------------------------


@pytest.mark.parametrize("store_dtype", ["float16", "int4", "1bit"])
def test_so_many_distinct_pairs_are_kept(make_store, tmp_path, store_dtype):
    """Thirty pairs, each gradient twice: identical rows are identical bytes under every code."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((30, 256)) + 0.3 * rng.standard_normal(256)
    path = make_store(np.tile(rows, (2, 1)), groups=["de", "en"] * 30, width=4,
                      store_dtype=store_dtype)
    consensus.run(path, ConsensusSettings(), Silent())
    scores = tmp_path / "scores.jsonl"
    settings = FilterSettings(keep=20, dedup=1.0, scores=scores, annotate=True,
                              dropped=tmp_path / "dropped")
    summary = filtering.run(path, settings, io.BytesIO(), Silent())
    entries = [json.loads(line) for line in scores.read_bytes().splitlines()]
    kept = {entry["row"] % 30 for entry in entries if entry["keep"]}
    assert sum(summary.kept) == len(kept) == 20
    repeated = [entry for entry in entries if entry["reason"] == "near-duplicate"]
    assert summary.reasons["near-duplicate"] == len(repeated) > 5
    for entry in repeated:
        twin = entries[entry["duplicate_of"]]
        assert twin["keep"] and twin["row"] % 30 == entry["row"] % 30
        assert (twin["score"], -twin["row"]) > (entry["score"], -entry["row"])
    dropped = [json.loads(line)["congrad"] for line in (tmp_path / "dropped").open()]
    assert sum("duplicate_of" in note for note in dropped) == len(repeated)


@pytest.mark.parametrize("cosine", [0.0, -0.5, 1.01, NAN])
def test_a_threshold_without_sense_is_refused(cosine):
    with pytest.raises(UsageError, match="--dedup"):
        check_rule(FilterSettings(dedup=cosine))
