"""The figures: every number is drawn where it belongs, every text is escaped, nothing leaves the canvas (spec 11)."""

import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from fairfd.evaluation.audit.record import ApproachResult, Interval, SubjectsCurve, SubjectsPoint
from fairfd.evaluation.report.figures import (
    DetectorPoint,
    accuracy_heat_map,
    best,
    gap_bars,
    subjects_plot,
    utility_fairness_scatter,
)

GAP = Interval(0.2, 0.15, 0.1, 0.22)


def row(approach: str, *accuracy: float | None, gap: Interval = GAP) -> ApproachResult:
    return ApproachResult(approach, approach == "real", accuracy, 0.5, gap)


ROWS = (row("real", 0.9, 0.8), row("swap", 0.75, None), row("blend", 0.0, 1.0))


def parsed(svg: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: Markup) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter("text")]


def drawn(svg: Markup, kind: str) -> list[ElementTree.Element]:
    return [element for element in parsed(svg).iter() if element.get("class", "") == kind]


def point(people: int, value: float, is_all: bool = False) -> SubjectsPoint:
    return SubjectsPoint(people, is_all, 10, value, value * 0.9, value * 1.1, value / 3, value / 2)


CURVE = SubjectsCurve("official", "AADPD", (point(16, 0.2), point(50, 0.15), point(480, 0.12), point(500, 0.11, True)))
DETECTORS = (DetectorPoint("one", 0.7, GAP, False), DetectorPoint("two", 0.52, Interval(0.0, None, None, None), True))


@pytest.mark.parametrize(
    "svg",
    [
        accuracy_heat_map(ROWS, ("A", "B")),
        gap_bars(ROWS),
        utility_fairness_scatter(DETECTORS, "AADPD"),
        subjects_plot(CURVE),
    ],
)
def test_marks_stay_on_the_canvas(svg: Markup) -> None:
    root = parsed(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for name, limit in {"x": width, "cx": width, "x1": width, "x2": width, "y": height, "y2": height}.items():
            assert 0 <= float(element.get(name, 0)) <= limit
    assert root.get("aria-label")


def test_heat_map_darkens_with_mistakes_and_shows_each_number() -> None:
    svg = accuracy_heat_map(ROWS, ("A", "B"))
    opacity = [float(cell.attrib["fill-opacity"]) for cell in drawn(svg, "heat")]
    assert opacity == pytest.approx([0.04 + 0.81 * mistakes for mistakes in (0.1, 0.2, 0.25, 1.0, 0.0)], abs=1e-3)
    assert texts(svg) == ["A", "B", "genuine faces", "90.0", "80.0", "swap", "75.0", "–", "blend", "0.0", "100.0"]


def test_empty_cell_is_marked_and_not_coloured() -> None:
    empty = drawn(accuracy_heat_map(ROWS, ("A", "B")), "empty")
    assert [cell.findtext("title") for cell in empty] == ["swap, B: no images"]


def test_long_group_names_are_slanted_and_kept_whole_in_their_titles() -> None:
    groups = tuple(f"A rather long group name {index}" for index in range(9))
    svg = accuracy_heat_map((row("real", *[0.5] * 9),), groups)
    assert str(svg).count("rotate(-40)") == 9
    assert {title.text for title in parsed(svg).iter("title")} >= set(groups)


def test_gap_bar_ends_at_the_corrected_gap_with_tick_and_whisker() -> None:
    svg = gap_bars(ROWS)
    root = parsed(svg)
    bars = [rect for rect in root.iter("rect") if rect.attrib["class"].startswith("bar")]
    assert [rect.attrib["class"] for rect in bars] == ["bar real", "bar", "bar"]
    start, width = float(bars[0].attrib["x"]), float(bars[0].attrib["width"])
    tick = float(drawn(svg, "raw")[0].attrib["x1"])
    left, right = (float(drawn(svg, "whisker")[0].attrib[end]) for end in ("x1", "x2"))
    assert (tick - start) / width == pytest.approx(0.2 / 0.15, rel=0.01)
    assert (left - start) / width == pytest.approx(0.1 / 0.15, rel=0.01)
    assert (right - start) / width == pytest.approx(0.22 / 0.15, rel=0.01)
    assert "15.0 [10.0–22.0]" in texts(svg)


def test_gap_without_interval_is_drawn_as_measured() -> None:
    svg = gap_bars((row("real", 0.9, 0.8, gap=Interval(0.1, None, None, None)),))
    assert "10.0" in texts(svg)
    assert drawn(svg, "whisker") == drawn(svg, "raw") == []
    assert best(Interval(0.1, None, None, None)) == 0.1
    assert best(Interval(None, None, None, None)) == 0.0


def test_undefined_gap_is_left_out_and_all_zero_gaps_are_drawn() -> None:
    assert "swap" not in texts(gap_bars((row("swap", 0.5, gap=Interval(None, None, None, None)),)))
    assert "0.0 [0.0–0.0]" in texts(gap_bars((row("swap", 0.5, 0.5, gap=Interval(0.0, 0.0, 0.0, 0.0)),)))


def test_near_trivial_detector_is_hollow_and_named_so() -> None:
    svg = utility_fairness_scatter(DETECTORS, "AADPD")
    assert len(drawn(svg, "dot")) == len(drawn(svg, "dot trivial")) == 1
    assert "two (near-trivial)" in texts(svg)


def test_fairer_detector_lies_lower_and_better_one_further_right() -> None:
    better = DetectorPoint("better", 0.9, Interval(0.1, 0.05, 0.0, 0.1), False)
    circles = list(parsed(utility_fairness_scatter((DETECTORS[0], better), "AADPD")).iter("circle"))
    assert float(circles[1].attrib["cx"]) > float(circles[0].attrib["cx"])
    assert float(circles[1].attrib["cy"]) > float(circles[0].attrib["cy"])


def test_labels_of_near_detectors_do_not_cover_each_other() -> None:
    points = [DetectorPoint(f"detector {i}", 0.70 + 0.01 * i, Interval(0.1, 0.1, 0.09, 0.11), False) for i in range(4)]
    labels = [t for t in parsed(utility_fairness_scatter(points, "AADPD")).iter("text") if "detector" in (t.text or "")]
    places = {(float(t.attrib["x"]), float(t.attrib["y"])) for t in labels}
    assert len(places) == 4
    assert all(abs(y1 - y2) > 8 or abs(x1 - x2) > 60 for x1, y1 in places for x2, y2 in places if (x1, y1) != (x2, y2))


def test_subjects_curve_names_the_sizes_that_have_room() -> None:
    svg = subjects_plot(CURVE)
    assert [text for text in texts(svg) if re.fullmatch(r"(all: )?\d\d+", text)] == ["16", "50", "all: 500"]
    assert len(drawn(svg, "dot")) == 4


def test_names_are_escaped_in_every_figure() -> None:
    evil = '<script x="1">&'
    figures = (
        accuracy_heat_map((row(evil, 0.5, None),), (evil, evil * 9)),
        gap_bars((row(evil, 0.5),)),
        utility_fairness_scatter((DetectorPoint(evil, 0.7, GAP, False),), evil),
        subjects_plot(SubjectsCurve("official", evil, CURVE.points)),
    )
    for svg in figures:
        assert "<script" not in svg
        parsed(svg)
