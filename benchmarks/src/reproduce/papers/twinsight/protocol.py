"""The paper's protocol on CIFAR-10, by `twinsight simulate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, claim, higher
from reproduce.stand_ins import write_classes
from tenfold.reading import read_json_object


def _commands(task: Task, arm: str) -> Sequence[Command]:
    command: Command = [
        "twinsight",
        "simulate",
        "--out",
        "run",
        "--preset",
        "paper",
        "--data",
        "folder",
        "--root",
        task.data,
    ]
    command += ["--method", arm, "--seed", task.seed]
    if task.steps is not None:
        few = ["--clients", 2, "--labelled", 1, "--clients-per-round", 2, "--partition", "iid", "--batch-size", 4]
        return [[*command, *few, "--rounds", 1, "--encoder", "small", "--min-client-size", 4]]
    return [[*command, "--rounds", 150]] if task.tier == "medium" else [command]


def _scores(folder: Path) -> Mapping[str, float]:
    result = read_json_object(folder / "run" / "result.json")
    return {"best": result["best"], "last": result["mean_last_5"]}


PROTOCOL = Protocol(
    "CIFAR-10",
    "CIFAR-10 over ten clients (Dirichlet 0.1) of whom four are labelled, ResNet-18, 150 rounds (paper tier: 500).",
    "CIFAR-10 as pictures: train/CLASS and test/CLASS",
    "about two hours for each arm on one GPU with 16 GB; in the paper tier seven",
    {"medium": 1, "paper": 3},
    {
        "twin-sight": "the method",
        "lower-bound": "federated averaging of the labelled clients",
        "fedprox-fixmatch": "FedProx with FixMatch",
        "upper-bound": "all clients labelled",
    },
    {"best": "best accuracy of a round (%)", "last": "mean accuracy of the last five rounds (%)"},
    _commands,
    _scores,
    lambda root, steps: write_classes(root, 2, train=4 * steps, test=2),
)

CLAIMS = (
    claim(
        "twinsight/cifar10-beats-labelled-clients",
        "Is more accurate on CIFAR-10 than federated averaging of the labelled clients.",
        higher("best", "twin-sight", than="lower-bound"),
        experiment=PROTOCOL.name,
        source="paper Table 1",
    ),
    claim(
        "twinsight/cifar10-beats-fixmatch",
        "Is more accurate on CIFAR-10 than FedProx with FixMatch.",
        higher("best", "twin-sight", than="fedprox-fixmatch"),
        experiment=PROTOCOL.name,
        source="paper Table 1",
    ),
)
