"""One call: parse the faces, choose regions by the detector's own activation, perturb only them."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from asmattack.data.landmarks import GeometricParser
from asmattack.data.parsers import Parser, check_label_maps
from asmattack.data.regions import CANDIDATES, dilate, feather
from asmattack.method.region_attack import AdversarialBatch, AttackConfig, RegionAttack, check_inputs
from asmattack.method.selection import (
    Budget,
    Policy,
    RegionOrder,
    RegionScores,
    Selection,
    region_scores,
    select_regions,
)
from asmattack.models.class_activation import Method, activation_map
from asmattack.models.detector import Detector
from asmattack.models.masks import MaskGenerator
from tenfold import UserError


@dataclass(frozen=True)
class MaskConfig:
    """How the semantic mask of an image is made.

    Attributes:
        policy: Which regions: see `Policy`.
        method: The activation map that scores them.
        candidates: Classes to choose from.
        budget: Area as a share of the image; fixed_area takes that of the five fixed regions of each image.
        k: How many regions for topk.
        order: Of the regions, for calibrated.
        dilate: Pixels by which the mask grows.
        feather: Radius of the box that softens it; the budget of a pixel is eps times the mask.
        seed: Of the policy random.
    """

    policy: Policy = "budget"
    method: Method = "saliency"
    candidates: tuple[int, ...] = CANDIDATES
    budget: Budget = "fixed_area"
    k: int = 5
    order: RegionOrder | None = None
    dilate: int = 0
    feather: int = 0
    seed: int = 0


@dataclass(frozen=True)
class SemanticMask:
    """What was seen and chosen for a batch of faces.

    Attributes:
        mask: the mask M, in [0, 1].
        labels: face-parsing label maps.
        activation: the map that scored the regions.
        scores: of the candidates.
        selection: the chosen candidates.
    """

    mask: Float[Tensor, "b 1 h w"]
    labels: Int64[Tensor, "b h w"]
    activation: Float[Tensor, "b h w"]
    scores: RegionScores
    selection: Selection


@dataclass(frozen=True)
class MaskMaker:
    """The paper's mask generative model: a parser, an activation map, a rule.

    Attributes:
        parser: from faces to label maps.
        config: the rule.
        generator: a trained `MaskGenerator`, which takes the place of parser and activation map.
    """

    parser: Parser = field(default_factory=GeometricParser)
    config: MaskConfig = field(default_factory=MaskConfig)
    generator: MaskGenerator | None = None

    def __call__(
        self, detector: Detector, images: Float[Tensor, "b 3 h w"], labels: Tensor | None = None, **of_parser: Any
    ) -> SemanticMask:
        """Masks of a batch.

        Args:
            detector: whose activation counts.
            images: pixels in [0, 1].
            labels: label maps, where they are known; the parser is not asked then.
            of_parser: landmarks and names of the faces, for the parser.
        """
        seen, activation = self.look(detector, images, labels, **of_parser)
        return choose(seen, activation, self.config)

    def look(
        self, detector: Detector, images: Float[Tensor, "b 3 h w"], labels: Tensor | None = None, **of_parser: Any
    ) -> tuple[Int64[Tensor, "b h w"], Float[Tensor, "b h w"]]:
        """Label maps and activation maps: what serves every policy and budget alike."""
        if self.generator is not None:
            where = next(self.generator.parameters()).device
            found, activation = self.generator.generate(images.to(where))
            return found.to(images.device), activation.to(images.device)
        seen = self.parser(images, **of_parser) if labels is None else labels
        seen = check_label_maps(seen, images)
        return seen, activation_map(
            detector, images, method=self.config.method, labels=seen, candidates=self.config.candidates
        )


def choose(labels: Int64[Tensor, "b h w"], activation: Float[Tensor, "b h w"], config: MaskConfig) -> SemanticMask:
    """Score the regions, choose among them, and make the mask."""
    scores = region_scores(activation, labels, config.candidates)
    selection = select_regions(
        scores, labels, config.policy, budget=config.budget, k=config.k, order=config.order, seed=config.seed
    )
    mask = dilate(selection.mask, config.dilate) if config.dilate else selection.mask
    mask = feather(mask, config.feather) if config.feather else mask
    return SemanticMask(mask, labels, activation, scores, selection)


def attack(
    model: torch.nn.Module | Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Int64[Tensor, " b"],
    *,
    config: AttackConfig | None = None,
    policy: Policy = "budget",
    method: Method = "saliency",
    parser: Parser | None = None,
    generator: MaskGenerator | None = None,
    landmarks: Float[Tensor, "b 5 2"] | None = None,
    candidates: Sequence[int] = CANDIDATES,
    order: RegionOrder | None = None,
    budget: Budget = "fixed_area",
) -> AdversarialBatch:
    """Parse faces, choose regions by the detector's own activation, perturb only them (paper, abstract).

    Args:
        model: a `Detector`, or any module or differentiable callable from pixels in [0, 1] to one output or two;
            what they mean is recognised (see `Detector.calibrate`) and said in `Detector.reading`.
        images: (b, 3, h, w) face crops in [0, 1], or uint8; square and aligned unless landmarks or another parser are given.
        labels: 0 real, 1 fake.
        config: from `preset` or your own; masked PGD at 8/255 by default.
        policy: how regions are chosen.
        method: which activation map scores them.
        parser: of faces; the geometric one by default.
        generator: a trained mask generator in place of parser and activation map.
        landmarks: five points (x, y) of each face in pixels.
        candidates: classes to choose from.
        order: for policy calibrated.
        budget: area that the regions may take: that of the five fixed regions of each image, or a share of the image.

    Raises:
        ValueError: input that is no batch of face crops in [0, 1] (see `check_inputs`).
        UserError: no image has any of the candidate regions.
    """
    detector = model if isinstance(model, Detector) else Detector(model)
    config = config or AttackConfig()
    pixels, _ = check_inputs(images, labels, None)
    rule = MaskConfig(policy, method, tuple(candidates), budget, order=order, seed=config.seed)
    maker = MaskMaker(parser or GeometricParser(), rule, generator)
    detector.calibrate(pixels, labels)
    chosen = maker(detector, pixels, landmarks=landmarks)
    check_empty(~chosen.mask.flatten(1).any(1), maker)
    warn_of_no_choice(chosen.selection.covers_all, policy)
    found = RegionAttack(detector, config).run(pixels, labels, chosen.mask)
    return replace(found, budget_covers_all=chosen.selection.covers_all)


def warn_of_no_choice(covered: Bool[Tensor, " b"], policy: Policy) -> None:
    """Warn of faces whose candidate regions all fit into the area budget: there the policies by area are one."""
    if bool(covered.any()):
        warnings.warn(
            f"policy {policy}: on {int(covered.sum())} of {len(covered)} faces every candidate region fits into the area"
            " budget: nothing is selected, and budget, calibrated, random and worst are the same mask there",
            stacklevel=3,
        )


def check_empty(empty: Bool[Tensor, " b"], maker: MaskMaker) -> None:
    """Warn of faces without a region to perturb, and refuse a set in which no face has one.

    Raises:
        UserError: every mask is empty.
    """
    source, policy = type(maker.generator or maker.parser).__name__, maker.config.policy
    if bool(empty.all()):
        raise UserError(
            f"policy {policy}: no mask has a pixel: {source} found none of the classes"
            f" {', '.join(map(str, maker.config.candidates))} inside the area budget; are the faces aligned?"
        )
    if bool(empty.any()):
        warnings.warn(
            f"policy {policy}: {int(empty.sum())} of {len(empty)} faces have no region to perturb and stay as they are",
            stacklevel=3,
        )
