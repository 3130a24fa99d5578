"""The paper's printed tables obey the definitions, and tell which convention printed them."""

import math

import numpy as np
import pytest

from fairfd.method.fairness import METRIC_NAMES, Convention, fairness
from fairfd.method.rates import RateTable

M = 11


@pytest.fixture
def table2(golden):
    data = golden("paper_table2")
    assert tuple(data["metric_names"]) == METRIC_NAMES
    return dict(zip(METRIC_NAMES, data["values"].T, strict=True))


@pytest.mark.parametrize("family", ["AA", "UR"])
def test_table_2_averages_the_real_row_with_eleven_approaches(table2, family):
    dpd, deodds, deo = (table2[family + name] for name in ("DPD", "DEOdds", "DEO"))
    np.testing.assert_allclose(dpd, (2 * deodds + (M - 1) * deo) / (M + 1), rtol=0, atol=1e-4)
    # All but rounding: each printed value is off by at most 5e-5.
    assert np.mean(np.abs(dpd - (2 * deodds + (M - 1) * deo) / (M + 1)) <= 5e-5) >= 0.9


def test_table_2_has_population_deviations(table2):
    ratio = table2["DPD"] / table2["STD"]
    slack = 2 * 5e-5 / table2["STD"] * 2
    assert (ratio >= 2 - slack).all()
    assert (ratio <= math.sqrt(8) + slack).all()
    # Dividing by G - 1 would cap the ratio at sqrt(6); Xception exceeds that.
    assert ratio[0] > math.sqrt(6) + slack[0]


def test_table_2_averages_hide_nothing_that_averaging_last_does_not_show(table2):
    for name in METRIC_NAMES[:4]:
        assert (table2["AA" + name] >= table2[name] - 1e-4).all()


def test_table_2_divides_by_one_plus_accuracy(table2):
    for name in METRIC_NAMES[:4]:
        ratio = table2["AA" + name] / table2["UR" + name]
        assert (ratio >= 1 - 1e-3).all()
        assert (ratio <= 2 + 1e-3).all()


def test_table_2_has_dpd_as_accuracy(table2):
    real_gap = 2 * table2["AADEOdds"] - table2["AADEO"]
    lowest = np.abs(M * table2["DEO"] - real_gap) / (M + 1)
    highest = (M * table2["DEO"] + real_gap) / (M + 1)
    assert (table2["DPD"] >= lowest - 1e-4).all()
    assert (table2["DPD"] <= highest + 1e-4).all()
    # Four printed digits each: the bound itself is known to about 1e-4.
    assert np.sum(table2["DPD"] - lowest <= 1.5e-4) >= 8


def test_table_7_prints_one_row_with_each_offset(golden):
    data = golden("paper_table6_table7")
    names = data["table7_names"].tolist()
    for row, printed_offset in (("thr05", 0), ("best", 1)):
        table = RateTable.from_accuracy(
            data[f"table6_{row}_acc"], ["real", "FaceSwap"], ["Caucasian", "Asian", "African", "Indian"]
        )
        for offset in (0, 1):
            values = fairness(table, Convention(utility_offset=float(offset)))
            ours = np.array([values[name] for name in names])
            np.testing.assert_allclose(ours, data[f"ours_{row}_offset{offset}"], rtol=0, atol=1e-8)
            is_printed = np.abs(ours - data[f"table7_{row}"]).max() <= 1e-4
            assert is_printed == (offset == printed_offset)
