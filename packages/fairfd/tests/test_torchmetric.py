"""The torchmetrics class."""

import numpy as np
import pytest
import torch

from fairfd.evaluation.audit.uncertainty import bootstrap
from fairfd.evaluation.fairness import FairFDMetric
from fairfd.method.fairness import METRIC_NAMES, PAPER, fairness
from fairfd.method.rates import RateTable
from tenfold.errors import UserError

NAMES = ("scores", "labels", "group", "approach", "identity")


@pytest.fixture
def data(golden):
    return {name: torch.from_numpy(golden("scores_uneven")[name]) for name in NAMES}


def rows(data, chosen=slice(None), identities=False):
    return [data[name][chosen] for name in NAMES[: 5 if identities else 4]]


def metric(data, **options) -> FairFDMetric:
    return FairFDMetric(int(data["group"].max()) + 1, int(data["approach"].max()) + 1, **options)


def table(data) -> RateTable:
    return RateTable.from_scores(*(data[name].numpy() for name in NAMES))


def test_one_batch_gives_the_golden_values(data, golden):
    found = metric(data)
    found.update(*rows(data))
    values = torch.stack(list(found.compute().values())).double().numpy()
    np.testing.assert_allclose(values, golden("scores_uneven")["official_macro"], atol=1e-6)
    np.testing.assert_array_equal(found.rate_table().k, table(data).k)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_that_lack_groups_add_up_to_one_batch(data, size):
    whole, parts = metric(data), metric(data)
    whole.update(*rows(data))
    # Sorted by group, so that nearly every batch lacks some.
    order = torch.argsort(data["group"], stable=True)[: 3 * 64 if size == 1 else None]
    if size == 1:
        whole.reset()
        whole.update(*rows(data, order))
    for chosen in order.split(size):
        parts.update(*rows(data, chosen))
    assert torch.equal(parts.correct, whole.correct)
    assert torch.equal(parts.total, whole.total)
    assert str(parts.compute()) == str(whole.compute())


def test_a_group_that_comes_late_is_not_counted_for_another():
    # The two-batch example on which torchmetrics' own group rates go wrong.
    found = FairFDMetric(3, 2)
    found.update(torch.tensor([0.9, 0.1]), torch.tensor([1, 1]), torch.tensor([0, 2]), torch.tensor([1, 1]))
    found.update(torch.tensor([0.9, 0.9]), torch.tensor([1, 1]), torch.tensor([0, 1]), torch.tensor([1, 1]))
    np.testing.assert_array_equal(found.rate_table().accuracy[1], [1, 1, 0])


def test_merging_two_equals_concatenation(data):
    whole, first, second = metric(data), metric(data), metric(data)
    whole.update(*rows(data))
    first.update(*rows(data, slice(0, 301)))
    second.update(*rows(data, slice(301, None)))
    first.merge_state(second)
    assert torch.equal(first.total, whole.total)
    assert torch.equal(first.correct, whole.correct)
    assert str(first.compute()) == str(whole.compute())


def test_states_are_summed_over_processes(data):
    found = metric(data)
    assert {name: reduce.__name__ for name, reduce in found._reductions.items()} == {
        "correct": "dim_zero_sum",
        "total": "dim_zero_sum",
        "members": "dim_zero_sum",
    }


def test_identities_carry_over_to_the_bootstrap(data):
    found = metric(data, num_identities=int(data["identity"].max()) + 5)
    for chosen in torch.randperm(len(data["scores"]), generator=torch.Generator().manual_seed(0)).split(100):
        found.update(*rows(data, chosen, identities=True))
    counted = found.rate_table()
    assert counted.unit == "identity"
    np.testing.assert_array_equal(counted.clusters_per_group, table(data).clusters_per_group)
    assert np.isfinite(bootstrap(counted, 50).high["AADPD"])


def test_forward_gives_the_batch_value_and_keeps_the_total(data):
    found = metric(data)
    half = len(data["scores"]) // 2
    batch = found(*rows(data, slice(0, half)))
    found(*rows(data, slice(half, None)))
    only = metric(data)
    only.update(*rows(data, slice(0, half)))
    assert str(batch) == str(only.compute())
    np.testing.assert_array_equal(found.rate_table().k, table(data).k)
    # A batch without one of the cells has no value, not a wrong one.
    alone = metric(data)
    assert all(value.isnan() for value in alone(*rows(data, data["group"] == 0)).values())


def test_reset_forgets(data):
    found = metric(data)
    found.update(*rows(data))
    found.reset()
    assert int(found.total.sum()) == 0


def test_convention_threshold_and_names_are_followed(data):
    found = metric(data, convention=PAPER)
    found.update(*rows(data))
    assert found.compute()["URDPD"].item() == pytest.approx(fairness(table(data), PAPER)["URDPD"], abs=1e-6)
    assert list(found.compute()) == list(METRIC_NAMES)
    groups = [f"group {s}" for s in range(found.num_groups)]
    assert found.rate_table(groups).groups == tuple(groups)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_score_of_one_half_counts_as_fake(dtype):
    found = FairFDMetric(1, 2)
    found.update(torch.tensor([0.5, 0.5], dtype=dtype), *(torch.tensor(x) for x in ([0, 1], [0, 0], [0, 1])))
    np.testing.assert_array_equal(found.rate_table().k, [[0], [1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.tensor([3.0, -1.0])}, "apply softmax or sigmoid"),
        ({0: torch.tensor([float("nan"), 0.5])}, "apply softmax or sigmoid"),
        ({1: torch.tensor([0, 2])}, r"target must lie in 0..1; found 0..2"),
        ({2: torch.tensor([0, 2])}, r"groups must lie in 0..1; found 0..2"),
        ({2: torch.tensor([-1, 0])}, r"found -1..0"),
        ({3: torch.tensor([0, 2])}, "approaches must lie in"),
        ({3: torch.tensor([1, 1])}, "target and approaches disagree"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    batch = {0: torch.tensor([0.2, 0.7]), 1: torch.tensor([0, 1]), 2: torch.tensor([0, 1]), 3: torch.tensor([0, 1])}
    with pytest.raises(UserError, match=message):
        FairFDMetric(2, 2).update(*(batch | change).values())


def test_identities_are_passed_exactly_when_promised():
    batch = torch.tensor([0.2, 0.7]), torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([0, 1])
    with pytest.raises(UserError, match="exactly when"):
        FairFDMetric(2, 2).update(*batch, torch.tensor([0, 1]))
    found = FairFDMetric(2, 2, num_identities=2)
    with pytest.raises(UserError, match="exactly when"):
        found.update(*batch)
    found.update(*batch, torch.tensor([0, 0]))
    with pytest.raises(UserError, match="identity in two groups: 0"):
        found.compute()
    with pytest.raises(UserError, match="at least one group"):
        FairFDMetric(0, 2)


def test_empty_cells_can_be_refused():
    found = FairFDMetric(2, 2, empty="raise")
    found.update(torch.tensor([0.2]), torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(UserError, match="no image in"):
        found.compute()
