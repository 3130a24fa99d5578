"""From second moments to the projections of the next task (paper Alg. 1 lines 25-27, Alg. 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenfold import UserError
from vptnsp.config import LearnerConfig
from vptnsp.method.null_space import NullityMode, equal_norm_slowdown, null_space_projection
from vptnsp.method.second_moments import SecondMoments, exact_conditions
from vptnsp.models.networks import PromptedViT


@dataclass(frozen=True)
class LayerProjection:
    """What one layer's update is multiplied with.

    Attributes:
        features: B_1, from the right: keeps the affinity Q K_P^T (paper C-1).
        prompts: B_2, from the left: keeps the aggregation S_P V_P (paper C-2).
    """

    features: Float[Tensor, "d d"]
    prompts: Float[Tensor, "m m"]

    def to(self, like: Tensor) -> "LayerProjection":
        """On the device and in the precision of `like`."""
        return LayerProjection(self.features.to(like), self.prompts.to(like))


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


def project_update(update: Float[Tensor, "m d"], projection: LayerProjection) -> Float[Tensor, "m d"]:
    """B_2 dP B_1 (paper eq. 29)."""
    return projection.prompts @ update @ projection.features


class PromptProjector:
    """Projects what an optimiser does to the prompts, through its step hooks: any torch optimiser works, unchanged.

    The moments of Adam never see the projection; weights that are no prompts are left alone.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._before: dict[str, Tensor] = {}

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        named_prompts: Mapping[str, nn.Parameter],
        projections: Mapping[str, LayerProjection],
    ) -> None:
        """Project every later step of `optimizer`.

        Raises:
            UserError: a prompt that the optimiser does not hold, or one without a projection of its shape.
        """
        self.detach()
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        ready: dict[str, LayerProjection] = {}
        for name, prompt in named_prompts.items():
            if id(prompt) not in held:
                raise UserError(f"{name}: the optimiser does not hold this prompt; was it made anew?")
            if name not in projections:
                raise UserError(f"{name}: no projection for this prompt")
            ready[name] = projections[name].to(prompt)
            shapes = (len(ready[name].prompts), len(ready[name].features))
            if shapes != tuple(prompt.shape):
                raise UserError(f"{name}: a projection for prompts of {shapes} does not fit {tuple(prompt.shape)}")

        def remember(*_: object) -> None:
            self._before = {name: prompt.detach().clone() for name, prompt in named_prompts.items()}

        @torch.no_grad()
        def project(*_: object) -> None:
            for name, prompt in named_prompts.items():
                before = self._before[name]
                prompt.copy_(before + project_update(prompt - before, ready[name]))

        self._handles = [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(project)]

    def detach(self) -> None:
        """Let later steps pass unprojected."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._before = [], {}
