"""The statistics behind a verdict: exact tests by sign flips, their intervals, corrections for many claims, effect sizes.

A difference is what one seed gives: method minus baseline on the same data with the same budget, moved so that the boundary of the claim is 0 and turned so
that what is claimed is positive. If a claim is wrong by as little as it can be, differences lie symmetrically around 0, and each seed's
could as well have had the other sign. So the differences are compared with all their 2^n sign flips (Fisher 1935; Pitman 1937). Nothing is
assumed of their distribution but this symmetry: ties, zeros, bounded and discrete metrics are judged rightly, and no spread is ever divided
by. Where differences are skewed, what is said concerns their centre of symmetry's nearest relative, the pseudomedian, rather than their mean.

**Level.** Every claim has a side, so every test is one-sided, at 5 %. Five seeds have 32 flips: the smallest p is 1/32 = .031, reached when the
claim is ahead on every seed. Two-sided it would be .0625, and four seeds reach 1/16: no verdict is given with fewer than five.

**Many claims.** Of twenty true boundaries one would be crossed by chance. Holm's correction of exact tests would need p of .05/20, which five seeds
cannot reach, and Holm's correction of Student-t tests is not valid here: five equal differences, common in accuracies of 16 pictures, have t = infinity
and p = 0. The step-down of Westfall & Young (1993; Romano & Wolf 2005) is Holm's with the joint distribution of all claims in place of Bonferroni's bound: the signs of a seed
are flipped in all claims at once, and a claim is held against the best that any claim not yet decided reaches under the same flip. It controls
the chance of one or more false statements in the family, keeps dependence between claims, and needs no p below 1/32.

The Student-t interval is shown beside the exact one, for those who know it; no verdict rests on it.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy import special, stats

if TYPE_CHECKING:
    Differences = Float[np.ndarray, " seeds"] | Sequence[float]

LEVEL = 0.05
"""Of every one-sided test, and of a whole family."""

FEWEST_SEEDS = 5
"""The fewest seeds whose sign flips can reach the level: 1/2^5 = .031."""

EXACT_UP_TO = 15
"""Seeds up to which all sign flips are taken; beyond, random ones."""

RANDOM_FLIPS = 9_999
"""With the identity: a p of at least 1/10,000 (Phipson & Smyth 2010)."""

MOST_SEEDS = 1_000
"""Above this, planning seeds is idle."""

# Sums of the same numbers in another order differ by a few units of 1e-16; flips that tie must count as ties.
_TIE = 1e-9


@functools.cache
def sign_flips(seeds: int) -> Float[np.ndarray, "flips seeds"]:
    """Signs for each seed, one row a flip, the first row all +1: all flips, or random ones beyond `EXACT_UP_TO` seeds."""
    if seeds <= EXACT_UP_TO:
        return 1.0 - 2.0 * ((np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1)
    flips = np.random.default_rng(0).choice([-1.0, 1.0], (RANDOM_FLIPS + 1, seeds))
    flips[0] = 1.0
    return flips


def flip_p(differences: "Differences") -> float:
    """One-sided p of "not above 0": the share of sign flips whose sum is at least that of the differences.

    As `scipy.stats.permutation_test(..., permutation_type="samples", alternative="greater")` on the mean.
    """
    found = _scores(differences, sign_flips(len(differences)))
    return float(np.mean(found >= found[0] - _TIE))


def _scores(differences: "Differences", flips: Float[np.ndarray, "flips most"]) -> Float[np.ndarray, " flips"]:
    """Mean over root mean square of the flipped differences: between -1 and 1, and rising with the t statistic. 0 when all are 0."""
    data = np.asarray(differences, dtype=np.float64)
    size = np.sqrt(len(data) * (data @ data))
    return flips[:, : len(data)] @ data / size if size > 0 else np.zeros(len(flips))


def family_p(family: "Sequence[Differences]") -> list[float]:
    """Adjusted p of every member: step-down over joint sign flips (Westfall & Young 1993, algorithm 4.1).

    Args:
        family: the differences of each test. Those of seed i are flipped together; members may have fewer seeds than others.

    Returns:
        At most 5 % of families of true boundaries have a member at or below .05, whatever depends on what.
    """
    if not family:
        return []
    flips = sign_flips(max(map(len, family)))
    # Members with different numbers of seeds meet on the scale of Student's p, a fixed increasing map of their scores.
    surprise = np.stack([_surprise(_scores(each, flips), len(each)) for each in family])
    order = np.argsort(-surprise[:, 0], kind="stable")
    adjusted = np.empty(len(family))
    least = 0.0
    for rank, member in enumerate(order):
        best = surprise[order[rank:]].max(0)
        least = max(least, float(np.mean(best >= surprise[member, 0] - _TIE)))
        adjusted[member] = least
    return adjusted.tolist()


def _surprise(scores: Float[np.ndarray, " flips"], seeds: int) -> Float[np.ndarray, " flips"]:
    """-log of the Student-t p that belongs to a score; equal differences, whose score is 1, are as good as others of 1 - 1e-9."""
    bounded = np.clip(scores, _TIE - 1, 1 - _TIE)
    t = bounded * np.sqrt((seeds - 1) / ((1 - bounded) * (1 + bounded)))
    return -np.log(np.maximum(special.stdtr(seeds - 1, -t), np.finfo(float).tiny))


def flip_interval(differences: "Differences", level: float = LEVEL) -> tuple[float, float] | None:
    """The values that sign flips do not reject, on either side at `level`: a 90 % interval for 5 % (Hartigan 1969).

    A sign flip's sum reaches that of the differences less x exactly when the mean of the flipped ones is at most x. So the bounds
    are order statistics of the means of all subsets; with five seeds, the least and the greatest difference.

    Returns:
        The interval; None with too few seeds for the level, and where all differences are equal: that tells nothing of their spread.
    """
    data = np.asarray(differences, dtype=np.float64)
    if len(data) == 0 or np.ptp(data) == 0:
        return None
    flips = sign_flips(len(data))
    chosen = (1 - flips) / 2
    counts = chosen.sum(1)
    means = np.sort((chosen @ data)[counts > 0] / counts[counts > 0])
    kept = int(np.floor(level * len(flips) + _TIE))
    return (float(means[kept - 1]), float(means[-kept])) if kept else None


def student_interval(differences: "Differences", level: float = LEVEL) -> tuple[float, float] | None:
    """Student-t interval of the mean with `level` left out on either side; None where the differences show no spread."""
    data = np.asarray(differences, dtype=np.float64)
    if data.size < 2 or np.ptp(data) == 0:
        return None
    low, high = stats.t.interval(1 - 2 * level, data.size - 1, loc=data.mean(), scale=stats.sem(data))
    return float(low), float(high)


def prediction_interval(differences: "Differences", seeds: int, level: float = LEVEL / 2) -> tuple[float, float] | None:
    """Where the mean of so many further seeds lies, with `level` left out on either side (Student-t; Hahn 1969); None without spread."""
    data = np.asarray(differences, dtype=np.float64)
    if data.size < 2 or np.ptp(data) == 0:
        return None
    reach = stats.t.isf(level, data.size - 1) * data.std(ddof=1) * np.sqrt(1 / data.size + 1 / seeds)
    return float(data.mean() - reach), float(data.mean() + reach)


def effect_size(differences: "Differences") -> float | None:
    """Paired Cohen's d_z, the mean over the standard deviation, freed of its small-sample bias (Hedges 1981); None without spread."""
    data = np.asarray(differences, dtype=np.float64)
    if data.size < 3 or np.ptp(data) == 0:
        return None
    freedom = data.size - 1
    shrink = np.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / np.sqrt(freedom / 2)
    return float(shrink * data.mean() / data.std(ddof=1))


def power(effect: float, seeds: int, level: float = LEVEL) -> float:
    """Chance that a one-sided t test of this many seeds sees an effect of this size (noncentral t; Cohen 1988, chapter 2)."""
    return float(stats.nct.sf(stats.t.isf(level, seeds - 1), seeds - 1, abs(effect) * np.sqrt(seeds)))


def seeds_needed(effect: float, aim: float = 0.8) -> int | None:
    """The fewest seeds that see an effect of this size with a chance of `aim`; None above `MOST_SEEDS`.

    For planning: as if the effect that was measured were the true one, and the claim alone in its family.
    """
    if power(effect, MOST_SEEDS) < aim:
        return None
    few, many = FEWEST_SEEDS - 1, MOST_SEEDS
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if power(effect, middle) >= aim else (middle, many)
    return many


def false_discovery_rates(ps: Sequence[float]) -> list[float]:
    """Benjamini & Hochberg's q of each p (1995): the share of false ones expected among those with no larger q."""
    return stats.false_discovery_control(ps, method="bh").tolist() if len(ps) else []
