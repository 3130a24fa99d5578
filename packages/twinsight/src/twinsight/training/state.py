"""What a client keeps to itself between rounds (official code: client.py, whose optimizer is made once per client).

The state is kept under the round after which it was saved, and a client goes on from the round in which the server last took its reply: a round
that is repeated, after a crash or a reply that was left out, begins like the first time. Flower hands a client's `context.state` back from
round to round, but a deployed SuperNode holds it in memory only; a folder survives restarts.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import Tensor, nn

from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.config import to_toml
from twinsight.config import FederationConfig


@dataclass(frozen=True)
class ClientState:
    """What lives through the rounds, also through those that the client sits out.

    Attributes:
        momenta: SGD's buffer of each parameter that ever had a gradient, by name.
        drawn: labelled batches taken so far, where each unlabelled batch has one beside it (partial-data setting).
    """

    momenta: dict[str, Tensor] = field(default_factory=dict)
    drawn: int = 0

    def check(self, model: nn.Module, source: str) -> None:
        """Refuse buffers of another model.

        Raises:
            UserError: an unknown name, another shape, or numbers that are not finite.
        """
        shapes = {name: each.shape for name, each in model.named_parameters()}
        wrong = [name for name, each in self.momenta.items() if shapes.get(name) != each.shape]
        if wrong:
            raise UserError(
                f"{source}: the momentum of {wrong[0]} does not fit this model; choose another state folder"
            )
        damaged = [name for name, each in self.momenta.items() if not torch.isfinite(each).all()]
        if damaged:
            raise UserError(f"{source}: the momentum of {damaged[0]} is not finite; choose another state folder")


class StateStore(ABC):
    """Where a client's states are, by round."""

    @abstractmethod
    def rounds(self) -> set[int]:
        """The rounds of which there is a state."""

    @abstractmethod
    def read(self, round_number: int) -> ClientState:
        """The state after a round."""

    @abstractmethod
    def write(self, round_number: int, state: ClientState) -> None:
        """Keep a state."""

    @abstractmethod
    def remove(self, round_number: int) -> None:
        """Drop a state."""

    def load(self, last: int) -> ClientState | None:
        """The state to go on from; None where it is lost.

        Args:
            last: the round in which the server last took this client's reply; 0 for never, and the client starts anew
                whatever an abandoned run has left.
        """
        if not last:
            return ClientState()
        return self.read(last) if last in self.rounds() else None

    def save(self, round_number: int, state: ClientState, last: int) -> None:
        """Keep the state after a round beside that of round `last`, to which the server may come back; drop the others."""
        self.write(round_number, state)
        for old in self.rounds() - {round_number, last}:
            self.remove(old)


class ContextStore(StateStore):
    """Keeps states in Flower's context: as long as the run, and in a deployment as long as the SuperNode's process.

    Args:
        context: of the client.
    """

    def __init__(self, context: Context) -> None:
        self.state = context.state

    def rounds(self) -> set[int]:
        """The rounds of which there is a state."""
        return {int(name.removeprefix("drawn-")) for name in self.state if name.startswith("drawn-")}

    def read(self, round_number: int) -> ClientState:
        """The state after a round."""
        momenta = self.state.array_records[f"momenta-{round_number}"].to_torch_state_dict()
        return ClientState(dict(momenta), int(str(self.state.config_records[f"drawn-{round_number}"]["batches"])))

    def write(self, round_number: int, state: ClientState) -> None:
        """Keep a state."""
        self.state[f"momenta-{round_number}"] = ArrayRecord({name: each.cpu() for name, each in state.momenta.items()})
        self.state[f"drawn-{round_number}"] = ConfigRecord({"batches": state.drawn})

    def remove(self, round_number: int) -> None:
        """Drop a state."""
        del self.state[f"momenta-{round_number}"], self.state[f"drawn-{round_number}"]


class FileStore(StateStore):
    """Keeps states in a folder: `FOLDER/CLIENT/round-0007.safetensors`, each written whole or not at all.

    Args:
        folder: of all clients here.
        client: number of the client.
        config: of the federation; a state of another one is refused.
    """

    def __init__(self, folder: Path, client: int, config: FederationConfig) -> None:
        self.folder, self.client = folder / str(client), client
        self.fingerprint = hashlib.sha256(to_toml(config).encode()).hexdigest()

    def place(self, round_number: int) -> Path:
        """The file of a round."""
        return self.folder / f"round-{round_number:04d}.safetensors"

    def rounds(self) -> set[int]:
        """The rounds of which there is a file."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return {int(match[1]) for name in names if (match := re.fullmatch(r"round-(\d+)\.safetensors", name, re.ASCII))}

    def read(self, round_number: int) -> ClientState:
        """The state after a round.

        Raises:
            UserError: a damaged file, or one of another run.
        """
        path = self.place(round_number)
        momenta, about = read_tensors(path)
        if about.get("config") != self.fingerprint:
            raise UserError(f"{path}: is of a run with another configuration; choose another state folder")
        return ClientState(momenta, _whole(about, path))

    def write(self, round_number: int, state: ClientState) -> None:
        """Keep a state."""
        about = {"config": self.fingerprint, "drawn": str(state.drawn)}
        write_tensors(self.place(round_number), state.momenta, about)

    def remove(self, round_number: int) -> None:
        """Drop a state."""
        self.place(round_number).unlink(missing_ok=True)


def _whole(about: Mapping[str, str], path: Path) -> int:
    drawn = about.get("drawn", "")
    if not re.fullmatch(r"\d{1,15}", drawn, re.ASCII):
        raise UserError(f"{path}: does not say how many labelled batches were drawn; it is damaged")
    return int(drawn)
