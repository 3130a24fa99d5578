"""What an audit found, as one frozen tree of plain values, and its exact JSON form (paper Tables 2-14).

Everything here is numbers, text and tuples: no arrays, no library objects. `None` (JSON `null`) stands wherever a
number is undefined, for example the interval of a single group's gap or a cell without images; NaN never reaches a
file.
"""

import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import Float

from fairfd.evaluation.metrics import Gate, Scorecard
from fairfd.evaluation.related_metrics import PeerMetrics
from fairfd.method.fairness import Convention
from tenfold.errors import UserError
from tenfold.reading import parse_json

_LARGEST = sys.float_info.max

FORMAT_VERSION = 1
"""Raised when a field changes its meaning; readers refuse other versions."""


@dataclass(frozen=True)
class Interval:
    """A gap with its uncertainty.

    Attributes:
        value: the plug-in value; biased upwards, the more so the fewer people were tested.
        debiased: bootstrap-debiased value, at least 0.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float | None
    debiased: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate(Interval):
    """A metric with its uncertainty and its noise floor.

    Attributes:
        null_mean: its mean when group labels are shuffled over people: what an unbiased detector shows.
        null_q95: its 95 % quantile.
        p: permutation p-value of `value`.
    """

    null_mean: float | None = None
    null_q95: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Replicates:
    """Bootstrap replicates of the twelve metrics, kept so that detectors can be ranked on the same resampled people.

    Attributes:
        count: number of replicates.
        metrics: names of the columns.
        float32: base64 of the little-endian float32 matrix (count, metrics).
    """

    count: int
    metrics: tuple[str, ...]
    float32: str

    @classmethod
    def pack(cls, metrics: tuple[str, ...], values: Float[np.ndarray, "b m"]) -> "Replicates":
        """Encode a matrix of replicates; float32 keeps 7 digits, which ranking does not need more of."""
        packed = base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")
        return cls(count=len(values), metrics=metrics, float32=packed)

    def unpack(self) -> Float[np.ndarray, "b m"]:
        """The replicates as float64.

        Raises:
            UserError: the text does not hold `count` rows.
        """
        try:
            flat = np.frombuffer(base64.b64decode(self.float32, validate=True), dtype="<f4")
            return flat.reshape(self.count, len(self.metrics)).astype(np.float64)
        except ValueError as error:
            raise UserError(f"audit file: damaged bootstrap replicates ({error}); run the audit again") from error


@dataclass(frozen=True)
class ConventionResult:
    """The twelve metrics under one convention.

    Attributes:
        definition: how it computes the family.
        metrics: metric name -> estimate, in the order of the paper's tables.
        hidden_gaps: "AADPD - DPD" and its like -> what averaging over approaches hides. AA >= naive even for noise
            under the macro average, so that only an interval above 0 is evidence. Empty without intervals.
        degenerate_rows: approaches whose utility c + accuracy is 0; they contribute 0 to UR.
        replicates: of all twelve, or None without intervals.
    """

    definition: Convention
    metrics: dict[str, Estimate]
    hidden_gaps: dict[str, Interval]
    degenerate_rows: tuple[str, ...]
    replicates: Replicates | None


@dataclass(frozen=True)
class DataSummary:
    """What was scored.

    Attributes:
        sha256: hash of the rows (every column, the score included), whatever their order.
        people_sha256: hash of who was tested (identity and group, scores excluded); with equal hashes, settings and
            seed two audits have resampled the same people.
        images: rows of the score file.
        people: distinct identities, or None without an identity column.
        people_per_group: same, by group.
        groups: names, in column order of every matrix.
        approaches: names, in row order; the first is the real face.
        images_per_cell: images by approach and group.
        people_per_cell: identities by approach and group, or None without an identity column.
    """

    sha256: str
    people_sha256: str
    images: int
    people: int | None
    people_per_group: tuple[int, ...] | None
    groups: tuple[str, ...]
    approaches: tuple[str, ...]
    images_per_cell: tuple[tuple[int, ...], ...]
    people_per_cell: tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True)
class ApproachResult:
    """One row of the accuracy matrix.

    Attributes:
        approach: name; the real face comes first.
        is_real: genuine faces (accuracy = share accepted) or fakes (accuracy = share caught).
        accuracy: by group, None for an empty cell.
        utility: mean over the groups.
        gap: largest minus smallest accuracy over the groups, with its interval.
    """

    approach: str
    is_real: bool
    accuracy: tuple[float | None, ...]
    utility: float | None
    gap: Interval


@dataclass(frozen=True)
class UtilityResult:
    """How well the detector detects.

    Attributes:
        overall: over all images.
        per_group: by group name.
        auc_per_cell: AUC of each approach's fakes of a group against that group's genuine faces; the real row is None.
    """

    overall: Scorecard
    per_group: dict[str, Scorecard]
    auc_per_cell: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class SubjectsPoint:
    """One metric measured on fewer people (protocol P5).

    Attributes:
        people_per_group: identities drawn per group, without replacement.
        is_all: everybody was used, so that there is one draw.
        draws: number of random draws.
        mean: mean of the metric over the draws.
        low: 2.5 % quantile over the draws.
        high: 97.5 % quantile over the draws.
        null_mean: mean of the metric with shuffled group labels.
        null_q95: its 95 % quantile.
    """

    people_per_group: int
    is_all: bool
    draws: int
    mean: float
    low: float
    high: float
    null_mean: float | None
    null_q95: float | None


@dataclass(frozen=True)
class SubjectsCurve:
    """How many people a trustworthy comparison needs (protocol P5).

    Attributes:
        convention: name of the convention.
        metric: name of the metric.
        points: by rising number of people.
    """

    convention: str
    metric: str
    points: tuple[SubjectsPoint, ...]


@dataclass(frozen=True)
class Settings:
    """How the audit was run.

    Attributes:
        n_boot: bootstrap replicates.
        n_perm: permutations.
        seed: of both.
        level: nominal coverage of the intervals.
        interval: "basic" (reflected) or "percentile".
        empty: what an empty cell does: "raise", "drop" or "nan".
        min_identities: groups below this are warned of.
    """

    n_boot: int
    n_perm: int
    seed: int
    level: float
    interval: Literal["basic", "percentile"]
    empty: Literal["raise", "drop", "nan"]
    min_identities: int


@dataclass(frozen=True)
class Audit:
    """Everything found about one detector; `fairfd.audit` makes it.

    Attributes:
        version: of this format, first in the file.
        detector: name.
        data: what was scored.
        threshold: scores at or above it are called fake; one number, or one per group.
        settings: how the audit was run.
        conventions: "official" and "paper" (or one of them) -> the twelve metrics.
        approaches: the accuracy matrix with per-row gaps.
        utility: how well the detector detects.
        peer_metrics: AI-Face-FairnessBench metrics, FPR gap and worst group.
        gate: is the detector good enough for its fairness numbers to mean anything?
        subjects_curve: how the result depends on the number of people, when asked for.
        warnings: what a reader must know.
        software: name -> version.
    """

    version: int
    detector: str
    data: DataSummary
    threshold: float | dict[str, float]
    settings: Settings
    conventions: dict[str, ConventionResult]
    approaches: tuple[ApproachResult, ...]
    utility: UtilityResult
    peer_metrics: PeerMetrics
    gate: Gate
    subjects_curve: SubjectsCurve | None
    warnings: tuple[str, ...]
    software: dict[str, str]

    def to_json(self) -> str:
        """The audit as strict JSON text."""
        return strict_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Audit":
        """The audit written by `to_json`.

        Raises:
            UserError: not JSON, another version, a missing or mistyped field (named).
        """
        return decode_audit(parse_audit_json(text))


def strict_json(plain: Any) -> str:
    """Indented JSON of plain values; floats are written so that they read back equal (invariant 26).

    Raises:
        ValueError: a NaN or an infinity among them.
    """
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)


def parse_audit_json(text: str) -> Any:
    """Parsed JSON, or one clear line.

    Raises:
        UserError: not JSON.
    """
    return parse_json(text, "not an audit file")


def decode_audit(parsed: Any) -> Audit:
    """An audit from parsed JSON.

    Raises:
        UserError: another version, a missing or mistyped field (named).
    """
    if not isinstance(parsed, Mapping) or "version" not in parsed:
        raise UserError("not an audit file: it has no field 'version'")
    if parsed["version"] != FORMAT_VERSION:
        raise UserError(f"audit file has format version {parsed['version']}, this fairfd reads {FORMAT_VERSION}")
    return decode(Audit, parsed, "audit")


def decode(kind: Any, parsed: Any, where: str) -> Any:
    """A value of the annotated type (dataclass, tuple, dict, union, literal or scalar) from parsed JSON.

    Args:
        kind: the annotation.
        parsed: what `json.loads` gave.
        where: path of the field, for the error.

    Raises:
        UserError: the parsed value does not fit; names the field.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if parsed is None and NoneType in inner:
            return None
        wants_mapping = isinstance(parsed, Mapping)
        kinds = [option for option in inner if option is not NoneType]
        choices = [option for option in kinds if (get_origin(option) is dict or is_dataclass(option)) == wants_mapping]
        return decode(choices[0] if choices else kinds[0], parsed, where)
    if is_dataclass(kind) and isinstance(parsed, Mapping):
        hints = get_type_hints(kind)
        missing = [field.name for field in fields(kind) if field.name not in parsed]
        if missing:
            raise UserError(f"not an audit file: {where}.{missing[0]} is missing")
        return kind(**{f.name: decode(hints[f.name], parsed[f.name], f"{where}.{f.name}") for f in fields(kind)})
    if origin is tuple and isinstance(parsed, list):
        return tuple(decode(inner[0], item, f"{where}[{index}]") for index, item in enumerate(parsed))
    if origin is dict and isinstance(parsed, Mapping):
        return {key: decode(inner[1], item, f"{where}.{key}") for key, item in parsed.items()}
    if origin is Literal and isinstance(parsed, str | int | float) and parsed in inner:
        return parsed
    # Audits are strict JSON: what is not finite is null.
    if kind is float and isinstance(parsed, int | float) and not isinstance(parsed, bool) and abs(parsed) <= _LARGEST:
        return float(parsed)
    if kind in (int, str, bool) and type(parsed) is kind:
        return parsed
    raise UserError(f"not an audit file: {where} cannot be {str(parsed)[:40]!r}")
