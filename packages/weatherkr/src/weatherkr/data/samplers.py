"""The batch of each step, by its number: what is drawn follows from (seed, task, step, row) and from nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tenfold.random import keyed_generator
from weatherkr.config import TrainConfig
from weatherkr.data.datasets import PairSet


@dataclass(frozen=True)
class Batch:
    """The rows of one step that a process works on.

    Attributes:
        degraded: new patches, in [0, 1].
        clean: their targets.
        stored: places in the memory of the patches to replay.
    """

    degraded: Float[Tensor, "b 3 h w"]
    clean: Float[Tensor, "b 3 h w"]
    stored: Int[Tensor, " b"]


class StepBatches(Dataset[Batch]):
    """The batch of each step, by its number.

    Args:
        pairs: what is learnt from.
        config: sizes, seed, augmentation.
        number: of the task, from 0.
        stored: patches in the memory.
        rows: which rows of a batch this process works on.
    """

    def __init__(self, pairs: PairSet, config: TrainConfig, number: int, stored: int, rows: range) -> None:
        self.pairs, self.config, self.number, self.stored, self.rows = pairs, config, number, stored, rows

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, index: int) -> Batch:
        patches, stored = [], []
        for row in self.rows:
            # Two streams: with or without a memory, the new patches are the same.
            fresh = keyed_generator(self.config.seed, "patches", self.number, index, row)
            item = int(torch.randint(len(self.pairs), (), generator=fresh))
            patches.append(self.pairs.patch(item, self.config.crop, fresh, self.config.augment == "flip"))
            replayed = keyed_generator(self.config.seed, "replay", self.number, index, row)
            stored.append(torch.randint(max(self.stored, 1), (), generator=replayed))
        degraded, clean = (torch.stack(part) for part in zip(*patches, strict=True))
        return Batch(degraded, clean, torch.stack(stored))


def loader(batches: StepBatches, steps: Sequence[int], workers: int) -> DataLoader[Batch]:
    """The batches of some steps, in order, prepared ahead by worker processes."""
    return DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
