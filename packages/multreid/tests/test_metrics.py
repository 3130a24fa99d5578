"""CMC, mAP and mINP: golden vectors, invariant 9 of section 14."""

import numpy as np
import pytest
import torch

from multreid.evaluation.metrics import VisibleInfraredReID, left_out, reid_scores
from tenfold import UserError


@pytest.mark.parametrize("convention", ["sysu", "regdb"])
def test_golden_scores(golden, convention) -> None:
    arrays = [torch.from_numpy(golden[f"ev_{key}"]) for key in ("dist", "q", "g", "qcam", "gcam")]
    found = reid_scores(*arrays, convention)
    expected = golden[f"{convention}_cmc"]
    known = ~np.isnan(expected)
    np.testing.assert_allclose(found.cmc.numpy()[known], expected[known], atol=1e-6)
    assert found.mean_ap == pytest.approx(float(golden[f"{convention}_map"]), abs=1e-7)
    assert found.mean_inp == pytest.approx(float(golden[f"{convention}_minp"]), abs=1e-7)


def one_query_at_a_time(distances, q, g, qcam, gcam, convention):
    """The definitions in words, query by query."""
    first, precision, penalty = [], [], []
    for row in range(len(q)):
        ids, cams = g[np.argsort(distances[row], kind="stable")], gcam[np.argsort(distances[row], kind="stable")]
        if convention == "sysu" and qcam[row] == 3:
            ids = ids[cams != 2]
        if convention == "llcm":
            ids = ids[~((ids == q[row]) & (cams == qcam[row]))]
        hits = np.flatnonzero(ids == q[row])
        if not hits.size:
            continue
        order = list(dict.fromkeys(ids.tolist())) if convention != "regdb" else ids.tolist()
        first.append(order.index(q[row]))
        precision.append(np.mean([(n + 1) / (hit + 1) for n, hit in enumerate(hits)]))
        penalty.append(hits.size / (hits[-1] + 1))
    return [np.mean(np.array(first) < k) for k in range(1, 11)], np.mean(precision), np.mean(penalty)


@pytest.mark.parametrize("convention", ["sysu", "regdb", "llcm"])
@pytest.mark.parametrize("seed", range(4))
def test_vectorised_scores_equal_the_definitions(convention, seed) -> None:
    generator = np.random.default_rng(seed)
    q, g = generator.integers(0, 9, 20), generator.integers(0, 8, 33)
    qcam, gcam = generator.choice([3, 6], 20), generator.choice([1, 2, 3], 33)
    distances = generator.random((20, 33)).astype(np.float32)
    found = reid_scores(*map(torch.from_numpy, (distances, q, g, qcam, gcam)), convention, 10)
    cmc, mean_ap, mean_inp = one_query_at_a_time(distances, q, g, qcam, gcam, convention)
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-9)
    assert found.mean_ap == pytest.approx(mean_ap, abs=1e-6)
    assert found.mean_inp == pytest.approx(mean_inp, abs=1e-6)


def test_cmc_does_not_decrease_and_ends_at_one() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(10)
    found = reid_scores(torch.rand(10, 30, generator=generator), ids, ids.repeat(3), convention="regdb", ranks=30)
    assert (found.cmc.diff() >= 0).all()
    assert found.cmc[-1] == 1


def test_perfect_distances_score_one() -> None:
    q, g = torch.arange(6), torch.arange(6).repeat(4)
    found = reid_scores((q[:, None] != g).float(), q, g, convention="regdb")
    assert (found.rank1, found.mean_ap, found.mean_inp) == (1, 1, 1)


def test_camera_rule_leaves_out_exactly_camera_two_for_camera_three() -> None:
    qcam, gcam = torch.tensor([3, 6]), torch.tensor([1, 2, 4, 5, 2])
    ids = torch.zeros(5, dtype=torch.long)
    expected = [[False, True, False, False, True], [False] * 5]
    assert left_out("sysu", ids[:2], ids, qcam, gcam).tolist() == expected


def test_metric_over_batches_equals_one_call() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    ids, cameras = torch.randint(0, 5, (40,), generator=generator), torch.randint(1, 7, (40,), generator=generator)
    query = torch.arange(40) < 15
    metric = VisibleInfraredReID("sysu")
    for part in torch.arange(40).split(7):
        metric.update(features[part], ids[part], cameras[part], query[part])
    distances = torch.cdist(features[query], features[~query]).square()
    expected = reid_scores(distances, ids[query], ids[~query], cameras[query], cameras[~query], "sysu")
    found = metric.compute()
    torch.testing.assert_close(found.cmc, expected.cmc)
    assert found.mean_ap == pytest.approx(expected.mean_ap)
    metric.reset()
    with pytest.raises(UserError, match="nothing to evaluate"):
        metric.compute()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_ids": torch.tensor([7, 8])}, "no query has a match"),
        ({"distances": torch.full((2, 3), torch.nan)}, "NaN"),
        ({"query_cameras": None}, "needs the cameras"),
    ],
)
def test_unusable_input_is_named(change, message) -> None:
    call = {
        "distances": torch.rand(2, 3),
        "query_ids": torch.tensor([0, 1]),
        "gallery_ids": torch.tensor([0, 1, 1]),
        "query_cameras": torch.tensor([3, 6]),
        "gallery_cameras": torch.tensor([1, 1, 2]),
    } | change
    with pytest.raises(UserError, match=message):
        reid_scores(**call)
