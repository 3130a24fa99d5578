"""The paper's protocol on CIFAR-100, by `cskopt train`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, claim, higher, lower
from reproduce.stand_ins import write_classes
from tenfold.reading import read_json_object


def _commands(task: Task, arm: str) -> Sequence[Command]:
    command: Command = [
        "cskopt",
        "train",
        task.data,
        "--out",
        "run",
        "--preset",
        "paper",
        "--method",
        arm,
        "--seed",
        task.seed,
    ]
    if task.steps is not None:
        command += ["--base-classes", 4, "--increment", 2, "--base-epochs", 1, "--epochs", 1, "--batch-size", 4]
    return [command]


def _scores(folder: Path) -> Mapping[str, float]:
    scores = read_json_object(folder / "run" / "result.json")["scores"]
    return {"last": 100 * scores["last"], "average": 100 * scores["average"], "forgetting": 100 * scores["forgetting"]}


PROTOCOL = Protocol(
    "CIFAR-100",
    "Fifty base classes of CIFAR-100, then ten sessions of five, ResNet-18, the paper's recipe.",
    "CIFAR-100 as pictures: train/CLASS and test/CLASS",
    "about an hour for each arm on one GPU with 16 GB",
    {"medium": 1, "paper": 5},
    {
        "csko": "the method (projected centres of 75 % of the channels)",
        "centre-no-prototypes": "all centres, nothing against forgetting",
        "head-prototypes": "the last layer alone, with prototypes",
        "full-prototypes": "every weight, with prototypes",
    },
    {
        "last": "accuracy on all classes after the last session (%)",
        "average": "mean accuracy over the sessions (%)",
        "forgetting": "forgetting (points)",
    },
    _commands,
    _scores,
    lambda root, steps: write_classes(root, 8, train=2 * steps, test=2),
)

CLAIMS = (
    claim(
        "cskopt/cifar100-more-accurate",
        "Is more accurate on CIFAR-100 after the last session than the last layer with prototypes.",
        higher("last", "csko", than="head-prototypes"),
        experiment=PROTOCOL.name,
        source="control, not in the paper",
    ),
    claim(
        "cskopt/cifar100-forgets-less",
        "Forgets less on CIFAR-100 than centres that nothing protects.",
        lower("forgetting", "csko", than="centre-no-prototypes"),
        experiment=PROTOCOL.name,
        source="paper §4",
    ),
)
