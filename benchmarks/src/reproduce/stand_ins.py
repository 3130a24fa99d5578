"""Tiny pictures in the layouts of public data sets, so that the path of a protocol can be run without them."""

import zlib
from pathlib import Path

import numpy as np

from tenfold.images import write_image


def write_noise(path: Path, height: int = 32, width: int = 32) -> None:
    """A picture of smooth noise that its path alone decides.

    Args:
        path: where; the suffix is the format.
        height: in pixels, a multiple of 4.
        width: in pixels, a multiple of 4.
    """
    rng = np.random.default_rng(zlib.crc32(path.as_posix().encode()))
    coarse = rng.random((height // 4, width // 4, 3), dtype=np.float32)
    fine = rng.random((height, width, 3), dtype=np.float32)
    write_image(path, 0.8 * coarse.repeat(4, 0).repeat(4, 1) + 0.2 * fine)


def write_classes(root: Path, classes: int, train: int, test: int, test_part: str = "test", side: int = 32) -> None:
    """`train/CLASS/*.png` and `test/CLASS/*.png`.

    Args:
        root: the folder.
        classes: how many.
        train: pictures of each for training.
        test: pictures of each for testing.
        test_part: the name of the test folder.
        side: of the pictures.
    """
    for part, count in (("train", train), (test_part, test)):
        for label in range(classes):
            for number in range(count):
                write_noise(root / part / f"class{label:03d}" / f"{number}.png", side, side)
