"""All that is carried from one task to the next, and how it lies on disk: weights, memory, projector, importances, history."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.checkpoints import read_metadata, read_tensors, write_tensors
from tenfold.config import from_dict
from tenfold.errors import UserError
from tenfold.files import atomic_folder, write_text
from tenfold.options import Count
from tenfold.random import seed_of
from tenfold.reading import read_json_object
from weatherkr.config import METHODS, TrainConfig
from weatherkr.evaluation.report import ContinualReport
from weatherkr.method.memory import ReplayMemory
from weatherkr.models.networks import WeatherNet
from weatherkr.models.projector import AttentionProjector, PCAProjector, Projector


@dataclass
class LearnerState:
    """What a learner knows after some tasks.

    Attributes:
        net: the network.
        memory: patches of the tasks learnt.
        projector: phi of the features of `net`, or None.
        importance: of each weight, for the quadratic penalty, or None.
        report: scores after each task; its `tasks` are what has been learnt.
    """

    net: WeatherNet
    memory: ReplayMemory
    projector: Projector | None = None
    importance: Mapping[str, Tensor] | None = None
    report: ContinualReport = field(default_factory=ContinualReport)

    @property
    def learnt(self) -> list[str]:
        """Names of the tasks learnt, in order."""
        return self.report.tasks

    @classmethod
    def fresh(cls, config: TrainConfig) -> "LearnerState":
        """A network with library initialisation, an empty memory."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(config.seed, "network"))
            net = WeatherNet(config.dim, config.blocks, config.residual, config.shuffle)
        keep_targets = METHODS[config.method].replay == "labels"
        return cls(net, ReplayMemory(config.memory, config.memory_policy, keep_targets))

    def save(self, folder: Path) -> None:
        """Write the state; the folder appears when all of it is written.

        Raises:
            UserError: something is there already, the place cannot be written, or the disk is full.
        """
        with atomic_folder(folder) as temporary:
            self.net.save_pretrained(temporary)
            if len(self.memory):
                self.memory.save(temporary / "memory.safetensors")
            if self.projector is not None:
                save_projector(self.projector, temporary / "projector.safetensors")
            if self.importance is not None:
                write_tensors(temporary / "importance.safetensors", self.importance)
            write_text(temporary / "history.json", json.dumps(self.report.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "LearnerState":
        """Read what `save` wrote.

        Raises:
            UserError: no state there, or a damaged one.
        """
        net = load_network(folder)
        history, stored = folder / "history.json", folder / "memory.safetensors"
        phi, importance = folder / "projector.safetensors", folder / "importance.safetensors"
        if not history.is_file():
            raise UserError(f"{folder}: holds no history.json of a learner; start from a folder that `train` wrote")
        return cls(
            net,
            ReplayMemory.load(stored) if stored.exists() else ReplayMemory(),
            load_projector(phi, net.feature_channels) if phi.exists() else None,
            _load_importance(importance, net) if importance.exists() else None,
            ContinualReport.from_dict(read_json_object(history), str(history)),
        )


@dataclass(frozen=True)
class NetworkSizes:
    """What `config.json` of a network says: the arguments of `WeatherNet`."""

    dim: Count = 64
    blocks: Count = 20
    residual: Literal["normalized", "image", "affine"] = "normalized"
    shuffle: Count = 1


def load_network(folder: Path) -> WeatherNet:
    """Read a network that `save_pretrained` wrote.

    Raises:
        UserError: missing, or the tensors of another network.
    """
    config, weights = folder / "config.json", folder / "model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            raise UserError(f"{path}: no such file; a model is a folder with config.json and model.safetensors")
    try:
        sizes = from_dict(read_json_object(config), NetworkSizes, str(config))
    except UserError as error:
        raise UserError(f"{error}; not the configuration of a WeatherNet") from None
    return network_of(sizes, read_tensors(weights)[0], weights)


def network_of(sizes: NetworkSizes, tensors: Mapping[str, Tensor], source: Path) -> WeatherNet:
    """A network of these sizes with these weights, ready to restore.

    Raises:
        UserError: sizes that no network has, or the tensors of another network.
    """
    # Without memory first: what a stranger's configuration asks for is only made when the weights have it.
    with torch.device("meta"):
        net = WeatherNet(sizes.dim, sizes.blocks, sizes.residual, sizes.shuffle)
    fill(net, tensors, source)
    return net.eval()


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load tensors into a network or projector, in float32.

    Args:
        module: on the device `meta` it gets memory once the tensors have turned out to fit.
        tensors: by name.
        source: the file, for errors.

    Raises:
        UserError: those of another network, the first that differs is named with both shapes; or numbers that are not finite.
    """
    own = module.state_dict()
    for name, value in own.items():
        if name not in tensors:
            raise UserError(
                f"{source}: lacks the tensor {name} of shape {tuple(value.shape)}; it is of another network"
            )
        if tensors[name].shape != value.shape:
            shapes = f"{tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
            raise UserError(f"{source}: the tensor {name} has shape {shapes}; it is of another network")
        if not tensors[name].is_floating_point() or not bool(tensors[name].isfinite().all()):
            raise UserError(f"{source}: the tensor {name} holds other things than finite numbers; the file is damaged")
    if surplus := sorted(tensors.keys() - own.keys()):
        raise UserError(f"{source}: has the tensor {surplus[0]}, which this network lacks; it is of another network")
    if any(value.is_meta for value in own.values()):
        module.to_empty(device="cpu")
    module.load_state_dict({name: value.float() for name, value in tensors.items()})


def _load_importance(path: Path, net: WeatherNet) -> dict[str, Tensor]:
    tensors = read_tensors(path)[0]
    shapes = {name: value.shape for name, value in net.named_parameters()}
    if {name: value.shape for name, value in tensors.items()} != shapes:
        raise UserError(f"{path}: holds the importances of another network")
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise UserError(f"{path}: holds numbers that are not finite; the file is damaged")
    return tensors


def save_projector(projector: Projector, path: Path) -> None:
    """Write a projector with what it is made from."""
    kind = "pca" if isinstance(projector, PCAProjector) else "attention"
    about = {"kind": kind, "channels": projector.channels, "rank": projector.rank}
    write_tensors(path, projector.state_dict(), {"projector": json.dumps(about)})


@dataclass(frozen=True)
class ProjectorSizes:
    """What the metadata of a projector's file say."""

    kind: Literal["pca", "attention"]
    channels: Count
    rank: Count


def load_projector(path: Path, channels: int) -> Projector:
    """Read what `save_projector` wrote; its weights are frozen.

    Args:
        path: the file.
        channels: of the features that it must take.

    Raises:
        UserError: unreadable, or of another network.
    """
    tensors, metadata = read_tensors(path)
    about = from_dict(read_metadata(metadata, "projector", path), ProjectorSizes, str(path))
    if about.channels != channels or about.rank > channels:
        raise UserError(
            f"{path}: takes {about.channels} channels to {about.rank}, the network's features have {channels}"
        )
    made = PCAProjector if about.kind == "pca" else AttentionProjector
    projector = made(about.channels, about.rank)
    fill(projector, tensors, path)
    return projector.requires_grad_(False)


def newest_state(run: Path) -> Path | None:
    """The state after the last task that a run finished; None before the first."""
    states = sorted(path for path in (run / "states").glob("[0-9]*-*") if (path / "history.json").is_file())
    return states[-1] if states else None


def state_folder(run: Path, number: int, task: str) -> Path:
    """Where a run keeps the state after its task `number`, counted from 1."""
    return run / "states" / f"{number:02d}-{task}"


def resolve_state(path: Path) -> Path:
    """A state folder, or the newest state of a run folder.

    Raises:
        UserError: neither.
    """
    if (path / "history.json").is_file():
        return path
    if (found := newest_state(path)) is not None:
        return found
    raise UserError(f"{path}: neither a state nor a run with one; name a folder that `weatherkr train` wrote")
