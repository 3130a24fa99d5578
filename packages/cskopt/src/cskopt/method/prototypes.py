"""Class prototypes: mean features of classes whose pictures are gone (paper §3.5)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold import UserError


class PrototypeBank:
    """The mean feature of each class, as constants.

    Args:
        dim: length F of a feature.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        # 64 bits: the mean must not depend on the order of the batches.
        self._sums = torch.zeros(0, dim, dtype=torch.float64)
        self._counts = torch.zeros(0, dtype=torch.long)

    def __len__(self) -> int:
        return int((self._counts > 0).sum())

    @torch.no_grad()
    def add(self, features: Float[Tensor, "n f"], labels: Int[Tensor, " n"]) -> None:
        """Count features of one or several classes in.

        Args:
            features: inputs of the head.
            labels: class ids from 0, in order of arrival.

        Raises:
            UserError: features of another length.
            FloatingPointError: a feature that is not finite.
        """
        if features.shape[1] != self.dim:
            raise UserError(f"features of length {features.shape[1]} given to prototypes of length {self.dim}")
        if not torch.isfinite(features).all():
            raise FloatingPointError("prototypes: a feature of the head's input is not finite")
        features, labels = features.detach().double().cpu(), labels.cpu()
        missing = int(labels.max()) + 1 - self._counts.numel() if labels.numel() else 0
        if missing > 0:
            self._sums = torch.cat([self._sums, self._sums.new_zeros(missing, self.dim)])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(missing)])
        self._sums.index_add_(0, labels, features)
        self._counts += torch.bincount(labels, minlength=self._counts.numel())

    @property
    def classes(self) -> Int[Tensor, " k"]:
        """Ids of the classes that have a prototype, ascending."""
        return (self._counts > 0).nonzero().flatten()

    @property
    def means(self) -> Float[Tensor, "k f"]:
        """mu_c of `classes`, float32."""
        known = self.classes
        return (self._sums[known] / self._counts[known, None]).float()

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n f"], Int[Tensor, " n"]]:
        """Draw classes uniformly with replacement; return their prototypes and ids (paper §3.5).

        Raises:
            UserError: the bank is empty.
        """
        if len(self) == 0:
            raise UserError(
                "no prototypes yet: add the base classes first (IncrementalLearner.begin), or set proto_weight = 0"
            )
        drawn = torch.randint(len(self), (count,), generator=generator)
        return self.means[drawn], self.classes[drawn]

    def distances(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        """Euclidean distance of each feature to each prototype (nearest class mean, a baseline)."""
        return torch.cdist(features, self.means.to(features))

    def state_dict(self) -> dict[str, Tensor]:
        """Sums and counts."""
        return {"sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what `state_dict` gave.

        Raises:
            UserError: not prototypes, or of another length.
        """
        sums, counts = state.get("sums"), state.get("counts")
        if sums is None or counts is None or sums.ndim != 2 or counts.shape != sums.shape[:1]:
            raise UserError("prototypes need the sums and the counts of each class")
        if sums.shape[1] != self.dim:
            raise UserError(f"prototypes of length {sums.shape[1]} given to a model of {self.dim} features")
        if counts.dtype != torch.long or not sums.is_floating_point() or bool((counts < 0).any()):
            raise UserError("prototypes: counts must be whole numbers from 0, sums real ones")
        self._sums, self._counts = sums.double().clone(), counts.clone()
