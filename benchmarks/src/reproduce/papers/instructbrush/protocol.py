"""Edits learnt from pairs with a Stable Diffusion editor, by `instructbrush bench import`, `run` and `report`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.claims import Command, Protocol, Task, claim, higher
from reproduce.stand_ins import write_noise
from tenfold.reading import read_json_object


def _commands(task: Task, arm: str) -> Sequence[Command]:
    pairs = [2, 1] if task.steps is not None else [10, 5]
    import_: Command = ["instructbrush", "bench", "import", task.data / "effects", "bench"]
    run: Command = ["instructbrush", "bench", "run", "bench", "--out", "run", "--preset", "paper", "--methods", arm]
    run += ["--seed", task.seed]
    if task.steps is not None:
        run += ["--base", "tiny", "--steps", task.steps, "--batch-size", 2, "--tokens", 4, "--partitions", 1]
    else:
        run += ["--base", task.data / "instruct-pix2pix", "--clip", task.data / "clip-vit-large-patch14"]
        run += ["--weights", "bfloat16"]
        run += [] if task.tier == "paper" else ["--steps", 500]
    return [
        [*import_, "--train", pairs[0], "--test", pairs[1]],
        run,
        ["instructbrush", "bench", "report", "run", "--json", "scores.json"],
    ]


def _scores(folder: Path) -> Mapping[str, float]:
    (row,) = read_json_object(folder / "scores.json")["all"].values()
    return {"clip-dir": row["clip-dir"][0], "psnr": row["psnr"][0], "ssim": row["ssim"][0]}


def _stand_in(root: Path, _: int) -> None:
    for effect in ("tone", "edge"):
        for pair in range(3):
            for side in (0, 1):
                write_noise(root / "effects" / effect / f"{pair}_{side}.png", 48, 48)


PROTOCOL = Protocol(
    "TOP-Bench",
    "Effects of ten and five pairs each, as in TOP-Bench, learnt with InstructPix2Pix (Stable Diffusion 1.5) at 512 pixels.",
    "effects/EFFECT/ID_0.png and ID_1.png (15 pairs each), and the folders instruct-pix2pix and clip-vit-large-patch14 of the Hub",
    "about a quarter of an hour for each arm and effect on one GPU with 24 GB",
    {"medium": 1, "paper": 3},
    {
        "kv": "the method (keys and values)",
        "visii": "Visii",
        "textual-inversion": "textual inversion",
        "text-embed": "the encoded text",
    },
    {
        "clip-dir": "cosine with the direction of the edit in CLIP",
        "psnr": "PSNR against the true edit (dB)",
        "ssim": "SSIM against the true edit",
    },
    _commands,
    _scores,
    _stand_in,
)

CLAIMS = (
    claim(
        "instructbrush/top-bench-direction-beats-visii",
        "Edits point more into the direction of the shown edit than Visii's.",
        higher("clip-dir", "kv", than="visii"),
        experiment=PROTOCOL.name,
        source="paper Table 1",
    ),
    claim(
        "instructbrush/top-bench-beats-text-embedding",
        "Edits are nearer to the shown edit than those of a learnt text embedding.",
        higher("psnr", "kv", than="text-embed"),
        experiment=PROTOCOL.name,
        source="paper, ablation study",
    ),
)
