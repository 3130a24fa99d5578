"""An Xception on FaceForensics++ crops, attacked on semantic regions and hardened, by `asmattack train`, `harden` and `eval`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, at_least, claim, lower
from reproduce.stand_ins import write_noise
from tenfold.reading import read_json_object


def _commands(task: Task, arm: str) -> Sequence[Command]:
    train: Command = ["asmattack", "train", "--out", "run", "--preset", "paper", "--data", task.data / "train"]
    harden: Command = [
        "asmattack",
        "harden",
        "run",
        "--out",
        "hard",
        "--preset",
        "paper",
        "--data",
        task.data / "train",
    ]
    attack: Command = ["asmattack", "eval", "hard" if arm == "hardened" else "run", "--out", "report"]
    attack += ["--data", task.data / "test", "--attacks", "pgd", "--policies", "full", "fixed", "budget", "random"]
    attack += ["--eps", 8, "--seed", 1000 + task.seed]
    for command in (train, harden):
        command += ["--seed", task.seed]
    if task.steps is not None:
        train += ["--model", "plain", "--size", 48, "--epochs", 1, "--batch-size", 4]
        harden += ["--size", 48, "--epochs", 1, "--batch-size", 4, "--steps", 1]
        attack += ["--size", 48, "--steps", task.steps]
    else:
        train += [] if task.tier == "paper" else ["--epochs", 5]
        harden += [] if task.tier == "paper" else ["--epochs", 2]
        attack += ["--size", 299, "--parser", "segformer"]
    return [train, *([harden] if arm == "hardened" else []), attack]


def _scores(folder: Path) -> Mapping[str, float]:
    rows = read_json_object(folder / "report" / "report.json")["rows"]
    return {f"{row['policy']} success": 100 * (row["asr"] or 0.0) for row in rows} | {
        "accuracy": 100 * rows[0]["clean_acc"]
    }


def _stand_in(root: Path, steps: int) -> None:
    for part, count in (("train", 4 * steps), ("test", 4)):
        for label in ("real", "fake"):
            for number in range(count):
                write_noise(root / part / label / f"v{number}" / "0.png", 48, 48)


PROTOCOL = Protocol(
    "FaceForensics++",
    "Xception on FaceForensics++ crops (c23), PGD at 8/255 on the whole face and on chosen regions, before and after hardening.",
    "face crops of 299 pixels as train/{real,fake}/VIDEO/*.png and test/{real,fake}/VIDEO/*.png",
    "about two hours for each arm on one GPU with 24 GB (20,000 crops); in the paper tier ten",
    {"medium": 1, "paper": 3},
    {"plain": "the detector as trained", "hardened": "the detector after adversarial fine-tuning"},
    {
        "accuracy": "accuracy on faces that nobody attacked (%)",
        "full success": "success of attacking the whole face (%)",
        "fixed success": "success on the five fixed regions (%)",
        "budget success": "success on regions chosen by activation at the same area (%)",
        "random success": "success on regions drawn at random at the same area (%)",
    },
    _commands,
    _scores,
    _stand_in,
)

CLAIMS = (
    claim(
        "asmattack/ffpp-hardening-helps",
        "Fine-tuning on attacked faces lowers the success of attacks on the chosen regions of FaceForensics++ faces.",
        lower("budget success", "hardened", than="plain"),
        experiment=PROTOCOL.name,
        source="paper, defence",
    ),
    claim(
        "asmattack/ffpp-attack-succeeds",
        "An attack on the chosen regions fools a detector of FaceForensics++ faces on at least half of them.",
        at_least("budget success", "plain", 50.0),
        experiment=PROTOCOL.name,
        source="paper, attack success",
    ),
)
