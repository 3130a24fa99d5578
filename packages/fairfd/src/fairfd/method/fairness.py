"""The twelve fairness metrics: naive, approach averaged, utility regularised (paper, "Evaluation metrics", Eqs. 2, 3, 6-9).

All work on accuracy matrices A of shape (..., M+1, G), row 0 = real face, so that a thousand bootstrap replicates are one
call. NaN marks an empty cell and is left out: of a range or mean over groups, and of an average over approaches where
fewer than two groups are present. Zero is fair; the range metrics lie in [0, 1] except the UR ones with offset 0.

What the family does not do: it cannot see a useless detector. One that calls everything fake scores zero on all twelve; see
`fairfd.utility`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Real
from numpy.typing import ArrayLike

from fairfd.method.rates import RateTable
from tenfold.errors import UserError

METRIC_NAMES = (
    "DPD",
    "DEOdds",
    "DEO",
    "STD",
    "AADPD",
    "AADEOdds",
    "AADEO",
    "AASTD",
    "URDPD",
    "URDEOdds",
    "URDEO",
    "URSTD",
)
"""The order of every vector of twelve: that of the paper's tables."""

Average = Literal["macro", "pooled"]
Empty = Literal["raise", "drop", "nan"]


@dataclass(frozen=True)
class Convention:
    """The choices on which the paper's equations and its published numbers differ.

    Attributes:
        naive_average: the naive metrics average a group's approaches with equal weight ("macro", official code) or pool
            its images ("pooled", paper Eqs. 6-9).
        naive_dpd: DPD is the range of accuracies (official code: false and true positives of a group cancel) or of
            positive rates (paper Eq. 6).
        utility_average: acc_f averages the groups ("macro", official code) or pools the images ("pooled").
        utility_offset: c in r_f / (acc_f + c); 0 in paper Eq. 3, 1 in official code and in the tables.
        ddof: of the standard deviation over groups; 0 reproduces the tables.
        threshold: on P(fake), a tie is fake. `fairness` fills in the table's own; None when it varies or is unknown.
    """

    naive_average: Average = "macro"
    naive_dpd: Literal["accuracy", "positive_rate"] = "accuracy"
    utility_average: Average = "macro"
    utility_offset: float = 1.0
    ddof: int = 0
    threshold: float | None = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.utility_offset) and self.utility_offset >= 0):
            raise UserError(
                f"utility_offset is {self.utility_offset}; use 0 (paper Eq. 3), 1 (official) or another >= 0"
            )
        if self.ddof not in (0, 1):
            raise UserError(f"ddof is {self.ddof}; use 0 (as published) or 1")

    @property
    def name(self) -> str:
        """The preset that these choices are, whatever the threshold: "official", "paper", or else "custom"."""
        for name, known in (("official", OFFICIAL), ("paper", PAPER)):
            if replace(self, threshold=known.threshold) == known:
                return name
        return "custom"


OFFICIAL = Convention()
"""Reproduces the published tables."""

PAPER = Convention(naive_average="pooled", naive_dpd="positive_rate", utility_average="pooled", utility_offset=0.0)
"""The equations as printed."""


@dataclass(frozen=True)
class FairnessValues(Mapping[str, float | None]):
    """The twelve metrics of one table under one convention: a mapping from name to value.

    A value is None where it is undefined (DEOdds without real images) and NaN where `empty="nan"` lets an empty cell
    through.

    Attributes:
        values_by_name: the mapping itself.
        convention: under which they were computed.
        degenerate_rows: approaches with acc_f + c = 0 (wrong on every image); they contribute 0 to the UR metrics.
        dropped_rows: approaches left out because fewer than two groups have images.
        warnings: one line each.
    """

    values_by_name: Mapping[str, float | None]
    convention: Convention = OFFICIAL
    degenerate_rows: tuple[str, ...] = ()
    dropped_rows: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float | None:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; NaN, which JSON lacks, becomes null and is listed under "nan"."""
        return {
            "convention": {"name": self.convention.name, **asdict(self.convention)},
            "values": {name: None if _is_nan(value) else value for name, value in self.items()},
            "nan": [name for name, value in self.items() if _is_nan(value)],
            "degenerate_rows": list(self.degenerate_rows),
            "dropped_rows": list(self.dropped_rows),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FairnessValues":
        """The inverse of `to_json`."""
        choices = {name: value for name, value in data["convention"].items() if name != "name"}
        values = dict(data["values"]) | dict.fromkeys(data["nan"], math.nan)
        return cls(
            values_by_name=values,
            convention=Convention(**choices),
            degenerate_rows=tuple(data["degenerate_rows"]),
            dropped_rows=tuple(data["dropped_rows"]),
            warnings=tuple(data["warnings"]),
        )


def fairness(table: RateTable, convention: Convention = OFFICIAL, empty: Empty = "raise") -> FairnessValues:
    """The twelve metrics of a table.

    Args:
        table: counts per cell.
        convention: `OFFICIAL` (the published tables), `PAPER` (the printed equations) or another.
        empty: what to do where a group has no image of an approach: "raise" names the cells, "drop" leaves them out,
            "nan" lets NaN through. Never is 0 or 1 put in their place.

    Raises:
        UserError: there are empty cells and `empty` is "raise".
    """
    check_empty_cells(table, empty)
    reached = reached_by_empty_cells(table, empty)
    values = np.where(reached, math.nan, metrics_of(table.k, table.n, convention)).tolist()
    utility = utilities(table.k, table.n, convention.utility_average) + convention.utility_offset
    dropped = _rows(table, (table.n > 0).sum(axis=1) < min(2, len(table.groups)))
    return FairnessValues(
        values_by_name={
            name: None if math.isnan(value) and not nan else value
            for name, value, nan in zip(METRIC_NAMES, values, reached, strict=True)
        },
        convention=replace(convention, threshold=None if isinstance(table.threshold, Mapping) else table.threshold),
        degenerate_rows=_rows(table, utility == 0),
        dropped_rows=dropped,
        warnings=tuple(_warnings(table, convention, dropped)),
    )


def metrics_of(
    k: Real[np.ndarray, "*b f g"], n: Real[np.ndarray, "*b f g"], convention: Convention
) -> Float[np.ndarray, "*b 12"]:
    """All twelve, in the order of `METRIC_NAMES`; NaN where undefined.

    Args:
        k: correct images per cell, row 0 = real.
        n: images per cell.
        convention: the choices left open by the paper.
    """
    ddof, average = convention.ddof, convention.naive_average
    A = ratio(k, n)
    u = utilities(k, n, convention.utility_average) + convention.utility_offset
    accuracy = per_group(k, n, average)
    tnr, tpr = A[..., 0, :], per_group(k[..., 1:, :], n[..., 1:, :], average)
    compared = accuracy if convention.naive_dpd == "accuracy" else per_group(called_fake(k, n), n, average)
    columns = (
        dpd(compared),
        deodds(tnr, tpr),
        deo(tpr),
        std(accuracy, ddof),
        aadpd(A),
        aadeodds(A),
        aadeo(A),
        aastd(A, ddof),
        urdpd(A, u),
        urdeodds(A, u),
        urdeo(A, u),
        urstd(A, u, ddof),
    )
    return np.stack(columns, axis=-1)


# Naive: average a group over the approaches first, compare the groups afterwards.


def dpd(rate: Float[np.ndarray, "*b g"]) -> Float[np.ndarray, "*b"]:
    """Demographic parity difference (paper Eq. 6): ptp_s of each group's overall rate.

    Args:
        rate: positive rate per group (paper), or accuracy per group (official code).
    """
    return spread(rate)


def deo(tpr: Float[np.ndarray, "*b g"]) -> Float[np.ndarray, "*b"]:
    """Equal opportunity difference (paper Eqs. 6-9): ptp_s of the true positive rate."""
    return spread(tpr)


def deodds(tnr: Float[np.ndarray, "*b g"], tpr: Float[np.ndarray, "*b g"]) -> Float[np.ndarray, "*b"]:
    """Equalised odds difference (paper Eqs. 6-9): mean of the FPR gap (which is the TNR gap) and the TPR gap."""
    return np.asarray((spread(tnr) + spread(tpr)) / 2)


def std(accuracy: Float[np.ndarray, "*b g"], ddof: int = 0) -> Float[np.ndarray, "*b"]:
    """Standard deviation over groups of the overall accuracy (paper Eqs. 6-9)."""
    return deviation(accuracy, ddof)


# Approach averaged: compare the groups under each approach, average afterwards, so that opposite gaps cannot cancel.


def aadpd(A: Float[np.ndarray, "*b f g"]) -> Float[np.ndarray, "*b"]:
    """Mean of r_f = ptp_s A[f, s] over the real row and all approaches (paper Eq. 2)."""
    return mean_present(spread(A))


def aadeo(A: Float[np.ndarray, "*b f g"]) -> Float[np.ndarray, "*b"]:
    """Mean of r_f over the forgery approaches (official code)."""
    return mean_present(spread(A)[..., 1:])


def aadeodds(A: Float[np.ndarray, "*b f g"]) -> Float[np.ndarray, "*b"]:
    """Half the real row's gap and half the forgeries' mean gap (official code)."""
    return real_and_fake(spread(A))


def aastd(A: Float[np.ndarray, "*b f g"], ddof: int = 0) -> Float[np.ndarray, "*b"]:
    """Mean of d_f = std_s A[f, s] over the real row and all approaches (official code)."""
    return mean_present(deviation(A, ddof))


# Utility regularised: a gap of ten points weighs more where the detector is right less often. u_f = acc_f + c.


def urdpd(A: Float[np.ndarray, "*b f g"], u: Float[np.ndarray, "*b f"]) -> Float[np.ndarray, "*b"]:
    """Mean of r_f / u_f over the real row and all approaches (paper Eq. 3 with c = 0; official code c = 1)."""
    return mean_present(regularised(spread(A), u))


def urdeo(A: Float[np.ndarray, "*b f g"], u: Float[np.ndarray, "*b f"]) -> Float[np.ndarray, "*b"]:
    """Mean of r_f / u_f over the forgery approaches (official code)."""
    return mean_present(regularised(spread(A), u)[..., 1:])


def urdeodds(A: Float[np.ndarray, "*b f g"], u: Float[np.ndarray, "*b f"]) -> Float[np.ndarray, "*b"]:
    """Half the real row's r_0 / u_0 and half the forgeries' mean r_f / u_f (official code)."""
    return real_and_fake(regularised(spread(A), u))


def urstd(A: Float[np.ndarray, "*b f g"], u: Float[np.ndarray, "*b f"], ddof: int = 0) -> Float[np.ndarray, "*b"]:
    """Mean of d_f / u_f over the real row and all approaches (official code)."""
    return mean_present(regularised(deviation(A, ddof), u))


# What they are made of.


def spread(rate: Float[np.ndarray, "*b g"]) -> Float[np.ndarray, "*b"]:
    """ptp_s: largest less smallest over the groups present; NaN where fewer than two are (of at least two)."""
    return np.where(_comparable(rate), np.fmax.reduce(rate, axis=-1) - np.fmin.reduce(rate, axis=-1), math.nan)


def deviation(rate: Float[np.ndarray, "*b g"], ddof: int = 0) -> Float[np.ndarray, "*b"]:
    """std_s over the groups present; NaN where fewer than two are (of at least two)."""
    present = (~np.isnan(rate)).sum(axis=-1)
    squares = np.nansum((rate - np.expand_dims(mean_present(rate), -1)) ** 2, axis=-1)
    return np.where(_comparable(rate), np.sqrt(ratio(squares, np.maximum(present - ddof, 1))), math.nan)


def mean_present(values: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b"]:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    return ratio(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))


def real_and_fake(per_approach: Float[np.ndarray, "*b f"]) -> Float[np.ndarray, "*b"]:
    """The "odds" average: the real row weighs as much as all forgery approaches together."""
    return np.asarray((per_approach[..., 0] + mean_present(per_approach[..., 1:])) / 2)


def regularised(gap: Float[np.ndarray, "*b f"], u: Float[np.ndarray, "*b f"]) -> Float[np.ndarray, "*b f"]:
    """r_f / u_f; where u_f = 0 every group is wrong on every image, the gap is 0 and so is its share."""
    return np.divide(gap, u, out=gap * 0.0, where=u != 0)


def utilities(
    k: Real[np.ndarray, "*b f g"], n: Real[np.ndarray, "*b f g"], average: Average
) -> Float[np.ndarray, "*b f"]:
    """acc_f: each approach's accuracy, as the mean over groups ("macro") or over images ("pooled")."""
    if average == "pooled":
        return ratio(k.sum(axis=-1), n.sum(axis=-1))
    return mean_present(ratio(k, n))


def per_group(
    count: Real[np.ndarray, "*b f g"], n: Real[np.ndarray, "*b f g"], average: Average
) -> Float[np.ndarray, "*b g"]:
    """Each group's rate over the given approaches, as the mean over approaches ("macro") or over images ("pooled")."""
    if average == "pooled":
        return ratio(count.sum(axis=-2), n.sum(axis=-2))
    return mean_present(np.swapaxes(ratio(count, n), -1, -2))


def called_fake(k: Real[np.ndarray, "*b f g"], n: Real[np.ndarray, "*b f g"]) -> Real[np.ndarray, "*b f g"]:
    """Images called fake per cell: the wrong ones of the real row, the right ones of the others."""
    return np.concatenate([n[..., :1, :] - k[..., :1, :], k[..., 1:, :]], axis=-2)


def ratio(part: ArrayLike, whole: ArrayLike) -> Float[np.ndarray, "..."]:
    """part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), math.nan), where=np.asarray(whole) != 0)


# Empty cells.


def check_empty_cells(table: RateTable, empty: Empty) -> None:
    """Refuse a table with empty cells unless the caller has chosen what to do with them.

    Raises:
        UserError: naming the cells.
    """
    cells = [f"{approach}/{group}" for approach, group in table.empty_cells]
    if cells and empty == "raise":
        more = f" and {len(cells) - 5} more" if len(cells) > 5 else ""
        raise UserError(
            f"no image in {', '.join(cells[:5])}{more} (approach/group); add images, "
            "or choose empty='drop' (leave the cells out) or empty='nan' (--empty)"
        )


def reached_by_empty_cells(table: RateTable, empty: Empty) -> Bool[np.ndarray, "12"]:
    """Which metrics NaN reaches under `empty="nan"`: all but, where only the real row has empty cells, the DEO ones."""
    rows = {approach for approach, _ in table.empty_cells} if empty == "nan" else set()
    fakes_only = np.array([name.endswith("DEO") for name in METRIC_NAMES])
    if rows - {table.approaches[0]}:
        return np.ones(len(METRIC_NAMES), bool)
    return ~fakes_only if rows else np.zeros(len(METRIC_NAMES), bool)


def _comparable(rate: Float[np.ndarray, "*b g"]) -> Bool[np.ndarray, "*b"]:
    """Whether there are two groups to compare; a single group compares with itself, which gives 0."""
    return np.asarray((~np.isnan(rate)).sum(axis=-1) >= min(2, rate.shape[-1]))


def _rows(table: RateTable, chosen: Bool[np.ndarray, " f"]) -> tuple[str, ...]:
    """Names of the chosen rows, less the real row of a table without real images."""
    return tuple(table.approaches[f] for f in np.flatnonzero(chosen) if f > 0 or table.has_real)


def _warnings(table: RateTable, convention: Convention, dropped: tuple[str, ...]) -> Iterator[str]:
    if len(table.groups) == 1:
        yield f"one group only ({table.groups[0]}): there is nothing to compare, every gap is 0"
    if not table.has_real:
        yield "no real images: the equalised-odds metrics are undefined"
    if not table.n[1:].any():
        yield "no fake images: the metrics on true positives are undefined"
    if dropped:
        yield f"left out, because fewer than two groups have images: {', '.join(dropped)}"
    if table.unit == "published" and "pooled" in (convention.naive_average, convention.utility_average):
        yield "published accuracies carry no counts: pooled averages take all cells as equal in size"


def _is_nan(value: float | None) -> bool:
    return value is not None and math.isnan(value)
