"""Reading and writing any picture that a person has.

Pictures are float32 arrays of shape (height, width, 3), RGB in [0, 1]. Reading applies the EXIF orientation, resolves
palettes, CMYK and grey levels, keeps 16-bit precision and sets alpha apart. Writing is atomic.
"""

import os
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from tenfold.errors import UserError
from tenfold.files import atomic_path

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_WRITABLE = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_SIXTEEN_BIT = frozenset({".png", ".tif", ".tiff"})


class ImageError(UserError):
    """A picture that cannot be read or written; the message names the file and the reason."""


@dataclass(frozen=True)
class Picture:
    """A picture with what a plain RGB array would lose.

    Attributes:
        rgb: colours, float32 in [0, 1], not multiplied by alpha.
        alpha: opacity in [0, 1], or None where the file has none.
        bit_depth: 8, or 16 for 16-bit files.
        animated: the file has more frames than the one that was read (the first).
    """

    rgb: Float[np.ndarray, "h w 3"]
    alpha: Float[np.ndarray, "h w"] | None = None
    bit_depth: int = 8
    animated: bool = False


def read_image(path: str | os.PathLike[str]) -> Float[np.ndarray, "h w 3"]:
    """Read the colours of a picture; see `read_picture`.

    Returns:
        float32 RGB in [0, 1].
    """
    return read_picture(path).rgb


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read a picture of any common format, upright, with alpha and bit depth kept.

    Args:
        path: the file. Of an animation the first frame is read.

    Raises:
        ImageError: missing, empty, truncated, not a picture, or too large to be one.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ImageError(f"{path}: is a folder, not a picture")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: is empty (0 bytes)")
        with warnings.catch_warnings():
            # A large scan is no attack: Pillow still refuses twice its limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _decode(path, image)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a picture, or of a format that Pillow does not know") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: more pixels than a picture should have; cut it into pieces first") from None
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError) as error:
        # Pillow's decoders meet a damaged file with any of these.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{path}: damaged or truncated ({reason})") from error


def _decode(path: Path, image: Image.Image) -> Picture:
    animated = getattr(image, "n_frames", 1) > 1
    if not _is_sixteen_bit(image):
        return _from_eight_bit(image, animated)
    orientation = image.getexif().get(0x0112, 1)
    image.load()  # a truncated file fails here, with a reason
    pixels = _decode_sixteen_bit(path, image.format or "")
    return _from_array(_upright(pixels, orientation), bit_depth=16, animated=animated)


def _is_sixteen_bit(image: Image.Image) -> bool:
    if image.mode.startswith("I") or image.mode == "F":
        return True
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (8,))  # ty: ignore[missing-attribute]  # only TIFF images have tags
        return max(bits if isinstance(bits, tuple) else (bits,)) == 16
    # Pillow reads 16-bit RGB as 8-bit; the depth is the byte after the sizes in the header.
    return image.format == "PNG" and _png_bit_depth(image) == 16


def _png_bit_depth(image: Image.Image) -> int:
    with Path(str(image.filename)).open("rb") as stream:  # ty: ignore[missing-attribute]  # opened from a path
        return stream.read(25)[24]


def _decode_sixteen_bit(path: Path, image_format: str) -> Shaped[np.ndarray, "..."]:
    if image_format == "PNG":
        import imagecodecs

        return np.asarray(imagecodecs.png_decode(path.read_bytes()))
    if image_format == "TIFF":
        import tifffile

        return np.asarray(tifffile.imread(path, key=0))
    with Image.open(path) as image:
        return np.asarray(image)


def _upright(pixels: Shaped[np.ndarray, "..."], orientation: int) -> Shaped[np.ndarray, "..."]:
    """Undo an EXIF orientation (EXIF 2.3, tag 274) on an array whose first axes are rows and columns."""
    if orientation in (2, 5, 7, 4):
        pixels = pixels[:, ::-1]
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(pixels, turns)


def _from_eight_bit(image: Image.Image, animated: bool) -> Picture:
    image = ImageOps.exif_transpose(image)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return _from_array(np.asarray(image), bit_depth=8, animated=animated)


def _from_array(pixels: Shaped[np.ndarray, "..."], bit_depth: int, animated: bool) -> Picture:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(f"unexpected pixel layout {pixels.shape}")
    if np.issubdtype(pixels.dtype, np.floating):
        values = pixels.astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("pixels that are NaN or infinite")
        values = values.clip(0, 1)
    else:
        # Pillow widens 16-bit grey to 32-bit integers: their range is still that of 16 bits.
        top = np.iinfo(pixels.dtype).max if pixels.dtype.itemsize <= 2 else 65535
        values = (pixels.astype(np.float32) / np.float32(top)).clip(0, 1)
    channels = values.shape[2]
    alpha = values[..., -1] if channels in (2, 4) else None
    rgb = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, axis=2)
    return Picture(np.ascontiguousarray(rgb), alpha, bit_depth, animated)


def write_image(
    path: str | os.PathLike[str],
    rgb: Float[np.ndarray, "h w 3"],
    *,
    alpha: Float[np.ndarray, "h w"] | None = None,
    bit_depth: int = 8,
    quality: int = 95,
    text: dict[str, str] | None = None,
) -> None:
    """Write a picture, whole or not at all; the suffix names the format.

    Args:
        path: a file ending in .png, .jpg, .jpeg, .webp, .tif, .tiff or .bmp.
        rgb: colours; values outside [0, 1] are clipped, then rounded to the nearest level.
        alpha: opacity in [0, 1]; not for JPEG and BMP.
        bit_depth: 8, or 16 for PNG and TIFF.
        quality: of JPEG and WebP, 1 to 100.
        text: PNG tEXt entries.

    Raises:
        ImageError: a format that cannot hold what was asked, NaN, or an unwritable place.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITABLE:
        raise ImageError(
            f"{path}: cannot write {suffix or 'a name without suffix'}; use one of {', '.join(sorted(_WRITABLE))}"
        )
    if bit_depth not in (8, 16) or (bit_depth == 16 and suffix not in _SIXTEEN_BIT):
        raise ImageError(f"{path}: {bit_depth}-bit pictures need .png or .tif")
    if alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
        raise ImageError(f"{path}: {suffix} holds no transparency; use .png, .webp or .tif")
    if text and suffix != ".png":
        raise ImageError(f"{path}: only .png holds text entries")
    if not np.isfinite(rgb).all():
        raise ImageError(f"{path}: pixels are NaN or infinite; nothing was written")
    pixels = rgb if alpha is None else np.concatenate([rgb, alpha[..., None]], axis=2)
    top = 255 if bit_depth == 8 else 65535
    levels = np.rint(pixels.astype(np.float64).clip(0, 1) * top).astype(np.uint8 if bit_depth == 8 else np.uint16)
    with atomic_path(path) as temporary:
        if bit_depth == 8:
            _write_eight_bit(temporary, levels, quality, text or {})
        elif suffix == ".png":
            import imagecodecs

            temporary.write_bytes(_with_text(bytes(imagecodecs.png_encode(levels)), text or {}))
        else:
            import tifffile

            tifffile.imwrite(
                temporary, levels, photometric="rgb", extrasamples=("unassalpha",) if alpha is not None else ()
            )


def _write_eight_bit(path: Path, levels: Shaped[np.ndarray, "..."], quality: int, text: dict[str, str]) -> None:
    image = Image.fromarray(levels)
    suffix = path.suffix.lower()
    if suffix == ".png":
        entries = PngImagePlugin.PngInfo()
        for key, value in text.items():
            entries.add_text(key, value)
        image.save(path, pnginfo=entries)
    elif suffix in (".jpg", ".jpeg"):
        # At high quality people expect sharp colour edges: no chroma subsampling.
        image.save(path, quality=quality, subsampling=0 if quality >= 90 else 2)
    elif suffix == ".webp":
        image.save(path, quality=quality)
    else:
        image.save(path)


def _with_text(png: bytes, text: dict[str, str]) -> bytes:
    """Insert tEXt chunks after the header of an encoded PNG (PNG specification, 11.3.4.3)."""
    import zlib

    chunks = b""
    for key, value in text.items():
        body = b"tEXt" + key.encode("latin-1") + b"\0" + value.encode("latin-1", "replace")
        chunks += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    header_end = 8 + 25
    return png[:header_end] + chunks + png[header_end:]


def list_images(root: str | os.PathLike[str]) -> list[Path]:
    """Every picture below a folder (or the one file named), in natural order: `2.png` before `10.png`.

    Hidden files and folders are passed over.

    Raises:
        UserError: no such folder, or no picture in it.
    """
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f"{root}: no such file or folder")
    found = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]
    if not found:
        raise UserError(f"{root}: holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(found, key=lambda path: _natural_key(path.relative_to(root).as_posix()))


def _natural_key(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
