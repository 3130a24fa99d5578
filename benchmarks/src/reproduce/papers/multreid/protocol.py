"""The paper's protocol on SYSU-MM01, by `multreid train` and `multreid eval`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, claim, higher
from reproduce.stand_ins import write_noise
from tenfold.files import write_text
from tenfold.reading import read_json_object

EPOCHS = {"medium": (40, 20), "paper": (90, 40)}
"""How many altogether, and with which stage two begins."""


def _commands(task: Task, arm: str) -> Sequence[Command]:
    train: Command = [
        "multreid",
        "train",
        "--out",
        "run",
        "--preset",
        "paper",
        "--dataset",
        "sysu",
        "--root",
        task.data,
    ]
    train += ["--seed", task.seed]
    epochs, stage_two = EPOCHS[task.tier]
    if task.steps is None:
        train += ["--weights", task.data / "resnet50.pth"]
    else:
        epochs, stage_two = 2, 1
        train += ["--architecture", "small", "--height", 32, "--width", 16, "--pad", 1, "--k1", 4, "--k2", 2]
        train += ["--identities", 2, "--instances", 2, "--min-samples", 2, "--eps", ".9"]
        train += ["--steps", task.steps, "--steps-two", task.steps]
    train += ["--epochs", epochs, "--stage-two", epochs if arm == "stage one" else stage_two]
    train += ["--association", "ot" if arm == "ot" else "mult"]
    score: Command = ["multreid", "eval", "run", "--dataset", "sysu", "--root", task.data]
    return [train, [*score, "--mode", "all", "--out", "scores.json"]]


def _scores(folder: Path) -> Mapping[str, float]:
    scores = read_json_object(folder / "scores.json")
    return {"rank1": 100 * scores["rank1"], "map": 100 * scores["mean_ap"]}


def _stand_in(root: Path, _: int) -> None:
    for part, identities in {"train": "1,2,3", "val": "4", "test": "6,7"}.items():
        write_text(root / "exp" / f"{part}_id.txt", identities + "\n")
    for identity in (1, 2, 3, 4, 6, 7):
        for camera in range(1, 7):
            for number in range(3):
                write_noise(root / f"cam{camera}" / f"{identity:04d}" / f"{number + 1:04d}.jpg", 32, 16)


PROTOCOL = Protocol(
    "SYSU-MM01",
    "Two-stage training without identities on SYSU-MM01, ResNet-50 from ImageNet; all-search, single shot, ten trials.",
    "SYSU-MM01 (cam1 to cam6, exp/) and torchvision's ResNet-50 as resnet50.pth",
    "about two hours for each arm on one GPU with 24 GB (40 epochs); in the paper tier five (90)",
    {"medium": 1, "paper": 3},
    {
        "mult": "the method",
        "stage one": "stage one for as many epochs",
        "ot": "stage two on transport labels",
    },
    {"map": "mean average precision (%)", "rank1": "rank-1 accuracy (%)"},
    _commands,
    _scores,
    _stand_in,
)

CLAIMS = (
    claim(
        "multreid/sysu-stage-two-helps",
        "Stage two improves on as many epochs of stage one on SYSU-MM01.",
        higher("map", "mult", than="stage one"),
        experiment=PROTOCOL.name,
        source="paper, ablation study",
    ),
    claim(
        "multreid/sysu-beats-transport-labels",
        "Transferred labels train a better search on SYSU-MM01 than transport labels.",
        higher("map", "mult", than="ot"),
        experiment=PROTOCOL.name,
        source="paper, ablation study",
    ),
)
