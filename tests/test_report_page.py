"""The HTML of a report: whole, harmless, small; and the pictures in it say what is true."""

import re
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from congrad_cli.report.content import (
    Curve,
    Example,
    GroupFacts,
    GroupScores,
    LeftOut,
    Report,
)
from congrad_cli.report.geometry import chart, heat_map, histograms, spots
from congrad_cli.report.order import cluster_order, plane
from congrad_cli.report.page import page

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>\'&{{ 7*7 }}\u202e'


def report_of(languages=3, pairs=20, text="a text"):
    rng = np.random.default_rng(0)
    names = [f"l{number:02d}" for number in range(languages)]
    vectors = rng.standard_normal((languages, 40))
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    cosine = vectors @ vectors.T
    score = rng.normal(0.02, 0.1, (languages, pairs))
    example = Example("l00", 0.2, 0.01, True, "kept", "a.jsonl:3", text, text, text)
    points, explained = plane(np.ones((languages + 1, languages + 1)) * 0.1 + np.eye(languages + 1))
    return Report(
        title="pairs", made="today", verdict=["kept most", "few conflicts"], good=True,
        groups=[GroupFacts(name, pairs, pairs // 2, 1.0, 0.3, 0.2, 1 / languages, 1.0, 0.01,
                           (0.1, 0.4)) for name in names],
        conflict=cosine, after=cosine * 0.5, unresolved=np.abs(cosine) < 0.05,
        points=points, explained=explained,
        scores=[GroupScores(name, own, own > 0, 0.0)
                for name, own in zip(names, score, strict=True)],
        score_name="Cosine", examples={"Strongest kept": [example] * 5, "Strongest dropped": []},
        reasons={"below-min-score": 7},
        left_out=[LeftOut("a.jsonl:9", "empty", text)], left_out_counts={"empty": 1},
        commands=["congrad sketch a.jsonl"], facts=[("model", "tiny")],
        curves=[Curve("accuracy", {"l00": [(1, 0.5), (2, 0.6)], "all": [(1, 0.5), (2, 0.7)]},
                      frozenset({"l00"}))],
        rounds=[{"round": "1", "pairs": "10"}],
    )  # fmt: skip


class Elements(HTMLParser):
    """Counts a page's elements, collects its attributes, and sees that what opens also closes."""

    VOID = ("meta", "br", "img")

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], [], []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def made_hostile(value):
    """Every text in the value, keys too, replaced by :data:`HOSTILE`."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {HOSTILE + str(n): made_hostile(one) for n, one in enumerate(value.values())}
    if isinstance(value, list | tuple | frozenset):
        return type(value)(made_hostile(one) for one in value)
    if is_dataclass(value):
        return replace(value, **{item.name: made_hostile(getattr(value, item.name))
                                 for item in fields(value)})
    return value


def test_no_text_becomes_markup():
    plain, hostile = (Elements(page(one).decode()) for one in (
        report_of(), made_hostile(report_of())))
    assert sorted(plain.tags) == sorted(hostile.tags)
    assert "script" not in hostile.tags
    assert "img" not in hostile.tags
    assert {name for name, _ in hostile.attributes} == {name for name, _ in plain.attributes}
    assert any("<script>" in text for text in hostile.text)  # shown, as text
    assert any("{{ 7*7 }}" in text for text in hostile.text)


def test_nothing_is_fetched_and_nothing_runs():
    html = page(report_of()).decode()
    names = {name for name, _ in Elements(html).attributes}
    assert not names & {"src", "href", "srcset", "action", "data", "xlink:href"}
    assert not [name for name in names if name.startswith("on")]
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|https?:", html)


def test_thirty_languages_and_ten_thousand_pairs_are_less_than_a_megabyte():
    assert len(page(report_of(languages=30, pairs=334, text="x" * 1200))) < 1_000_000


def test_every_fact_is_on_the_page():
    text = " ".join(Elements(page(report_of()).decode()).text)
    for wanted in ("kept most", "l02", "below-min-score 7", "a.jsonl:9", "congrad sketch a.jsonl",
                   "Strongest kept", "+0.300", "accuracy", "+0.10 to +0.40"):
        assert wanted in text, wanted
    assert "Strongest dropped" not in text  # there are none


def test_a_report_of_one_group_and_no_examples_is_a_page():
    one = report_of(languages=1, pairs=3)
    bare = replace(one, examples={}, reasons={}, left_out=[], left_out_counts={}, curves=[],
                   rounds=[], points=np.zeros((2, 2)))
    text = " ".join(Elements(page(bare).decode()).text)
    assert "Where groups agree" not in text
    assert "l00" in text


def test_text_that_is_no_unicode_does_not_stop_the_report():
    assert b"\\ud800" in page(report_of(text="broken \ud800 half"))


# --- pictures --------------------------------------------------------------------------------


@given(rows=arrays(np.float64, (6, 4), elements=st.floats(-1, 1)))
def test_the_order_of_groups_holds_each_once(rows):
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)
    assert sorted(cluster_order(unit @ unit.T)) == list(range(6))


def test_groups_that_pull_the_same_way_stand_together():
    family = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    cosine = np.where(family[:, None] == family, 0.8, -0.1) + 0.2 * np.eye(9)
    ordered = family[cluster_order(cosine)].tolist()
    assert len([1 for a, b in pairwise(ordered) if a != b]) == 2


@given(points=arrays(np.float64, (5, 2), elements=st.floats(-1, 1)))
def test_points_of_a_plane_keep_their_distances(points):
    """The Gramian of points in a plane gives them back, but for a turn."""
    found, explained = plane(points @ points.T)
    np.testing.assert_allclose(
        np.linalg.norm(found[:, None] - found, axis=-1),
        np.linalg.norm(points[:, None] - points, axis=-1), atol=1e-6)
    assert explained == pytest.approx(1)


def test_histogram_bars_hold_every_pair():
    score = np.array([-0.5, 0.1, 0.1, 0.4, np.nan])
    (one,) = histograms([GroupScores("de", score, score > 0, 0.05)], width=100, height=10)
    told = [re.match(r".*: (\d+) kept, (\d+) dropped", bar.tip) for bar in one.bars]
    assert sum(int(tip[1]) for tip in told) == 3
    assert sum(int(tip[2]) for tip in told) == 1
    assert one.threshold == pytest.approx(100 * 0.55 / 0.9)
    assert max(bar.kept + bar.dropped for bar in one.bars) == pytest.approx(10)


def test_cells_stand_where_their_groups_do():
    cosine = np.array([[1.0, -0.04], [-0.04, 1.0]])
    found = heat_map(["de", "sw"], cosine, np.array([[False, True], [True, False]]))
    cells = {(cell.x - found.margin, cell.y - found.margin): cell for cell in found.cells}
    assert cells[(0, found.cell)].text == "\u22124"
    assert cells[(0, found.cell)].shade == -2
    assert cells[(0, found.cell)].unresolved
    assert cells[(0, 0)].shade == 10


@given(st.integers(2, 40), st.integers(0, 2**32))
def test_labels_of_the_map_do_not_lie_on_each_other(count, seed):
    points = np.random.default_rng(seed).standard_normal((count + 1, 2)) * 0.01
    found = spots([f"g{number}" for number in range(count)], points)
    boxes = [(spot.label_x if spot.anchor == "start" else spot.label_x - 8 * len(spot.name),
              spot.label_y, 8 * len(spot.name)) for spot in found]
    for place, (x, y, wide) in enumerate(boxes):
        for other_x, other_y, other in boxes[:place]:
            assert not (x < other_x + other and other_x < x + wide and abs(y - other_y) < 15)


def test_a_curve_goes_up_where_its_numbers_do():
    found = chart(Curve("accuracy", {"de": [(1, 0.5), (3, 0.9), (2, 0.7)]}))
    heights = [y for _, y, _ in found.lines[0].ends]
    assert heights == sorted(heights, reverse=True)
    assert found.rounds == [(0.0, 1), (100.0, 2), (200.0, 3)]
