"""Haze, rain and snow of the public sets, one after the other, by `weatherkr train` and `weatherkr eval`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, claim, higher
from reproduce.stand_ins import write_noise
from tenfold.reading import read_json_object

SETS = {"haze": "reside", "rain": "rain100", "snow": "snow100k"}
"""What is learnt, in this order, and the layout that it comes in."""


def _commands(task: Task, arm: str) -> Sequence[Command]:
    def tasks(part: str) -> list[str]:
        return [w for name, layout in SETS.items() for w in ("--task", f"{name}={layout}:{task.data / layout / part}")]

    train: Command = ["weatherkr", "train", *tasks("train"), "--out", "run", "--preset", "paper", "--method", arm]
    train += ["--seed", task.seed]
    if task.steps is not None:
        train += ["--steps", task.steps, "--dim", 8, "--blocks", 1, "--crop", 32, "--contrast", "off", "--memory", 4]
        train += ["--projector-epochs", 1, "--rank", 4, "--workers", 0]
    else:
        train += ["--vgg-weights", task.data / "vgg19-dcbb9e9d.pth"]
        train += [] if task.tier == "paper" else ["--steps", 20000]
    return [train, ["weatherkr", "eval", *tasks("test"), "--model", "run", "-o", "scores.json"]]


def _scores(folder: Path) -> Mapping[str, float]:
    scores = read_json_object(folder / "scores.json")["scores"]
    return {name: scores[name]["psnr"] for name in SETS} | {
        "mean": sum(scores[name]["psnr"] for name in SETS) / len(SETS)
    }


def _stand_in(root: Path, _: int) -> None:
    places = {
        "reside": ("hazy/{}_0.8.png", "clear/{}.png"),
        "rain100": ("rain/norain-{}x2.png", "norain/norain-{}.png"),
        "snow100k": ("synthetic/{}.png", "gt/{}.png"),
    }
    for layout, names in places.items():
        for part in ("train", "test"):
            for number in range(1, 4):
                for name in names:
                    write_noise(root / layout / part / name.format(number), 48, 48)


PROTOCOL = Protocol(
    "public sets",
    "RESIDE, Rain100H and Snow100K learnt one after the other with one network, then tested on all three.",
    "reside/, rain100/ and snow100k/, each with train/ and test/ in its own layout, and torchvision's vgg19-dcbb9e9d.pth",
    "about two hours for each arm on one GPU with 24 GB (20,000 updates a set); in the paper tier two days",
    {"medium": 1, "paper": 1},
    {
        "kr": "the method (knowledge replay)",
        "finetune": "fine-tuning, nothing against forgetting",
        "er": "replay of stored pictures alone",
        "lwf": "learning without forgetting",
    },
    {
        "mean": "PSNR, mean of the three sets (dB)",
        "haze": "PSNR on RESIDE, learnt first (dB)",
        "rain": "PSNR on Rain100H (dB)",
        "snow": "PSNR on Snow100K, learnt last (dB)",
    },
    _commands,
    _scores,
    _stand_in,
)

CLAIMS = (
    claim(
        "weatherkr/public-sets-keeps-the-first",
        "After all three sets, haze is restored better than after fine-tuning.",
        higher("haze", "kr", than="finetune"),
        experiment=PROTOCOL.name,
        source="paper Table 1",
    ),
    claim(
        "weatherkr/public-sets-beats-replay",
        "After all three sets, their mean is better than with stored pictures alone.",
        higher("mean", "kr", than="er"),
        experiment=PROTOCOL.name,
        source="paper Table 1",
    ),
)
