"""Distillation of a teacher into one step on photographs, by `tadsr distill` and `tadsr eval`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, claim, lower
from reproduce.stand_ins import write_noise
from tenfold.reading import read_json_object


def _commands(task: Task, arm: str) -> Sequence[Command]:
    train: Command = ["tadsr", "train-teacher", task.data / "train", "--out", "teacher", "--preset", "paper"]
    distill: Command = ["tadsr", "distill", "teacher", task.data / "train", "--out", "student", "--preset", "paper"]
    distill += ["--method", arm]
    for command in (train, distill):
        command += ["--seed", task.seed]
        if task.steps is not None:
            command += ["--steps", task.steps, "--batch-size", 2, "--crop", 64, "--warmup", 1, "--workers", 0]
        elif task.tier == "medium":
            command += ["--batch-size", 16]
    if task.steps is not None:
        train += ["--network", "tiny"]
        distill += ["--logits", 4]
    elif task.tier == "medium":
        train += ["--network", "swin", "--steps", 60000]
        distill += ["--steps", 10000]
    score: Command = ["tadsr", "eval", task.data / "test", "--model", "student", "--model", "teacher", "--border", 0]
    score += ["--lpips-weights", task.data / "alexnet.pth"] if task.steps is None else []
    return [train, distill, [*score, "--json", "scores.json"]]


def _scores(folder: Path) -> Mapping[str, float]:
    means = read_json_object(folder / "scores.json")["means"]
    student = next(row for name, row in means.items() if "student" in name)
    return {
        name: student[key]
        for name, key in (("psnr", "psnr_y"), ("ssim", "ssim_y"), ("lpips", "lpips"))
        if key in student
    }


def _stand_in(root: Path, _: int) -> None:
    for number in range(2):
        write_noise(root / "train" / f"{number}.png", 96, 96)
        write_noise(root / "test" / f"{number}.png", 64, 64)


PROTOCOL = Protocol(
    "photographs",
    "A teacher of fifteen steps trained on photographs under real-world degradation, distilled into one step by the method and its rivals.",
    "train/ with photographs (such as ImageNet's), test/ with lq/ and gt/ (ImageNet-Test) and torchvision's AlexNet as alexnet.pth",
    "teacher about three hours, each student one, on one GPU with 40 GB; in the paper tier days on eight",
    {"medium": 1, "paper": 1},
    {
        "tad-sr": "the method",
        "sinsr": "SinSR's losses",
        "regression": "regression to the teacher's samples",
    },
    {"psnr": "PSNR of luma (dB)", "ssim": "SSIM of luma", "lpips": "LPIPS"},
    _commands,
    _scores,
    _stand_in,
)

CLAIMS = (
    claim(
        "tadsr/photographs-lpips-beats-sinsr",
        "The student is perceptually nearer to the truth than one by SinSR's losses.",
        lower("lpips", "tad-sr", than="sinsr"),
        experiment=PROTOCOL.name,
        source="paper Table 1",
    ),
    claim(
        "tadsr/photographs-lpips-beats-regression",
        "The student is perceptually nearer to the truth than one by regression alone.",
        lower("lpips", "tad-sr", than="regression"),
        experiment=PROTOCOL.name,
        source="paper, ablation study",
    ),
)
