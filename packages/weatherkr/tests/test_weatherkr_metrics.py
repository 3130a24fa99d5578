"""Metrics and reports (section 14: 17, 20, 21)."""

import math

import pytest
import torch

from tenfold import UserError
from weatherkr.data.datasets import TensorPairs
from weatherkr.evaluation.metrics import psnr, ssim
from weatherkr.evaluation.protocols import evaluate
from weatherkr.evaluation.report import ContinualReport, Score
from weatherkr.models.networks import WeatherNet


def test_metrics_match_the_golden_vectors(golden) -> None:
    g = golden("metrics")
    rec, gt = torch.from_numpy(g["rec"]), torch.from_numpy(g["gt"])
    rec8, gt8 = (torch.from_numpy(g[name]).float() / 255 for name in ("rec_u8", "gt_u8"))
    for value, name in (
        (psnr(rec, gt), "psnr_official"),
        (psnr(rec8, gt8), "psnr_official_on_u8"),
        (psnr(rec, gt, "rgb8"), "psnr_rgb_u8"),
        (psnr(rec, gt, "y8"), "psnr_y_u8"),
    ):
        assert value.item() == pytest.approx(float(g[name]), abs=1e-3), name
    for value, name in (
        (ssim(rec, gt), "ssim_official"),
        (ssim(rec8, gt8), "ssim_official_on_u8"),
        (ssim(rec, gt, "rgb8"), "ssim_rgb_u8"),
        (ssim(rec, gt, "y8"), "ssim_y_u8"),
    ):
        assert value.item() == pytest.approx(float(g[name]), abs=1e-5), name
    assert psnr(gt, gt).item() == float(g["psnr_identical"]) == 100
    assert ssim(gt, gt).item() == pytest.approx(float(g["ssim_identical"]), abs=1e-5)
    both = ssim(torch.cat([rec, gt]), torch.cat([gt, gt]))
    torch.testing.assert_close(both.double(), torch.from_numpy(g["ssim_per_image"]).double(), atol=1e-5, rtol=0)


def test_metric_limits() -> None:
    x = torch.rand(2, 3, 16, 16) * 0.8
    assert psnr(x + 0.1, x)[0].item() == pytest.approx(20, abs=1e-3)
    assert math.isinf(psnr(x, x, "rgb8")[0].item())
    assert math.isinf(psnr(x, x, "y8")[0].item())
    y = torch.rand(2, 3, 16, 16)
    for protocol in ("official", "rgb8", "y8"):
        torch.testing.assert_close(psnr(x, y, protocol)[1:], psnr(x[1:], y[1:], protocol))
        torch.testing.assert_close(ssim(x, y, protocol)[1:], ssim(x[1:], y[1:], protocol))
    torch.testing.assert_close(psnr(x + 5, x), psnr(torch.ones_like(x), x), msg="estimates are clamped")


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input_to_metrics(metric) -> None:
    with pytest.raises(UserError, match="differ in size"):
        metric(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17))
    with pytest.raises(UserError, match="protocol best"):
        metric(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), "best")
    with pytest.raises(UserError, match="11 pixels"):
        ssim(torch.rand(1, 3, 10, 16), torch.rand(1, 3, 10, 16), "rgb8")


def scores(*values: float) -> dict[str, Score]:
    return {
        name: Score(value, 0.9, 20.0, 0.5, 2) for name, value in zip(("haze", "rain", "snow"), values, strict=False)
    }


def test_a_report_of_the_specification() -> None:
    report = ContinualReport(
        "official", ["haze", "rain", "snow"], [scores(30.0), scores(28.0, 25.0), scores(29.0, 24.0, 33.0)]
    )
    assert report.forgetting() == pytest.approx(1.0)
    assert report.average() == pytest.approx(28.6667, abs=1e-4)
    assert report.losses() == pytest.approx({"haze": 1.0, "rain": 1.0, "snow": 0.0})
    assert report.plasticity() == pytest.approx((30 + 25 + 33) / 3)
    assert math.isnan(report.forward_transfer())
    early = ContinualReport("official", ["haze", "rain"], [scores(30.0, 19.0), scores(28.0, 25.0)])
    assert early.forward_transfer() == pytest.approx(-1)
    assert ContinualReport.from_dict(report.to_dict()) == report
    table = report.to_markdown()
    assert "protocol official" in table
    assert "| after snow | 29.00 / 0.9000 | 24.00 / 0.9000 | 33.00 / 0.9000 |" in table
    assert len(report.to_csv().splitlines()) == 7


def test_the_average_is_of_task_means_not_of_pictures() -> None:
    net = WeatherNet(8, 1, "image")
    for weight in net.post.parameters():
        torch.nn.init.zeros_(weight)
    clean = torch.full((5, 3, 16, 16), 0.5)
    offset = torch.tensor([0.1, 0.2, 0.1, 0.1, 0.3])[:, None, None, None]
    two, three = (
        evaluate(net, TensorPairs(clean[part] + offset[part], clean[part]), precision="float32")
        for part in (slice(2), slice(2, 5))
    )
    report = ContinualReport("official", ["a", "b"], [{"a": two}, {"a": two, "b": three}])
    assert two.psnr == pytest.approx((20 - 20 * math.log10(0.2)) / 2, abs=1e-3)
    assert report.average() == pytest.approx((two.psnr + three.psnr) / 2)
    assert (two.pictures, three.pictures) == (2, 3)
    assert two.gain == pytest.approx(0, abs=1e-3)
