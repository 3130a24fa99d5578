"""The paper's protocol on ImageNet-R, by `vptnsp train`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, claim, higher, lower
from reproduce.stand_ins import write_classes
from tenfold.reading import read_json_object


def _commands(task: Task, arm: str) -> Sequence[Command]:
    common: Command = [
        "vptnsp",
        "train",
        "--out",
        "run",
        "--preset",
        "imagenet-r",
        "--root",
        task.data,
        "--method",
        arm,
    ]
    common += ["--seed", 2024 + task.seed]
    if task.steps is None:
        return [[*common, "--checkpoint", task.data / "vit_base_patch16_224.augreg_in21k.safetensors"]]
    small = ["--backbone", "vptnsp_tiny_patch8_32", "--tasks", 2, "--epochs", 1, "--repeats", 1]
    return [[*common, *small, "--batch-size", 2, "--moment-batch-size", 2, "--workers", 0]]


def _scores(folder: Path) -> Mapping[str, float]:
    result = read_json_object(folder / "run" / "result.json")
    return {
        "accuracy": 100 * result["acc_task_mean"],
        "forgetting": 100 * result["forgetting_official"],
    }


PROTOCOL = Protocol(
    "ImageNet-R",
    "Ten tasks of twenty classes of ImageNet-R, ViT-B/16 pre-trained on ImageNet-21k, the paper's recipe.",
    "ImageNet-R as train/CLASS and val/CLASS (or the authors' lists beside it), and the weights "
    "vit_base_patch16_224.augreg_in21k.safetensors of timm",
    "about an hour for each arm on one GPU with 40 GB; ncm and ranpac take minutes",
    {"medium": 1, "paper": 3},
    {
        "nsp2": "the method (prompts in the null space)",
        "seq": "sequential prompt tuning",
        "slow": "sequential tuning slowed to steps of the same norm",
        "ncm": "nearest class means of frozen features",
        "ranpac": "ridge regression on random projections of frozen features",
    },
    {"accuracy": "accuracy after the last task (%)", "forgetting": "forgetting (points)"},
    _commands,
    _scores,
    lambda root, steps: write_classes(root, 4, train=steps, test=2, test_part="val", side=64),
)

CLAIMS = (
    claim(
        "vptnsp/imagenet-r-more-accurate",
        "Is more accurate on ImageNet-R than sequential prompt tuning.",
        higher("accuracy", "nsp2", than="seq"),
        experiment=PROTOCOL.name,
        source="paper Table 1",
    ),
    claim(
        "vptnsp/imagenet-r-forgets-less",
        "Forgets less on ImageNet-R than sequential prompt tuning.",
        lower("forgetting", "nsp2", than="seq"),
        experiment=PROTOCOL.name,
        source="paper Table 1",
    ),
)
