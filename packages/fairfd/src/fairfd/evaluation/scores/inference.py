"""Run a detector over a manifest (paper, "Evaluations": one score P(fake) for every image, no video pooling).

Rows keep the manifest's order. An image that cannot be read is collected and named at the end, never replaced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torchvision.transforms.v2.functional import rgb_to_grayscale

from fairfd.data.datasets import FaceDataset, as_dataset
from fairfd.data.manifest.manifest import Manifest
from fairfd.data.manifest.samples import few
from fairfd.evaluation.scores.score_table import ScoreTable
from fairfd.models.detectors.detector import Detector
from tenfold import UserError
from tenfold.images import ImageError
from tenfold.runs import autocast, pick_device, track

Colour = Literal["rgb", "gray"]
"""`gray`: the luminance in all three channels (paper, colour ablation)."""


@dataclass(frozen=True)
class Readable:
    """What could be read of a batch.

    Attributes:
        rows: data-set rows of the images.
        images: RGB levels.
        faults: one line for each image that could not be read.
    """

    rows: tuple[int, ...]
    images: UInt8[Tensor, "b 3 h w"]
    faults: tuple[str, ...]


class _ReadableRows(Dataset[Readable]):
    """Fetches a batch at a time, leaving out what cannot be read."""

    def __init__(self, data: FaceDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Readable:
        return self.__getitems__([index])

    def __getitems__(self, rows: Sequence[int]) -> Readable:
        try:
            return Readable(tuple(rows), self.data.pixels(rows), ())
        except ImageError:
            return self._one_by_one(rows)

    def _one_by_one(self, rows: Sequence[int]) -> Readable:
        read, images, faults = [], [], []
        for row in rows:
            try:
                images.append(self.data.pixels([row]))
                read.append(row)
            except ImageError as error:
                faults.append(str(error))
        empty = torch.empty(0, 3, self.data.size, self.data.size, dtype=torch.uint8)
        return Readable(tuple(read), torch.cat([empty, *images]), tuple(faults))


def _as_fetched(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Scores:
    """P(fake) of data-set rows.

    Attributes:
        probability: NaN where a row was not asked for or could not be read.
        faults: one line for each image that could not be read.
    """

    probability: Float[np.ndarray, " n"]
    faults: tuple[str, ...]


def probabilities(
    detector: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, " b"]],
    data: FaceDataset,
    rows: Sequence[int],
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    colour: Colour = "rgb",
    description: str = "scoring",
) -> Scores:
    """P(fake) of some rows of a data set.

    Args:
        detector: from images in [0, 1] to P(fake), e.g. a detector's `predict_proba`.
        data: the images.
        rows: which of them.
        batch_size: images at a time.
        device: where the detector is.
        workers: processes that read.
        colour: what the detector sees.
        description: on the progress bar.

    Raises:
        UserError: the detector returns NaN or numbers outside [0, 1].
    """
    result, faults = np.full(len(data), np.nan), []
    batches = BatchSampler(rows, batch_size, drop_last=False)
    reader = DataLoader(_ReadableRows(data), batch_sampler=batches, collate_fn=_as_fetched, num_workers=workers)
    for batch in track(reader, description, total=len(batches)):
        faults += batch.faults
        if not batch.rows:
            continue
        images = batch.images.to(device, non_blocking=True).float() / 255
        if colour == "gray":
            images = rgb_to_grayscale(images, num_output_channels=3)
        with torch.inference_mode(), autocast(device):
            fake = detector(images)
        values = fake.cpu().double().numpy()
        bad: Bool[np.ndarray, " b"] = ~((values >= 0) & (values <= 1))
        if bad.any():
            names = few([data.samples[row].image for row, is_bad in zip(batch.rows, bad, strict=True) if is_bad])
            raise UserError(f"the detector returned {values[bad][0]} for {names}; P(fake) must lie in [0, 1]")
        result[list(batch.rows)] = values
    return Scores(result, tuple(faults))


def score(
    detector: Detector,
    manifest: Manifest | FaceDataset,
    batch_size: int = 32,
    device: str = "auto",
    workers: int = 0,
    skip_bad: bool = False,
    colour: Colour = "rgb",
) -> ScoreTable:
    """Score every image of a manifest.

    Args:
        detector: any detector; `fairfd.wrap` makes one of other models.
        manifest: the images; take `manifest.subset(split="test")` first where there are splits.
        batch_size: images at a time.
        device: `auto`, `cpu`, `cuda`, ...
        workers: processes that read images.
        skip_bad: leave unreadable images out instead of ending with an error.
        colour: `gray` tests on luminance (paper, colour ablation).

    Returns:
        One row per image, in the manifest's order.

    Raises:
        UserError: unreadable images, all named after the last one was tried; a detector that returns other than P(fake).
    """
    table, faults = score_readable(detector, manifest, batch_size, device, workers, colour)
    if faults and not skip_bad:
        total = len(faults) + len(table)
        raise UserError(f"{len(faults)} of {total} images cannot be read; mend them or pass --skip-bad: {few(faults)}")
    return table


def score_readable(
    detector: Detector,
    manifest: Manifest | FaceDataset,
    batch_size: int = 32,
    device: str = "auto",
    workers: int = 0,
    colour: Colour = "rgb",
) -> tuple[ScoreTable, tuple[str, ...]]:
    """Scores of the images that can be read, and a line for each of the others; see `score`.

    Raises:
        UserError: no image can be read, or a detector that returns other than P(fake).
    """
    data = as_dataset(manifest, detector.in_size)
    target = pick_device(device)
    detector.to(target).to(memory_format=torch.channels_last)
    found = probabilities(
        detector.predict_proba,
        data,
        range(len(data)),
        batch_size,
        target,
        workers,
        colour,
        f"scoring {detector.full_name}",
    )
    kept = np.flatnonzero(np.isfinite(found.probability))
    if not len(kept):
        raise UserError(f"none of {len(data)} images can be read: {few(found.faults)}")
    samples = [data.samples[row] for row in kept]
    table = ScoreTable.create(
        score=found.probability[kept],
        label=[sample.label for sample in samples],
        group=[sample.group for sample in samples],
        approach=[sample.approach for sample in samples],
        identity=[sample.identity for sample in samples] if all(sample.identity for sample in samples) else None,
        image=[sample.image for sample in samples],
        detector=detector.full_name,
    )
    return table, found.faults
