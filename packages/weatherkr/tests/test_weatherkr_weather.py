"""Synthetic weather: seeded, in range, physically right in limits that can be computed by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import UserError
from weatherkr.data.weather import KINDS, degrade
from weatherkr.data.weather.config import SETTINGS, HazeSettings, RainSettings, SnowSettings
from weatherkr.data.weather.haze import add_haze, box_mean, depth_field, guided_filter, receding_ground, scatter
from weatherkr.data.weather.rain_snow import add_rain, add_snow, flake_kernel, line_kernel, scatter_shape
from weatherkr.data.weather.raindrops import gaussian_blur


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_any_size_stays_in_range_and_the_same_seed_gives_the_same_weather(height, width, kind, seed) -> None:
    clean = torch.rand(3, height, width)
    first = degrade(clean, kind, seeded(seed))
    assert first.shape == clean.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.isfinite().all()
    assert torch.equal(first, degrade(clean, kind, seeded(seed)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["standard", "shifted"])
def test_weather_changes_a_picture_but_leaves_it_recognisable(kind, setting) -> None:
    clean = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=seeded()), (96, 128), mode="bicubic")[
        0
    ].clamp(0, 1)
    batch = degrade(torch.stack([clean, clean]), kind, seeded(1), setting)
    assert not torch.equal(batch[0], batch[1]), "each of a batch has its own draw"
    for degraded in batch:
        psnr = -10 * (degraded - clean).square().mean().log10()
        assert 6 < psnr < 40


def test_haze_follows_koschmieder() -> None:
    clean = torch.rand(3, 6, 7)
    airlight = torch.tensor([0.8, 0.9, 1.0])
    torch.testing.assert_close(scatter(clean, torch.ones(6, 7), airlight), clean)
    torch.testing.assert_close(scatter(clean, torch.zeros(6, 7), airlight), airlight[:, None, None].expand(3, 6, 7))
    exact = HazeSettings(beta=(1.0, 1.0), airlight=(0.9, 0.9), tint=0.0, near=(0.5, 0.5), span=(1.0, 1.0))
    depth = torch.linspace(0, 1, 7).expand(6, 7)
    hazy = add_haze(clean, seeded(), exact, depth=depth)
    t = torch.exp(-(0.5 + 0.5 * depth))
    torch.testing.assert_close(hazy, clean * t + 0.9 * (1 - t))


def test_depth_is_scaled_recedes_and_follows_edges() -> None:
    ground = receding_ground(10, 4, 0.3)[0, 0, :, 0]
    assert torch.equal(ground[:3], torch.ones(3))
    assert (ground[3:].diff() < 0).all()
    clean = torch.zeros(3, 40, 40)
    clean[:, :, 20:] = 1
    depth = depth_field(clean, seeded(3))
    assert (depth.min(), depth.max()) == (0, 1)
    step = torch.zeros(1, 1, 20, 20)
    step[..., 10:] = 1
    torch.testing.assert_close(box_mean(step, 0), step)
    assert box_mean(step, 3)[0, 0, 5, 9] == pytest.approx(3 / 7)
    kept = guided_filter(step, step, 4, 1e-6)
    torch.testing.assert_close(kept, step, atol=1e-3, rtol=0)
    assert (guided_filter(torch.zeros_like(step), step, 4, 1e-2) - step).abs().max() > 0.3


def test_streaks_have_their_direction_length_and_density() -> None:
    vertical, level = line_kernel(21.0, 1.0, 0.0), line_kernel(21.0, 1.0, 90.0)
    middle = vertical.shape[0] // 2
    assert vertical[:, middle].sum().item() == pytest.approx(21, abs=1)
    torch.testing.assert_close(level, vertical.T, atol=1e-5, rtol=0)
    slanted = line_kernel(41.0, 1.0, 45.0)
    middle = slanted.shape[0] // 2
    assert slanted[middle - 8, middle + 8] > 0.9, "clockwise from the vertical: up and to the right"
    for coverage in (0.02, 0.1):
        hidden = scatter_shape(200, 200, vertical, coverage, (1.0, 1.0), seeded())
        assert hidden.mean().item() == pytest.approx(coverage, rel=0.3)
    flake = flake_kernel(3.0, 0.0, 0.0)
    assert flake.sum().item() == pytest.approx(math.pi * 9, rel=0.25)
    assert flake_kernel(3.0, 6.0, 0.0).sum() > flake.sum()


def test_impulses_beyond_the_border_reach_in_and_do_not_wrap_around() -> None:
    generator = seeded(5)
    hidden = torch.stack(
        [scatter_shape(8, 8, flake_kernel(4.0, 0.0, 0.0), 0.2, (1.0, 1.0), generator) for _ in range(300)]
    ).mean(0)
    assert hidden[0].mean().item() == pytest.approx(hidden[4].mean().item(), rel=0.25)


def test_precipitation_only_lightens_dark_scenes_and_scales() -> None:
    black = torch.zeros(3, 64, 64)
    for add, chosen in ((add_rain, RainSettings(veil=(0.0, 0.0))), (add_snow, SnowSettings(veil=(0.0, 0.0)))):
        wet = add(black, seeded(), chosen)
        assert wet.min() >= 0
        assert wet.amax() > 0.3
        small, large = ((add(black, seeded(1), chosen, scale)[0] > 0.2).float() for scale in (0.5, 2.0))
        assert large.diff().abs().mean() < small.diff().abs().mean(), "larger shapes have fewer edges"
        clear = add(black, seeded(), type(chosen)(coverage=(0.0, 0.0), veil=(0.0, 0.0)))
        torch.testing.assert_close(clear, black, atol=1e-6, rtol=0)


def test_blur_keeps_the_mean_of_a_flat_picture_and_spreads_a_point() -> None:
    torch.testing.assert_close(gaussian_blur(torch.full((3, 5, 6), 0.4), 2.0), torch.full((3, 5, 6), 0.4))
    point = torch.zeros(3, 21, 21)
    point[:, 10, 10] = 1
    blurred = gaussian_blur(point, 1.5)
    assert blurred.sum().item() == pytest.approx(3, abs=1e-4)
    assert blurred[0, 10, 10].item() == pytest.approx(1 / (2 * math.pi * 1.5**2), rel=0.1)


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="hail"):
        degrade(torch.rand(3, 8, 8), "hail", seeded())
    assert set(SETTINGS) == set(KINDS)
