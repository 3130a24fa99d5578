"""Pictures to look at: clean, mask, change magnified, attacked; label maps and overlays."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from asmattack.baselines import GLOBAL_ATTACKS, GlobalAttack
from asmattack.bench import levels
from asmattack.detector import Detector
from asmattack.parsers import Parser, check_label_maps
from asmattack.pipeline import MaskMaker, choose
from asmattack.presets import preset
from asmattack.region_attack import AdversarialBatch, RegionAttack
from asmattack.regions import REGIONS
from asmattack.robustness_report import Example
from asmattack.selection import Policy, calibrated_order, region_scores
from asmattack.sets import FaceSet
from tenfold.files import atomic_path
from tenfold.images import write_image

MAGNIFIED = 8.0
"""How many times a change is stretched around grey."""


def attacked_examples(
    detector: Detector, faces: FaceSet, maker: MaskMaker, name: str, eps: float, policy: Policy = "budget"
) -> tuple[AdversarialBatch, Float[Tensor, "n h w"]]:
    """Attack a set of faces at once; also the activation maps that chose the regions."""
    labels, maps = maker.look(detector, faces.pixels(), **faces.of_parser())
    if name in GLOBAL_ATTACKS:
        return GlobalAttack(detector, name, eps).run(faces.pixels(), faces.labels), maps
    order = calibrated_order(region_scores(maps, labels, maker.config.candidates))
    mask = choose(labels, maps, replace(maker.config, policy=policy, order=order)).mask
    return RegionAttack(detector, preset(name, eps)).run(faces.pixels(), faces.labels, mask), maps


def magnified(clean: Float[Tensor, "n 3 h w"], attacked: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """The change around grey, stretched."""
    return (0.5 + MAGNIFIED * (attacked - clean)).clamp(0, 1)


def example_pictures(
    detector: Detector,
    faces: FaceSet,
    maker: MaskMaker,
    name: str,
    eps: float,
    policy: Policy = "budget",
    count: int = 6,
) -> list[Example]:
    """The first fakes, or faces where there are none."""
    rows = (faces.labels == 1).nonzero().flatten()[:count]
    shown = faces.subset(rows if len(rows) else torch.arange(min(count, len(faces))))
    batch, maps = attacked_examples(detector, shown, maker, name, eps, policy)
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
    out: Path, detector: Detector, faces: FaceSet, maker: MaskMaker, name: str, eps: float, policy: Policy, count: int
) -> int:
    """Write the first attacked faces, each marked inside as adversarial; returns how many."""
    if count == 0:
        return 0
    shown = faces.subset(torch.arange(min(count, len(faces))))
    batch, _ = attacked_examples(detector, shown, maker, name, eps, policy)
    for face, pixels in zip(shown.names, batch.images, strict=True):
        text = {"asma:adversarial": f"{name} {eps * 255:g}/255 {policy} {detector.name}"}
        write_image(out / f"{Path(face).stem}-attacked.png", pixels.permute(1, 2, 0).numpy(), text=text)
    return len(shown)


def overlay(image: Float[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """A face with its regions in colours."""
    hue = np.arange(len(REGIONS)) * 0.618 % 1
    colours = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] + np.array([0, 1 / 3, 2 / 3])))
    return (0.6 * image + 0.4 * colours[labels]).astype(np.float32)


def write_masks(out: Path, faces: FaceSet, parser: Parser) -> int:
    """Label maps as 8-bit PNG, and overlays; returns how many."""
    pixels = faces.pixels()
    labels = check_label_maps(parser(pixels, landmarks=faces.landmarks, names=faces.names), pixels).byte().numpy()
    for name, image, found in zip(faces.names, pixels, labels, strict=True):
        with atomic_path(out / f"{Path(name).stem}.png") as temporary:
            Image.fromarray(found).save(temporary, "PNG")
        write_image(out / "overlays" / f"{Path(name).stem}.png", overlay(image.permute(1, 2, 0).numpy(), found))
    return len(faces)
