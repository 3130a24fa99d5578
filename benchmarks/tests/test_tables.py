"""Tables of READMEs: made from records, and equal to them in every package."""

from xml.etree import ElementTree

import pytest

from reproduce.badges import badge, draw_badge
from reproduce.claims import Experiment, Suite, claim, higher
from reproduce.records import RECORDS, Record, RecordedSeed
from reproduce.registry import suites
from reproduce.tables import BLOCK, across_table, arms_table, claims_table, fill_tables, number
from tenfold import UserError

SUITE = Suite(
    "fairfd",
    "An idea.",
    (
        Experiment(
            "long trial",
            "A trial.",
            {"small": 6},
            lambda *_: {},
            {"ours": "our | method.", "rival": "the rival", "absent": "not measured"},
            {"accuracy": "accuracy (%)", "cost": "cost (s)"},
        ),
    ),
    (
        claim(
            "fairfd/wins",
            "Ours wins.",
            higher("accuracy", "ours", than="rival"),
            experiment="long trial",
            source="Table 1",
        ),
    ),
)
RECORD = Record(
    "fairfd",
    "small",
    "2026-01-02",
    "abc1234",
    {"processor": "an abacus"},
    {"torch": "9.9"},
    (),
    tuple(
        RecordedSeed(
            "long trial", seed, 1.0, {"ours": {"accuracy": 90.0 + seed, "cost": 2.0}, "rival": {"accuracy": 50.0}}
        )
        for seed in range(6)
    ),
)


def test_claims_are_judged_and_written_with_their_numbers() -> None:
    lines = claims_table(SUITE, RECORD, ["long trial"]).splitlines()
    assert lines[2] == "| Ours wins (Table 1) | 92.5 against 50: +42.5 [+41, +44] | **holds** |"
    assert lines[-1] == (
        "`reproduce run --only fairfd --tier small`, 6 seeds, 2026-01-02, commit abc1234, an abacus, torch 9.9."
    )


def test_arms_have_means_and_deviations_over_the_seeds() -> None:
    lines = arms_table(SUITE.experiments[0], RECORD, []).splitlines()
    assert lines[:4] == [
        "| arm | accuracy (%) | cost (s) |",
        "|---|---|---|",
        "| our \\| method | 92.5 ± 1.87 | 2 |",
        "| the rival | 50 |  |",
    ]
    assert "not measured" not in "\n".join(lines)
    with pytest.raises(UserError, match="long trial has no metric speed; there are accuracy, cost"):
        arms_table(SUITE.experiments[0], RECORD, ["speed"])


def test_one_metric_is_shown_across_experiments() -> None:
    lines = across_table(SUITE.experiments, "long ", RECORD, "accuracy").splitlines()
    assert lines[:3] == [
        "| accuracy (%) | our \\| method | the rival | not measured |",
        "|---|---|---|---|",
        "| trial | 92.5 ± 1.87 | 50 |  |",
    ]
    with pytest.raises(UserError, match="no metric speed"):
        across_table(SUITE.experiments, "long ", RECORD, "speed")


@pytest.mark.parametrize(
    ("value", "written"), [(0.0, "0"), (1234.5, "1234"), (-0.000123456, "-0.000123"), (57.25, "57.2"), (2e7, "2e+07")]
)
def test_numbers_are_written_as_a_person_writes_them(value: float, written: str) -> None:
    assert number(value) == written


@pytest.mark.parametrize(
    ("comment", "says"),
    [
        ("claims", "say `claims TIER"),
        ("tables smoke", "say `claims TIER"),
        ("arms smoke", "say `claims TIER"),
        ("across smoke x", "say `claims TIER"),
        ("across smoke nothing AADPD", "nothing is not recorded"),
        ("claims huge", "say `claims TIER"),
        ("claims paper", "not recorded; `reproduce run --only fairfd --tier paper --record`"),
        ("claims smoke nothing", "nothing is not recorded; there are "),
    ],
)
def test_a_comment_that_asks_for_what_is_not_there_is_an_error(comment: str, says: str) -> None:
    suite = next(each for each in suites() if each.package == "fairfd")
    with pytest.raises(UserError, match=says):
        fill_tables(f"<!-- reproduce: {comment} -->\n<!-- /reproduce -->", suite)


@pytest.mark.parametrize("suite", suites(), ids=lambda suite: suite.package)
def test_every_table_of_a_readme_equals_the_record(suite: Suite) -> None:
    readme = (RECORDS.parents[1] / "packages" / suite.package / "README.md").read_text(encoding="utf-8")
    assert BLOCK.search(readme), "shows no table of the records"
    assert fill_tables(readme, suite) == readme, "run `reproduce tables --write`"


@pytest.mark.parametrize("suite", suites(), ids=lambda suite: suite.package)
def test_every_badge_counts_the_verdicts_of_the_record(suite: Suite) -> None:
    path = RECORDS.parents[1] / ".github" / "badges" / f"{suite.package}.svg"
    assert path.read_text(encoding="utf-8") == badge(suite), "run `reproduce tables --write`"


def test_a_badge_is_well_formed_and_says_its_words() -> None:
    drawn = ElementTree.fromstring(draw_badge("claims <small>", "3 hold, 1 do not, 2 open"))
    assert drawn.get("aria-label") == "claims <small>: 3 hold, 1 do not, 2 open"


def test_what_is_filled_once_stays() -> None:
    suite = next(each for each in suites() if each.package == "fairfd")
    text = "Before.\n\n<!-- reproduce: claims smoke -->\nwhat was copied by hand\n<!-- /reproduce -->\n\nAfter.\n"
    once = fill_tables(text, suite)
    assert once.startswith("Before.\n\n<!-- reproduce: claims smoke -->\n\n| claim | measured | verdict |\n")
    assert once.endswith("\n\n<!-- /reproduce -->\n\nAfter.\n")
    assert "by hand" not in once
    assert fill_tables(once, suite) == once
