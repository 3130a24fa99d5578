"""All that is carried from one task to the next, and how it lies on disk: weights, memory, projector, importances, history."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import atomic_path, write_text
from weatherkr.memory import ReplayMemory
from weatherkr.network import WeatherNet
from weatherkr.projector import AttentionProjector, PCAProjector, Projector
from weatherkr.randomness import seed_of
from weatherkr.recipe import METHODS, TrainConfig
from weatherkr.report import ContinualReport


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
            UserError: the place cannot be written.
        """
        temporary = folder.with_name(f".{folder.name}-writing")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot write here ({error.strerror})") from error
        self.net.save_pretrained(temporary)
        if len(self.memory):
            self.memory.save(temporary / "memory.safetensors")
        if self.projector is not None:
            save_projector(self.projector, temporary / "projector.safetensors")
        if self.importance is not None:
            save_file(
                {k: v.cpu().contiguous() for k, v in self.importance.items()}, temporary / "importance.safetensors"
            )
        write_text(temporary / "history.json", json.dumps(self.report.to_dict(), indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)

    @classmethod
    def load(cls, folder: Path) -> "LearnerState":
        """Read what `save` wrote.

        Raises:
            UserError: no state there, or a damaged one.
        """
        net = load_network(folder)
        try:
            report = ContinualReport.from_dict(json.loads((folder / "history.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{folder}: holds no history.json of a learner; start from a folder that `train` wrote"
            ) from None
        stored, phi, importance = (folder / f"{name}.safetensors" for name in ("memory", "projector", "importance"))
        return cls(
            net,
            ReplayMemory.load(stored) if stored.exists() else ReplayMemory(),
            load_projector(phi) if phi.exists() else None,
            read_tensors(importance) if importance.exists() else None,
            report,
        )


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
        net = WeatherNet(**json.loads(config.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise UserError(f"{config}: not the configuration of a WeatherNet ({str(error).splitlines()[0]})") from None
    fill(net, read_tensors(weights), weights)
    return net.eval()


def fill(net: WeatherNet, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load tensors into a network, in float32.

    Raises:
        UserError: another network's; the first tensor that differs is named with both shapes.
    """
    own = net.state_dict()
    for name, value in own.items():
        if name not in tensors:
            raise UserError(
                f"{source}: lacks the tensor {name} of shape {tuple(value.shape)}; it is of another network"
            )
        if tensors[name].shape != value.shape:
            shapes = f"{tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
            raise UserError(f"{source}: the tensor {name} has shape {shapes}; it is of another network")
    if surplus := sorted(tensors.keys() - own.keys()):
        raise UserError(f"{source}: has the tensor {surplus[0]}, which this network lacks; it is of another network")
    net.load_state_dict({name: value.float() for name, value in tensors.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: unreadable.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file, or a damaged one ({str(error).splitlines()[0]})") from None


def save_projector(projector: Projector, path: Path) -> None:
    """Write a projector with what it is made from."""
    kind = "pca" if isinstance(projector, PCAProjector) else "attention"
    about = {"kind": kind, "channels": projector.channels, "rank": projector.rank}
    tensors = {name: value.detach().cpu().contiguous() for name, value in projector.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"projector": json.dumps(about)})


def load_projector(path: Path) -> Projector:
    """Read what `save_projector` wrote; its weights are frozen."""
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["projector"])
    made = PCAProjector if about["kind"] == "pca" else AttentionProjector
    projector = made(about["channels"], about["rank"])
    projector.load_state_dict(tensors)
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
