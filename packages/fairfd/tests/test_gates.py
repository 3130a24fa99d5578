"""Limits for automated checks: spelling, both conventions, value and interval, what cannot be judged (spec 11)."""

from dataclasses import replace

import pytest

from fairfd.evaluation.audit.limits import Limit, check_limits, parse_limit, parse_limits
from fairfd.evaluation.audit.record import (
    FORMAT_VERSION,
    Audit,
    ConventionResult,
    DataSummary,
    Estimate,
    Settings,
    UtilityResult,
)
from fairfd.evaluation.metrics import Gate, Scorecard
from fairfd.evaluation.related_metrics import PeerMetrics
from fairfd.method.fairness import METRIC_NAMES, OFFICIAL, PAPER
from tenfold.errors import UserError


def audit_with(value: float | None, high: float | None = None, detector: str = "net") -> Audit:
    """An audit in which all metrics are alike."""
    metrics = dict.fromkeys(METRIC_NAMES, Estimate(value, value, value, high))
    nothing = Scorecard(0, None, None, None, None, None, None, None)
    return Audit(
        version=FORMAT_VERSION,
        detector=detector,
        data=DataSummary("", "", 0, None, None, ("A", "B"), ("real", "swap"), ((0, 0), (0, 0)), None),
        threshold=0.5,
        settings=Settings(0, 0, 0, 0.95, "basic", "raise", 20),
        conventions={c.name: ConventionResult(c, metrics, {}, (), None) for c in (OFFICIAL, PAPER)},
        approaches=(),
        utility=UtilityResult(nothing, {}, ()),
        peer_metrics=PeerMetrics(*[None] * 8),
        gate=Gate(False, ()),
        subjects_curve=None,
        warnings=(),
        software={},
    )


def violations(audit: Audit, *texts: str) -> list[str]:
    return [violation.reason for violation in check_limits([audit], parse_limits(texts))]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("aadpd=.05", Limit("official", "AADPD", "value", 0.05)),
        ("AADPD = 0.05", Limit("official", "AADPD", "value", 0.05)),
        ("deodds.high=.1", Limit("official", "DEOdds", "high", 0.1)),
        ("Paper.AADPD=.05", Limit("paper", "AADPD", "value", 0.05)),
        ("paper.urstd.debiased=2", Limit("paper", "URSTD", "debiased", 2.0)),
        ("official.dpd.low=0", Limit("official", "DPD", "low", 0.0)),
    ],
)
def test_limit_is_read_in_any_case_and_under_both_conventions(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_every_metric_can_be_limited(name: str) -> None:
    assert parse_limit(f"{name.lower()}=1").metric == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aapd=.05", "did you mean aadpd"),
        ("official=.05", "no metric ''"),
        ("=.05", "no metric ''"),
        ("aadpd.upper=.05", "'upper' is none of value, debiased, low, high"),
        ("aadpd.high.low=.05", "'high.low' is none of"),
        ("aadpd", "give a number"),
        ("aadpd=five", "give a number"),
        ("aadpd=nan", "give a number"),
        ("aadpd=inf", "give a number"),
        ("aadpd=-0.1", "at least 0"),
    ],
)
def test_misspelt_limit_is_refused_with_advice(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_limit(text)


def test_several_limits_may_share_an_option() -> None:
    assert [limit.metric for limit in parse_limits(["aadpd=.05, dpd=.1", "std=.2,"])] == ["AADPD", "DPD", "STD"]


def test_number_on_the_limit_passes_and_above_it_does_not() -> None:
    assert violations(audit_with(0.05), "aadpd=.05") == []
    assert violations(audit_with(0.0501), "aadpd=.05") == ["net: official.AADPD.value is 0.0501, above the limit 0.05"]


def test_upper_end_of_the_interval_can_fail_where_the_value_passes() -> None:
    audit = audit_with(0.04, high=0.07)
    assert violations(audit, "aadpd=.05") == []
    assert violations(audit, "aadpd.high=.05") == ["net: official.AADPD.high is 0.07, above the limit 0.05"]


def test_each_detector_and_limit_is_checked_in_order() -> None:
    audits = [audit_with(0.2, detector=name) for name in ("a", "b")]
    found = check_limits(audits, parse_limits(["dpd=.1", "paper.std=.3", "aadpd=.1"]))
    assert [(violation.detector, violation.limit.metric) for violation in found] == [
        ("a", "DPD"),
        ("a", "AADPD"),
        ("b", "DPD"),
        ("b", "AADPD"),
    ]


def test_undefined_number_does_not_pass() -> None:
    assert violations(audit_with(None), "deodds=1") == ["net: official.DEOdds.value is undefined on this data"]
    assert violations(audit_with(0.1), "deodds.high=1") == ["net: official.DEOdds.high is undefined on this data"]


def test_near_trivial_detector_does_not_pass_with_its_zeros() -> None:
    audit = replace(audit_with(0.0), gate=Gate(True, ("TNR 0.000 < 0.1",)))
    assert violations(audit, "aadpd=.05") == ["net is near-trivial (TNR 0.000 < 0.1): its fairness cannot be judged"]


def test_limit_on_a_convention_that_was_not_computed_is_refused() -> None:
    audit = audit_with(0.1)
    official_only = replace(audit, conventions={"official": audit.conventions["official"]})
    with pytest.raises(UserError, match="no convention paper"):
        violations(official_only, "paper.aadpd=.05")
