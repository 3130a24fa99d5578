"""Codec and size shortcuts: can real and fake be told apart without looking at a face?

If genuine images are JPEG and fakes PNG, or of another size or quality, a detector learns the file format. The probe reads
file headers only and says how well each trait alone would separate the classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

_LEAKS_FROM = 0.6
_RARE = 0.02


@dataclass(frozen=True)
class Shortcut:
    """How far one property of the files gives the label away.

    Attributes:
        trait: "format", "size" or "quantisation tables".
        balanced_accuracy: of the best rule that sees this trait alone; 0.5 = no shortcut, 1 = perfect.
        usual_real: its most frequent value in genuine images.
        usual_fake: its most frequent value in fakes.
    """

    trait: str
    balanced_accuracy: float
    usual_real: str
    usual_fake: str


def measure_shortcuts(images: Sequence[tuple[Path, int]], limit: int = 500) -> tuple[Shortcut, ...]:
    """Balanced accuracy of telling real from fake by file format, size and JPEG quantisation tables.

    Args:
        images: (file, label) with label 0 = real, 1 = fake.
        limit: headers read per class, evenly spaced.

    Returns:
        One record per trait; none when a class is absent. Unreadable files are passed over.
    """
    traits = {label: _traits(_spread([p for p, y in images if y == label], limit)) for label in (0, 1)}
    if not traits[0] or not traits[1]:
        return ()
    names = ("format", "size", "quantisation tables")
    return tuple(
        _shortcut(name, Counter(t[i] for t in traits[0]), Counter(t[i] for t in traits[1]))
        for i, name in enumerate(names)
    )


def shortcut_warnings(images: Sequence[tuple[Path, int]], limit: int = 500) -> list[str]:
    """One line for each trait that separates the classes with balanced accuracy of 0.6 or more."""
    return [
        f"codec/size shortcut: {found.trait} alone tells real from fake with balanced accuracy "
        f"{found.balanced_accuracy:.2f} (real mostly {found.usual_real}, fake mostly {found.usual_fake}); "
        "re-encode both the same way"
        for found in measure_shortcuts(images, limit)
        if found.balanced_accuracy >= _LEAKS_FROM
    ]


def _spread(paths: list[Path], limit: int) -> list[Path]:
    if len(paths) <= limit:
        return paths
    return [paths[i] for i in np.linspace(0, len(paths) - 1, limit).round().astype(int)]


def _traits(paths: list[Path]) -> list[tuple[str, str, str]]:
    found = []
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
                tables = getattr(image, "quantization", None)
                found.append((str(image.format), f"{width}x{height}", _quality(tables)))
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
            # Whether a file can be read is for the readers to report; the probe looks at the others.
            continue
    return found


def _quality(tables: dict[int, list[int]] | None) -> str:
    """A short name for JPEG quantisation tables: their means, which fall as quality rises."""
    if not tables:
        return "none"
    return "mean " + "/".join(f"{sum(table) / len(table):.1f}" for table in tables.values())


def _shortcut(name: str, real: Counter[str], fake: Counter[str]) -> Shortcut:
    """Best rule on one discrete trait: 1/2 sum over values of max(P(value|real), P(value|fake))."""
    p = {value: (real[value] / real.total(), fake[value] / fake.total()) for value in real | fake}
    frequent = [pair for pair in p.values() if max(pair) >= _RARE]
    # Values that hardly occur (photographs that all have their own size) would separate any two samples: lump them.
    rest = tuple(1 - sum(pair[i] for pair in frequent) for i in (0, 1))
    accuracy = sum(max(pair) for pair in (*frequent, rest)) / 2
    return Shortcut(name, accuracy, real.most_common(1)[0][0], fake.most_common(1)[0][0])
