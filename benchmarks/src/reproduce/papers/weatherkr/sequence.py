"""Haze, then rain, then snow, with a very small memory: a small experiment on photographs.

Clean pictures are windows of photographs that scikit-image and scikit-learn ship, at half size; other photographs are tested on
than are learnt from. The weather is the package's own.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.claims import Experiment, Measurement, claim, higher, lower, not_lower

if TYPE_CHECKING:
    from torch import Tensor

    from weatherkr import Task, TrainConfig

KINDS = ("haze", "rain", "snow")
LEARNT = ("astronaut", "coffee", "flower", "motorcycle_left", "retina", "ihc")
TESTED = ("chelsea", "china", "rocket")
SIDE = 64
METHODS = ("finetune", "er", "kd", "kr", "lwf", "ewc", "pod", "joint")
WORDS = {
    "finetune": "plain fine-tuning",
    "er": "replay of true labels",
    "kd": "replay of the old network's outputs",
    "kr": "knowledge replay (the method)",
    "lwf": "LwF",
    "ewc": "EWC",
    "pod": "POD",
    "joint": "all weathers at once (upper bound)",
}
METRICS = {
    "mean PSNR": "PSNR, mean over the three weathers (dB)",
    "forgetting": "forgetting (dB lost)",
    "PSNR haze": "PSNR on haze (dB)",
    "PSNR rain": "PSNR on rain (dB)",
    "PSNR snow": "PSNR on snow (dB)",
    "PSNR snow right after learning it": "PSNR on snow right after learning it (dB)",
}
STEPS, COUNTS = 150, (192, 24)
QUICK_METHODS, QUICK_STEPS, QUICK_COUNTS = ("finetune", "kr"), 15, (32, 8)


def windows(names: tuple[str, ...], count: int, seed: int) -> "Tensor":
    """Square windows of photographs at half size, (count, 3, 64, 64)."""
    import torch
    import torch.nn.functional as F

    from tenfold.data import embedded_pictures, to_tensor

    found = embedded_pictures()
    halved = [F.interpolate(to_tensor(found[name])[None], scale_factor=0.5, mode="area")[0] for name in names]
    generator = torch.Generator().manual_seed(seed)
    cut = []
    for number in range(count):
        picture = halved[number % len(halved)]
        top, left = (int(torch.randint(side - SIDE + 1, (), generator=generator)) for side in picture.shape[1:])
        cut.append(picture[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(cut)


def build_tasks(seed: int, counts: tuple[int, int]) -> "list[Task]":
    """So many training and test pictures for each weather; each task has its own scenes."""
    import torch

    from weatherkr import Task, TensorPairs, degrade

    tasks = []
    for number, kind in enumerate(KINDS):
        sets = []
        for part, (names, count) in enumerate(zip((LEARNT, TESTED), counts, strict=True)):
            key = 1000 * seed + 10 * number + part
            clean = windows(names, count, key)
            sets.append(TensorPairs(degrade(clean, kind, torch.Generator().manual_seed(key), scale=0.4), clean))
        tasks.append(Task(kind, *sets))
    return tasks


def recipe(seed: int, steps: int) -> "TrainConfig":
    """12 channels, one block a group, K = 12 patches of 24 pixels in all."""
    from weatherkr import TrainConfig

    return TrainConfig(
        dim=12,
        blocks=1,
        residual="image",
        steps=steps,
        batch_size=8,
        crop=24,
        learning_rate=4e-3,
        contrast="off",
        projector="pca",
        rank=4,
        memory=12,
        importance_batches=20,
        eval_every=10**6,
        eval_images=24,
        workers=0,
        seed=seed,
    )


def measure(seed: int, _tier: str, place: Path) -> Measurement:
    """Every method through the three tasks."""
    return run_methods(seed, METHODS, STEPS, COUNTS, place)


def quick(seed: int, _tier: str, place: Path) -> Measurement:
    """Fine-tuning and knowledge replay through the three tasks, in seconds."""
    return run_methods(seed, QUICK_METHODS, QUICK_STEPS, QUICK_COUNTS, place)


def run_methods(seed: int, methods: tuple[str, ...], steps: int, counts: tuple[int, int], place: Path) -> Measurement:
    """Methods through the three tasks; all share the network after the first."""
    import torch

    from tenfold.figures import image_grid
    from tenfold.files import write_text
    from tenfold.images import write_image
    from weatherkr.benchmark.comparison import compare
    from weatherkr.evaluation.figures import curves_svg

    tasks = build_tasks(seed, counts)
    outcomes = compare(tasks, methods, recipe(seed, steps), torch.device("cpu"))
    reports = {name: each.report for name, each in outcomes.items() if each.report}
    write_text(place / "psnr-after-each-task.svg", curves_svg(reports))
    rows = []
    for task in tasks:
        assert task.val is not None
        degraded, clean = task.val.pair(0)
        restored = [each.nets[task.name].restore(degraded[None])[0] for each in outcomes.values()]
        rows.append([degraded, *restored, clean])
    write_image(place / f"degraded-{'-'.join(outcomes)}-clean.png", image_grid(rows))
    arms = {}
    for name, outcome in outcomes.items():
        arms[name] = {"mean PSNR": outcome.average, **{f"PSNR {task}": s.psnr for task, s in outcome.final.items()}}
        if outcome.report:
            arms[name]["forgetting"] = outcome.report.forgetting()
            arms[name]["PSNR snow right after learning it"] = outcome.report.value(2, 2)
    return arms


EXPERIMENTS = (
    Experiment(
        "quick-look",
        "Haze, rain, snow in sequence on windows of photographs, 40 steps a task, a network of 12 channels, 12 stored patches in all; tested on other photographs.",
        {"smoke": 1},
        quick,
        WORDS,
        METRICS,
    ),
    Experiment(
        "three-weathers",
        "The same with 150 steps a task, more pictures and all methods.",
        {"small": 5},
        measure,
        WORDS,
        METRICS,
    ),
)


CLAIMS = (
    claim(
        "weatherkr/quick-look-forgetting",
        "Even after a few seconds of training, knowledge replay forgets less than plain fine-tuning.",
        lower("forgetting", "kr", than="finetune"),
        experiment="quick-look",
        source="abstract",
        remark="One seed of a few seconds; the small tier is the measurement",
    ),
    claim(
        "weatherkr/less-forgetting-than-fine-tuning",
        "Knowledge replay forgets less than plain fine-tuning.",
        lower("forgetting", "kr", than="finetune"),
        experiment="three-weathers",
        source="abstract; the authors' logs (fine-tuning loses 17 to 20 dB, the method 0.1)",
    ),
    claim(
        "weatherkr/better-mean-than-fine-tuning",
        "After the last task the mean PSNR is at least 1 dB above fine-tuning's.",
        higher("mean PSNR", "kr", than="finetune", by=1.0),
        experiment="three-weathers",
        source="the authors' logs: 30.69 against 17.28 dB",
    ),
    claim(
        "weatherkr/teacher-outputs-beat-labels",
        "With a small memory, the old network's outputs are better replay targets than the true labels (mean PSNR).",
        higher("mean PSNR", "kd", than="er"),
        experiment="three-weathers",
        source="the authors' logs: 30.69 against 29.71 dB",
        remark="The method without its projection against plain replay: only the targets differ",
    ),
    claim(
        "weatherkr/teacher-outputs-forget-less-than-labels",
        "With a small memory, the old network's outputs forget less than the true labels.",
        lower("forgetting", "kd", than="er"),
        experiment="three-weathers",
        source="the authors' logs: 0.1 against 2 dB on haze",
    ),
    claim(
        "weatherkr/projection-forgets-less",
        "The projected features reduce forgetting beyond replay alone.",
        lower("forgetting", "kr", than="kd"),
        experiment="three-weathers",
        source="abstract",
        remark="A trial beforehand found the gain to be inside the seed noise",
    ),
    claim(
        "weatherkr/near-joint-training",
        "The mean PSNR is within 1.2 dB of training on everything at once.",
        not_lower("mean PSNR", "kr", than="joint", within=1.2),
        experiment="three-weathers",
        source="abstract: competitive with jointly trained methods",
    ),
    *(
        claim(
            f"weatherkr/less-forgetting-than-{rival}",
            f"Knowledge replay forgets less than {rival.upper()}.",
            lower("forgetting", "kr", than=rival),
            experiment="three-weathers",
            source="our control",
        )
        for rival in ("lwf", "ewc", "pod")
    ),
    claim(
        "weatherkr/price-of-memory",
        "Fine-tuning learns the last task better than knowledge replay: what stability costs with a small budget.",
        higher("PSNR snow right after learning it", "finetune", than="kr"),
        experiment="three-weathers",
        source="our README, limits",
    ),
)
