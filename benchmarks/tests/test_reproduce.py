"""`reproduce` on a suite made for the purpose: resuming, exit codes, files, report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from reproduce import cli, records, registry, report, running
from reproduce.claims import Experiment, Speed, Suite, claim, higher, lower
from reproduce.judging import Verdict
from reproduce.plots import axis_ticks, dot_plot, history_plot
from reproduce.pytest_times import share_of
from tenfold import UserError
from tenfold.images import write_image
from tenfold.testing import run_command


class Counting:
    """An experiment that remembers how often it ran and can be interrupted."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []
        self.stop_at: int | None = None
        self.gain = 0.1

    def __call__(self, seed: int, tier: str, place: Path) -> dict[str, dict[str, float]]:
        if seed == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((seed, tier))
        write_image(place / "a-sample.png", np.full((8, 8, 3), 0.5, np.float32))
        rival = np.random.default_rng(seed).random()
        return {"ours": {"auc": rival + self.gain + 0.001 * seed}, "rival": {"auc": rival}}


def make_suite(measure: Counting) -> Suite:
    experiment = Experiment(
        "trial",
        "A <trial>.",
        {"smoke": 6, "small": 8},
        measure,
        {"ours": "our <arm>", "rival": "the rival"},
        {"auc": "AUC"},
    )
    claims = (
        claim("fairfd/wins", "Ours <wins>.", higher("auc", "ours", than="rival"), experiment="trial", source="Table 1"),
        claim("fairfd/loses", "Ours loses.", lower("auc", "ours", than="rival"), experiment="trial", source="Table 2"),
    )
    speeds = (
        Speed(
            "fairfd/sum",
            "Summing",
            lambda: (lambda: sum(range(10)), lambda: sum(range(200_000))),
            2.0,
            2,
            peak_memory=True,
        ),
    )
    return Suite("fairfd", "Ours is an <idea>.", (experiment,), claims, speeds)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Counting:
    tmp_path = tmp_path_factory.mktemp("repository")
    counting = Counting()
    suite = make_suite(counting)
    for module in (registry, report):
        monkeypatch.setattr(module, "suites", lambda *_: [suite])
    monkeypatch.setattr(records, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(records.load_record, "__defaults__", (tmp_path / "records",))
    monkeypatch.setattr(records.save_record, "__defaults__", (tmp_path / "records",))
    return counting


def reproduce(*tokens: str) -> object:
    return cli.app([*tokens])


def test_a_run_writes_json_and_a_report_and_leaves_with_zero(
    measure: Counting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("run", "--out", str(tmp_path)) == 0
    assert measure.calls == [(seed, "smoke") for seed in range(6)]
    values = json.loads((tmp_path / "smoke.json").read_text())
    assert {each["claim"]["id"]: each["verdict"] for each in values["outcomes"]} == {
        "fairfd/wins": "holds",
        "fairfd/loses": "does not hold",
    }
    assert len(values["measured"]) == 6
    printed = capsys.readouterr().out
    assert "does not hold" in printed
    assert "Of 2 claims 1 hold, 1 do not hold, 0 are open." in printed
    assert "Ours is an <idea>." in printed
    assert (tmp_path / "report.html").exists()


def test_finished_seeds_are_not_measured_again(measure: Counting, tmp_path: Path) -> None:
    measure.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        reproduce("run", "--out", str(tmp_path))
    measure.stop_at = None
    interrupted = list(measure.calls)
    reproduce("run", "--out", str(tmp_path))
    assert interrupted == [(0, "smoke"), (1, "smoke")]
    assert measure.calls == [(seed, "smoke") for seed in range(6)]
    reproduce("run", "--out", str(tmp_path), "--fresh")
    assert len(measure.calls) == 12


def test_changed_code_is_measured_again(measure: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reproduce("run", "--out", str(tmp_path))
    monkeypatch.setattr(running, "fingerprint", lambda package: f"other-{package}")
    reproduce("run", "--out", str(tmp_path))
    assert len(measure.calls) == 12


def test_a_claim_that_contradicts_its_record_changes_the_exit_code(
    measure: Counting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("run", "--out", str(tmp_path), "--record") == 0
    record = records.load_record("fairfd", "smoke")
    assert record is not None
    assert [each.seed for each in record.seeds] == list(range(6))
    assert {each.id: each.verdict for each in record.claims} == {
        "fairfd/wins": Verdict.HOLDS,
        "fairfd/loses": Verdict.DOES_NOT_HOLD,
    }
    assert record.machine["processor"]
    assert reproduce("run", "--out", str(tmp_path), "--fresh") == 0
    capsys.readouterr()
    measure.gain = -0.1
    assert reproduce("run", "--out", str(tmp_path), "--fresh") == 3
    assert "contradicts its record: fairfd/wins" in capsys.readouterr().out
    # Few seeds decide nothing, but this far outside of what the record predicts they say that something has changed.
    assert reproduce("run", "--out", str(tmp_path), "--fresh", "--seeds", "2") == 3


def test_few_seeds_within_the_prediction_are_too_small_to_tell(
    measure: Counting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce("run", "--out", str(tmp_path), "--record")
    assert reproduce("run", "--out", str(tmp_path), "--fresh", "--seeds", "4") == 0
    printed = capsys.readouterr().out
    assert "too few seeds" in printed
    assert "too small to tell" in printed
    assert measure.calls


def test_more_seeds_and_other_tiers(measure: Counting, tmp_path: Path) -> None:
    assert reproduce("--seeds", "2", "--tier", "small", "--out", str(tmp_path)) == 0
    assert measure.calls == [(0, "small"), (1, "small")]
    assert (tmp_path / "small.json").exists()
    with pytest.raises(UserError, match="--tier paper"):
        reproduce("run", "--tier", "paper", "--out", str(tmp_path))


def test_results_survive_a_round_trip(measure: Counting, tmp_path: Path) -> None:
    reproduce("run", "--out", str(tmp_path))
    loaded = report.load_tier(tmp_path, "smoke")
    assert loaded is not None
    report.save_tier(tmp_path, "smoke", loaded.outcomes, loaded.measured)
    assert report.load_tier(tmp_path, "smoke") == loaded
    assert measure.calls


def test_the_report_is_self_contained_and_escaped(measure: Counting, tmp_path: Path) -> None:
    reproduce("run", "--out", str(tmp_path))
    reproduce("speed", "--out", str(tmp_path))
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "Ours &lt;wins&gt;." in html
    assert "A &lt;trial&gt;." in html
    assert html.count("data:image/png;base64,") == 1
    assert html.count('<circle class="seed"') == 2 * 6
    assert html.count('<circle class="effect') == 2
    assert "our &lt;arm&gt;" in html
    assert "fairfd/sum" in html
    assert measure.calls


def test_the_report_shows_records_of_tiers_that_were_not_run(
    measure: Counting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("run", "--tier", "small", "--out", str(tmp_path / "then"), "--record") == 0
    assert "recorded -> " in capsys.readouterr().out
    reproduce("run", "--out", str(tmp_path / "now"))
    html = (tmp_path / "now" / "report.html").read_text()
    assert "Small tier" in html
    assert "Not measured in this run: from the record." in html
    assert html.count('<circle class="effect') == 2 * 2
    assert measure.calls


def test_a_claim_is_drawn_over_time(measure: Counting, tmp_path: Path) -> None:
    for night, gain in (("2026-01-01", 0.1), ("2026-01-02", 0.2), ("2026-01-03", -0.3)):
        measure.gain = gain
        reproduce("run", "--out", str(tmp_path / "results"), "--fresh")
        (tmp_path / "history" / night).mkdir(parents=True)
        (tmp_path / "results" / "records" / "smoke").rename(tmp_path / "history" / night / "smoke")
    reproduce("report", "--out", str(tmp_path / "results"), "--history", str(tmp_path / "history"))
    html = (tmp_path / "results" / "report.html").read_text()
    assert html.count('<svg class="history"') == 2
    assert html.count('<polyline class="course"') == 2
    with pytest.raises(UserError, match="no such folder"):
        reproduce("report", "--out", str(tmp_path / "results"), "--history", str(tmp_path / "nowhere"))


def test_a_course_needs_two_finite_effects() -> None:
    assert history_plot([("2026-01-01", 1.0), ("2026-01-02", float("nan"))]) == ""
    assert 'class="zero"' in history_plot([("2026-01-01", -1.0), ("2026-01-02", 1.0)])
    assert 'class="zero"' not in history_plot([("2026-01-01", 7.0), ("2026-01-02", 8.0)])


def test_speed_is_a_ratio_with_peaks(measure: Counting, tmp_path: Path) -> None:
    reproduce("speed", "--out", str(tmp_path))
    timing = json.loads((tmp_path / "speed.json").read_text())["timings"][0]
    assert timing["ratio"] == pytest.approx(timing["theirs"] / timing["ours"])
    assert timing["their_peak"] >= 0
    assert measure.calls == []


def test_the_list_names_every_claim(measure: Counting, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce("list")
    printed = capsys.readouterr().out
    assert "fairfd/wins" in printed
    assert "not recorded" in printed
    assert measure.calls == []


DAMAGED = (
    "",
    '{"tier": ',
    "[]",
    "[" * 100_000,
    '{"tier": 3, "measured": 7}',
    '{"measured": [{"seed": "x"}], "timings": "x"}',
)


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.parametrize("verb", ["report", "run", "speed"])
def test_damaged_results_are_one_line_before_anything_is_measured(
    measure: Counting, tmp_path: Path, verb: str, text: str
) -> None:
    for name in ("smoke", "speed"):
        (tmp_path / f"{name}.json").write_text(text)
    answer = run_command(cli.app, [verb, "--out", tmp_path])
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert ".json: " in answer.err
    assert measure.calls == []


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_seed_is_measured_anew(measure: Counting, tmp_path: Path, text: str) -> None:
    reproduce("run", "--seeds", "2", "--out", str(tmp_path))
    (tmp_path / "runs/smoke/fairfd/trial/seed-1/result.json").write_text(text)
    reproduce("run", "--seeds", "2", "--out", str(tmp_path))
    assert measure.calls == [(0, "smoke"), (1, "smoke"), (1, "smoke")]


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--seeds", "0"),
        ("run", "--seeds", "nan"),
        ("run", "--seeds", "7", "--record"),
        ("run", "--seeds", "1" + "0" * 30),
        ("run", "--tier", "huge"),
        ("run", "--out", "{file}/below"),
        ("speed", "--out", "{file}/below"),
        ("report",),
        ("frobnicate",),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_measured(
    measure: Counting, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    answer = run_command(cli.app, [each.format(file=tmp_path / "file") for each in words], tmp_path)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith("reproduce: ")
    assert measure.calls == []
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_unknown_packages_are_named() -> None:
    with pytest.raises(UserError, match="--only nothere"):
        registry.suites(("nothere",))


def test_ticks_enclose_the_values_in_round_steps() -> None:
    assert axis_ticks(0.13, 0.87) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert axis_ticks(5, 5)[0] <= 5 <= axis_ticks(5, 5)[-1]
    assert dot_plot({"a": [float("nan")]}, "auc") == ""


def test_times_are_summed_by_package() -> None:
    assert share_of("packages/fairfd/tests/test_rates.py::test_a[x/y]") == "fairfd"
    assert share_of("shared/tests/test_images.py::test_b") == "shared"
