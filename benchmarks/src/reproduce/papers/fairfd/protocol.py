"""Pruning by BPFA against its baselines on real faces of several groups, by `fairfd build`, `train`, `prune`, `score` and `metrics`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, claim, lower
from reproduce.stand_ins import write_noise
from tenfold.reading import read_json_object

FORGERIES = ("self_blend", "landmark_swap", "warp_reenact", "region_edit", "gan_upsample_sim")


def _commands(task: Task, arm: str) -> Sequence[Command]:
    approaches = FORGERIES if task.steps is None else FORGERIES[:1]
    build: Command = ["fairfd", "build", task.data, "forged", "--ratios", ".5,.25,.25", "--seed", task.seed]
    build += [word for name in approaches for word in ("--approach", name)]
    train: Command = ["fairfd", "train", "forged/manifest.csv", "--out", "run", "--seed", 1024 + task.seed]
    if task.steps is None:
        train += ["--detector", "xception", "--preset", "paper"]
        train += [] if task.tier == "paper" else ["--epochs", 5]
    else:
        build += ["--size", 64, "--balance", "none", "--workers", 1]
        train += ["--detector", "small-rgb", "--preset", "tiny", "--in-size", 32, "--epochs", 1, "--batch-size", 8]
    prune: Command = ["fairfd", "prune", "forged/manifest.csv", "--detector", "run", "--method", arm, "--rate", ".05"]
    score: Command = ["fairfd", "score", "forged/manifest.csv", "--split", "test", "-o", "scores.csv"]
    repeats = ["--n-boot", 0, "--n-perm", 0] if task.steps is not None else []
    return [
        build,
        train,
        *([] if arm == "none" else [[*prune, "-o", "pruned"]]),
        [*score, "--detector", "run" if arm == "none" else "pruned"],
        ["fairfd", "metrics", "scores.csv", "-o", "metrics.json", *repeats],
    ]


def _scores(folder: Path) -> Mapping[str, float]:
    audit = read_json_object(folder / "metrics.json")["audits"][0]
    metrics = audit["conventions"]["official"]["metrics"]
    return {name: 100 * metrics[name]["value"] for name in ("AADPD", "AADEO", "URDPD")}


def _stand_in(root: Path, _: int) -> None:
    for group in ("a", "b"):
        for person in range(8):
            for picture in range(2):
                write_noise(root / group / f"{group}{person}" / f"{picture}.png", 64, 64)


PROTOCOL = Protocol(
    "pruning",
    "Real faces of several groups forged by five approaches; Xception trained on them, then pruned at 5 % by BPFA and by its baselines.",
    "face crops as GROUP/PERSON/IMAGE, at least 100 people in each group (such as RFW, or FairFace with people told apart)",
    "about an hour for each arm on one GPU with 16 GB (30,000 crops)",
    {"medium": 1, "paper": 5},
    {"none": "unpruned", "bpfa": "the method (BPFA)", "weig": "the smallest weights", "roba": "ROBA"},
    {
        "AADPD": "approach-averaged demographic parity difference (points)",
        "AADEO": "approach-averaged equal-opportunity difference (points)",
        "URDPD": "utility-regularised demographic parity difference (points)",
    },
    _commands,
    _scores,
    _stand_in,
)

CLAIMS = (
    claim(
        "fairfd/real-faces-bpfa-lowers-aadpd",
        "Pruning by BPFA lowers the parity difference of a detector of real faces.",
        lower("AADPD", "bpfa", than="none"),
        experiment=PROTOCOL.name,
        source="paper Table 3",
    ),
    claim(
        "fairfd/real-faces-bpfa-beats-magnitude",
        "Pruning by BPFA leaves a smaller parity difference than pruning the smallest weights.",
        lower("AADPD", "bpfa", than="weig"),
        experiment=PROTOCOL.name,
        source="paper Table 3",
    ),
)
