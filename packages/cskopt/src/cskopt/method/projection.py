"""The sparse orthogonal gradient projection (paper §3.4): updates that old inputs cannot see.

The projector acts on the input-channel side of an optimiser's *update* (moments stay unprojected), as in the official code:
Wc[:, S] <- Wc[:, S] + D[:, S] P.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cskopt.method.partial_conv import PartialConv2d
from cskopt.method.second_moments import FeatureCovariance
from tenfold import UserError

Rule = Literal["nscl_floor", "nscl", "energy"]
EPS_REL = 1e-6
"""Eigenvalues below this share of the largest are float32 noise."""


@dataclass(frozen=True)
class ProjectorInfo:
    """What a projector was made from.

    Attributes:
        kept: directions an update may use.
        eigenvalues: of G_S, descending, negatives set to 0.
    """

    kept: int
    eigenvalues: Float[Tensor, " k"]


def eigen_system(covariance: Float[Tensor, "k k"], name: str = "covariance") -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, negatives set to 0) and eigenvectors (columns) in 64 bits.

    Raises:
        FloatingPointError: values that are not finite.
    """
    if not torch.isfinite(covariance).all():
        raise FloatingPointError(f"{name}: the feature covariance is not finite")
    values, vectors = torch.linalg.eigh(covariance.double())
    return values.flip(0).clamp_min(0), vectors.flip(1)


def null_directions(eigenvalues: Float[Tensor, " k"], thres: float, floor: float = 0.0) -> int:
    """How many of the smallest eigenvalues are at most `thres * max(smallest, floor * largest)` (paper §3.4).

    Args:
        eigenvalues: descending.
        thres: 5 in the official code.
        floor: 0 for the literal rule; `EPS_REL` keeps a dead channel from deciding alone.
    """
    limit = thres * torch.maximum(eigenvalues[-1], floor * eigenvalues[0])
    return int((eigenvalues <= limit).sum())


def energy_rank(eigenvalues: Float[Tensor, " k"], energy: float) -> int:
    """The smallest count of leading eigenvalues whose share of the sum is at least `energy` (GPM's criterion)."""
    total = eigenvalues.sum()
    if total == 0:
        return 0
    # One rounding error must not cost a direction: 1 - 1e-16 reaches 1.
    share = eigenvalues.cumsum(0) / total
    return min(int((share < energy - 1e-15).sum()) + 1, eigenvalues.numel())


def null_space_projector(
    covariance: Float[Tensor, "k k"],
    rule: Rule = "nscl_floor",
    thres: float = 100.0,
    energy: float = 0.99,
    normalize: Literal["none", "fro"] = "none",
    name: str = "covariance",
) -> tuple[Float[Tensor, "k k"], ProjectorInfo]:
    """P, the projector onto the directions that old features hardly use (paper §3.4).

    Args:
        covariance: G_S.
        rule: `nscl` is the literal rule l_i <= thres * l_k, which degenerates when a channel is dead; `nscl_floor` floors l_k
            at 1e-6 of l_1; `energy` protects the leading directions that hold a share of the energy.
        thres: for the nscl rules.
        energy: for the energy rule.
        normalize: `fro` divides by the Frobenius norm (official code), which shrinks steps by the square root of the rank.
        name: of the layer, for messages.

    Returns:
        P in the covariance's precision, and what it was made from. Warns when P lets nothing or everything through.

    Raises:
        FloatingPointError: values that are not finite.
    """
    values, vectors = eigen_system(covariance, name)
    size = values.numel()
    if rule == "energy":
        kept = size - energy_rank(values, energy)
    else:
        kept = null_directions(values, thres, EPS_REL if rule == "nscl_floor" else 0.0)
    if rule == "nscl" and float(values[-1]) < EPS_REL * float(values[0]):
        warnings.warn(
            f"{name}: the smallest eigenvalue is noise or a dead channel; rule 'nscl' keeps degenerate directions, use 'nscl_floor'",
            stacklevel=2,
        )
    if kept in (0, size) and size > 0:
        meaning = "nothing can be learnt" if kept == 0 else "nothing is protected"
        warnings.warn(f"{name}: the projector keeps {kept} of {size} directions: {meaning}", stacklevel=2)
    null = vectors[:, size - kept :]
    projector = null @ null.T
    if normalize == "fro" and kept:
        projector = projector / projector.norm()
    return projector.to(covariance.dtype), ProjectorInfo(kept, values)


def gpm_basis(basis: Float[Tensor, "d r"], moment: Float[Tensor, "d d"], threshold: float) -> Float[Tensor, "d q"]:
    """Extend the protected subspace by a task's representation (GPM, Saha et al. 2021, eqs. 8 and 9).

    Args:
        basis: M, orthonormal columns; of zero columns before the first task.
        moment: R R^T of the task's representation matrix R (its eigenvalues are R's squared singular values).
        threshold: share of the representation's energy that the basis must hold.
    """
    moment, basis = moment.double(), basis.double()
    total = moment.trace()
    rest = torch.eye(len(moment), dtype=torch.float64, device=moment.device) - basis @ basis.T
    residual = rest @ moment @ rest
    values, vectors = eigen_system((residual + residual.T) / 2)
    held = (total - residual.trace()) / total
    share = held + values.cumsum(0) / total
    if basis.shape[1]:
        # After the first task a direction is added while those *before* it hold less than the threshold (official code).
        share = torch.cat([held[None], share[:-1]])
    count = min(int((share < threshold).sum()), len(moment) - basis.shape[1])
    return torch.cat([basis, vectors[:, :count]], 1)


def gpm_projector(basis: Float[Tensor, "d r"]) -> Float[Tensor, "d d"]:
    """I - M M^T."""
    return torch.eye(len(basis), dtype=basis.dtype, device=basis.device) - basis @ basis.T


def project_update(update: Float[Tensor, "o *rest"], projector: Float[Tensor, "k k"]) -> Float[Tensor, "o *rest"]:
    """D P, over the flattened input side of an update (paper §3.4)."""
    return (update.flatten(1) @ projector.to(update)).view_as(update)


def projectors_for(
    covariance: FeatureCovariance,
    rule: Rule = "nscl_floor",
    thres: float = 100.0,
    energy: float = 0.99,
    normalize: Literal["none", "fro"] = "none",
) -> dict[str, Tensor]:
    """P of each watched layer for its current channels; see `null_space_projector`."""
    return {
        name: null_space_projector(covariance.restricted(name), rule, thres, energy, normalize, name)[0]
        for name in covariance.matrices
    }


class ProjectionHandle:
    """Undoes `attach_projection`."""

    def __init__(self, *hooks: Any) -> None:
        self._hooks = hooks

    def remove(self) -> None:
        """Plain steps from now on."""
        for hook in self._hooks:
            hook.remove()


def trained_weight(layer: nn.Module) -> nn.Parameter:
    """The parameter that a projector of this layer acts on."""
    weight = layer.trained if isinstance(layer, PartialConv2d) else layer.weight
    if not isinstance(weight, nn.Parameter):
        raise TypeError(f"{type(layer).__name__} has no trained weight")
    return weight


def attach_projection(
    optimizer: torch.optim.Optimizer, model: nn.Module, projectors: dict[str, Tensor]
) -> ProjectionHandle:
    """Project every later step of any optimiser: c <- c_old + (c - c_old) P (paper §3.4).

    Args:
        optimizer: built after `apply_selection`.
        model: the wrapped model.
        projectors: P by layer name.

    Returns:
        A handle whose `remove()` gives plain steps back.

    Raises:
        UserError: a parameter that the optimiser does not know (built before `apply_selection`), or a P of another size.
    """
    known = {id(each) for group in optimizer.param_groups for each in group["params"]}
    pairs = []
    for name, projector in projectors.items():
        weight = trained_weight(model.get_submodule(name))
        if id(weight) not in known:
            raise UserError(f"{name}: the optimizer does not hold its weights; build it after apply_selection")
        if projector.shape[0] != weight[0].numel():
            raise UserError(f"{name}: projector of {projector.shape[0]} inputs given to weights of {weight[0].numel()}")
        pairs.append((weight, projector.to(device=weight.device, dtype=weight.dtype)))
    before: list[Tensor] = []

    def remember(*_: Any) -> None:
        before[:] = [weight.detach().clone() for weight, _ in pairs]

    @torch.no_grad()
    def project(*_: Any) -> None:
        for (weight, projector), old in zip(pairs, before, strict=True):
            weight.copy_(old + project_update(weight - old, projector))
        before.clear()

    return ProjectionHandle(optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(project))
