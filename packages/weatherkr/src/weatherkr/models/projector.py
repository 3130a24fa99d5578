"""Principal component projection: r channels that keep what matters of the features (paper's PCP; official code, models/Autoencoder.py).

In the official code it is the encoder of a small autoencoder with channel attention. `PCAProjector` is ours: the eigenvectors that
the name promises.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.errors import UserError

Whitening = Literal["none", "global"]


class ChannelNorm(nn.Module):
    """LayerNorm over the channels at each pixel: population variance, eps 1e-5, learnt scale and shift.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The normalised features."""
        return F.layer_norm(f.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias).permute(0, 3, 1, 2)


class AttentionProjector(nn.Module):
    """phi: the features averaged over channels r times, with learnt, input-dependent weights.

    The weights of each average are non-negative and sum to 1, so that before the last 1x1 convolution phi cannot subtract channels;
    and they are equal at the start, when only that convolution tells the r outputs apart.

    Args:
        channels: C of the features.
        rank: r.
    """

    def __init__(self, channels: int = 192, rank: int = 16) -> None:
        super().__init__()
        self.channels, self.rank = channels, rank
        self.norm_layer = ChannelNorm(channels)
        self.qk = nn.Conv2d(channels, 2 * channels, 1)
        self.qk_dwconv = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.v = nn.Conv2d(channels, channels, 1)
        self.v_dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.temperature = nn.Parameter(torch.ones(1, 1))
        self.W = nn.Parameter(torch.full((channels, rank), 1 / channels))
        self.project_out = nn.Conv2d(rank, rank, 1)

    def attention(self, f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b r c"]:
        """P: for each of the r outputs the weights over the channels."""
        q, k = self.qk_dwconv(self.qk(self.norm_layer(f))).flatten(2).chunk(2, dim=1)
        # The official eps: channel maps become unit vectors.
        q, k = F.normalize(q, dim=-1, eps=1e-12), F.normalize(k, dim=-1, eps=1e-12)
        gram = self.temperature * (q @ k.transpose(1, 2))
        return (gram @ self.W).transpose(1, 2).softmax(-1)

    def averages(self, f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b r h w"]:
        """P v: the averaged channels, before the last convolution."""
        v = self.v_dwconv(self.v(f))
        return (self.attention(f) @ v.flatten(2)).unflatten(2, v.shape[2:])

    def forward(self, f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b r h w"]:
        """phi(f)."""
        return self.project_out(self.averages(f))


class ProjectionDecoder(nn.Module):
    """From phi(f) back to f; it exists only to train phi.

    Args:
        channels: C of the features.
        rank: r.
    """

    def __init__(self, channels: int = 192, rank: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(rank, rank, 3, padding=1), nn.ReLU(), nn.Conv2d(rank, channels, 3, padding=1)
        )

    def forward(self, h: Float[Tensor, "b r h w"]) -> Float[Tensor, "b c h w"]:
        """The reconstruction."""
        return self.layers(h)


class PCAProjector(nn.Module):
    """phi(f) = U^T (f - m): the r directions in which the feature vectors of the memory vary most. One pass, no optimiser.

    Args:
        channels: C of the features.
        rank: r.
        whiten: `none`, or `global`: divided by the root of the mean kept eigenvalue.
    """

    basis: Tensor
    mean: Tensor
    eigenvalues: Tensor

    def __init__(self, channels: int = 192, rank: int = 16, whiten: Whitening = "none") -> None:
        super().__init__()
        if not 1 <= rank <= channels:
            raise UserError(f"rank {rank}: the features have {channels} channels")
        self.channels, self.rank, self.whiten = channels, rank, whiten
        self.register_buffer("basis", torch.eye(channels)[:, :rank].contiguous())
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("eigenvalues", torch.ones(channels))

    @torch.no_grad()
    def fit(self, features: Iterable[Float[Tensor, "b c h w"]]) -> "PCAProjector":
        """Find mean and directions; covariances accumulate in 64 bits, so that the order of the batches does not matter."""
        count, total, products = 0, 0.0, 0.0
        for f in features:
            rows = f.detach().double().movedim(1, -1).reshape(-1, self.channels)
            count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        if count == 0:
            raise UserError("the memory is empty: there are no features to project")
        mean = torch.as_tensor(total) / count
        values, vectors = torch.linalg.eigh(torch.as_tensor(products) / count - torch.outer(mean, mean))
        values, vectors = values.flip(0), vectors.flip(1)
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        self.basis.copy_((vectors * largest.sign())[:, : self.rank])
        self.mean.copy_(mean)
        self.eigenvalues.copy_(values.clamp(min=0))
        return self

    @property
    def explained(self) -> Float[Tensor, " r"]:
        """Share of the feature variance that each kept direction holds."""
        return self.eigenvalues[: self.rank] / self.eigenvalues.sum()

    def forward(self, f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b r h w"]:
        """phi(f)."""
        h = torch.einsum("bchw,cr->brhw", f.float() - self.mean[:, None, None], self.basis)
        return h if self.whiten == "none" else h / self.eigenvalues[: self.rank].mean().sqrt()

    def reconstruct(self, h: Float[Tensor, "b r h w"]) -> Float[Tensor, "b c h w"]:
        """The features that phi(f) stands for (without whitening): U h + m."""
        return torch.einsum("brhw,cr->bchw", h, self.basis) + self.mean[:, None, None]


Projector = AttentionProjector | PCAProjector
