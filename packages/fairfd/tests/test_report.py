"""The page and the file: self-contained, escaped, plain about what is shown, exact (spec 11, 3.8, 14.26)."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from fairfd.evaluation.audit.limits import parse_limits
from fairfd.evaluation.audit.record import Audit
from fairfd.evaluation.audit.run import audit
from fairfd.evaluation.report.page import make_page
from fairfd.evaluation.report.report import Report, read_audits
from fairfd.evaluation.report.verdict import verdict
from fairfd.evaluation.scores.score_table import ScoreTable
from fairfd.method.fairness import METRIC_NAMES
from tenfold.errors import UserError


def score_table(name: str, gap: float, *, people: int = 25, groups: tuple[str, ...] = ("A", "B", "C")) -> ScoreTable:
    """Two images per person and approach; the first group is caught and accused less often by `gap`."""
    rng = np.random.default_rng(11)
    approaches = np.array(["real", "swap", "blend"])
    shape = (len(groups), people, len(approaches), 2)
    g, i, f, _ = np.meshgrid(*map(np.arange, shape), indexing="ij")
    score = np.where(f > 0, 0.65, 0.35) - gap * (g == 0) + rng.normal(0, 0.15, shape)
    return ScoreTable.create(
        np.clip(score, 0, 1).ravel(),
        (f > 0).ravel().astype(np.int64),
        np.array(groups)[g].ravel(),
        approaches[f].ravel(),
        identity=(g * people + i).ravel(),
        detector=name,
    )


def audited(scores: ScoreTable, **options) -> Audit:
    return audit(scores, **({"n_boot": 60, "n_perm": 39} | options))


@pytest.fixture(scope="module")
def unfair() -> Audit:
    return audited(score_table("unfair", 0.3), subject_sizes=(5, 12))


@pytest.fixture(scope="module")
def even() -> Audit:
    return audited(score_table("even", 0.0))


@pytest.fixture(scope="module")
def all_fake() -> Audit:
    scores = score_table("all-fake", 0.0)
    return audited(replace(scores, score=np.ones(len(scores))))


class Outline(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.visible = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.visible += data if self.tags and self.tags[-1] != "style" else ""


def text_of(*audits: Audit, limits: tuple[str, ...] = ()) -> str:
    return re.sub(r"\s+", " ", Outline(Report(*audits, limits=parse_limits(limits)).html()).visible)


def test_page_refers_to_nothing_outside_itself(unfair: Audit, even: Audit, all_fake: Audit) -> None:
    html = Report(unfair, even, all_fake).html()
    page = Outline(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "a", "base", "form"} & set(page.tags)
    assert not {"src", "href", "srcset", "action", "data", "xlink:href", "onload"} & {
        name for name, _ in page.attributes
    }
    assert not re.search(r"url\(|@import|https?:|//[a-z]", html)


def test_page_holds_figures_that_parse(unfair: Audit, even: Audit) -> None:
    figures = re.findall(r"<svg.*?</svg>", Report(unfair, even).html(), flags=re.DOTALL)
    # Heat map and bars for both, one subjects curve, one scatter plot.
    assert len(figures) == 6
    assert all(ElementTree.fromstring(figure).get("aria-label") for figure in figures)


def test_names_from_the_data_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    html = Report(audited(score_table(evil, 0.1, groups=(evil + "1", evil + "2")), n_boot=0, n_perm=0)).html()
    assert "<script" not in html
    assert evil in Outline(html).visible


def test_biased_detector_is_told_so_in_words_and_numbers(unfair: Audit) -> None:
    found = verdict(unfair)
    assert (found.kind, found.badge) == ("gap", "Gap between groups shown")
    accepted = unfair.approaches[0].accuracy
    worst = "ABC"[int(np.argmin(np.array(accepted, dtype=float)))]
    assert any(f"called fake most often in group {worst}" in sentence for sentence in found.sentences)
    assert any("caught in" in sentence and "in group A." in sentence for sentence in found.sentences)
    page = text_of(unfair)
    assert f"{100 * (unfair.conventions['official'].metrics['AADPD'].value or 0):.1f}" in page


def test_absence_of_evidence_is_not_called_fairness(even: Audit) -> None:
    found = verdict(even)
    assert (found.kind, found.badge) == ("none", "No gap shown beyond chance")
    assert "not proof" in found.sentences[0]


def test_near_trivial_detector_is_headed_and_left_out_of_rankings(unfair: Audit, even: Audit, all_fake: Audit) -> None:
    assert verdict(all_fake).kind == "void"
    page = text_of(unfair, all_fake, even)
    assert "near-trivial: fairness numbers are not meaningful" in page
    assert "Left out as near-trivial: all-fake." in page
    comparison = make_page([unfair, all_fake, even], (), ()).comparison
    assert comparison is not None
    assert {row.name for ranking in comparison.rankings for row in ranking.rows} == {"unfair", "even"}
    assert comparison.rankings[1].metric == "AADPD"
    assert comparison.rankings[1].rows[0].name == "even"
    assert comparison.rankings[1].rows[0].cells[0].percent > 95


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seed": 9}, "differ in people, groups, approaches, seed"),
        ({"n_boot": 61}, "differ in people, groups, approaches, seed"),
        ({"n_boot": 0}, "made without intervals"),
    ],
)
def test_audits_that_resampled_differently_are_not_ranked(even: Audit, options: dict[str, int], reason: str) -> None:
    page = text_of(even, audited(score_table("other", 0.2), **options))
    assert f"No ranking: {reason}" in page.replace("the audits were ", "").replace("the audits ", "")
    assert "Probability of each rank" not in page


def test_audits_of_different_people_say_so(even: Audit) -> None:
    page = text_of(even, audited(score_table("other", 0.2, people=24)))
    assert "different test data" in page
    assert "No ranking" in page


def test_offset_stands_beside_every_utility_regularised_number(even: Audit) -> None:
    html = Report(even).html()
    for name in METRIC_NAMES[8:]:
        assert re.findall(rf">{name} <small>c=(\S+)</small>", html) == ["1", "0"]
    for name in METRIC_NAMES:
        for convention in even.conventions.values():
            assert f"<td>{convention.metrics[name].value:.4f}</td>" in html


def test_page_explains_the_conventions_and_what_the_metrics_do_not_show(even: Audit) -> None:
    page = text_of(even)
    for phrase in (
        "What these numbers do not show",
        "One that calls every face fake treats all groups alike and scores a perfect zero",
        "even for pure noise",
        "As the authors’ code",
        "UR values with different c must never be compared",
        "“No gap shown” is not “no gap”.",
    ):
        assert phrase in page


def test_limits_are_shown_as_met_or_not(unfair: Audit, even: Audit, all_fake: Audit) -> None:
    report = Report(unfair, even, all_fake, limits=parse_limits(["aadpd=.15", "paper.urdpd.high=9"]))
    rows = make_page(report.audits, report.limits, ()).limits
    assert [cell.note for cell in rows[0].cells][2] == "near-trivial"
    html = report.html()
    assert html.count('<td class="fail">not met') == 3
    assert html.count('<td class="pass">met') == 3
    assert "AADPD (official) at most 0.15" in html
    assert "URDPD (paper, upper end) at most 9" in html


def test_subjects_curve_is_shown_only_where_it_was_computed(unfair: Audit, even: Audit) -> None:
    assert "How many people does this comparison need?" in text_of(unfair)
    assert "How many people does this comparison need?" not in text_of(even)


def test_many_detectors_are_summed_up_on_page_one(even: Audit) -> None:
    page = make_page([replace(even, detector=f"net{n}") for n in range(5)], (), ())
    assert [row.name for row in page.glance] == [f"net{n}" for n in range(5)]
    assert not page.verdicts_first
    assert "At a glance" in text_of(*(replace(even, detector=f"net{n}") for n in range(5)))


@pytest.mark.parametrize("options", [{"n_boot": 0}, {"n_perm": 0}, {"n_boot": 0, "n_perm": 0}])
def test_page_without_intervals_or_null_does_not_pretend(options: dict[str, int]) -> None:
    result = audited(score_table("bare", 0.3), **options)
    page = text_of(result)
    if "n_perm" in options:
        assert verdict(result).badge == "Gap measured, chance not ruled out"
    if "n_boot" in options:
        assert "intervals were not computed" in page


@pytest.mark.parametrize("case", ["one group", "no reals", "no identities", "empty cell", "one convention"])
def test_incomplete_data_still_make_a_page(case: str) -> None:
    scores = score_table("net", 0.2)
    options = {}
    if case == "one group":
        scores = score_table("net", 0.2, groups=("A",))
    elif case == "no reals":
        scores = scores.take(scores.label == 1)
    elif case == "no identities":
        scores = replace(scores, people=None)
    elif case == "empty cell":
        scores, options = scores.take((scores.group != "B") | (scores.approach != "swap")), {"empty": "drop"}
    result = audited(scores, n_boot=9, n_perm=9, **options)
    if case == "one convention":
        result = replace(result, conventions={"paper": result.conventions["paper"]})
    page = text_of(result, replace(result, detector="copy"))
    assert all(warning in page for warning in result.warnings)
    assert "nan" not in page.split()
    assert "None" not in page


def test_report_file_reads_back_equal_and_merges(unfair: Audit, even: Audit, tmp_path: Path) -> None:
    Report(unfair, even).to_json(tmp_path / "both.json")
    assert next(iter(json.loads((tmp_path / "both.json").read_text()))) == "version"
    assert tuple(read_audits(tmp_path / "both.json")) == (unfair, even)
    (tmp_path / "single.json").write_text(replace(even, detector="third").to_json())
    merged = Report.read(tmp_path / "both.json", tmp_path / "single.json")
    assert [one.detector for one in merged.audits] == ["unfair", "even", "third"]
    merged.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == merged.html()


def test_report_refuses_nothing_twins_and_foreign_files(even: Audit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one audit"):
        Report()
    with pytest.raises(UserError, match="two audits are named even"):
        Report(even, even)
    (tmp_path / "other.json").write_text('{"audits": [{}]}')
    with pytest.raises(UserError, match=r"other\.json: not an audit file"):
        Report.read(tmp_path / "other.json")
    with pytest.raises(UserError, match=r"absent\.json: cannot read"):
        Report.read(tmp_path / "absent.json")
