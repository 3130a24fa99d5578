"""Picture files in and out with all that belongs to them: alpha, 16 bits, grey levels, EXIF, colour profile."""

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from jaxtyping import Float, Shaped
from PIL import Image, UnidentifiedImageError

from tenfold.files import atomic_path
from tenfold.images import ImageError, read_picture

WRITABLE = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_ORIENTATION = 0x0112
_STRUCTURE = frozenset({254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 338, 339, 34675})
_STRUCTURE |= frozenset(range(322, 326)) | frozenset(range(529, 533)) | frozenset({332, 347})
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Original:
    """A picture file as it was read, upright.

    Attributes:
        rgb: colours, float32 in [0, 1].
        alpha: opacity in [0, 1], or None.
        bit_depth: 8 or 16.
        grey: whether the file holds grey levels.
        exif: its EXIF block with the orientation set to upright, or None.
        icc_profile: its colour profile, or None.
        notes: what is lost, in a line each.
    """

    rgb: Float[np.ndarray, "h w 3"]
    alpha: Float[np.ndarray, "h w"] | None
    bit_depth: int
    grey: bool
    exif: bytes | None
    icc_profile: bytes | None
    notes: tuple[str, ...] = ()


def read_original(path: str | os.PathLike[str]) -> Original:
    """Read a picture with what a plain array would lose.

    Raises:
        ImageError: missing, empty, truncated, or no picture.
    """
    path = Path(path)
    picture = read_picture(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                mode, profile, exif = image.mode, image.info.get("icc_profile"), image.getexif()
                block = _upright_exif(exif)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, struct.error) as error:
        raise ImageError(f"{path}: damaged or truncated ({error})") from None
    notes = []
    if picture.animated:
        notes.append("has several frames; the first is restored")
    if mode == "CMYK":
        notes.append("is CMYK; it becomes RGB")
        profile = None
    grey = mode in ("1", "L", "LA", "La") or mode.startswith("I")
    return Original(picture.rgb, picture.alpha, picture.bit_depth, grey, block, profile, tuple(notes))


def _upright_exif(exif: Image.Exif) -> bytes | None:
    # A TIFF's own structure (strips, compression) stands among its tags; a new file has its own.
    for tag in [tag for tag in exif if tag in _STRUCTURE]:
        del exif[tag]
    if not exif:
        return None
    if _ORIENTATION in exif:
        exif[_ORIENTATION] = 1
    return exif.tobytes()


def write_like(
    path: str | os.PathLike[str], rgb: Float[np.ndarray, "h w 3"], original: Original, quality: int = 95
) -> None:
    """Write restored colours with the rest of the original: alpha, bit depth, grey levels, EXIF, profile. Whole or not at all.

    Fully transparent pixels keep their original colour.

    Args:
        path: ends in one of `WRITABLE`.
        rgb: restored colours in [0, 1].
        original: as read.
        quality: of JPEG and WebP.

    Raises:
        ImageError: NaN, or a format that cannot hold the picture's alpha or its 16 bits.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_format(path, original)
    if not np.isfinite(rgb).all():
        raise ImageError(f"{path}: pixels are NaN or infinite; nothing was written")
    levels = _levels(rgb, original)
    if levels.shape[2] == 1:
        levels = levels[..., 0]
    with atomic_path(path) as temporary:
        if original.bit_depth == 8:
            _write_eight_bit(temporary, suffix, levels, original, quality)
        elif suffix == ".png":
            encoded = bytes(imagecodecs.png_encode(levels))
            temporary.write_bytes(_with_chunks(encoded, original))
        else:
            _write_tiff(temporary, levels, original)


def check_format(path: Path, original: Original) -> None:
    """Refuse a file whose format cannot hold what an original has, before anything is computed.

    Raises:
        ImageError: an unknown format, or one without its alpha or its 16 bits.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise ImageError(
            f"{path}: cannot write {suffix or 'a name without suffix'}; use one of {', '.join(sorted(WRITABLE))}"
        )
    if original.bit_depth == 16 and suffix not in (".png", ".tif", ".tiff"):
        raise ImageError(f"{path}: 16-bit pictures need .png or .tif")
    if original.alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
        raise ImageError(f"{path}: {suffix} holds no transparency; use .png, .webp or .tif")


def _levels(rgb: Float[np.ndarray, "h w 3"], original: Original) -> Shaped[np.ndarray, "h w c"]:
    """Whole levels, with the channels that the original file has."""
    if original.alpha is not None:
        rgb = np.where(original.alpha[..., None] == 0, original.rgb, rgb)
    colours = (rgb @ _LUMA)[..., None] if original.grey else rgb
    if original.alpha is not None:
        colours = np.concatenate([colours, original.alpha[..., None]], axis=2)
    top, kind = (255, np.uint8) if original.bit_depth == 8 else (65535, np.uint16)
    # The encoders want rows one after another, whatever order the arithmetic left.
    return np.ascontiguousarray(np.rint(colours.astype(np.float64).clip(0, 1) * top).astype(kind))


def _write_eight_bit(
    path: Path, suffix: str, levels: Shaped[np.ndarray, "h w *c"], original: Original, quality: int
) -> None:
    image = Image.fromarray(levels)
    if suffix == ".bmp":
        image.save(path)
        return
    about: dict[str, Any] = {"icc_profile": original.icc_profile} if original.icc_profile else {}
    if original.exif:
        about["exif"] = original.exif
    if suffix in (".jpg", ".jpeg"):
        image.save(path, quality=quality, subsampling=0 if quality >= 90 else 2, **about)
    elif suffix == ".webp":
        image.save(path, quality=quality, exact=True, **about)
    else:
        image.save(path, **about)


def _with_chunks(png: bytes, original: Original) -> bytes:
    """Insert colour profile and EXIF after the header of an encoded PNG (PNG specification, third edition, 11.3)."""
    chunks = b""
    if original.icc_profile:
        chunks += _chunk(b"iCCP", b"profile\0\0" + zlib.compress(original.icc_profile))
    if original.exif:
        chunks += _chunk(b"eXIf", original.exif.removeprefix(b"Exif\0\0"))
    header_end = 8 + 25
    return png[:header_end] + chunks + png[header_end:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _write_tiff(path: Path, levels: Shaped[np.ndarray, "h w *c"], original: Original) -> None:
    grey = levels.ndim == 2 or levels.shape[2] == 2
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        levels,
        photometric="minisblack" if grey else "rgb",
        planarconfig="contig" if levels.ndim == 3 else None,
        extrasamples=("unassalpha",) if original.alpha is not None else (),
        iccprofile=original.icc_profile,
    )
    path.write_bytes(stream.getvalue())
