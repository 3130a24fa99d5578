"""A decision threshold per group (paper supplement, Tables 6 and 7), found on other people than those it is judged on.

The paper finds the thresholds on the test images it then reports, which is leakage; here a calibration split of identities finds
them. Deciding by group needs the person's group at decision time and treats people differently because of it, which is unlawful
in many places: this is an analysis, not advice. It need not help either: maximising each group's utility is not equalising.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from fairfd.data.scores.validation import (
    REAL,
    Coded,
    check_labels_match_approaches,
    check_lengths,
    checked_labels,
    checked_scores,
    encode,
    encode_approaches,
    group_of_identity,
)
from fairfd.evaluation.metrics import operating_points
from fairfd.method.rates import RateTable
from tenfold.errors import UserError

LAWFULNESS = (
    "group thresholds need each person's group at decision time; deciding by group is unlawful in many places, "
    "so use this as an analysis only"
)


@dataclass(frozen=True, eq=False)
class ThresholdAudit:
    """What group thresholds would change, judged on people that did not set them.

    Attributes:
        thresholds: by group.
        balanced_acc: of each group on the calibration split, at its threshold.
        before: the evaluation split at the common threshold.
        after: the evaluation split at the group thresholds.
        calibration: which images found the thresholds.
        warnings: one line each.
    """

    thresholds: dict[str, float]
    balanced_acc: dict[str, float]
    before: RateTable
    after: RateTable
    calibration: Bool[np.ndarray, " n"]
    warnings: tuple[str, ...]


def threshold_audit(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | Coded,
    approaches: ArrayLike | Coded,
    identities: ArrayLike | Coded | None,
    threshold: float = 0.5,
    fraction: float = 0.5,
    seed: int = 0,
    real: str | int = REAL,
    group_order: Sequence[str | int] | None = None,
    approach_order: Sequence[str | int] | None = None,
) -> ThresholdAudit:
    """Find group thresholds on some identities and compare them with the common one on the others.

    Args:
        scores: P(fake) in [0, 1], one per image.
        labels: 0 real, 1 fake.
        groups: sensitive group of each image.
        approaches: approach of each image; real images carry `real`.
        identities: person of each image; the split is by person.
        threshold: the common threshold to compare with.
        fraction: share of each group's identities that calibrates.
        seed: of the split.
        real: the approach that means "not forged".
        group_order: columns to have, in this order.
        approach_order: forgery rows to have, in this order.

    Raises:
        UserError: there are no identities, a group has fewer than two, or its calibration split lacks reals or fakes.
    """
    score, label = checked_scores(scores), checked_labels(labels)
    names, group = encode(groups, group_order, "group")
    approach_names, approach = encode_approaches(approaches, real, approach_order)
    if identities is None:
        raise UserError("group thresholds need an identity column: without it the same people would set and judge them")
    identity_names, identity = encode(identities, None, "identity")
    check_lengths(scores=score, labels=label, groups=group, approaches=approach, identities=identity)
    check_labels_match_approaches(label, approach)
    group_of = group_of_identity(identity, identity_names, group, names)
    calibration = calibration_split(group_of, names, fraction, seed)[identity]
    thresholds, accuracies = {}, {}
    for s, name in enumerate(names):
        chosen = calibration & (group == s)
        if len(np.unique(label[chosen])) < 2:
            raise UserError(f"group {name}: its calibration split lacks real or fake images; raise the fraction")
        thresholds[name], accuracies[name] = best_threshold(score[chosen], label[chosen])
    rest = ~calibration

    def table(at: float | dict[str, float]) -> RateTable:
        return RateTable.from_scores(
            score[rest],
            label[rest],
            np.array(names)[group[rest]],
            np.array(approach_names)[approach[rest]],
            np.array(identity_names)[identity[rest]],
            threshold=at,
            group_order=names,
            approach_order=approach_names,
        )

    return ThresholdAudit(thresholds, accuracies, table(threshold), table(thresholds), calibration, (LAWFULNESS,))


def group_thresholds(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike | Coded) -> dict[str, float]:
    """The best threshold of each group on the given images; judge them on other people's.

    Args:
        scores: P(fake) in [0, 1], one per image.
        labels: 0 real, 1 fake.
        groups: sensitive group of each image.

    Raises:
        UserError: a group lacks real or fake images.
    """
    score, label = checked_scores(scores), checked_labels(labels)
    names, group = encode(groups, None, "group")
    check_lengths(scores=score, labels=label, groups=group)
    for s, name in enumerate(names):
        if len(np.unique(label[group == s])) < 2:
            raise UserError(f"group {name} lacks real or fake images; a threshold needs both")
    return {name: best_threshold(score[group == s], label[group == s])[0] for s, name in enumerate(names)}


def best_threshold(score: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"]) -> tuple[float, float]:
    """The threshold of the highest balanced accuracy.

    Candidates are the distinct scores and one above the largest (nothing is fake); of equally good ones the nearest to
    0.5 is taken.

    Args:
        score: P(fake).
        label: 0 real, 1 fake; both occur.

    Returns:
        The threshold, and the balanced accuracy there.
    """
    false_positives, true_positives = operating_points(score, label)
    distinct = np.unique(score)[::-1].astype(np.float64)
    # Above 1 by the least that a float32 score can tell.
    candidates = np.insert(distinct, 0, np.nextafter(np.float32(max(distinct[0], 1.0)), np.float32(2)))
    # Compared as whole numbers: equally good candidates must not differ by a rounding.
    reals, fakes = false_positives[-1], true_positives[-1]
    merit = true_positives * reals + (reals - false_positives) * fakes
    best = np.flatnonzero(merit == merit.max())
    chosen = best[np.argmin(np.abs(candidates[best] - 0.5))]
    return float(candidates[chosen]), float(merit[chosen] / (2 * reals * fakes))


def calibration_split(
    group_of: Int[np.ndarray, " i"], group_names: Sequence[str], fraction: float, seed: int
) -> Bool[np.ndarray, " i"]:
    """Draw `fraction` of each group's identities, at least one and never all.

    Args:
        group_of: group of each identity.
        group_names: names of the groups.
        fraction: in (0, 1).
        seed: of the draw.

    Raises:
        UserError: the fraction is not in (0, 1), or a group has fewer than two identities.
    """
    if not 0 < fraction < 1:
        raise UserError(f"calibration fraction is {fraction}; use a number between 0 and 1")
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(group_of), bool)
    for s, name in enumerate(group_names):
        members = np.flatnonzero(group_of == s)
        if len(members) < 2:
            raise UserError(f"group {name} has {len(members)} identities; splitting by identity needs at least two")
        size = min(max(round(fraction * len(members)), 1), len(members) - 1)
        chosen[rng.choice(members, size, replace=False)] = True
    return chosen
