"""Pictures as people have them."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tenfold.errors import UserError
from tenfold.images import ImageError, Picture, list_images, read_image, read_picture, write_image


def checker(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_lossless_eight_bit_pictures_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    levels = checker()
    path = tmp_path / f"x{suffix}"
    if suffix == ".webp":
        Image.fromarray(levels).save(path, lossless=True)
    else:
        write_image(path, levels.astype(np.float32) / 255)
    assert np.array_equal(np.rint(read_image(path) * 255), levels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_sixteen_bit_pictures_come_back_exactly(tmp_path: Path, suffix: str, with_alpha: bool) -> None:
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 65536, (5, 7, 4)).astype(np.float64)
    path = tmp_path / f"x{suffix}"
    alpha = (levels[..., 3] / 65535).astype(np.float32) if with_alpha else None
    write_image(path, (levels[..., :3] / 65535).astype(np.float32), alpha=alpha, bit_depth=16)
    picture = read_picture(path)
    assert picture.bit_depth == 16
    assert np.array_equal(np.rint(picture.rgb.astype(np.float64) * 65535), levels[..., :3])
    if with_alpha:
        assert picture.alpha is not None
        assert np.array_equal(np.rint(picture.alpha.astype(np.float64) * 65535), levels[..., 3])
    else:
        assert picture.alpha is None


def test_sixteen_bit_grey_png_fills_the_whole_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535], [32768, 1]], dtype=np.uint16)).save(tmp_path / "g.png")
    picture = read_picture(tmp_path / "g.png")
    assert picture.bit_depth == 16
    assert picture.rgb[0, 0, 0] == 0
    assert picture.rgb[0, 1, 2] == 1
    assert picture.rgb[1, 0, 1] == pytest.approx(32768 / 65535)


def test_text_entries_are_written_at_both_depths(tmp_path: Path) -> None:
    for depth in (8, 16):
        path = tmp_path / f"{depth}.png"
        write_image(path, np.zeros((3, 3, 3), np.float32), bit_depth=depth, text={"Source": "synthetic"})
        with Image.open(path) as image:
            image.load()
            assert image.info["Source"] == "synthetic"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth", [8, 16])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, depth: int) -> None:
    # The reference for both depths is Pillow's own transposition, of the 8-bit picture.
    from PIL import ImageOps

    levels = checker(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    eight = tmp_path / "8.png"
    Image.fromarray(levels).save(eight, exif=exif)
    with Image.open(eight) as image:
        expected = np.asarray(ImageOps.exif_transpose(image), dtype=np.float32) / 255
    path = eight
    if depth == 16:
        path = tmp_path / "16.png"
        write_image(path, levels.astype(np.float32) / 255, bit_depth=16)
        path.write_bytes(_with_exif(path.read_bytes(), exif.tobytes()))
    assert np.abs(read_image(path) - expected).max() < 1e-4


def _with_exif(png: bytes, exif: bytes) -> bytes:
    body = b"eXIf" + exif.removeprefix(b"Exif\0\0")
    return png[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[33:]


def test_palette_cmyk_grey_and_bilevel_pictures_become_rgb(tmp_path: Path) -> None:
    source = Image.fromarray(checker(16, 16))
    for mode, name in [
        ("P", "p.png"),
        ("CMYK", "c.jpg"),
        ("L", "l.png"),
        ("1", "b.png"),
        ("LA", "la.png"),
        ("YCbCr", "y.jpg"),
    ]:
        source.convert(mode).save(tmp_path / name)
        picture = read_picture(tmp_path / name)
        assert picture.rgb.shape == (16, 16, 3)
        assert picture.rgb.dtype == np.float32
        assert (picture.alpha is not None) == (mode == "LA")


def test_palette_transparency_becomes_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "t.png", transparency=1)
    picture = read_picture(tmp_path / "t.png")
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[1.0, 0.0]]


def test_alpha_is_kept_apart_and_written_back(tmp_path: Path) -> None:
    alpha = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    for name in ("a.png", "a.webp", "a.tif"):
        write_image(tmp_path / name, np.full((3, 4, 3), 0.5, np.float32), alpha=alpha)
        read = read_picture(tmp_path / name).alpha
        assert read is not None
        assert np.abs(read - alpha).max() <= 0.5 / 255 + 1e-6


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / "a.gif")
    assert picture.animated
    assert picture.rgb[0, 0].tolist() == [1, 0, 0]


def test_one_pixel_and_non_ascii_names(tmp_path: Path) -> None:
    path = tmp_path / "фото 写真 é.png"
    write_image(path, np.ones((1, 1, 3), np.float32))
    assert read_image(path).shape == (1, 1, 3)
    assert list_images(tmp_path) == [path]


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.95])
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x16.png", "x16.tif"])
def test_truncated_files_are_refused_in_one_line(tmp_path: Path, keep: float, name: str) -> None:
    path = tmp_path / name
    write_image(path, checker(64, 64).astype(np.float32) / 255, bit_depth=16 if "16" in name else 8)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(noise=st.binary(max_size=200), cut=st.integers(0, 200))
def test_damaged_bytes_never_raise_anything_but_image_error(
    noise: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = io.BytesIO()
    Image.fromarray(checker()).save(stream, "PNG")
    path = tmp_path_factory.mktemp("damaged") / "x.png"
    path.write_bytes(stream.getvalue()[:cut] + noise)
    with contextlib.suppress(ImageError):
        assert isinstance(read_picture(path), Picture)


def test_what_is_not_a_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    for path, word in [
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "folder"),
        (tmp_path / "note.png", "not a picture"),
    ]:
        with pytest.raises(ImageError, match=word):
            read_image(path)


def test_too_many_pixels_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    idat = zlib.compress(b"\0")
    data = struct.pack(">I", len(idat)) + b"IDAT" + idat + struct.pack(">I", zlib.crc32(b"IDAT" + idat))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + data)
    with pytest.raises(ImageError, match="more pixels"):
        read_image(tmp_path / "bomb.png")


def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    rgb, alpha = np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.float32)
    bad = np.full((2, 2, 3), np.nan, np.float32)
    cases = [
        (tmp_path / "a.jpg", rgb, {"alpha": alpha}),
        (tmp_path / "a.jpg", rgb, {"bit_depth": 16}),
        (tmp_path / "a.jpg", rgb, {"text": {"a": "b"}}),
        (tmp_path / "a.xyz", rgb, {}),
        (tmp_path / "noname", rgb, {}),
        (tmp_path / "a.png", bad, {}),
    ]
    for path, pixels, options in cases:
        with pytest.raises(ImageError):
            write_image(path, pixels, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_image(tmp_path / "file" / "x.png", np.zeros((2, 2, 3), np.float32))


def test_folders_are_listed_in_natural_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "1.JPG", ".hidden.png", "notes.txt", ".git/x.png", "sub/3.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == [
        "1.JPG",
        "2.png",
        "10.png",
        "sub/3.webp",
    ]


def test_an_empty_folder_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        list_images(tmp_path / "none")
    with pytest.raises(UserError, match="holds no picture"):
        list_images(tmp_path)
