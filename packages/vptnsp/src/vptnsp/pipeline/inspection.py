"""What the projections of a learner do: spectra, nullities, kept energy and gains per layer (paper Fig. 2)."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tenfold import UserError
from vptnsp.evaluation.figures import plot_spectra
from vptnsp.method.null_space import null_space_index, spectrum
from vptnsp.method.second_moments import exact_conditions
from vptnsp.training.learner import NSPLearner


@dataclass(frozen=True)
class SideReport:
    """One projection of one layer.

    Attributes:
        size: D or M.
        nullity: R.
        kept_energy: share of the trace that lies in the null space: what the projection lets pass although it is not null.
        gain_null: eta / sqrt(R) + 1 - eta, what an update in the null space is multiplied with.
        gain_rest: 1 - eta, for all other directions.
    """

    size: int
    nullity: int
    kept_energy: float
    gain_null: float
    gain_rest: float


@dataclass(frozen=True)
class LayerReport:
    """Both projections of one layer."""

    layer: str
    features: SideReport
    prompts: SideReport


def side_report(values: Float[np.ndarray, " n"], first: int, eta: float, normalize: str) -> SideReport:
    """Describe a projection from its spectrum and where its null space begins."""
    rank = len(values) - first
    strict = 1 / math.sqrt(rank) if normalize == "fro" and rank else 1.0
    total = float(values.sum())
    return SideReport(
        size=len(values),
        nullity=rank,
        kept_energy=float(values[first:].sum()) / total if total else 1.0,
        gain_null=eta * strict + 1 - eta,
        gain_rest=1 - eta,
    )


def inspect_learner(learner: NSPLearner) -> tuple[list[LayerReport], dict[str, Float[np.ndarray, " n"]]]:
    """Report every layer.

    Returns:
        The reports, and the spectrum of C_1 by layer.

    Raises:
        UserError: a learner without second moments.
    """
    if learner.moments is None:
        raise UserError(
            "the learner has no second moments to inspect: it learnt without projection, or not --extendable"
        )
    config = learner.config
    moments = exact_conditions(learner.moments, learner.vit) if config.conditions == "exact" else learner.moments
    reports, spectra = [], {}
    for name in moments.C1:
        sides = []
        for moment, eta, mode, value in (
            (moments.C1[name], config.eta1, config.nullity_mode, config.nullity_value),
            (moments.C2[name], config.eta2, config.prompt_nullity_mode, config.prompt_nullity_value),
        ):
            values = spectrum(moment).values.float().cpu().numpy()
            first = null_space_index(values, mode=mode, value=value, convention=config.convention)
            sides.append(side_report(values, first, eta, config.normalize))
            spectra.setdefault(name, values)
        reports.append(LayerReport(name, *sides))
    return reports, spectra


def plot_inspection(
    reports: list[LayerReport], spectra: dict[str, Float[np.ndarray, " n"]], path: Path, title: str
) -> None:
    """Draw the spectra of C_1 with their null spaces."""
    plot_spectra(spectra, {each.layer: each.features.nullity for each in reports}, path, title)
