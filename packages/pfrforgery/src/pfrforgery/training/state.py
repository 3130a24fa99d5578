"""Where a client keeps its personal part between rounds.

Flower hands a client's `context.state` back from round to round, but a deployed SuperNode holds it in memory only. A folder survives restarts,
and lets an interrupted run go back to the state of the round that the server knows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import Tensor

from tenfold import UserError
from tenfold.checkpoints import read_metadata, read_tensors, write_tensors

KEPT_ROUNDS = 2
"""The state of the last round, and of the one before: the server may not have heard of the last."""


@dataclass(frozen=True)
class PersonalState:
    """What a client kept.

    Attributes:
        tensors: its part of the detector, by state entry.
        round: after which it was saved.
    """

    tensors: dict[str, Tensor]
    round: int


class ContextStore:
    """Keeps it in Flower's context: as long as the run, and in a deployment as long as the SuperNode's process.

    Args:
        context: of the client.
    """

    def __init__(self, context: Context) -> None:
        self.state = context.state

    def load(self, expected_round: int) -> PersonalState | None:
        """The state, if there is one and the server knows of it; None makes a client start from the common initial state.

        Args:
            expected_round: the round in which the server last averaged this client's reply; 0 for never.
        """
        if not expected_round or "personal" not in self.state:
            return None
        tensors = self.state.array_records["personal"].to_torch_state_dict()
        return PersonalState(dict(tensors), int(str(self.state.config_records["personal-round"]["round"])))

    def save(self, state: PersonalState) -> None:
        """Keep a state."""
        self.state["personal"] = ArrayRecord({name: value.detach().cpu() for name, value in state.tensors.items()})
        self.state["personal-round"] = ConfigRecord({"round": state.round})


class FileStore:
    """Keeps it in a folder: `FOLDER/CLIENT/round-0007.safetensors`, each written whole or not at all.

    Args:
        folder: of all clients here.
        client: number of the client.
        fingerprint: of the configuration; a state of another one is refused.
    """

    def __init__(self, folder: Path, client: int, fingerprint: str) -> None:
        self.folder, self.client, self.fingerprint = folder / str(client), client, fingerprint

    def rounds(self) -> dict[int, Path]:
        """The saved states by round, ascending."""
        found = {
            int(match[1]): path
            for path in (self.folder.iterdir() if self.folder.is_dir() else ())
            if (match := re.fullmatch(r"round-(\d+)\.safetensors", path.name))
        }
        return dict(sorted(found.items()))

    def load(self, expected_round: int) -> PersonalState | None:
        """The state of the expected round, else the newest.

        Raises:
            UserError: a damaged file, or one of another run.
        """
        saved = self.rounds()
        if not saved or not expected_round:
            # A run that begins starts from the common initial state, whatever an abandoned first round left.
            return None
        round_number = expected_round if expected_round in saved else max(saved)
        path = saved[round_number]
        tensors, about = read_tensors(path)
        if about.get("config_sha256") != self.fingerprint:
            raise UserError(f"{path}: is of a run with another configuration; choose another state folder")
        return PersonalState(tensors, round_number)

    def save(self, state: PersonalState) -> None:
        """Keep a state, and drop what no server can ask for."""
        about = {"round": str(state.round), "client": str(self.client), "config_sha256": self.fingerprint}
        write_tensors(self.folder / f"round-{state.round:04d}.safetensors", state.tensors, about)
        for old in [number for number in self.rounds() if number <= state.round][:-KEPT_ROUNDS]:
            self.rounds()[old].unlink()


def read_shared(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], int, dict[int, int]]:
    """Read what the server keeps of a run after each round.

    Args:
        path: `shared.safetensors` of the run.
        fingerprint: of the configuration; a file of another one is refused.

    Returns:
        The averaged entries, the round after which they were kept, and the round in which each client last took part.

    Raises:
        UserError: a damaged file, or one of another run.
    """
    tensors, about = read_tensors(path)
    if about.get("config_sha256") != fingerprint:
        raise UserError(f"{path}: is of a run with another configuration")
    if not re.fullmatch(r"\d{1,9}", about.get("round", ""), re.ASCII):
        raise UserError(f"{path}: does not say after which round it was written")
    book = read_metadata(about, "book", path)
    for client, last in book.items():
        if not re.fullmatch(r"\d{1,9}", client, re.ASCII) or isinstance(last, bool) or not isinstance(last, int):
            raise UserError(f"{path}: does not say in which round each client last took part")
    return tensors, int(about["round"]), {int(client): last for client, last in book.items()}


PersonalStore = ContextStore | FileStore


def lost_state(expected: int, found: int) -> str:
    """What is said of a client whose personal state is older than the server remembers."""
    return (
        f"lost its personal state: expected round {expected}, has {found}; "
        "--allow-state-reset goes on from the initial one"
    )


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every number is."""
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())
