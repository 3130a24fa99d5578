"""The old network's say on stored patches, computed once a task or anew in each step."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.training.precision import Precision, precision_context
from weatherkr.config import Method
from weatherkr.method.losses import Replay
from weatherkr.method.memory import ReplayMemory
from weatherkr.models.networks import WeatherNet
from weatherkr.models.projector import Projector

_AT_ONCE = 8


class Teacher:
    """The network after the last task, frozen, with the projector of its features.

    Args:
        net: a copy that nothing else changes.
        projector: phi, frozen, or None.
        method: decides what is kept of the old network.
        precision: of the network.
    """

    def __init__(self, net: WeatherNet, projector: Projector | None, method: Method, precision: Precision) -> None:
        self.net = net.eval().requires_grad_(False)
        self.projector = projector if method.projection else None
        self.method, self.precision = method, precision

    @torch.no_grad()
    def replay(self, x: Float[Tensor, "b 3 h w"], labels: Float[Tensor, "b 3 h w"] | None = None) -> Replay:
        """What is pulled to on normalised patches; `labels` take the place of the old outputs (plain replay)."""
        if labels is not None:
            return Replay(x, labels)
        with precision_context(self.precision, x.device):
            prediction, f = self.net(x, return_features=True)
            projection = None if self.projector is None else self.projector(f).float()
        features = f.float() if self.method.pooled else None
        return Replay(None if self.method.on_new else x, prediction.float(), projection, features)


class CachedTeacher:
    """The same answers, looked up: stored patches and the old network do not change during a task.

    Args:
        teacher: asked once for every stored patch.
        memory: the patches.
        device: where the network is.
    """

    def __init__(self, teacher: Teacher, memory: ReplayMemory, device: torch.device) -> None:
        answers = list(_answers(teacher, memory, device))
        self.memory, self.device = memory, device
        self.target = torch.cat([each.target.cpu() for each in answers])
        self.projection = _joined([each.projection for each in answers])

    def replay(self, index: Int[Tensor, " b"]) -> Replay:
        """What is pulled to on stored patches, by their place in the memory."""
        return Replay(
            self.memory.read(index).to(self.device),
            self.target[index].to(self.device),
            None if self.projection is None else self.projection[index].to(self.device),
        )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    kept = [part.cpu() for part in parts if part is not None]
    return torch.cat(kept) if kept else None


def _answers(teacher: Teacher, memory: ReplayMemory, device: torch.device) -> Iterator[Replay]:
    for index in torch.arange(len(memory)).split(_AT_ONCE):
        x = memory.read(index).to(device).contiguous(memory_format=torch.channels_last)
        yield teacher.replay(x)


class LiveTeacher:
    """The old network is run in every step, as in the official code.

    Args:
        teacher: the old network.
        memory: the patches.
        device: where the network is.
    """

    def __init__(self, teacher: Teacher, memory: ReplayMemory, device: torch.device) -> None:
        self.teacher, self.memory, self.device = teacher, memory, device

    def replay(self, index: Int[Tensor, " b"]) -> Replay:
        """What is pulled to on stored patches, by their place in the memory."""
        labels = None
        if self.teacher.method.replay == "labels":
            labels = self.memory.read_targets(index).to(self.device)
        return self.teacher.replay(self.memory.read(index).to(self.device), labels)


class MemoryFeatures:
    """Features of the stored patches under a network, one by one, computed anew each time they are gone through.

    Args:
        net: the network.
        memory: the patches.
        device: where the network is.
        precision: of the network.
    """

    def __init__(self, net: WeatherNet, memory: ReplayMemory, device: torch.device, precision: Precision) -> None:
        self.net, self.memory, self.device, self.precision = net.eval(), memory, device, precision

    @property
    def size(self) -> int:
        """Bytes that all of them take in float32."""
        side = -(-(self.memory.patch or 0) // self.net.shuffle)
        return len(self.memory) * self.net.feature_channels * side * side * 4

    def __iter__(self) -> Iterator[Float[Tensor, "1 c h w"]]:
        for index in torch.arange(len(self.memory)).split(_AT_ONCE):
            x = self.memory.read(index).to(self.device).contiguous(memory_format=torch.channels_last)
            with torch.no_grad(), precision_context(self.precision, self.device):
                f = self.net(x, return_features=True)[1]
            yield from f.float().split(1)
