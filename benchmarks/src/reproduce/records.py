"""Records: what was measured, seed by seed, kept in the repository; a run is held against them.

A record is `benchmarks/records/TIER/PACKAGE.json`. A run **agrees** with it when a claim has the same verdict, or when its effect lies where the
record's seeds predict the mean of so many seeds (Hahn 1969). It **contradicts** it when the effect lies outside, or when as many seeds as the
record has give the opposite verdict. With fewer seeds and another verdict it is **too small to tell**.
"""

import enum
import importlib.metadata
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cattrs

from reproduce.claims import Claim, Measurement, Suite
from reproduce.judging import Outcome, Verdict
from reproduce.running import JSON, SeedResult
from reproduce.statistics import LEVEL, prediction_interval
from tenfold import UserError
from tenfold.files import write_text
from tenfold.reading import read_json_object

RECORDS = Path(__file__).parents[2] / "records"


class Agreement(enum.StrEnum):
    """What a run says about the record."""

    AGREES = "agrees"
    CONTRADICTS = "contradicts"
    TOO_SMALL = "too small to tell"
    NEW = "not recorded"


@dataclass(frozen=True)
class RecordedClaim:
    """A claim as it was judged.

    Attributes:
        id: of the claim.
        verdict: what the seeds said.
        differences: method minus baseline, one a seed.
    """

    id: str
    verdict: Verdict
    differences: tuple[float, ...]

    @property
    def effect(self) -> float:
        """Mean of the differences."""
        return math.fsum(self.differences) / len(self.differences)


@dataclass(frozen=True)
class RecordedSeed:
    """One seed of an experiment.

    Attributes:
        experiment: its name.
        seed: the seed.
        seconds: how long it took.
        measurement: arm to metric to value.
    """

    experiment: str
    seed: int
    seconds: float
    measurement: Measurement


@dataclass(frozen=True)
class Record:
    """What one package's claims rest on in one tier.

    Attributes:
        package: whose.
        tier: at which size.
        date: when it was measured.
        commit: of the repository; empty where there is none.
        machine: what it was measured on.
        versions: of the libraries that compute.
        claims: as judged.
        seeds: as measured.
    """

    package: str
    tier: str
    date: str
    commit: str
    machine: dict[str, str]
    versions: dict[str, str]
    claims: tuple[RecordedClaim, ...]
    seeds: tuple[RecordedSeed, ...]

    def claim(self, id: str) -> RecordedClaim | None:  # noqa: A002  # what it is
        """The record of one claim."""
        return next((each for each in self.claims if each.id == id), None)


def load_record(package: str, tier: str, folder: Path = RECORDS) -> Record | None:
    """The record of a package; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / tier / f"{package}.json"
    if not path.is_file():
        return None
    try:
        return JSON.structure(read_json_object(path), Record)
    except (ValueError, TypeError, AttributeError, KeyError, cattrs.BaseValidationError):
        raise UserError(f"{path}: is no record of `reproduce run --record`") from None


def load_history(package: str, tier: str, folder: Path) -> list[Record]:
    """The records of a package over time, oldest first, from `FOLDER/DATE/TIER/PACKAGE.json`.

    Raises:
        UserError: the folder is not there, or a file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    nights = sorted(each for each in folder.iterdir() if each.is_dir())
    return [record for night in nights if (record := load_record(package, tier, night))]


def save_record(
    package: str,
    tier: str,
    outcomes: Sequence[Outcome],
    measured: Sequence[SeedResult],
    machine: dict[str, str],
    folder: Path = RECORDS,
) -> Path:
    """Write the record of a package.

    Args:
        package: whose.
        tier: at which size.
        outcomes: its judged claims.
        measured: its seeds.
        machine: what they were measured on.
        folder: of all records: `FOLDER/TIER/PACKAGE.json` is written.
    """
    record = Record(
        package,
        tier,
        datetime.now(UTC).date().isoformat(),
        _commit(),
        machine,
        {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", package, "tenfold")},
        tuple(RecordedClaim(each.claim.id, each.verdict, each.differences) for each in outcomes),
        tuple(RecordedSeed(each.experiment, each.seed, round(each.seconds, 1), each.measurement) for each in measured),
    )
    path = folder / tier / f"{package}.json"
    write_text(path, JSON.dumps(record, indent=1) + "\n")
    return path


def measurements_of(record: Record, suite: Suite) -> dict[Claim, list[Measurement]]:
    """Each claim with the seeds that a record has of its experiment, to be judged by today's rule; other claims are left out.

    Args:
        record: of the suite's package.
        suite: its claims.
    """

    def of(claim: Claim) -> list[Measurement]:
        return [each.measurement for each in record.seeds if each.experiment == claim.experiment]

    return {claim: of(claim) for claim in suite.claims if of(claim)}


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def agreement(outcome: Outcome, record: Record | None) -> Agreement:
    """Hold a judged claim against its package's record.

    Args:
        outcome: of the run.
        record: of its package and tier.
    """
    recorded = record.claim(outcome.claim.id) if record is not None else None
    if record is None or recorded is None:
        return Agreement.NEW
    if outcome.verdict is recorded.verdict and outcome.verdict.is_conclusive:
        return Agreement.AGREES
    if outcome.claim.deterministic:
        return Agreement.CONTRADICTS
    opposite = outcome.verdict.is_conclusive and recorded.verdict.is_conclusive
    if opposite and outcome.seeds >= len(recorded.differences):
        return Agreement.CONTRADICTS
    # All claims of a record are compared: one in twenty would lie outside a 95 % interval of its own by chance.
    predicted = prediction_interval(recorded.differences, outcome.seeds, LEVEL / 2 / len(record.claims))
    if predicted is None:
        # One seed, or equal ones, predict nothing: another processor rounds otherwise, and training multiplies that.
        equal = math.isclose(outcome.effect, recorded.effect, rel_tol=1e-6, abs_tol=1e-12)
        return Agreement.AGREES if equal else Agreement.TOO_SMALL
    if not predicted[0] <= outcome.effect <= predicted[1]:
        return Agreement.CONTRADICTS
    full = outcome.verdict is recorded.verdict or outcome.seeds >= len(recorded.differences)
    return Agreement.AGREES if full else Agreement.TOO_SMALL
