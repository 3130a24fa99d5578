"""Tiles, picture files, model folders, exports (section 14: 14, 25, 27; section 13)."""

import json
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tenfold import UserError
from tenfold.data import embedded_pictures, to_tensor
from tenfold.images import ImageError, read_picture
from weatherkr.data.files import Original, read_original, write_like
from weatherkr.data.weather import degrade
from weatherkr.models.networks import WeatherNet
from weatherkr.pipeline import tiling
from weatherkr.pipeline.export import export_model, import_official
from weatherkr.pipeline.inference import load_model, restore_files, restore_image
from weatherkr.pipeline.tiling import restore_tensor, seam_error, tiles


@pytest.fixture(scope="module")
def net() -> WeatherNet:
    torch.manual_seed(0)
    return WeatherNet(8, 1, "image").eval()


@pytest.fixture(scope="module")
def identity() -> WeatherNet:
    net = WeatherNet(8, 1, "image")
    for weight in net.post.parameters():
        torch.nn.init.zeros_(weight)
    return net.eval()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 20), st.sampled_from([1, 2, 4]))
def test_tiles_cover_every_pixel_once(height, width, side, halo, multiple) -> None:
    seen = torch.zeros(height, width)
    for tile in tiles(height, width, side, halo, multiple):
        top, left, bottom, right = tile.window
        assert top % multiple == left % multiple == 0
        assert top <= tile.top < tile.bottom <= bottom <= height
        assert left <= tile.left < tile.right <= right <= width
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert torch.equal(seen, torch.ones(height, width))


@pytest.mark.parametrize("side", [32, 48, 100])
def test_tiles_with_the_whole_pictures_gates_equal_the_whole_picture(net, side) -> None:
    image = torch.rand(1, 3, 150, 130)
    assert seam_error(net, image, side, precision="float32") < 1e-4


def test_the_halo_is_needed_and_local_gates_differ(net, monkeypatch) -> None:
    image = torch.rand(1, 3, 150, 130)
    whole = restore_tensor(net, image, "off", precision="float32")
    local = restore_tensor(net, image, 64, "local", "float32")
    assert 1e-6 < (local - whole).abs().max() < 0.2
    monkeypatch.setattr(WeatherNet, "halo", 0)
    assert seam_error(net, image, 48, precision="float32") > 1e-3


def test_shuffled_networks_tile_too_and_large_pictures_use_a_reduced_pass(monkeypatch) -> None:
    torch.manual_seed(1)
    net = WeatherNet(8, 1, "image", 4).eval()
    image = torch.rand(1, 3, 203, 131)
    assert seam_error(net, image, 64, precision="float32") < 1e-4
    monkeypatch.setattr("weatherkr.pipeline.tiling.WHOLE_PIXELS", 64 * 64)
    assert 0 < seam_error(net, image, 64, precision="float32") < 0.1


def test_out_of_memory_halves_the_tile(net, monkeypatch) -> None:
    real, seen = tiling._run, []

    def scarce(net, image, precision):
        seen.append(image.shape[-1])
        if image.shape[-1] > 320:
            raise torch.OutOfMemoryError
        return real(net, image, precision)

    monkeypatch.setattr(tiling, "_run", scarce)
    monkeypatch.setattr(tiling, "global_gates", lambda *_: [torch.ones(1, 8, 1, 1)] * 3)
    image = torch.rand(1, 3, 40, 600)
    assert restore_tensor(net, image).shape == image.shape
    assert max(seen) > 320 > seen[-1]
    with pytest.raises(UserError, match="not enough memory"):
        restore_tensor(net, image, 500)


def pictures(root: Path) -> dict[str, Path]:
    """One file of each kind that a person may have."""
    rng = np.random.default_rng(0)
    colour, alpha = rng.integers(0, 256, (12, 17, 3), np.uint8), rng.integers(0, 256, (12, 17), np.uint8)
    deep = rng.integers(0, 65536, (12, 17, 4), np.uint16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    rgb = Image.fromarray(colour)
    rgb.save(root / "turned.png", exif=exif, icc_profile=profile)
    rgb.save(root / "plain.jpg", exif=exif, quality=90)
    rgb.convert("L").save(root / "grey.png")
    rgb.convert("P").save(root / "palette.png")
    rgb.save(root / "plain.webp", lossless=True)
    rgb.convert("CMYK").save(root / "cmyk.tif")
    with_alpha = rgb.copy()
    with_alpha.putalpha(Image.fromarray(alpha))
    with_alpha.save(root / "alpha.png")
    with_alpha.convert("LA").save(root / "grey-alpha.png")
    Image.fromarray(colour[:1]).save(root / "line.png")
    Image.fromarray(colour[:1, :1]).save(root / "dot.bmp")
    (root / "deep.png").write_bytes(imagecodecs.png_encode(deep[..., :3].copy()))
    (root / "deep-alpha.png").write_bytes(imagecodecs.png_encode(deep))
    (root / "deep-grey.png").write_bytes(imagecodecs.png_encode(deep[..., 0].copy()))
    tifffile.imwrite(root / "deep.tif", deep[..., :3], photometric="rgb")
    return {path.stem + path.suffix: path for path in root.iterdir()}


@pytest.mark.filterwarnings("ignore:.*CMYK")
def test_nothing_but_the_weather_is_lost(identity, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    files = pictures(tmp_path / "in")
    report = restore_files(identity, tmp_path / "in", tmp_path / "out", precision="float32")
    assert len(report.results) == len(files)
    for name, path in files.items():
        before, after = read_original(path), read_original(tmp_path / "out" / name)
        assert after.rgb.shape == before.rgb.shape, name
        assert (after.bit_depth, after.grey) == (before.bit_depth, before.grey), name
        assert (after.alpha is None) == (before.alpha is None), name
        assert (after.icc_profile, after.exif) == (before.icc_profile, before.exif), name
        if before.alpha is not None:
            np.testing.assert_array_equal(after.alpha, before.alpha)
        if not name.endswith((".jpg", ".webp")):
            level = 255 if before.bit_depth == 8 else 65535
            np.testing.assert_allclose(after.rgb, before.rgb, atol=0.51 / level, err_msg=name)
    turned = Image.open(tmp_path / "out" / "turned.png")
    assert turned.size == (12, 17)
    assert turned.getexif()[0x0112] == 1
    assert turned.getexif()[0x010F] == "a camera"


def test_sixteen_bit_files_carry_profile_and_exif(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    original = read_original(pictures(tmp_path / "in")["turned.png"])
    deep = read_original(tmp_path / "in" / "deep.png")
    rich = replace(deep, icc_profile=original.icc_profile, exif=original.exif)
    write_like(tmp_path / "rich.png", deep.rgb, rich)
    again = read_original(tmp_path / "rich.png")
    assert again.icc_profile == original.icc_profile
    assert again.exif == original.exif
    np.testing.assert_array_equal(again.rgb, deep.rgb)


def test_transparent_pixels_keep_their_colour_and_formats_refuse_what_they_cannot_hold(tmp_path) -> None:
    alpha = np.zeros((9, 9), np.float32)
    alpha[4] = 1
    rgb = np.random.default_rng(0).random((9, 9, 3), np.float32)
    original = Original(rgb, alpha, 8, False, None, None)
    write_like(tmp_path / "a.png", 1 - rgb, original)
    after = read_picture(tmp_path / "a.png").rgb
    np.testing.assert_allclose(after[0], rgb[0], atol=0.003)
    np.testing.assert_allclose(after[4], 1 - rgb[4], atol=0.003)
    for name, kind, message in (
        ("a.jpg", original, "no transparency"),
        ("a.webp", Original(rgb, None, 16, False, None, None), "16-bit"),
        ("a.xyz", original, "cannot write"),
    ):
        with pytest.raises(ImageError, match=message):
            write_like(tmp_path / name, rgb, kind)
    with pytest.raises(ImageError, match="NaN"):
        write_like(tmp_path / "b.png", rgb * np.nan, original)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_what_comes_in_comes_out(identity, net, tmp_path) -> None:
    rng = np.random.default_rng(0)
    eight, sixteen = rng.integers(0, 256, (9, 11, 3), np.uint8), rng.integers(0, 65536, (9, 11, 3), np.uint16)
    for array in (eight, sixteen):
        same = restore_image(identity, array, precision="float32")
        assert same.dtype == array.dtype
        np.testing.assert_array_equal(same, array)
    floats = restore_image(identity, eight.astype(np.float32) / 255, precision="float32")
    np.testing.assert_allclose(floats, eight / 255, atol=1e-6)
    tensor = torch.rand(2, 3, 9, 11)
    torch.testing.assert_close(restore_image(net, tensor)[1], restore_image(net, tensor[1]))
    picture = Image.fromarray(eight)
    picture.putalpha(7)
    again = restore_image(identity, picture, precision="float32")
    assert (again.mode, again.getpixel((0, 0))[3]) == ("RGBA", 7)
    assert restore_image(identity, picture.convert("L")).mode == "L"
    picture.convert("RGB").save(tmp_path / "p.png")
    assert restore_image(identity, tmp_path / "p.png").size == (11, 9)


def test_bad_arrays_are_named(net) -> None:
    good = np.zeros((9, 11, 3), np.float32)
    for bad, message in (
        (good * np.nan, "NaN"),
        (good + 200, "divide by 255"),
        (good[..., :2], "expected"),
        (good.astype(np.int64), "int64"),
        (torch.zeros(2, 9, 11), "expected"),
        ("nowhere.png", "no such file"),
        (3, "cannot restore a int"),
    ):
        with pytest.raises(UserError, match=message):
            restore_image(net, bad)
    with pytest.warns(UserWarning, match="clamped"):
        restore_image(net, good - 0.1)


def test_model_folders(net, tmp_path) -> None:
    net.save_pretrained(tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m", "cpu").post[1].weight, net.post[1].weight)
    WeatherNet(16, 1).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((tmp_path / "m" / "config.json").read_text())
    with pytest.raises(UserError, match=r"pre\.0\.weight has shape \(16, 3, 3, 3\), expected \(8, 3, 3, 3\)"):
        load_model(tmp_path / "other")
    for wrong in ({"depth": 3}, {"dim": "x"}, {"dim": 8.5}, {"dim": -8}, {"residual": "none"}, [8, 1], {"dim": 9}):
        (tmp_path / "m" / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"config\.json: .*not the configuration|of another network|need 8 to 4096"):
            load_model(tmp_path / "m")
    # Nothing is allocated for what a configuration promises and the weights do not hold.
    (tmp_path / "m" / "config.json").write_text(json.dumps({"dim": 4096, "blocks": 20}))
    with pytest.raises(UserError, match="of another network"):
        load_model(tmp_path / "m")
    damaged = WeatherNet(8, 1)
    damaged.post[1].weight.data[0] = torch.nan
    damaged.save_pretrained(tmp_path / "damaged")
    with pytest.raises(UserError, match="other things than finite numbers"):
        load_model(tmp_path / "damaged")
    (tmp_path / "empty").mkdir()
    for place, message in ((tmp_path / "empty", "config.json"), (tmp_path / "none", "no such folder")):
        with pytest.raises(UserError, match=message):
            load_model(place)


def test_the_model_that_ships_is_small_and_removes_weather() -> None:
    net = load_model("compact", "cpu")
    assert sum(p.numel() for p in net.parameters()) * 2 < 10 * 2**20
    clean = to_tensor(embedded_pictures()["chelsea"])[:, 20:276, 60:316]
    for kind in ("haze", "rain", "snow"):
        degraded = degrade(clean, kind, torch.Generator().manual_seed(7))
        errors = [(each - clean).square().mean() for each in (restore_image(net, degraded), degraded)]
        assert 10 * (errors[1] / errors[0]).log10() > 2, kind


def test_exports_agree_and_official_checkpoints_are_read(net, tmp_path) -> None:
    small = WeatherNet(8, 1, "image", 2).eval()
    export_model(small, tmp_path / "net.pt2", "pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    for height, width in ((20, 34), (48, 16)):
        image = torch.rand(1, 3, height, width)
        torch.testing.assert_close(program(image), small.restore(image), atol=1e-5, rtol=0)
    export_model(net, tmp_path / "half", half=True)
    again = load_model(tmp_path / "half", "cpu")
    assert again.post[1].weight.dtype == torch.float32
    torch.testing.assert_close(again.post[1].weight, net.post[1].weight, atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="exists"):
        export_model(net, tmp_path / "half")
    with pytest.raises(UserError, match="float32 weights"):
        export_model(net, tmp_path / "x.pt2", "pt2", half=True)

    official = WeatherNet(16, 2)
    torch.save({"step": 1, "max_psnr": 31.0, "model": official.state_dict()}, tmp_path / "ffa_best.pk")
    read = import_official(tmp_path / "ffa_best.pk")
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in official.state_dict().items())
    torch.save(
        {"model": {"pre.0.weight": torch.zeros(64, 3, 3, 3), "post.0.weight": torch.zeros(3, 64, 3, 3)}},
        tmp_path / "ffanet.pk",
    )
    torch.save({"model": {"conv": torch.zeros(1)}}, tmp_path / "other.pk")
    torch.save(Path("x"), tmp_path / "code.pk")
    for name, message in (
        ("ffanet.pk", "post.0.weight"),
        ("other.pk", "no tensor pre.0.weight"),
        ("code.pk", "could run code"),
        ("none.pk", "No such file"),
    ):
        with pytest.raises(UserError, match=message):
            import_official(tmp_path / name)


def test_folders_skip_what_cannot_be_read_and_refuse_to_overwrite(net, tmp_path) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    Image.new("RGB", (20, 18), (90, 80, 70)).save(source / "good.png")
    Image.new("RGB", (20, 18), (90, 80, 70)).save(source / "sub" / "good.gif")
    (source / "broken.png").write_bytes((source / "good.png").read_bytes()[:60])
    report = restore_files(net, source, tmp_path / "out", suffix="_clear", compare=True)
    assert sorted(each.target.relative_to(tmp_path / "out").as_posix() for each in report.results.values()) == [
        "good_clear.png",
        "sub/good_clear.png",
    ]
    assert (tmp_path / "out" / "good_clear_compare.png").exists()
    assert len(report.skipped) == 1
    assert "broken.png" in report.skipped[0]
    with pytest.raises(UserError, match="exists"):
        restore_files(net, source, tmp_path / "out", suffix="_clear")
    with pytest.raises(UserError, match="is an input"):
        restore_files(net, source / "good.png", source)
    Image.new("RGB", (20, 18)).save(source / "good_compare.png")
    with pytest.raises(UserError, match="both would become"):
        restore_files(net, source, tmp_path / "two", compare=True)
    (tmp_path / "bright.png").write_bytes((source / "good.png").read_bytes())
    (tmp_path / "link.png").symlink_to(tmp_path / "bright.png")
    with pytest.raises(UserError, match="is an input"):
        restore_files(net, tmp_path / "bright.png", tmp_path / "link.png", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        restore_files(net, source, source / "good.png")
    with pytest.raises(UserError, match=r"broken\.png"):
        restore_files(net, source / "broken.png", tmp_path / "one")
    assert not (tmp_path / "one").exists()
