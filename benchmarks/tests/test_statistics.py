"""Error rates, coverage and power by simulation, with fixed seeds; exact values by hand and by scipy."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from reproduce.statistics import (
    effect_size,
    false_discovery_rates,
    family_p,
    flip_interval,
    flip_p,
    power,
    prediction_interval,
    seeds_needed,
    sign_flips,
    student_interval,
)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

# (families, members, seeds) of differences whose centre is 0.
NULLS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(1.5, shape),
    "ties": lambda rng, shape: rng.choice([-1, 0, 1], shape) / 16,
    "no spread": lambda rng, shape: rng.choice([-1, 1], shape) / 16,
    "bounded": lambda rng, shape: rng.beta(0.3, 0.3, shape) - rng.beta(0.3, 0.3, shape),
    "few pictures": lambda rng, shape: (rng.binomial(16, 0.8, shape) - rng.binomial(16, 0.8, shape)) / 16,
    # Every member compares with the same baseline: dependent.
    "one baseline": lambda rng, shape: rng.normal(size=shape) - rng.normal(size=(shape[0], 1, shape[2])),
    # Each member is symmetric, the members together are not: more than the method asks for.
    "one skewed baseline": lambda rng, shape: (
        rng.exponential(size=shape) - rng.exponential(size=(shape[0], 1, shape[2]))
    ),
    "one copied": lambda rng, shape: np.repeat(rng.normal(size=(shape[0], 1, shape[2])), shape[1], 1),
}


def at_most(rate: float, trials: int) -> float:
    """The rate and three standard errors of a share of so many trials: passed by chance once in 700 draws, and the draws are fixed."""
    return rate + 3 * np.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("draw", NULLS.values(), ids=NULLS)
@pytest.mark.parametrize("seeds", [5, 8])
def test_false_holds_are_at_most_five_percent_of_families(draw: Draw, seeds: int) -> None:
    families = draw(np.random.default_rng(1), (500, 10, seeds))
    wrong = np.mean([min(family_p(list(each))) <= 0.05 for each in families])
    assert wrong <= at_most(0.05, len(families))


def test_holm_on_student_would_not_control_the_family() -> None:
    # Why the family is judged by sign flips: five equal differences, of which every 32nd is all positive, have a t of infinity.
    families = NULLS["no spread"](np.random.default_rng(1), (400, 10, 5))
    spread = families.std(2) > 0
    assert np.mean((~spread & (families.mean(2) > 0)).any(1)) > 0.2


def test_true_members_beside_false_ones_keep_the_rate() -> None:
    rng = np.random.default_rng(2)
    families = rng.normal(size=(600, 8, 6))
    families[:, :4] += 5
    decided = np.array([family_p(list(each)) for each in families]) <= 0.05
    assert decided[:, 4:].any(1).mean() <= at_most(0.05, len(families))


def test_clear_effects_are_seen() -> None:
    rng = np.random.default_rng(3)
    for seeds, shift, least in ((5, 10.0, 0.9), (10, 2.0, 0.8)):
        families = rng.normal(size=(200, 10, seeds))
        families[:, :5] += shift
        decided = np.array([family_p(list(each)) for each in families]) <= 0.05
        assert decided[:, :5].mean() >= least


def test_members_with_fewer_seeds_are_judged_by_their_own_flips() -> None:
    one, other = [1.0, 1.2, 0.9, 1.1, 1.3], [0.5] * 16
    assert family_p([one]) == [1 / 32]
    # Random flips of sixteen: the five of the first are all positive in about every 32nd.
    both = family_p([one, other])
    assert both[0] == pytest.approx(1 / 32, abs=0.01)
    assert both[1] < 0.01


def test_adjusted_p_never_falls_below_the_members_own() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        family = [rng.normal(0.5, 1, 6) for _ in range(5)]
        own, adjusted = [flip_p(each) for each in family], family_p(family)
        assert all(after >= before - 1e-12 for before, after in zip(own, adjusted, strict=True))
    assert family_p([]) == []


@pytest.mark.parametrize("seeds", [5, 9])
def test_p_is_scipys_exact_one(seeds: int) -> None:
    rng = np.random.default_rng(5)
    for values in (rng.normal(0.4, 1, seeds), rng.choice([-1, 0, 1, 2], seeds) / 16, np.full(seeds, 0.0625)):
        found = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
        )
        assert flip_p(values) == pytest.approx(found.pvalue)


def test_p_of_ties_and_signs_by_hand() -> None:
    assert flip_p([0.0] * 5) == 1
    assert flip_p([0.0625] * 5) == 1 / 32
    assert flip_p([-0.0625] * 5) == 1
    assert flip_p([1, 1, 1, 1, -1]) == 6 / 32
    assert flip_p([1, 1, 1, 1, 0]) == 2 / 32
    assert flip_p([0.1] * 20) == 1 / 10_000


def test_random_flips_start_with_none() -> None:
    assert (sign_flips(20)[0] == 1).all()
    assert len(sign_flips(20)) == 10_000
    assert len(np.unique(sign_flips(6), axis=0)) == 64


@pytest.mark.parametrize("draw", NULLS.values(), ids=NULLS)
@pytest.mark.parametrize("seeds", [5, 9, 18])
def test_intervals_hold_the_centre(draw: Draw, seeds: int) -> None:
    rows = draw(np.random.default_rng(6), (150 if seeds > 15 else 500, 1, seeds))[:, 0] + 3
    found = [flip_interval(each) for each in rows]
    # Without spread there is no interval, and none that could miss.
    missed = [each is not None and not each[0] <= 3 <= each[1] for each in found]
    assert np.mean(missed) <= at_most(0.1, len(rows))


def test_intervals_and_p_agree() -> None:
    rng = np.random.default_rng(7)
    for _ in range(20):
        values = rng.normal(size=7)
        between = flip_interval(values)
        assert between is not None
        assert flip_p(values - between[0] + 1e-6) <= 0.05 < flip_p(values - between[0] - 1e-6)
        assert flip_p(between[1] + 1e-6 - values) <= 0.05 < flip_p(between[1] - 1e-6 - values)


def test_no_interval_has_no_width() -> None:
    for interval in (flip_interval, student_interval, effect_size):
        assert interval([0.0625] * 6) is None
    assert prediction_interval([0.0625] * 6, 5) is None
    assert flip_interval([0.1, 0.2, 0.3, 0.4]) is None
    assert flip_interval([0.3, 0.1, 0.2, 0.5, 0.4]) == (0.1, 0.5)


def test_student_interval_is_students() -> None:
    values = [0.1, 0.4, 0.35, 0.2]
    assert student_interval(values) == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(0.9))


def test_prediction_intervals_hold_further_seeds() -> None:
    rng = np.random.default_rng(8)
    held = []
    for _ in range(500):
        low, high = prediction_interval(rng.normal(size=5), 3) or (0, 0)
        held.append(low <= rng.normal(size=3).mean() <= high)
    assert abs(np.mean(held) - 0.95) <= 3 * np.sqrt(0.95 * 0.05 / 500)


def test_effect_size_is_nearly_unbiased() -> None:
    rng = np.random.default_rng(9)
    found = [effect_size(rng.normal(0.8, 1, 5)) for _ in range(4000)]
    # The spread of d_z at five seeds is .8: .04 is three standard errors. Uncorrected, the mean would be 1.0.
    assert np.mean([each for each in found if each is not None]) == pytest.approx(0.8, abs=0.04)


def test_seeds_needed_are_the_books() -> None:
    # Cohen 1988: one-sided, 5 %, 80 %: 27 pairs for a medium effect (d_z = .5), 12 for a large one of .8; at least 5.
    assert [seeds_needed(each) for each in (0.5, -0.8, 9.0)] == [27, 12, 5]
    assert seeds_needed(0.01) is None
    rng = np.random.default_rng(10)
    seen = np.mean(
        [stats.ttest_1samp(rng.normal(0.8, 1, 12), 0, alternative="greater").pvalue <= 0.05 for _ in range(800)]
    )
    assert seen == pytest.approx(power(0.8, 12), abs=0.045)


def test_false_discoveries_by_hand() -> None:
    assert false_discovery_rates([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert false_discovery_rates([]) == []
