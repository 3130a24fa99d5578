"""What asmattack is measured by (Liu et al., arXiv 2406.10887): drawn faces, small detectors, equal areas."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from reproduce.claims import (
    Experiment,
    Measurement,
    Speed,
    Suite,
    at_least,
    at_most,
    claim,
    higher,
    lower,
    not_lower,
    same,
)

FOUR = ("plain", "residual", "separable", "inverted")
TRAINING = {"smoke": (("plain", "separable"), 240, 3), "small": (FOUR, 800, 6)}
"""Detectors, training faces, epochs."""

ATTACKED = {"smoke": 4, "small": 32}
"""Fakes that every detector sees."""

POLICIES = ("full", "fixed", "budget", "calibrated", "random", "worst")


@cache
def trained(seed: int, tier: str) -> tuple[Any, ...]:
    """The detectors of a seed."""
    from asmattack import TrainConfig, train

    names, images, epochs = TRAINING[tier]
    config: dict[str, Any] = {"images": images, "epochs": epochs, "seed": seed, "holdout": 0.05}
    return tuple(train(TrainConfig(model=name, **config), device="cpu") for name in names)


def attacked_set(seed: int, tier: str, detectors: tuple[Any, ...]) -> Any:
    """Fakes of other people that all detectors call fake."""
    import torch

    from asmattack import drawn_set
    from asmattack.benchmark.comparison import logits

    faces = drawn_set(6 * ATTACKED[tier], seed=seed + 10_000)
    right = torch.stack([logits(each, faces.pixels()).argmax(1) == 1 for each in detectors]).all(0)
    return faces.subset((right & (faces.labels == 1)).nonzero().flatten()[: ATTACKED[tier]])


def summary(rows: Any) -> dict[str, float]:
    """Means over sources: white-box evasion, transfer to the others, distortion."""
    mine = [row for row in rows if row.source == row.target]
    across = [row for row in rows if row.source != row.target]

    def mean(rows: list[Any], name: str) -> float:
        return sum(getattr(row, name) for row in rows) / len(rows)

    return {
        "evasion": mean(mine, "evasion_rate"),
        "transfer": mean(across, "evasion_rate"),
        "PSNR": mean(mine, "psnr"),
        "SSIM": mean(mine, "ssim"),
        "L2": mean(mine, "l2"),
        "area": mean(mine, "mask_area"),
    }


def bench(
    detectors: tuple[Any, ...],
    policies: tuple[Any, ...],
    attack: str,
    grid: tuple[float, ...],
    seed: int,
    method: Any = "saliency",
) -> Any:
    """A bench of one attack, with the area of the five fixed regions of each face."""
    from asmattack import MaskConfig, MaskMaker
    from asmattack.benchmark.comparison import Bench

    maker = MaskMaker(config=MaskConfig(method=method))
    return Bench(detectors, attacks=(attack,), policies=policies, eps_grid=grid, maker=maker, seed=seed)


def measure_regions(seed: int, tier: str, _place: Path) -> Measurement:
    """Each policy at 4/255 and 8/255, white-box and by transfer."""
    detectors = trained(seed, tier)
    faces = attacked_set(seed, tier, detectors)
    grid = (4 / 255, 8 / 255)
    rows = list(bench(detectors, POLICIES, "pgd", grid, seed).run(faces).rows)
    by_gradcam = bench(detectors, ("budget",), "pgd", grid, seed, "gradcam").run(faces).rows
    rows += [replace(row, policy="budget Grad-CAM") for row in by_gradcam]
    arms: dict[str, dict[str, float]] = {}
    for arm in (*POLICIES, "budget Grad-CAM"):
        arms[arm] = {}
        for eps in grid:
            found = summary([row for row in rows if (row.policy, row.eps) == (arm, eps)])
            arms[arm] |= {f"{name} at {eps * 255:g}": value for name, value in found.items()}
    return arms


def measure_objectives(seed: int, tier: str, _place: Path) -> Measurement:
    """The same mask and budget under other objectives and compositions, and the controls of equal distortion."""
    from asmattack.benchmark.comparison import Bench
    from asmattack.config import PRESETS

    detectors = trained(seed, tier)[:2]
    faces = attacked_set(seed, tier, detectors)
    PRESETS["paste"] = type(PRESETS["pgd"])(compose="paste")
    arms = {}
    for arm, policy, attack, eps in (
        ("cross-entropy", "fixed", "pgd", 8.0),
        ("pasted", "fixed", "paste", 8.0),
        ("noise", "fixed", "noise", 8.0),
        ("authors' setting", "fixed", "asma_official", 51.0),
        ("cross-entropy, authors' budget", "fixed", "pgd", 51.0),
        ("budget", "budget", "pgd", 8.0),
    ):
        arms[arm] = summary(bench(detectors, (policy,), attack, (eps / 255,), seed).run(faces).rows)
    # Whole-image PGD shrunk to the length that the regional one had: by the root of the area.
    shrunk = 8 / 255 * arms["budget"]["area"] ** 0.5
    whole = Bench(detectors, policies=("full",), eps_grid=(shrunk,), seed=seed)
    arms["whole image, equal length"] = summary(whole.run(faces).rows)
    del PRESETS["paste"]
    return arms


def measure_hardening(seed: int, tier: str, _place: Path) -> Measurement:
    """Adversarial fine-tuning against as many epochs of ordinary training, on faces that neither has seen."""
    import copy

    from asmattack import HardenConfig, TrainConfig, drawn_set
    from asmattack.training.loop import faces_of, fit
    from asmattack.training.step import Detection, Hardening, accuracy

    detector = trained(seed, tier)[0]
    options: dict[str, Any] = {"images": 500, "epochs": 3, "seed": seed, "holdout": 0.05}
    hardened, longer = copy.deepcopy(detector), copy.deepcopy(detector)
    harden = HardenConfig(**options)
    fit(Hardening(hardened, *faces_of(harden), harden), harden, None, False, "cpu")
    plain = TrainConfig(learning_rate=1e-3, **options)
    fit(Detection(longer, *faces_of(plain), plain), plain, None, False, "cpu")
    faces = drawn_set(2 * ATTACKED[tier], seed=seed + 20_000)
    arms = {}
    for name, each in (("hardened", hardened), ("longer training", longer)):
        rows = bench((each,), ("all_inner",), "pgd", (8 / 255,), seed).run(faces).rows
        arms[name] = {"robust accuracy": rows[0].robust_acc, "clean accuracy": accuracy(each, faces)}
    return arms


LEARNING = 8
"""Epochs of the mask generator: those of its preset `small`."""


def measure_generator(seed: int, tier: str, _place: Path) -> Measurement:
    """Masks of a generator, of parser and activation map, and of chance, all of the area of the five fixed regions of each face."""
    import torch

    from asmattack import GeneratorConfig, MaskGenerator, RegionAttack, activation_map, preset, region_mask
    from asmattack.data.regions import CANDIDATES, FIXED
    from asmattack.method.selection import region_scores, select_regions
    from asmattack.training.loop import faces_of, fit
    from asmattack.training.step import Generation

    detector = trained(seed, tier)[0]
    faces = attacked_set(seed, tier, (detector,))
    pixels, truth = faces.pixels(), faces.label_maps
    budget = region_mask(truth, FIXED).sum((1, 2, 3))

    def arm(labels: Any, activation: Any, policy: Any = "budget") -> dict[str, float]:
        scores = region_scores(activation, labels)
        mask = select_regions(scores, labels, policy, budget=budget, seed=seed).mask
        batch = RegionAttack(detector, preset("pgd", 8 / 255)).run(pixels, faces.labels, mask)
        found = [((labels == k) & (truth == k)).sum() / (truth == k).sum() for k in CANDIDATES]
        return {
            "evasion": float(batch.success.float().mean()),
            "area": float(mask.mean()),
            "pixels of regions found": float(torch.stack(found).mean()),
            "regions missed altogether": float((torch.stack(found) < 0.01).float().mean()),
        }

    seen = activation_map(detector, pixels)
    arms = {"parser and saliency": arm(truth, seen), "random": arm(truth, seen, "random")}
    config = GeneratorConfig(images=TRAINING[tier][1], epochs=LEARNING, seed=seed, holdout=0.05)
    torch.manual_seed(seed)
    generator = MaskGenerator(config.width)
    fit(Generation(generator, detector, *faces_of(config), config), config, None, False, "cpu")
    arms["mask generator"] = arm(*generator.generate(pixels))
    return arms


BATCHES = (16, 64, 256)

PEAK = """
import ctypes, gc, sys
from reproduce.papers.asmattack import masked_against_plain

def memory(line):
    with open("/proc/self/status") as status:
        return next(int(each.split()[1]) / 1024 for each in status if each.startswith(line))

masked_against_plain(8)[int(sys.argv[1])]()
run = masked_against_plain(int(sys.argv[2]))[int(sys.argv[1])]
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as mark:
    mark.write("5")
run()
print(memory("VmHWM") - before)
"""
"""A process of its own, warmed up, its high-water mark started anew (Linux): no earlier peak hides this one."""


def measure_memory(_seed: int, _tier: str, _place: Path) -> Measurement:
    """Peak memory that ten steps add to a process: parse, score, select and attack inside the mask, and bare PGD."""
    arms: dict[str, dict[str, float]] = {"masked attack": {}, "bare PGD": {}}
    for batch in BATCHES:
        for arm, which in (("masked attack", 0), ("bare PGD", 1)):
            command = [sys.executable, "-c", PEAK, str(which), str(batch)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            arms[arm][f"MiB at {batch}"] = float(done.stdout.split()[-1])
    last = f"MiB at {BATCHES[-1]}"
    arms["masked attack"]["times bare PGD"] = arms["masked attack"][last] / arms["bare PGD"][last]
    return arms


def masked_against_plain(count: int = 32) -> tuple[Callable[[], object], Callable[[], object]]:
    """Parse, score, select and attack inside the mask; and the bare loop of the same ten steps on the whole image."""
    import torch
    import torch.nn.functional as F

    from asmattack import attack, drawn_set, preset
    from asmattack.models.networks import surrogate

    faces = drawn_set(count, 112)
    images, labels = faces.pixels(), faces.labels
    detector = surrogate("residual").eval().requires_grad_(requires_grad=False)

    def plain() -> object:
        adversarial = images
        for _ in range(10):
            adversarial = adversarial.detach().requires_grad_()
            loss = F.cross_entropy(detector(adversarial), labels, reduction="sum")
            step = torch.autograd.grad(loss, adversarial)[0].sign() * 2 / 255
            adversarial = (images + (adversarial + step - images).clamp(-8 / 255, 8 / 255)).clamp(0, 1)
        return adversarial.detach()

    return lambda: attack(detector, images, labels, config=preset("pgd")), plain


def masked_against_library() -> tuple[Callable[[], object], Callable[[], object]]:
    """The same, against the library's PGD."""
    from asmattack import GlobalAttack

    ours, _ = masked_against_plain()
    from asmattack import drawn_set
    from asmattack.models.networks import surrogate

    faces = drawn_set(32, 112)
    attack = GlobalAttack(surrogate("residual"), "global-pgd")
    return ours, lambda: attack(faces.pixels(), faces.labels)


def cafa_against_authors_loop() -> tuple[Callable[[], object], Callable[[], object]]:
    """Ten CAFA steps with frozen weights and the clean map kept; and as the authors' loop does, both passes with all gradients."""
    import torch
    import torch.nn.functional as F

    from asmattack import RegionAttack, drawn_set, preset
    from asmattack.method.losses import class_activation_features_of_batch
    from asmattack.models.networks import surrogate

    faces = drawn_set(16, 112)
    images, labels = faces.pixels(), faces.labels
    detector = surrogate("residual").eval()
    start = torch.empty_like(images).uniform_(-8 / 255, 8 / 255, generator=torch.Generator().manual_seed(0))

    def resized(z: torch.Tensor) -> torch.Tensor:
        found, features = detector.with_last_convolution(z)
        maps = class_activation_features_of_batch(features, detector.head_weight()[found.argmax(1)])
        return F.interpolate(maps, (32, 32), mode="bilinear", align_corners=False)

    def authors() -> object:
        adversarial = (images + start).clamp(0, 1)
        for _ in range(10):
            adversarial = adversarial.detach().requires_grad_()
            loss = (resized(adversarial) - resized(images)).square().mean()
            # All gradients, those of the weights too, as backward() computes them.
            gradients = torch.autograd.grad(loss, [adversarial, *detector.parameters()], allow_unused=True)
            step = gradients[0].sign() * 2 / 255
            adversarial = (images + (adversarial + step - images).clamp(-8 / 255, 8 / 255)).clamp(0, 1)
        return adversarial.detach()

    return lambda: RegionAttack(detector, preset("cafa")).run(images, labels, start=start), authors


WORDS = {
    "full": "the whole image",
    "fixed": "the authors' five regions",
    "budget": "regions chosen by saliency density, for each image",
    "budget Grad-CAM": "regions chosen by Grad-CAM density, for each image",
    "calibrated": "regions in one order for all images",
    "random": "random regions of the same area",
    "worst": "the least activated regions of the same area",
    "cross-entropy": "cross-entropy, mask inside the iteration, 8/255",
    "pasted": "cross-entropy on the whole image, pasted into the mask afterwards",
    "noise": "random signs in the mask",
    "authors' setting": "the authors' feature objective, 51/255",
    "cross-entropy, authors' budget": "cross-entropy, 51/255",
    "whole image, equal length": "the whole image with a change of the same length",
    "hardened": "adversarial fine-tuning",
    "longer training": "as many epochs of ordinary training",
    "parser and saliency": "masks from parser and saliency",
    "mask generator": "masks from the trained generator",
    "masked attack": "the masked attack",
    "bare PGD": "bare PGD",
}
METRICS = {
    "evasion": "share of fakes called real",
    "transfer": "share of fakes that another detector calls real",
    "robust accuracy": "accuracy under attack",
    "clean accuracy": "accuracy on clean faces",
    "pixels of regions found": "share of the regions' pixels found",
    "times bare PGD": "peak memory, times that of bare PGD",
    "PSNR at 8": "PSNR at 8/255 (dB)",
    "evasion at 4": "share of fakes called real, at 4/255",
    "evasion at 8": "share of fakes called real, at 8/255",
    "transfer at 8": "share of fakes that another detector calls real, at 8/255",
}


def measure_exactness(_seed: int, _tier: str, _place: Path) -> Measurement:
    """PGD with 3/255 on drawn faces and an untrained detector: what it changes outside its mask, and beyond its budget."""
    from asmattack import RegionAttack, preset, region_mask
    from asmattack.data.landmarks import GeometricParser
    from asmattack.data.synthetic import drawn_set
    from asmattack.models.networks import surrogate

    faces = drawn_set(6, 64, seed=3)
    images = faces.pixels()
    mask = region_mask(GeometricParser()(images), (2, 4, 5, 6, 7)).float()
    attacked = RegionAttack(surrogate("plain", 1), preset("pgd", 3 / 255))(images, faces.labels, mask)
    change = 255 * (attacked - images).abs()
    return {
        "masked attack": {
            "change outside": float((change * (mask == 0)).max()),
            "largest change": float(change.max()),
            "share changed": float((change * mask > 0.5).any(1).float().sum() / mask.sum()),
        }
    }


EXACTNESS = Experiment(
    "exactness",
    "What an attack of 3/255 changes outside its regions and beyond its budget, on six drawn faces.",
    {"smoke": 1},
    measure_exactness,
    {"masked attack": "the masked attack"},
    {
        "change outside": "largest change outside of the regions (levels of 255)",
        "largest change": "largest change of a pixel (levels of 255)",
        "share changed": "share of the region's pixels that change",
    },
)

EXACT_CLAIMS = (
    claim(
        "asmattack/mask-is-kept",
        "No pixel outside of the chosen regions changes.",
        at_most("change outside", "masked attack", 0.0),
        experiment="exactness",
        source="abstract",
        deterministic=True,
    ),
    claim(
        "asmattack/budget-is-kept",
        "No pixel changes by more than the budget of 3 levels, after rounding to 8 bits.",
        at_most("largest change", "masked attack", 3.001),
        experiment="exactness",
        source="Madry et al. 2018, eq. 2.1",
        deterministic=True,
    ),
)

SUITE = Suite(
    "asmattack",
    "A forgery detector is fooled by small changes of the facial regions it hangs on, which a mask chosen by its own activation finds.",
    experiments=(
        EXACTNESS,
        Experiment(
            "regions",
            "Small detectors of drawn faces are attacked inside regions of equal area, chosen by activation or by chance; fakes that all detect.",
            {"smoke": 1, "small": 5},
            measure_regions,
            WORDS,
            METRICS,
        ),
        Experiment(
            "objectives",
            "The same regions and budget with other objectives, compositions, and controls of equal distortion.",
            {"small": 5},
            measure_objectives,
            WORDS,
            METRICS,
        ),
        Experiment(
            "hardening",
            "Adversarial fine-tuning inside the face's regions against as many epochs of ordinary training.",
            {"small": 5},
            measure_hardening,
            WORDS,
            METRICS,
        ),
        Experiment(
            "generator",
            "Masks from a trained mask generator against those of parser and saliency, and of chance; equal area, 8/255, the plain detector.",
            {"small": 5},
            measure_generator,
            WORDS,
            METRICS,
        ),
        Experiment(
            "memory",
            "Peak memory of ten steps on 16, 64 and 256 faces of 112 pixels at once.",
            {"small": 2},
            measure_memory,
            WORDS,
            METRICS,
        ),
    ),
    claims=(
        *EXACT_CLAIMS,
        claim(
            "asmattack/stealth",
            "At equal eps, a change of local regions keeps a higher PSNR than one of the whole image.",
            higher("PSNR at 8", "fixed", than="full"),
            experiment="regions",
            source="abstract (imperceptible)",
            remark="Arithmetic: -10 log10 of the area.",
        ),
        claim(
            "asmattack/saliency-4",
            "Regions chosen by saliency density fool the source more than random ones of the same area, at 4/255.",
            higher("evasion at 4", "budget", than="random"),
            experiment="regions",
            source="abstract (adaptive selection)",
        ),
        claim(
            "asmattack/saliency-8",
            "Regions chosen by saliency density fool the source more than random ones of the same area, at 8/255.",
            higher("evasion at 8", "budget", than="random"),
            experiment="regions",
            source="abstract (adaptive selection)",
        ),
        claim(
            "asmattack/gradcam-4",
            "Regions chosen by Grad-CAM density fool the source more than random ones of the same area, at 4/255.",
            higher("evasion at 4", "budget Grad-CAM", than="random"),
            experiment="regions",
            source="abstract (class activation values)",
        ),
        claim(
            "asmattack/transfer-8",
            "Regions chosen by saliency transfer better than random ones of the same area, at 8/255.",
            higher("transfer at 8", "budget", than="random"),
            experiment="regions",
            source="abstract (transferability)",
        ),
        claim(
            "asmattack/per-image",
            "A choice for each image beats one calibrated order, at 4/255.",
            higher("evasion at 4", "budget", than="calibrated"),
            experiment="regions",
            source="our README",
        ),
        claim(
            "asmattack/ranking",
            "Random regions fool more than the least activated ones of the same area, at 4/255 (control).",
            higher("evasion at 4", "random", than="worst"),
            experiment="regions",
            source="our README",
        ),
        claim(
            "asmattack/fixed-list",
            "The published list of five regions fools more than random regions of the same area, at 4/255.",
            higher("evasion at 4", "fixed", than="random"),
            experiment="regions",
            source="authors' code (merge_face.py)",
        ),
        claim(
            "asmattack/in-loop",
            "The mask inside the iteration fools at least as much as pasting afterwards, up to 5 points.",
            not_lower("evasion", "cross-entropy", than="pasted", within=0.05),
            experiment="objectives",
            source="our README",
        ),
        claim(
            "asmattack/cafa",
            "The authors' feature objective fools more than cross-entropy in their own mask and budget (51/255).",
            higher("evasion", "authors' setting", than="cross-entropy, authors' budget"),
            experiment="objectives",
            source="authors' code (main.py)",
        ),
        claim(
            "asmattack/equal-length",
            "At equal length of the change, regions chosen by saliency transfer better than the whole image.",
            higher("transfer", "budget", than="whole image, equal length"),
            experiment="objectives",
            source="abstract (attack strength and stealth)",
        ),
        claim(
            "asmattack/noise",
            "Random signs in the same mask fool less than the attack (control).",
            lower("evasion", "noise", than="cross-entropy"),
            experiment="objectives",
            source="our README",
        ),
        claim(
            "asmattack/harden",
            "Adversarial fine-tuning raises the accuracy under attack at 8/255 over as many epochs of ordinary training.",
            higher("robust accuracy", "hardened", than="longer training"),
            experiment="hardening",
            source="our README",
        ),
        claim(
            "asmattack/harden-clean",
            "Adversarial fine-tuning costs at most 2 points of clean accuracy over as many epochs of ordinary training.",
            not_lower("clean accuracy", "hardened", than="longer training", within=0.02),
            experiment="hardening",
            source="our README",
        ),
        claim(
            "asmattack/generator",
            "Masks of the mask generator, trained as its preset `small` does (8 epochs), fool as much as those of parser and saliency, up to 5 points.",
            same("evasion", "mask generator", as_="parser and saliency", within=0.05),
            experiment="generator",
            source="abstract (mask generative model)",
        ),
        claim(
            "asmattack/generator-chance",
            "Masks of the mask generator fool more than random regions of the same area.",
            higher("evasion", "mask generator", than="random"),
            experiment="generator",
            source="our README",
        ),
        claim(
            "asmattack/generator-regions",
            "After these 8 epochs the mask generator finds at least nine tenths of the pixels of eyes, brows, nose and mouth.",
            at_least("pixels of regions found", "mask generator", 0.9),
            experiment="generator",
            source="our README",
        ),
        claim(
            "asmattack/memory",
            "Masks and activation add at most a quarter to the peak memory of bare PGD (256 faces of 112 pixels at once).",
            at_most("times bare PGD", "masked attack", 1.25),
            experiment="memory",
            source="our README",
            deterministic=True,
        ),
    ),
    speeds=(
        Speed(
            "asmattack/overhead",
            "Parsing, activation map, selection and masked PGD against bare PGD of the same ten steps (32 faces of 112 pixels).",
            masked_against_plain,
            target=1 / 1.5,
        ),
        Speed(
            "asmattack/library",
            "The same against PGD of torchattack.",
            masked_against_library,
            target=1 / 1.5,
        ),
        Speed(
            "asmattack/cafa",
            "Ten CAFA steps with frozen weights and the clean map kept, against the authors' loop (both passes, all gradients).",
            cafa_against_authors_loop,
            target=3.5,
        ),
    ),
)
