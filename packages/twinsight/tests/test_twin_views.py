"""The official views: each operation against Pillow, and the statistics of the official classes over 4,000 draws.

A tolerance is four standard errors of the difference of two means of 4,000 draws: the official code itself, run with another seed, met each.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from tenfold import UserError
from tenfold.config import from_dict
from twinsight.config import FederationConfig
from twinsight.data.datasets import description, view_maker
from twinsight.data.transforms import random_shift
from twinsight.data.views import (
    CUTOUT_COLOR,
    JITTERS,
    OPERATIONS,
    cutout,
    random_resized_crop,
    three_operations,
    turn_hue,
)
from twinsight.models import ModelDescription, TwinModel, build_model

DRAWS = 4000


def pictures(seed: int, height: int, width: int) -> list[np.ndarray]:
    """Three pictures of waves, slopes and noise, on which the official classes were measured."""
    random, found = np.random.RandomState(seed), []
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    for _ in range(3):
        f, p = random.uniform(0.3, 1.5, (3, 2)), random.uniform(0, 6.28, 3)
        wave = [0.5 + 0.25 * np.sin(6.28 * (f[c, 0] * y + 0.5 * f[c, 1] * x) + p[c]) + 0.15 * (y - x) for c in range(3)]
        noisy = 255 * np.stack(wave, -1) + random.normal(0, 12, (height, width, 3))
        found.append(np.clip(noisy, 8, 247).astype(np.uint8))
    return found


COLOUR = pictures(1, 32, 32)
GREY = [each.mean(2).round().astype(np.uint8) for each in pictures(1, 28, 28)]


def batch(images: list[np.ndarray], draws: int = DRAWS) -> Tensor:
    """Draw k is of picture k mod 3."""
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return stack[torch.arange(draws) % 3]


def measure(images: Tensor, views: Tensor) -> dict[str, float | list[float]]:
    """The statistics of views in [0, 1] against the 8-bit pictures that they are of."""
    before, after = images / 255, views
    one, two = before.flatten(1), after.flatten(1)
    one, two = one - one.mean(1, keepdim=True), two - two.mean(1, keepdim=True)
    cosine = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1)).clamp(min=1e-12)
    hidden = (after == torch.tensor(CUTOUT_COLOR)[:, None, None] / 255).all(1).flatten(1)
    return {
        "change": (after - before).abs().mean().item(),
        "correlation": cosine.mean().item(),
        "mean": after.mean((0, 2, 3)).tolist(),
        "std": after.flatten(2).std(2, correction=0).mean(0).tolist(),
        "black": (after == 0).all(1).double().mean().item(),
        "cutout": hidden.double().mean().item(),
        "cutout seen": hidden.any(1).double().mean().item(),
        "identity": (after == before).flatten(1).all(1).double().mean().item(),
    }


def assert_near(found: dict[str, float | list[float]], expected: dict[str, tuple[float, float] | list]) -> None:
    for name, values in expected.items():
        pairs = values if isinstance(values, list) else [values]
        numbers = found[name]
        for number, (value, tolerance) in zip(numbers if isinstance(numbers, list) else [numbers], pairs, strict=False):
            assert abs(number - value) <= tolerance, (name, number, value, tolerance)


def both_views(data: str, images: Tensor) -> tuple[Tensor, Tensor]:
    views = view_maker(FederationConfig(data=data))
    return views(images, torch.Generator().manual_seed(5))


def test_the_pictures_are_those_that_were_measured() -> None:
    assert [int(each.sum()) for each in COLOUR] == [306795, 397485, 385544]
    assert [int(each.sum()) for each in GREY] == [78383, 95876, 104171]


CIFAR = (
    {
        "change": (0.179, 0.006),
        "correlation": (0.333, 0.027),
        "mean": [(0.417, 0.004), (0.394, 0.007), (0.392, 0.008)],
        "std": [(0.236, 0.003), (0.220, 0.005), (0.222, 0.006)],
        "black": (0.134, 0.006),
        "identity": (1 / 162, 0.0077),
    },
    {
        "change": (0.248, 0.007),
        "correlation": (0.148, 0.025),
        "mean": [(0.352, 0.010), (0.344, 0.010), (0.340, 0.010)],
        "std": [(0.230, 0.007), (0.225, 0.007), (0.222, 0.007)],
        "black": (0.201, 0.009),
        "cutout": (0.075, 0.007),
        "cutout seen": (0.981, 0.013),
        "identity": (0, 0.002),
    },
)


def test_the_views_of_cifar_have_the_official_statistics() -> None:
    images = batch(COLOUR)
    for views, expected in zip(both_views("cifar10", images), CIFAR, strict=True):
        assert_near(measure(images, views), expected)
    assert view_maker(FederationConfig(data="cifar100")) == view_maker(FederationConfig(data="cifar10"))


def test_the_views_of_svhn_have_the_official_statistics() -> None:
    images = batch(COLOUR)
    expected = (
        {
            "change": (0.223, 0.008),
            "correlation": (0.284, 0.030),
            "mean": [(0.462, 0.019), (0.439, 0.019), (0.443, 0.019)],
            "std": [(0.137, 0.009), (0.126, 0.008), (0.127, 0.009)],
            "black": (0, 0.001),
            "identity": (0, 0.002),
        },
        {
            "change": (0.223, 0.008),
            "correlation": (0.290, 0.030),
            "mean": [(0.462, 0.018), (0.438, 0.018), (0.445, 0.019)],
            "std": [(0.140, 0.009), (0.130, 0.008), (0.130, 0.009)],
            "black": (0, 0.001),
            "identity": (0, 0.002),
        },
    )
    for views, numbers in zip(both_views("svhn", images), expected, strict=True):
        assert_near(measure(images, views), numbers)
        grey = (views[:, 0] == views[:, 1]).all(2).all(1) & (views[:, 1] == views[:, 2]).all(2).all(1)
        assert abs(grey.double().mean().item() - 0.2) <= 0.037


def test_the_views_of_fashion_mnist_have_the_official_statistics() -> None:
    large = [np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BILINEAR)) for each in GREY]
    images = batch([np.repeat(each[:, :, None], 3, 2) for each in large])
    expected = (
        {"change": (0.136, 0.005), "correlation": (0.121, 0.035), "black": (0.134, 0.006), "identity": (1 / 162, 0.0073)},
        {"change": (0.137, 0.005), "correlation": (0.111, 0.034), "black": (0.135, 0.006), "identity": (1 / 162, 0.0071)},
    )  # fmt: skip
    for views, numbers in zip(both_views("fashionmnist", images), expected, strict=True):
        assert torch.equal(views[:, 0], views[:, 1])
        assert_near(measure(images, views), numbers | {"mean": [(0.400, 0.006)], "std": [(0.183, 0.003)]})


def test_three_operations_and_cutout_have_the_official_statistics() -> None:
    images = batch(COLOUR)
    changed = three_operations(images, torch.Generator().manual_seed(1))
    alone = {
        "change": (0.186, 0.010),
        "correlation": (0.495, 0.038),
        "mean": [(0.392, 0.012), (0.384, 0.012), (0.382, 0.012)],
        "std": [(0.200, 0.009), (0.194, 0.009), (0.194, 0.009)],
        "black": (0.097, 0.010),
        "identity": (0.0018, 0.0038),
    }
    assert_near(measure(images, changed / 255), alone)
    hidden = {
        "change": (0.186, 0.009),
        "correlation": (0.430, 0.036),
        "mean": [(0.397, 0.011), (0.390, 0.011), (0.385, 0.011)],
        "std": [(0.201, 0.007), (0.196, 0.008), (0.194, 0.008)],
        "black": (0.094, 0.010),
        "cutout": (0.082, 0.007),
        "cutout seen": (1, 0),
        "identity": (0, 0.002),
    }
    assert_near(measure(images, cutout(changed, torch.Generator().manual_seed(2)) / 255), hidden)


def test_cutout_has_the_official_place_and_size() -> None:
    black = torch.zeros(DRAWS, 3, 32, 32, dtype=torch.uint8)
    filled = (cutout(black, torch.Generator().manual_seed(3)) > 0).all(1)
    rows, columns = filled.any(2), filled.any(1)
    first_row, first_column = rows.int().argmax(1).double(), columns.int().argmax(1).double()
    for value, (expected, tolerance) in (
        (filled.double().mean(), (0.084, 0.007)),
        (rows.double().sum(1).mean(), (8.23, 0.41)),
        (columns.double().sum(1).mean(), (8.22, 0.41)),
        (first_row.mean(), (12.40, 0.80)),
        (first_column.mean(), (12.37, 0.80)),
        (rows[:, 0].double().mean(), (0.130, 0.031)),
        (rows[:, -1].double().mean(), (0.150, 0.033)),
    ):
        assert abs(value.item() - expected) <= tolerance, (value, expected)
    assert torch.equal(filled, rows[:, :, None] & columns[:, None, :])
    assert rows.sum(1).min() >= 1
    assert rows.sum(1).max() <= 16


def test_the_anchor_of_cutout_never_lies_in_the_first_pixel() -> None:
    """Of (1, 32], numpy's `uniform(32)`: the first pixel is reached by half a side of 0 to 8 pixels, in 4 / 31 of the draws (5 / 32 from [0, 32))."""
    narrow = torch.zeros(60_000, 3, 1, 32, dtype=torch.uint8)
    reached = (cutout(narrow, torch.Generator().manual_seed(7))[:, 0, 0, 0] > 0).double().mean().item()
    assert abs(reached - 4 / 31) < 4 * (4 / 31 / 60_000) ** 0.5


ALONE = {
    "AutoContrast": ((0.038, 0.002), (0.987, 0.002), None),
    "Brightness": ((0.232, 0.012), (1.000, 0.001), None),
    "Color": ((0.056, 0.004), (0.894, 0.012), None),
    "Contrast": ((0.078, 0.005), (1.000, 0.001), None),
    "Equalize": ((0.107, 0.004), (0.964, 0.005), None),
    "Identity": ((0, 0), (1, 0.001), None),
    "Posterize": ((0.013, 0.002), (0.998, 0.001), None),
    "Rotate": ((0.115, 0.006), (0.618, 0.017), (0.091, 0.005)),
    "Sharpness": ((0.011, 0.001), (0.996, 0.001), None),
    "ShearX": ((0.084, 0.004), (0.718, 0.015), (0.074, 0.005)),
    "ShearY": ((0.106, 0.006), (0.670, 0.020), (0.074, 0.005)),
    "Solarize": ((0.149, 0.012), (0.109, 0.060), None),
    "TranslateX": ((0.136, 0.006), (0.577, 0.022), (0.150, 0.009)),
    "TranslateY": ((0.186, 0.009), (0.373, 0.033), (0.150, 0.009)),
}
"""Change, correlation and black share of each operation alone."""


def test_the_operations_are_the_fourteen_of_the_official_code() -> None:
    assert OPERATIONS.keys() == ALONE.keys()


@pytest.mark.parametrize("name", ALONE)
def test_an_operation_alone_has_the_official_statistics(name: str) -> None:
    images, operation = batch(COLOUR), OPERATIONS[name]
    share = torch.rand(DRAWS, generator=torch.Generator().manual_seed(4))
    views = operation.apply(images, operation.low + (operation.high - operation.low) * share) / 255
    change, correlation, black = ALONE[name]
    expected: dict = {"change": change, "correlation": correlation}
    assert_near(measure(images, views), expected | ({"black": black} if black else {}))


def pillow(image: Image.Image, name: str, v: float) -> Image.Image:
    """The same operation by Pillow."""
    w, h = image.size
    enhance = {"Color": ImageEnhance.Color, "Brightness": ImageEnhance.Brightness}
    enhance |= {"Contrast": ImageEnhance.Contrast, "Sharpness": ImageEnhance.Sharpness}
    if name in enhance:
        return enhance[name](image).enhance(v)
    matrices = {"ShearX": (1, v, 0, 0, 1, 0), "ShearY": (1, 0, 0, v, 1, 0)}
    matrices |= {"TranslateX": (1, 0, v * w, 0, 1, 0), "TranslateY": (1, 0, 0, 0, 1, v * h)}
    if name in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[name])
    rest: dict[str, Callable[[], Image.Image]] = {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Identity": lambda: image,
        "Posterize": lambda: ImageOps.posterize(image, int(v)),
        "Solarize": lambda: ImageOps.solarize(image, v),
        "Rotate": lambda: image.rotate(v),
    }
    return rest[name]()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name: str) -> None:
    """To the pixel, but for single ones on the edge between two places, and for a level where a blend meets a whole number."""
    images, operation = batch(COLOUR, 30), OPERATIONS[name]
    images[7] = 9  # one colour
    images[8, :, :, 16:] = 200
    images[8, :, :, :16] = 100
    strength = operation.low + (operation.high - operation.low) * (torch.arange(30) + 0.37) / 30
    found = operation.apply(images, strength)
    for image, v, one in zip(images, strength.tolist(), found, strict=True):
        by_pillow = np.asarray(pillow(Image.fromarray(image.permute(1, 2, 0).numpy()), name, v))
        difference = np.abs(by_pillow.astype(int) - one.permute(1, 2, 0).numpy())
        assert (difference <= 1).all(2).mean() > 0.995, v
        assert difference.mean() < 0.15, v


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_jitter_beyond_the_picture_is_pillows(name: str) -> None:
    official = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}[name]
    images, strength = batch(COLOUR, 9), torch.linspace(0.2, 1.8, 9)
    found = JITTERS[name].apply(images, strength)
    for image, v, one in zip(images, strength.tolist(), found, strict=True):
        by_pillow = np.asarray(pillow(Image.fromarray(image.permute(1, 2, 0).numpy()), official, v)).astype(int)
        assert np.abs(by_pillow - one.permute(1, 2, 0).numpy()).max() <= 1


def test_a_turn_of_the_hue_is_that_of_colorsys() -> None:
    import colorsys

    images = batch(COLOUR, 3)
    found = turn_hue(images, torch.tensor([-0.2, 0.05, 0.2]))
    for image, turn, one in zip(images, (-0.2, 0.05, 0.2), found, strict=True):
        for row, column in ((0, 0), (5, 20), (31, 7), (16, 16)):
            h, s, v = colorsys.rgb_to_hsv(*(image[:, row, column] / 255).tolist())
            expected = 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
            assert np.abs(expected - one[:, row, column].numpy()).max() <= 0.51
    assert torch.equal(turn_hue(images, torch.zeros(3)), images)


def test_an_enlarged_part_is_pillows_crop_and_resize() -> None:
    """Of a crop that is found again by trying all: its pixels are Pillow's, to one level."""
    images = batch(COLOUR, 6)[:, :, :12, :12].contiguous()
    sizes = [(w, h) for w in range(3, 13) for h in range(3, 13) if 0.6 < w / h < 1.6]
    boxes = [(x, y, x + w, y + h) for w, h in sizes for x in range(13 - w) for y in range(13 - h)]
    for image, one in zip(images, random_resized_crop(images, torch.Generator().manual_seed(9)), strict=True):
        whole, found = Image.fromarray(image.permute(1, 2, 0).numpy()), one.permute(1, 2, 0).numpy().astype(int)
        by_pillow = [np.asarray(whole.crop(box).resize((12, 12), Image.Resampling.BILINEAR)) for box in boxes]
        assert min(np.abs(each - found).max() for each in by_pillow) <= 1


def test_a_shift_by_zero_padding_uncovers_black() -> None:
    image = torch.arange(1.0, 17).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    crops = [padded[..., top : top + 4, left : left + 4] for top in range(3) for left in range(3)]
    seen = set()
    for seed in range(60):
        found = random_shift(image, 1, torch.Generator().manual_seed(seed), "zero")
        seen.add(next(index for index, crop in enumerate(crops) if torch.equal(crop, found)))
    assert seen == set(range(9))


def test_normalisation_and_channels_are_the_official_ones() -> None:
    about = {name: description(FederationConfig(data=name)) for name in ("cifar10", "cifar100", "svhn", "fashionmnist")}
    assert (about["cifar10"].mean, about["cifar10"].std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert (about["cifar100"].mean, about["cifar100"].std) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert [about[name].channels for name in about] == [3, 3, 3, 1]
    for name in ("svhn", "fashionmnist"):
        config = FederationConfig(data=name, encoder="small")
        model = build_model(config, 10, mean=about[name].mean, std=about[name].std, channels=about[name].channels)
        images = torch.rand(2, 1, 32, 32).expand(2, 3, 32, 32)
        assert torch.allclose(model.normalise(images), images[:, : about[name].channels], rtol=0, atol=1e-6)
        assert model(model.normalise(images)).shape == (2, 10)


def test_a_model_of_one_channel_is_read_again_and_takes_colour_pictures(tmp_path: object) -> None:
    model = TwinModel(4, "small", channels=1).eval()
    model.save_pretrained(str(tmp_path))
    again = TwinModel.from_pretrained(str(tmp_path))
    colours = torch.rand(3, 3, 20, 20)
    assert torch.equal(again.predict(colours), model.predict(colours))
    with pytest.raises(UserError, match="channels"):
        from_dict({"num_classes": 4, "channels": 2}, ModelDescription, "here")


def test_our_own_views_are_an_option() -> None:
    config = FederationConfig(data="cifar10", views="tenfold")
    views = view_maker(config)
    assert (views.strong, views.padding) == ("randaugment", "reflect")
    assert view_maker(replace(config, views="official")).strong == "official"
    assert view_maker(replace(config, views="official", strong_view="weak")).strong == "weak"
    assert description(replace(config, data="svhn")).std != (1, 1, 1)
    digits = FederationConfig(data="digits")
    assert view_maker(digits) == view_maker(replace(digits, views="tenfold"))


def test_cutout_is_a_rectangle_that_pillow_draws() -> None:
    black = torch.zeros(50, 3, 32, 32, dtype=torch.uint8)
    for one in cutout(black, torch.Generator().manual_seed(6)).permute(0, 2, 3, 1).numpy():
        rows, columns = np.nonzero(one.any((1, 2)))[0], np.nonzero(one.any((0, 2)))[0]
        drawn = Image.new("RGB", (32, 32))
        ImageDraw.Draw(drawn).rectangle((columns[0], rows[0], columns[-1], rows[-1]), CUTOUT_COLOR)
        assert np.array_equal(np.asarray(drawn), one)
