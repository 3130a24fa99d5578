"""Which regions to perturb: scores per class from an activation map, and the policies that choose by them.

The published code holds a fixed list and no rule; `fixed` is that list, the others are this package's reading of "adaptive".
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from asmattack.data.regions import CANDIDATES, FIXED, REGIONS, region_mask
from tenfold import UserError
from tenfold.reading import parse_json

Budget = float | Literal["fixed_area"]
"""Area that chosen regions may take: a share of the image, or that of the five fixed regions of each image."""

Policy = Literal["fixed", "topk", "budget", "threshold", "calibrated", "random", "worst", "all_inner", "full"]


@dataclass(frozen=True)
class RegionScores:
    """What each candidate class holds of the activation.

    Attributes:
        density: mass / area; -1 where the class is absent.
        mass: activation summed over the region.
        area: pixels.
        candidates: the classes, in the order of the columns.
        cutoff: mean activation over everything but background, per image.
    """

    density: Float[Tensor, "b k"]
    mass: Float[Tensor, "b k"]
    area: Int64[Tensor, "b k"]
    candidates: tuple[int, ...]
    cutoff: Float[Tensor, " b"]


def region_scores(
    cam: Float[Tensor, "b h w"], labels: Int64[Tensor, "b h w"], candidates: Sequence[int] = CANDIDATES
) -> RegionScores:
    """Density, mass and area of each candidate class."""
    # One class after the other: all at once would be a map for each class and image.
    area = torch.stack([(labels == k).sum((1, 2)) for k in candidates], 1)
    mass = torch.stack([((labels == k) * cam).sum((1, 2)) for k in candidates], 1)
    density = torch.where(area > 0, mass / area.clamp(min=1), torch.full_like(mass, -1))
    face = labels != REGIONS["background"]
    cutoff = (cam * face).sum((1, 2)) / face.sum((1, 2)).clamp(min=1)
    return RegionScores(density, mass, area, tuple(candidates), cutoff)


@dataclass(frozen=True)
class RegionOrder:
    """One order of the classes for every image, from a calibration set.

    Attributes:
        classes: the candidates.
        density: mean density of each over the images in which it occurs; -1: in none.
    """

    classes: tuple[int, ...]
    density: tuple[float, ...]

    def to_json(self) -> str:
        """As JSON, with the names of the regions for people."""
        names = list(REGIONS)
        return json.dumps({names[k]: value for k, value in zip(self.classes, self.density, strict=True)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "RegionOrder":
        """Read what `to_json` wrote.

        Raises:
            UserError: it is something else.
        """
        source = "not an order of regions"
        parsed = parse_json(text, source)
        try:
            found = {REGIONS[name]: float(value) for name, value in parsed.items()}
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise UserError(f"{source}: expected a JSON object of region names and densities") from None
        if not all(map(math.isfinite, found.values())):
            raise UserError(f"{source}: a density is not finite")
        return cls(tuple(found), tuple(found.values()))


def calibrated_order(scores: RegionScores) -> RegionOrder:
    """Mean density of each class over the images of a calibration set in which it occurs (policy `calibrated`)."""
    present = scores.area > 0
    mean = (scores.density * present).sum(0) / present.sum(0).clamp(min=1)
    mean = torch.where(present.any(0), mean, torch.full_like(mean, -1))
    return RegionOrder(scores.candidates, tuple(mean.tolist()))


@dataclass(frozen=True)
class Selection:
    """What was chosen for each image.

    Attributes:
        selected: candidate classes, in the order of the scores' columns; None where the policy has none (fixed, full).
        mask: the mask M.
        covers_all: a policy that chooses by area found room for every candidate: nothing was chosen, and budget,
            calibrated, random and worst are one mask.
    """

    selected: Bool[Tensor, "b k"] | None
    mask: Float[Tensor, "b 1 h w"]
    covers_all: Bool[Tensor, " b"]


def area_budget(labels: Int64[Tensor, "b h w"], budget: Budget) -> Int64[Tensor, " b"]:
    """Pixels that the regions of each image may take.

    Raises:
        ValueError: a share outside (0, 1], or another word than fixed_area.
    """
    if budget == "fixed_area":
        return region_mask(labels, FIXED).sum((1, 2, 3))
    if isinstance(budget, str) or not 0 < budget <= 1:
        raise ValueError(f"budget {budget} is neither fixed_area nor in (0, 1]")
    # 0.29 x 100 is 28.999999999999996 in floating point.
    return torch.full((len(labels),), int(budget * labels[0].numel() + 1e-6), device=labels.device)


def greedy(
    priority: Float[Tensor, "b k"], area: Int64[Tensor, "b k"], budget: Int64[Tensor, " b"]
) -> Bool[Tensor, "b k"]:
    """Take classes by falling priority while they fit into the area budget; skip one that does not and go on."""
    order = torch.argsort(priority, dim=1, descending=True, stable=True)
    selected = torch.zeros_like(area, dtype=torch.bool)
    used = torch.zeros_like(budget)
    for rank in range(area.shape[1]):
        column = order[:, rank : rank + 1]
        size = area.gather(1, column)[:, 0]
        fits = (size > 0) & (used + size <= budget)
        selected.scatter_(1, column, fits[:, None])
        used = used + size * fits
    return selected


def select_regions(
    scores: RegionScores,
    labels: Int64[Tensor, "b h w"],
    policy: Policy = "budget",
    *,
    budget: Budget | Int64[Tensor, " b"] = "fixed_area",
    k: int = 5,
    order: RegionOrder | None = None,
    seed: int = 0,
) -> Selection:
    """Choose the regions of each image.

    Args:
        scores: of these images.
        labels: their label maps.
        policy: see the README; random and worst are the controls of budget.
        budget: area of the five fixed regions of each image, a share of the image, or pixels per image.
        k: how many for topk.
        order: what `calibrated_order` returned, for calibrated.
        seed: of random.

    Raises:
        ValueError: a budget outside (0, 1], k below 1, or calibrated without an order of the same classes.
    """
    area = scores.area
    pixels = budget if isinstance(budget, Tensor) else area_budget(labels, budget)
    nowhere = torch.zeros_like(pixels, dtype=torch.bool)
    if policy == "full":
        return Selection(None, torch.ones_like(labels, dtype=torch.float32)[:, None], nowhere)
    if policy == "fixed":
        return Selection(None, region_mask(labels, FIXED).float(), nowhere)
    if policy == "all_inner":
        selected = area > 0
    elif policy == "threshold":
        selected = (area > 0) & (scores.density > scores.cutoff[:, None])
    elif policy == "topk":
        if k < 1:
            raise ValueError(f"k is {k}; at least one region is needed")
        selected = greedy(scores.density, (area > 0).long(), torch.full_like(pixels, k))
    else:
        selected = greedy(_priority(scores, policy, order, seed), area, pixels)
    mask = torch.zeros_like(labels, dtype=torch.bool)
    for column, k in enumerate(scores.candidates):
        mask |= (labels == k) & selected[:, column, None, None]
    everything = (selected == (area > 0)).all(1) & (area > 0).any(1) if policy in BY_AREA else nowhere
    return Selection(selected, mask[:, None].float(), everything)


BY_AREA: tuple[Policy, ...] = ("budget", "calibrated", "random", "worst")
"""Policies that take regions in an order of their own while they fit into the area budget."""


def _priority(scores: RegionScores, policy: Policy, order: RegionOrder | None, seed: int) -> Float[Tensor, "b k"]:
    """What the policies of `BY_AREA` sort by, the largest first."""
    if policy == "budget":
        return scores.density
    if policy == "worst":
        return -scores.density
    if policy == "random":
        return torch.rand(scores.area.shape, generator=torch.Generator().manual_seed(seed)).to(scores.density)
    if order is None:
        raise ValueError("policy calibrated needs the order that calibrated_order returns")
    if order.classes != scores.candidates:
        raise ValueError(f"the order is of the classes {order.classes}, the scores of {scores.candidates}")
    return torch.tensor(order.density, device=scores.area.device).expand(len(scores.area), -1)
