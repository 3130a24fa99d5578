"""The report: what was claimed, what was measured, with pictures. One self-contained HTML file, and the same as JSON."""

import base64
import importlib.metadata
import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from reproduce.claims import TIERS, Suite, comparison_in_words
from reproduce.judging import Outcome, count_verdicts, judge_all
from reproduce.plots import dot_plot, forest_plot, history_plot
from reproduce.records import Record, agreement, load_history, load_record, measurements_of
from reproduce.registry import suites
from reproduce.running import JSON, SeedResult
from reproduce.timing import Timing
from tenfold import UserError
from tenfold.files import write_text
from tenfold.reading import read_json_object

Report = TypeVar("Report")


@dataclass(frozen=True)
class TierReport:
    """What one tier's runs left behind, as `TIER.json` holds it.

    Attributes:
        tier: which tier.
        machine: what it was measured on.
        outcomes: a claim each.
        measured: a seed each.
    """

    tier: str
    machine: dict[str, str]
    outcomes: tuple[Outcome, ...]
    measured: tuple[SeedResult, ...]


@dataclass(frozen=True)
class SpeedReport:
    """What `reproduce speed` left behind, as `speed.json` holds it."""

    machine: dict[str, str]
    timings: tuple[Timing, ...]


def save_tier(results: Path, tier: str, outcomes: Sequence[Outcome], measured: Sequence[SeedResult]) -> None:
    """Write `TIER.json`, keeping what an earlier run measured of other packages."""
    done = {each.claim.package for each in outcomes}
    earlier = load_tier(results, tier) or TierReport(tier, {}, (), ())
    kept = [each for each in earlier.outcomes if each.claim.package not in done]
    report = TierReport(
        tier,
        machine(),
        tuple(sorted([*kept, *outcomes], key=lambda each: each.claim.id)),
        (*(each for each in earlier.measured if each.package not in done), *measured),
    )
    write_text(results / f"{tier}.json", JSON.dumps(report, indent=2))


def load_tier(results: Path, tier: str) -> TierReport | None:
    """Read `TIER.json` back, or None when the tier has not been run."""
    return _load(results / f"{tier}.json", TierReport)


def save_speed(results: Path, timings: Sequence[Timing]) -> None:
    """Write `speed.json`, keeping what an earlier run timed of other comparisons."""
    done = {each.id for each in timings}
    earlier = load_speed(results)
    kept = [each for each in earlier.timings if each.id not in done] if earlier else []
    report = SpeedReport(machine(), tuple(sorted([*kept, *timings], key=lambda each: each.id)))
    write_text(results / "speed.json", JSON.dumps(report, indent=2))


def load_speed(results: Path) -> SpeedReport | None:
    """Read `speed.json` back, or None when nothing has been timed."""
    return _load(results / "speed.json", SpeedReport)


def _load(path: Path, kind: type[Report]) -> Report | None:
    if not path.exists():
        return None
    stored = read_json_object(path)
    try:
        return JSON.structure(stored, kind)
    except (ValueError, TypeError, AttributeError, KeyError, cattrs.BaseValidationError):
        raise UserError(f"{path}: not written by this version of `reproduce`; move it away") from None


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    import torch

    return {
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tenfold": importlib.metadata.version("tenfold"),
    }


def write_html(results: Path, history: Path | None = None) -> Path:
    """Render everything under `results` into `report.html`.

    Args:
        results: what runs left; tiers that were not measured there are shown from the records.
        history: records over time, `HISTORY/DATE/TIER/PACKAGE.json`: the newest are shown, and how each claim went.

    Raises:
        UserError: nothing has been measured yet, here or over time.
    """
    measured = {tier: report for tier in TIERS if (report := load_tier(results, tier))}
    speed = load_speed(results)
    chosen = suites()
    past = {(suite.package, tier): _records(suite.package, tier, history) for suite in chosen for tier in TIERS}
    if not measured and not speed and not (history and any(past.values())):
        raise UserError(f"{results}: nothing measured yet; run `reproduce` first")
    # The smoke tier takes seconds: what it gave earlier is of interest over time only.
    full = {
        tier: measured.get(tier)
        if tier == "smoke" and not history
        else with_records(tier, measured.get(tier), chosen, past)
        for tier in TIERS
    }
    tiers = [each for each in full.values() if each and each.outcomes]
    environment = Environment(
        loader=PackageLoader("reproduce"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    papers = [view for suite in chosen if (view := _paper_view(results, suite, tiers, past))["tiers"]]
    html = environment.get_template("report.html.j2").render(
        papers=papers,
        tiers=[each.tier for each in tiers],
        timings=speed.timings if speed else (),
        machine=machine(),
        number=_number,
        chance=_chance,
    )
    write_text(results / "report.html", html)
    return results / "report.html"


Past = Mapping[tuple[str, str], Sequence[Record]]
"""Package and tier to its records over time, oldest first."""


def _records(package: str, tier: str, history: Path | None) -> list[Record]:
    """The records over time; without a history, the one in the repository."""
    if history is not None and (found := load_history(package, tier, history)):
        return found
    record = load_record(package, tier)
    return [record] if record else []


def with_records(tier: str, report: TierReport | None, chosen: Sequence[Suite], past: Past) -> TierReport:
    """A tier as it was measured here, and the newest records of the packages that were not measured here.

    Args:
        tier: which tier.
        report: what was measured; None when nothing was.
        chosen: the packages to show.
        past: their records.
    """
    report = report or TierReport(tier, {}, (), ())
    here = {each.claim.package for each in report.outcomes}
    absent = [each for each in chosen if each.package not in here]
    found = [(suite, past[suite.package, tier][-1]) for suite in absent if past[suite.package, tier]]
    if not found:
        return report
    families = {suite.package: measurements_of(record, suite) for suite, record in found}
    seeds = [
        SeedResult(record.package, each.experiment, tier, each.seed, "", each.seconds, each.measurement, ())
        for _, record in found
        for each in record.seeds
    ]
    return replace(
        report,
        outcomes=tuple(judge_all(tier, families, report.outcomes)),
        measured=(*report.measured, *seeds),
    )


def _paper_view(results: Path, suite: Suite, tiers: Sequence[TierReport], past: Past) -> dict[str, Any]:
    """What the report says of one paper: what it claims, how to run it again, and each tier that was measured."""
    views = []
    for report in tiers:
        outcomes = [each for each in report.outcomes if each.claim.package == suite.package]
        if not outcomes:
            continue
        order = {claim.id: number for number, claim in enumerate(suite.claims)}
        outcomes.sort(key=lambda each: order.get(each.claim.id, len(order)))
        records = past[suite.package, report.tier]
        record = records[-1] if records else None
        seeds = [each for each in report.measured if each.package == suite.package]
        views.append(
            {
                "tier": report.tier,
                "counts": count_verdicts(outcomes),
                "seconds": sum(each.seconds for each in seeds),
                "record": record,
                "from_record": all(not each.fingerprint for each in seeds),
                "rows": [
                    {
                        "outcome": each,
                        "said": _said(suite, each),
                        "agreement": agreement(each, record).value,
                        "history": history_plot(_course(records, each.claim.id)),
                    }
                    for each in outcomes
                ],
                "experiments": [
                    _experiment_view(
                        results, suite, name, outcomes, [each for each in seeds if each.experiment == name]
                    )
                    for name in dict.fromkeys(each.experiment for each in seeds)
                ],
            }
        )
    return {"package": suite.package, "idea": suite.idea, "tiers": views}


def _course(records: Sequence[Record], claim_id: str) -> list[tuple[str, float]]:
    """Date and effect of a claim in each record that has it."""
    return [(each.date, found.effect) for each in records if (found := each.claim(claim_id))]


def _said(suite: Suite, outcome: Outcome) -> str:
    known = {claim.id for claim in suite.claims}
    if outcome.claim.id not in known:
        return ""  # a result of an older version
    return comparison_in_words(outcome.claim.comparison, suite.experiment(outcome.claim))


def _experiment_view(
    results: Path, suite: Suite, name: str, outcomes: Sequence[Outcome], seeds: list[SeedResult]
) -> dict[str, Any]:
    """Effects, arms and pictures of one experiment."""
    experiment = next((each for each in suite.experiments if each.name == name), None)
    claimed = [each for each in outcomes if each.claim.experiment == name]
    metrics = list(dict.fromkeys(each.claim.comparison.metric for each in claimed))
    words = experiment.metrics if experiment else {}
    arms = experiment.arms if experiment else {}
    return {
        "title": name,
        "summary": experiment.summary if experiment else "",
        "seeds": len(seeds),
        "seconds": sum(each.seconds for each in seeds),
        "forests": [
            forest_plot([each for each in claimed if each.claim.comparison.metric == metric], words.get(metric, metric))
            for metric in metrics
        ],
        "plots": [
            dot_plot(
                {
                    arms.get(arm, arm): [each.measurement[arm][metric] for each in seeds]
                    for arm in _arms_with(seeds, metric)
                },
                words.get(metric, metric),
            )
            for metric in metrics
        ],
        "pictures": [
            {"name": Path(each).stem.replace("-", " "), "data": _data_uri(results / each)}
            for each in seeds[0].pictures
            if (results / each).exists()
        ],
    }


def _arms_with(seeds: list[SeedResult], metric: str) -> list[str]:
    return [arm for arm in seeds[0].measurement if all(metric in each.measurement.get(arm, {}) for each in seeds)]


def _data_uri(path: Path) -> str:
    stream = io.BytesIO()
    with Image.open(path) as image:
        image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _number(value: float) -> str:
    """Four significant digits, without an exponent where a person would not write one."""
    return f"{value:.4g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.2e}"


def _chance(name: str, value: float) -> str:
    """A p or q: three decimals, and never an impossible zero."""
    return f"{name} {value:.3f}" if value >= 0.001 else f"{name} < .001"
