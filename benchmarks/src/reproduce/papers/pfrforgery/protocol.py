"""A client for each manipulation of FaceForensics++, by `pfrforgery partition` and `pfrforgery simulate`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, claim, higher
from reproduce.stand_ins import write_noise
from tenfold.files import write_text
from tenfold.reading import read_json_object

MANIPULATIONS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")


def _commands(task: Task, arm: str) -> Sequence[Command]:
    partition: Command = ["pfrforgery", "partition", f"ffpp:{task.data}", "-o", "clients.json", "--seed", task.seed]
    simulate: Command = ["pfrforgery", "simulate", "--out", "run", "--preset", "paper", "--data", "clients.json"]
    simulate += ["--algorithm", arm, "--seed", task.seed]
    if task.steps is not None:
        small = ["--backbone", "tiny", "--pretrained", "", "--image-size", 32, "--batch-size", 2]
        return [partition, [*simulate, *small, "--rounds", 1, "--local-steps", task.steps]]
    if task.tier == "medium":
        partition += ["--train-images", 4000, "--test-images", 1000]
        simulate += ["--rounds", 20]
    return [partition, simulate]


def _scores(folder: Path) -> Mapping[str, float]:
    over_clients = read_json_object(folder / "run" / "result.json")["over clients"]
    return {"auc": 100 * over_clients["auc"]["mean"], "worst auc": 100 * over_clients["auc"]["worst"]}


def _stand_in(root: Path, steps: int) -> None:
    """Pairs of videos, so many that each client gets genuine ones to train on and to test on."""
    for split, first in (("train", 0), ("test", 20)):
        pairs = [(f"{number:03d}", f"{number + 1:03d}") for number in range(first, first + 16, 2)]
        write_text(root / "splits" / f"{split}.json", json.dumps(pairs))
        for frame in range(steps if split == "train" else 1):
            for pair in pairs:
                for number in pair:
                    write_noise(root / f"original_sequences/youtube/c23/frames/{number}/{frame}.png")
                for name in MANIPULATIONS:
                    write_noise(root / f"manipulated_sequences/{name}/c23/frames/{'_'.join(pair)}/{frame}.png")


PROTOCOL = Protocol(
    "FaceForensics++",
    "Four clients, each with one manipulation of FaceForensics++ (c23), ResNet-50 from ImageNet.",
    "FaceForensics++ face crops in the layout that it is distributed in, with splits/*.json; torchvision's ResNet-50 in torch hub's cache",
    "about an hour for each arm on one GPU with 24 GB (4,000 crops a client, 20 rounds); in the paper tier a day",
    {"medium": 1, "paper": 3},
    {
        "fedpr": "the method",
        "fedavg": "federated averaging",
        "fedper": "FedPer (a classifier of one's own)",
        "local": "each client alone",
    },
    {"auc": "AUC, mean over the clients (%)", "worst auc": "AUC of the worst client (%)"},
    _commands,
    _scores,
    _stand_in,
)

CLAIMS = (
    claim(
        "pfrforgery/ffpp-beats-fedavg",
        "Tells forgeries of FaceForensics++ apart better than federated averaging.",
        higher("auc", "fedpr", than="fedavg"),
        experiment=PROTOCOL.name,
        source="paper, comparison with federated methods",
    ),
    claim(
        "pfrforgery/ffpp-beats-local",
        "Tells forgeries of FaceForensics++ apart better than clients that train alone.",
        higher("auc", "fedpr", than="local"),
        experiment=PROTOCOL.name,
        source="paper, comparison with federated methods",
    ),
)
