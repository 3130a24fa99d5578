"""Pictures to look at: clean, mask, change magnified, attacked; label maps and overlays."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from asmattack.benchmark.comparison import Bench, levels
from asmattack.data.layouts import FaceSet
from asmattack.data.parsers import Parser, check_label_maps
from asmattack.data.regions import REGIONS
from asmattack.evaluation.report import Example
from asmattack.method.selection import Policy
from asmattack.models.detector import Detector
from tenfold import UserError
from tenfold.files import atomic_path
from tenfold.folders import Job, check_jobs
from tenfold.images import write_image

MAGNIFIED = 8.0
"""How many times a change is stretched around grey."""


def magnified(clean: Float[Tensor, "n 3 h w"], attacked: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """The change around grey, stretched."""
    return (0.5 + MAGNIFIED * (attacked - clean)).clamp(0, 1)


def example_pictures(
    bench: Bench, detector: Detector, faces: FaceSet, name: str, eps: float, policy: Policy = "budget", count: int = 6
) -> list[Example]:
    """The first fakes, or faces where there are none, attacked with the settings of a bench."""
    rows = (faces.labels == 1).nonzero().flatten()[:count]
    shown = faces.subset(rows if len(rows) else torch.arange(min(count, len(faces))))
    batch, maps = replace(bench, calibration=faces).attacked(detector, shown, name, eps, policy)
    columns = {
        "clean": shown.pixels(),
        "activation": maps[:, None].expand(-1, 3, -1, -1),
        "mask": batch.mask.expand(-1, 3, -1, -1),
        f"change x {MAGNIFIED:g}": magnified(shown.pixels(), batch.images),
        "attacked": batch.images,
    }
    pictures = {caption: levels(values) for caption, values in columns.items()}
    return [
        Example(
            f"{shown.names[i]}: {'fooled' if batch.success[i] else 'not fooled'} ({name}, {policy}, {eps * 255:g}/255)",
            {caption: values[i] for caption, values in pictures.items()},
        )
        for i in range(len(shown))
    ]


def contact_sheet(examples: list[Example]) -> Float[np.ndarray, "h w 3"]:
    """One row for each example, enlarged three times."""
    rows = [np.concatenate(list(example.pictures.values()), 1) for example in examples]
    return np.concatenate(rows, 0).repeat(3, 0).repeat(3, 1).astype(np.float32) / 255


def write_examples(
    out: Path,
    bench: Bench,
    detector: Detector,
    faces: FaceSet,
    name: str,
    eps: float | None,
    policy: Policy,
    count: int,
) -> int:
    """Write the first attacked faces, each marked inside as adversarial; returns how many."""
    if count == 0:
        return 0
    places = example_places(out, faces, count)
    shown = faces.subset(torch.arange(len(places)))
    batch, _ = replace(bench, calibration=faces).attacked(detector, shown, name, eps, policy)
    levels_of_eps = bench.budget(name, eps) * 255
    for place, pixels in zip(places, batch.images, strict=True):
        text = {"asma:adversarial": f"{name} {levels_of_eps:g}/255 {policy} {detector.name}"}
        write_image(place, pixels.permute(1, 2, 0).numpy(), text=text)
    return len(shown)


def example_places(out: Path, faces: FaceSet, count: int) -> list[Path]:
    """Where the first attacked faces are written.

    Raises:
        UserError: two of them have one name, or one would be written over a face.
    """
    shown = faces.subset(torch.arange(min(count, len(faces))))
    places = [out / place for place in _places(shown, "-attacked")]
    inputs = {path.resolve() for path in faces.files}
    if taken := [place for place in places if place.resolve() in inputs]:
        raise UserError(f"{taken[0]}: is an input and would be overwritten; choose another --out")
    return places


def _places(faces: FaceSet, suffix: str = "") -> list[Path]:
    """Where the picture of each face is written, below a folder.

    Raises:
        UserError: two faces of one name.
    """
    found = [Path(name).with_name(f"{Path(name).stem}{suffix}.png") for name in faces.names]
    twice = [str(each) for each, count in Counter(found).items() if count > 1]
    if twice:
        raise UserError(
            f"{len(twice)} names are those of several faces ({twice[0]}, ...): one would overwrite the other"
        )
    return found


def overlay(image: Float[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """A face with its regions in colours."""
    hue = np.arange(len(REGIONS)) * 0.618 % 1
    colours = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] + np.array([0, 1 / 3, 2 / 3])))
    return (0.6 * image + 0.4 * colours[labels]).astype(np.float32)


def write_masks(
    out: Path, faces: FaceSet, parser: Parser, device: torch.device | str = "cpu", overwrite: bool = True
) -> int:
    """Label maps as 8-bit PNG, and overlays; returns how many.

    Args:
        out: the folder.
        faces: what is parsed.
        parser: of them.
        device: where it computes.
        overwrite: write over what is there, as long as it is no face that was read.

    Raises:
        UserError: two faces of one name, a face that would be written over, or something there.
    """
    places = _places(faces)
    targets = [[out / place for place in places], [out / "overlays" / place for place in places]]
    sources = faces.files or tuple(Path(name) for name in faces.names)
    check_jobs([Job(*pair) for each in targets for pair in zip(sources, each, strict=True)], overwrite)
    for batch in faces.batches(64):
        pixels = batch.pixels()
        known = batch.of_parser(device)
        found = parser(pixels.to(device), landmarks=known["landmarks"], names=batch.names)
        labels = check_label_maps(found, pixels).byte().cpu().numpy()
        for image, each in zip(pixels, labels, strict=True):
            place = places.pop(0)
            with atomic_path(out / place) as temporary:
                Image.fromarray(each).save(temporary, "PNG")
            write_image(out / "overlays" / place, overlay(image.permute(1, 2, 0).numpy(), each))
    return len(faces)
