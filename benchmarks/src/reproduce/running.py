"""Running experiments, one seed at a time, so that an interrupted run loses nothing that had finished.

The result of each seed is a JSON file, kept with a fingerprint of the code that made it. A result whose
fingerprint still matches is not measured again.
"""

import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cattrs
from cattrs.preconf.json import make_converter

from reproduce.claims import Claim, Experiment, Measurement, Suite
from reproduce.judging import Outcome, judge_all
from tenfold import UserError
from tenfold.files import write_text
from tenfold.reading import read_json_object

JSON = make_converter()
"""Dataclasses to JSON and back."""


@dataclass(frozen=True)
class SeedResult:
    """What one seed of an experiment gave.

    Attributes:
        package: whose experiment.
        experiment: its name.
        tier: at which size.
        seed: the seed.
        fingerprint: of the code that was run.
        seconds: how long it took.
        measurement: arm to metric to value.
        pictures: sample pictures, relative to the results folder.
    """

    package: str
    experiment: str
    tier: str
    seed: int
    fingerprint: str
    seconds: float
    measurement: Measurement
    pictures: tuple[str, ...]


def fingerprint(package: str) -> str:
    """A hash of the sources that an experiment of `package` runs: the package, `tenfold`, its suite, and torch's version."""
    digest = hashlib.sha256(f"{platform.python_version()} {_version('torch')}".encode())
    papers = Path(__file__).parent / "papers"
    roots = [_root(package), _root("tenfold"), papers / f"{package}.py", papers / package]
    for root in roots:
        files = sorted(root.rglob("*")) if root.is_dir() else [root] if root.exists() else []
        for path in files:
            if path.is_file() and path.suffix != ".pyc":
                digest.update(path.name.encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _root(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return Path(module)
    return Path(spec.origin).parent


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def run_seed(
    package: str, experiment: Experiment, tier: str, seed: int, results: Path, mark: str, fresh: bool
) -> tuple[SeedResult, bool]:
    """Measure one seed, or take its stored result.

    Args:
        package: whose experiment.
        experiment: what to run.
        tier: at which size.
        seed: the seed.
        results: the results folder.
        mark: the fingerprint of the code.
        fresh: measure again even if a result is stored.

    Returns:
        The result, and whether it had been stored.
    """
    place = results / "runs" / tier / package / experiment.name / f"seed-{seed}"
    stored = None if fresh else _stored(place / "result.json", mark)
    if stored:
        return stored, True
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    started = time.perf_counter()
    measurement = experiment.measure(seed, tier, place)
    result = SeedResult(
        package=package,
        experiment=experiment.name,
        tier=tier,
        seed=seed,
        fingerprint=mark,
        seconds=time.perf_counter() - started,
        measurement={arm: {key: float(value) for key, value in row.items()} for arm, row in measurement.items()},
        pictures=tuple(path.relative_to(results).as_posix() for path in sorted(place.glob("*.png"))),
    )
    write_text(place / "result.json", JSON.dumps(result, indent=2))
    return result, False


def _stored(path: Path, mark: str) -> SeedResult | None:
    """The result of a seed, or None where there is none, it is damaged, or other code made it: it is measured anew."""
    if not path.exists():
        return None
    try:
        result = JSON.structure(read_json_object(path), SeedResult)
    except (UserError, ValueError, TypeError, AttributeError, KeyError, cattrs.BaseValidationError):
        return None
    return result if result.fingerprint == mark else None


@dataclass(frozen=True)
class Step:
    """One seed of one experiment, done."""

    suite: Suite
    result: SeedResult
    was_stored: bool
    number: int
    total: int


def run_suites(chosen: list[Suite], tier: str, seeds: int | None, results: Path, fresh: bool) -> Iterator[Step]:
    """Run every experiment that the suites have in `tier`, seed by seed.

    Args:
        chosen: the suites.
        tier: smoke, small, medium or paper.
        seeds: how many seeds; each experiment's own number when None.
        results: the results folder.
        fresh: measure again what is stored.
    """
    plan = [
        (suite, experiment, seed)
        for suite in chosen
        for experiment in suite.experiments
        if tier in experiment.seeds
        for seed in range(seeds or experiment.seeds[tier])
    ]
    marks = {suite.package: fingerprint(suite.package) for suite in chosen}
    for number, (suite, experiment, seed) in enumerate(plan, start=1):
        result, was_stored = run_seed(suite.package, experiment, tier, seed, results, marks[suite.package], fresh)
        yield Step(suite, result, was_stored, number, len(plan))


def outcomes(chosen: list[Suite], tier: str, measured: list[SeedResult]) -> list[Outcome]:
    """Judge every claim whose experiment has been measured in `tier`, the claims of a package together."""

    def of(claim: Claim) -> list[Measurement]:
        return [
            each.measurement
            for each in measured
            if (each.package, each.experiment) == (claim.package, claim.experiment)
        ]

    return judge_all(
        tier,
        {suite.package: {claim: of(claim) for claim in suite.claims if of(claim)} for suite in chosen},
    )
