"""What each epoch of training shows, in which order and how augmented: a plan drawn from (seed, epoch) alone.

The plan is drawn before the epoch, so that it depends neither on the number of workers and processes nor on where a run was
interrupted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from fairfd.config import Augmentation, Balance
from fairfd.data.datasets import FaceDataset, augmented
from fairfd.models.detectors.detector import BatchLayout, TrainBatch
from tenfold import UserError
from tenfold.images import ImageError


@dataclass(frozen=True)
class EpochPlan:
    """One epoch: which data-set rows make up each training row, and the seed that augments each of them.

    Attributes:
        rows: (n, k) indices; k is 2 for two views of an image and for a pair of a real and a fake one.
        seeds: of the augmentation, same shape.
    """

    rows: Int[np.ndarray, "n k"]
    seeds: Int[np.ndarray, "n k"]

    def __len__(self) -> int:
        return len(self.rows)


def plan_epoch(labels: Int[Tensor, " n"], layout: BatchLayout, balance: Balance, seed: int, epoch: int) -> EpochPlan:
    """Draw an epoch.

    Args:
        labels: 0 real, 1 fake.
        layout: of the detector's batches. Pairs hold every fake once, with a random real.
        balance: of labels; pairs are balanced as they are.
        seed: of the run.
        epoch: number of the epoch.

    Raises:
        UserError: pairs or balance are wanted of data without reals or without fakes.
    """
    rng = np.random.default_rng([seed, epoch])
    values = labels.numpy()
    real, fake = np.flatnonzero(values == 0), np.flatnonzero(values == 1)
    if (layout == "real_fake_pairs" or balance == "labels") and not (len(real) and len(fake)):
        raise UserError(f"training needs real and fake images; there are {len(real)} real and {len(fake)} fake ones")
    if layout == "real_fake_pairs":
        rows = np.stack([rng.choice(real, len(fake)), rng.permutation(fake)], axis=1)
    else:
        once = _balanced(real, fake, rng) if balance == "labels" else np.arange(len(values))
        rows = rng.permutation(once)[:, None].repeat(2 if layout == "two_views" else 1, axis=1)
    return EpochPlan(rows, rng.integers(2**62, size=rows.shape))


def _balanced(
    real: Int[np.ndarray, " r"], fake: Int[np.ndarray, " f"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """All of the more frequent label, and as many of the rarer one: whole rounds of it, then a random part."""
    size = max(len(real), len(fake))

    def filled(rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " size"]:
        rest = rng.permutation(rows)[: size % len(rows)]
        return np.concatenate([np.tile(rows, size // len(rows)), rest])

    return np.concatenate([filled(real), filled(fake)])


@dataclass(frozen=True)
class RawBatch:
    """A batch with 8-bit pixels, as it leaves the workers; fields as in `TrainBatch`."""

    images: UInt8[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]
    groups: Int[Tensor, " b"]
    approaches: Int[Tensor, " b"]
    ids: tuple[str, ...]
    masks: UInt8[Tensor, "b 1 h w"] | None

    def to(self, device: torch.device) -> TrainBatch:
        """Move to the device as bytes, and make floats in [0, 1] there."""

        def unit_range(levels: UInt8[Tensor, "b c h w"]) -> Tensor:
            return levels.to(device, non_blocking=True).float() / 255

        return TrainBatch(
            images=unit_range(self.images),
            labels=self.labels.to(device, non_blocking=True),
            groups=self.groups.to(device, non_blocking=True),
            approaches=self.approaches.to(device, non_blocking=True),
            ids=self.ids,
            masks=None if self.masks is None else unit_range(self.masks),
        )


class PlannedEpoch(Dataset[RawBatch | ImageError]):
    """The training rows of one epoch; fetched a batch at a time.

    Args:
        data: the images.
        plan: of the epoch.
        augment: kind of augmentation.
        with_masks: fetch masks as well.
    """

    def __init__(self, data: FaceDataset, plan: EpochPlan, augment: Augmentation, with_masks: bool) -> None:
        self.data, self.plan, self.augment, self.with_masks = data, plan, augment, with_masks

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> RawBatch | ImageError:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> RawBatch | ImageError:
        try:
            return self._fetch(indices)
        except ImageError as error:
            # Raised in a worker it would come out as that worker's traceback.
            return error

    def _fetch(self, indices: Sequence[int]) -> RawBatch:
        # Column by column: all first views or reals, then all second views or fakes.
        rows = self.plan.rows[list(indices)].T.ravel()
        seeds = torch.from_numpy(self.plan.seeds[list(indices)].T.ravel())
        masks = self.data.masks(rows.tolist()) if self.with_masks else None
        images, masks = augmented(self.data.pixels(rows.tolist()), masks, seeds, self.augment)
        chosen = torch.from_numpy(rows)
        return RawBatch(
            images,
            self.data.labels[chosen],
            self.data.groups[chosen],
            self.data.approaches[chosen],
            tuple(self.data.samples[row].image for row in rows),
            masks,
        )


def _as_fetched(batch: Any) -> Any:
    return batch


def loader(
    epoch: PlannedEpoch,
    batch_size: int,
    workers: int,
    shard: Callable[[BatchSampler], Sequence[list[int]] | BatchSampler] = _as_fetched,
) -> DataLoader[RawBatch | ImageError]:
    """Batches of an epoch in the order of its plan; an unreadable image comes as its error.

    A last, smaller batch is left out, unless it is the only one: its batch statistics would be poor.

    Args:
        epoch: the rows.
        batch_size: training rows in a batch, over all processes.
        workers: processes that read and augment.
        shard: picks this process's part of each batch.
    """
    batches = BatchSampler(SequentialSampler(epoch), batch_size, drop_last=len(epoch) >= batch_size)
    return DataLoader(epoch, batch_sampler=shard(batches), collate_fn=_as_fetched, num_workers=workers)
