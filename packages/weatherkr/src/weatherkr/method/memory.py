"""The memory: a few degraded patches of every weather learnt so far, drawn at random (official code, data/exemplar.py)."""

import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tenfold.checkpoints import read_metadata, read_tensors, write_tensors
from tenfold.config import from_dict
from tenfold.errors import UserError
from tenfold.options import Count
from weatherkr.data.transforms import to_bytes
from weatherkr.models.networks import normalize

Policy = Literal["official", "exact"]
Draw = Callable[[int], tuple[Tensor, Tensor]]
"""The index of an item of a task to one patch of it: degraded and clean, in [0, 1]."""


def quotas(capacity: int, tasks: int, policy: Policy = "official") -> list[int]:
    """Patches that each of `tasks` tasks may keep.

    Args:
        capacity: K.
        tasks: t, at least 1.
        policy: `official`: ceil(K / t) each, so that the sum may exceed K; `exact`: floor(K / t), one more for the first K mod t.
    """
    if policy == "official":
        return [math.ceil(capacity / tasks)] * tasks
    return [capacity // tasks + (task < capacity % tasks) for task in range(tasks)]


def draw_exemplars(rng: random.Random, size: int, quota: int) -> list[int]:
    """Which items of a task are kept: uniformly at random without replacement; all of them when there are fewer than the quota."""
    return rng.sample(range(size), min(quota, size))


@dataclass
class Stored:
    """The patches of one task.

    Attributes:
        indices: of the items they were cut from; nothing else of where they came from is kept.
        inputs: degraded patches, 8 bits.
        targets: clean ones, only where they were asked for.
    """

    indices: list[int]
    inputs: UInt8[Tensor, "n 3 h w"]
    targets: UInt8[Tensor, "n 3 h w"] | None = None

    def first(self, count: int) -> "Stored":
        """The first patches: they were drawn at random, so this is a random choice."""
        targets = None if self.targets is None else self.targets[:count]
        return Stored(self.indices[:count], self.inputs[:count], targets)


@dataclass(frozen=True)
class _StoredRecord:
    """What a memory's file says of one task."""

    name: str
    indices: list[int]


@dataclass(frozen=True)
class _MemoryRecord:
    """What the metadata of a memory's file say."""

    capacity: Count
    policy: Policy
    keep_targets: bool
    tasks: list[_StoredRecord]


class ReplayMemory:
    """Patches of all learnt tasks: each one fixed crop, 8 bits, without labels.

    Args:
        capacity: K, patches of all tasks together.
        policy: see `quotas`.
        keep_targets: also keep the clean patches, which only plain replay needs.
    """

    def __init__(self, capacity: int = 500, policy: Policy = "official", keep_targets: bool = False) -> None:
        self.capacity, self.policy, self.keep_targets = capacity, policy, keep_targets
        self.stored: dict[str, Stored] = {}

    def __len__(self) -> int:
        return sum(len(each.inputs) for each in self.stored.values())

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in it, in the order learnt."""
        return list(self.stored)

    @property
    def patch(self) -> int | None:
        """Side of the patches, None while it is empty."""
        for each in self.stored.values():
            return each.inputs.shape[-1]
        return None

    def add(self, task: str, size: int, draw: Draw, rng: random.Random) -> int:
        """Take patches of a new task in and shrink the old ones' share.

        Args:
            task: its name; patches of that name are replaced.
            size: items that the task has.
            draw: cuts one patch of an item.
            rng: chooses the items.

        Returns:
            How many patches short of its quota the task is, because it has too few items.
        """
        self.stored.pop(task, None)
        shares = quotas(self.capacity, len(self.stored) + 1, self.policy)
        for name, share in zip(self.stored, shares, strict=False):
            self.stored[name] = self.stored[name].first(share)
        chosen = draw_exemplars(rng, size, shares[-1])
        if not chosen:
            return shares[-1]
        pairs = [draw(index) for index in chosen]
        inputs = torch.stack([to_bytes(degraded) for degraded, _ in pairs])
        targets = torch.stack([to_bytes(clean) for _, clean in pairs]) if self.keep_targets else None
        self.stored[task] = Stored(chosen, inputs, targets)
        return shares[-1] - len(chosen)

    def read01(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Degraded patches in [0, 1], by their place in the whole memory."""
        return torch.cat([each.inputs for each in self.stored.values()])[index].float() / 255

    def read(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Degraded patches as the network takes them: normalised."""
        return normalize(self.read01(index))

    def read_targets(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Clean patches in [0, 1].

        Raises:
            UserError: the memory keeps none.
        """
        kept = [each.targets for each in self.stored.values()]
        if any(targets is None for targets in kept):
            raise UserError("the memory holds no labels; plain replay (er) needs a memory that was filled by er")
        return torch.cat([targets for targets in kept if targets is not None])[index].float() / 255

    def fingerprint(self) -> str:
        """A hash of the patches, to tell one memory from another."""
        digest = hashlib.sha256()
        for each in self.stored.values():
            digest.update(each.inputs.numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the patches to one safetensors file; no names or paths of pictures go into it."""
        tensors = {}
        for number, each in enumerate(self.stored.values()):
            tensors[f"{number}.inputs"] = each.inputs
            if each.targets is not None:
                tensors[f"{number}.targets"] = each.targets
        about = {
            "capacity": self.capacity,
            "policy": self.policy,
            "keep_targets": self.keep_targets,
            "tasks": [{"name": name, "indices": each.indices} for name, each in self.stored.items()],
        }
        write_tensors(path, tensors, {"memory": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> "ReplayMemory":
        """Read what `save` wrote.

        Raises:
            UserError: missing, or no memory.
        """
        tensors, metadata = read_tensors(path)
        if "memory" not in metadata:
            raise UserError(f"{path}: holds no memory")
        about = from_dict(read_metadata(metadata, "memory", path), _MemoryRecord, str(path))
        memory = cls(about.capacity, about.policy, about.keep_targets)
        for number, task in enumerate(about.tasks):
            inputs, targets = (tensors.get(f"{number}.{name}") for name in ("inputs", "targets"))
            side = memory.patch or (inputs.shape[-1] if inputs is not None and inputs.ndim else 0)
            shape = (len(task.indices), 3, side, side)
            kept = [inputs] if targets is None else [inputs, targets]
            fits = all(each is not None and each.dtype == torch.uint8 and each.shape == shape for each in kept)
            if not fits or inputs is None or not side or task.name in memory.stored:
                raise UserError(
                    f"{path}: the patches of task {task.name} are not what its list says; the file is damaged"
                )
            memory.stored[task.name] = Stored(list(task.indices), inputs, targets)
        return memory
