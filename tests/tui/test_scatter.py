"""Marks stand where their values say."""

from __future__ import annotations

import numpy as np

from core.plots.figure import Points, Series
from tui.draw import scatter
from tui.draw.scatter import Dot


def points() -> list[Dot]:
    return [
        Dot(0, "a/1", 0.0, 0.0, False),
        Dot(1, "b/1", 1.0, 10.0, False),
        Dot(0, "a/2", 0.5, 5.0, True),
    ]


def test_low_values_are_at_the_lower_left() -> None:
    rows = [line.plain for line in scatter.draw(points(), 40, 12)]
    body = rows[:-2]
    assert body.index(next(r for r in body if "▲" in r)) == 0
    assert body.index(next(r for r in body if "●" in r)) == len(body) - 1
    middle = next(r for r in body if "○" in r)
    assert body.index(next(r for r in body if "●" in r)) > body.index(middle) > 0
    assert next(r for r in body if "●" in r).index("●") < middle.index("○")
    assert all(len(row) == 40 - 1 or len(row) == 40 for row in rows)


def test_points_in_one_cell_are_dots_in_it_and_bright_if_their_backends_differ() -> None:
    same = [
        Dot(0, "a/1", 1.0, 1.0, False),
        Dot(1, "b/1", 1.001, 1.0, False),
        Dot(0, "a/2", 2.0, 2.0, False),
        Dot(0, "a/3", 1.985, 2.0, False),
    ]
    spans = [span for line in scatter.draw(same, 40, 12) for span in line.spans]
    braille = [
        (text, role) for text, role in spans if len(text) == 1 and "\u2800" < text <= "\u28ff"
    ]
    assert [(bin(ord(text) - 0x2800).count("1"), role) for text, role in braille] == [
        (2, "a"),
        (1, "strong"),
    ]
    assert not any("▲" in text for text, _ in spans)
    chosen = scatter.draw(same, 40, 12, here="b/1")
    assert any(("▲", "key") in line.spans for line in chosen)


def test_one_point_and_no_room() -> None:
    one = [Dot(0, "a/1", 3.0, 3.0, False)]
    assert sum("●" in line.plain for line in scatter.draw(one, 40, 12)) == 1
    assert "needs" in scatter.draw(one, 10, 3)[0].plain


def test_outliers_are_hollow_or_left_out() -> None:
    group = Points(
        "a", ("1", "2"), np.array([1.0, 9.0]), np.array([1.0, 9.0]), np.array([False, True])
    )
    series = Series("t", "x", "y", (group,))
    assert [d.id for d in scatter.dots(series, outliers=False)] == ["a/1"]
    assert [d.outlier for d in scatter.dots(series, outliers=True)] == [False, True]
    assert "1 beyond 1.5 IQR hidden" in scatter.legend(series, 60, outliers=False)[0].plain
    assert "○ 1 beyond 1.5 IQR" in scatter.legend(series, 60, outliers=True)[0].plain
    assert [row.plain for row in scatter.legend(series, 20, outliers=True)] == [
        "● a n=1   ",
        "○ 1 beyond 1.5 IQR  ",
    ]


def test_points_too_far_off_are_carets_above_the_others() -> None:
    away = np.array([False, False, True, True])
    xs, ys = np.array([1.0, 3.0, 3.0, 5.0]), np.array([1.0, 2.0, 900.0, 80.0])
    group = Points("a", ("1", "2", "3", "4"), xs, ys, away, far=away, place=1)
    series = Series("t", "x", "y", (group,))
    said = scatter.legend(series, 80, outliers=True)[0].plain
    assert said == "▲ a n=2   ^ off the scale: a/3 at 900 and 1 more"
    top, *body = scatter.draw(scatter.dots(series, outliers=True), 40, 12, here="a/4")
    drawn = [(text, role) for text, role in top.spans if text.strip()]
    assert drawn == [("^", "b"), ("^", "key")]
    second = next(row.plain for row in body if "▲" in row.plain)
    assert second.index("▲") == top.plain.index("^")
    assert len(body) == 11
    assert not any("^" in row.plain for row in body)


def test_ticks_are_round_numbers_at_their_places() -> None:
    some = [Dot(0, "a/1", 0.0, 0.0), Dot(0, "a/2", 1.0, 30.0), Dot(0, "a/3", 0.5, 10.0)]
    *body, rule, names = (line.plain for line in scatter.draw(some, 60, 12))
    assert [row.split("┤")[0].strip() for row in body if "┤" in row] == ["30", "20", "10", "0"]
    assert names.split() == ["0.0", "0.5", "1.0"]
    ten = next(row for row in body if row.startswith("10┤"))
    assert ten[rule.index("┬", rule.index("┬") + 1)] == "●"
