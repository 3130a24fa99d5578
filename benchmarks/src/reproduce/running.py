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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cattrs
from cattrs.preconf.json import make_converter

from reproduce.claims import Claim, Experiment, Measurement, Protocol, Suite, Task
from reproduce.judging import Outcome, judge_all
from reproduce.protocols import run_protocol
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


@dataclass(frozen=True)
class Run:
    """What is run, and how.

    Attributes:
        tier: smoke, small, medium or paper.
        results: the results folder.
        fresh: measure again what is stored.
        data: holds a folder for each package, with the public data of its protocol.
        steps: run protocols for so many steps on stand-ins, and nothing else.
        say: told of every command of a protocol.
    """

    tier: str
    results: Path
    fresh: bool = False
    data: Path | None = None
    steps: int | None = None
    say: Callable[[str], None] = print

    def can_run(self, package: str, experiment: Experiment | Protocol) -> bool:
        """Whether this tier has the experiment and, for a protocol, its data are there."""
        if self.tier not in experiment.seeds:
            return False
        if isinstance(experiment, Protocol):
            return self.steps is not None or (self.data is not None and (self.data / package).is_dir())
        return self.steps is None


def run_seed(
    package: str, experiment: Experiment | Protocol, seed: int, run: Run, mark: str
) -> tuple[SeedResult, bool]:
    """Measure one seed, or take its stored result.

    Args:
        package: whose experiment.
        experiment: what to run.
        seed: the seed.
        run: in which tier, and where.
        mark: the fingerprint of the code.

    Returns:
        The result, and whether it had been stored.
    """
    # What ran for a few steps is no result: it has a place of its own.
    tier = run.tier if run.steps is None else f"{run.tier}-{run.steps}-steps"
    place = run.results / "runs" / tier / package / experiment.name / f"seed-{seed}"
    stored = None if run.fresh else _stored(place / "result.json", mark)
    if stored:
        return stored, True
    _prepare(place, mark, isinstance(experiment, Protocol) and not run.fresh)
    started = time.perf_counter()
    if isinstance(experiment, Protocol):
        measurement = _run_protocol(package, experiment, seed, run, place)
    else:
        measurement = experiment.measure(seed, run.tier, place)
    result = SeedResult(
        package=package,
        experiment=experiment.name,
        tier=run.tier,
        seed=seed,
        fingerprint=mark,
        seconds=time.perf_counter() - started,
        measurement={arm: {key: float(value) for key, value in row.items()} for arm, row in measurement.items()},
        pictures=tuple(path.relative_to(run.results).as_posix() for path in sorted(place.glob("*.png"))),
    )
    write_text(place / "result.json", JSON.dumps(result, indent=2))
    return result, False


def _prepare(place: Path, mark: str, keep: bool) -> None:
    """An empty folder for a seed; hours of a protocol that this very code had begun are kept."""
    made_by = place / "fingerprint.txt"
    if not (keep and made_by.is_file() and made_by.read_text(encoding="utf-8") == mark):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        write_text(made_by, mark)


def _run_protocol(package: str, protocol: Protocol, seed: int, run: Run, place: Path) -> Measurement:
    data = place / "stand-in"
    if run.steps is None and run.data is not None:
        data = run.data / package
    elif run.steps is not None and not data.is_dir():
        protocol.stand_in(data, run.steps)
    return run_protocol(protocol, Task(data.resolve(), run.tier, seed, run.steps), place.resolve(), run.say)


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


def run_suites(chosen: list[Suite], seeds: int | None, run: Run) -> Iterator[Step]:
    """Run every experiment that the suites have in a tier, seed by seed.

    Args:
        chosen: the suites.
        seeds: how many seeds; each experiment's own number when None.
        run: in which tier, and how.
    """
    plan = [
        (suite, experiment, seed)
        for suite in chosen
        for experiment in suite.experiments
        if run.can_run(suite.package, experiment)
        for seed in range(seeds or experiment.seeds[run.tier])
    ]
    marks = {suite.package: fingerprint(suite.package) for suite in chosen}
    for number, (suite, experiment, seed) in enumerate(plan, start=1):
        result, was_stored = run_seed(suite.package, experiment, seed, run, marks[suite.package])
        yield Step(suite, result, was_stored, number, len(plan))


def missing_data(chosen: list[Suite], run: Run) -> list[str]:
    """A line for each protocol that cannot run in a tier because its data are not there."""
    return [
        f"{suite.package}/{each.name} needs --data FOLDER with {suite.package}/: {each.needs}; it takes {each.hours}"
        for suite in chosen
        for each in suite.experiments
        if isinstance(each, Protocol) and run.tier in each.seeds and not run.can_run(suite.package, each)
    ]


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
