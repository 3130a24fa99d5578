"""From second moments to the projections of the next task (paper Alg. 1 lines 25-27, Alg. 2)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vptnsp.config.config import LearnerConfig
from vptnsp.method.null_space import NullityMode, equal_norm_slowdown, null_space_projection
from vptnsp.method.projected_optimizer import LayerProjection
from vptnsp.method.second_moments import SecondMoments, exact_conditions
from vptnsp.models.networks import PromptedViT


@dataclass(frozen=True)
class Nullity:
    """Dimensions of a layer's approximate null spaces.

    Attributes:
        features: R_1, of at most D.
        prompts: R_2, of at most M.
    """

    features: int
    prompts: int


def _one_side(
    moment: torch.Tensor, eta: float, mode: NullityMode, value: float, config: LearnerConfig
) -> tuple[torch.Tensor, int]:
    if eta == 0:
        # No projection: nothing needs decomposing, and two prompts have no knee.
        return torch.eye(len(moment), dtype=torch.float64, device=moment.device), len(moment)
    return null_space_projection(
        moment, eta, mode=mode, value=value, convention=config.convention, normalize=config.normalize
    )


def layer_projections(
    moments: SecondMoments, model: PromptedViT, config: LearnerConfig
) -> tuple[Mapping[str, LayerProjection], Mapping[str, Nullity]]:
    """B_1 and B_2 of every prompted layer.

    Args:
        moments: of all tasks so far, unscaled.
        model: with the current prompts; read only under `conditions="exact"`.
        config: eta, nullity rules, and whether the direction is kept (`null-space`) or only the norm (`equal-norm`).

    Returns:
        Projections and nullities by layer.
    """
    used = exact_conditions(moments, model) if config.conditions == "exact" else moments
    projections, nullities = {}, {}
    for name in used.C1:
        features, first = _one_side(used.C1[name], config.eta1, config.nullity_mode, config.nullity_value, config)
        prompts, second = _one_side(
            used.C2[name], config.eta2, config.prompt_nullity_mode, config.prompt_nullity_value, config
        )
        if config.projection == "equal-norm":
            features, prompts = equal_norm_slowdown(features), equal_norm_slowdown(prompts)
        projections[name] = LayerProjection(features, prompts)
        nullities[name] = Nullity(first, second)
    return projections, nullities
