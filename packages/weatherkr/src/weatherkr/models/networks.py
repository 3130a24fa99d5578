"""The unified restoration network: a variant of FFA-Net without task input (official code, models/FFA.py).

Three groups of residual blocks with channel and pixel attention in parallel; their outputs, concatenated, are the features that
the projector reads. One network serves every weather. `shuffle` > 1 runs it on a pixel-unshuffled image, which makes it about
`shuffle` squared times cheaper: the compact model that ships uses it, the paper's network does not.
"""

import contextlib
from collections.abc import Generator

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.errors import UserError
from weatherkr.config import check_sizes

MEAN = (0.64, 0.60, 0.58)
STD = (0.14, 0.15, 0.152)
GROUPS = 3
RESIDUALS = ("normalized", "image", "affine")


def normalize(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Map an image in [0, 1] to what the network and the contrast loss's negative see (official code, data/datasets.py)."""
    return (image - image.new_tensor(MEAN)[:, None, None]) / image.new_tensor(STD)[:, None, None]


def denormalize(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The inverse of `normalize`."""
    return image * image.new_tensor(STD)[:, None, None] + image.new_tensor(MEAN)[:, None, None]


class ChannelAttention(nn.Module):
    """CA: one gate in (0, 1) for each channel, from the channel averages over the whole input.

    Args:
        dim: channels.

    A gate can be held fixed (`fixed`, of shape (1, dim, 1, 1)): tiles of one picture then share the gates of the whole picture.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(dim // 8, 1)
        self.ca = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, dim, 1), nn.Sigmoid())
        self.fixed: Tensor | None = None
        self.latest: Tensor | None = None

    def gate(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "#b c 1 1"]:
        """The gates of an input, or the fixed ones."""
        if self.fixed is not None:
            return self.fixed.to(u)
        gate = self.ca(u.mean((2, 3), keepdim=True))
        if not torch.compiler.is_compiling():
            self.latest = gate.detach()
        return gate

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """u * CA(u)."""
        return u * self.gate(u)


class PixelAttention(nn.Module):
    """PA: one gate in (0, 1) for each pixel, from that pixel's channels.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(dim // 8, 1)
        self.pa = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1), nn.Sigmoid())

    def gate(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """The gates of an input."""
        return self.pa(u)

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """u * PA(u)."""
        return u * self.gate(u)


class Block(nn.Module):
    """u = conv(relu(conv(x))); out = x + u CA(u) + u PA(u). FFA-Net has the attentions in series and one more skip.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.calayer = ChannelAttention(dim)
        self.palayer = PixelAttention(dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The block's output."""
        u = self.conv2(F.relu(self.conv1(x)))
        return x + self.calayer(u) + self.palayer(u)


class Group(nn.Module):
    """Blocks, a convolution, and a skip around all of it.

    Args:
        dim: channels.
        blocks: how many.
    """

    def __init__(self, dim: int, blocks: int) -> None:
        super().__init__()
        self.gp = nn.Sequential(*(Block(dim) for _ in range(blocks)), nn.Conv2d(dim, dim, 3, padding=1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The group's output."""
        return self.gp(x) + x


class WeatherNet(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="weatherkr",
    tags=["image-restoration", "dehazing", "deraining", "desnowing"],
    paper_url="https://arxiv.org/abs/2403.07292",
    license="apache-2.0",
):
    """The network F: a degraded image to (estimate of the clean one, features). The defaults are the paper's: 4,753,823 parameters.

    Args:
        dim: channels d, 8 to 4096.
        blocks: blocks in each of the three groups.
        residual: `normalized`: the *normalised* input is added to the output (official code); `image`: the input in [0, 1] is,
            which small budgets need, because the network need not learn to undo the normalisation; `affine`: the input times a
            smooth gain plus a smooth offset as well, which is what haze does to a picture.
        shuffle: 1, or s: pixels are gathered s x s into channels first and spread again at the end.
    """

    def __init__(self, dim: int = 64, blocks: int = 20, residual: str = "normalized", shuffle: int = 1) -> None:
        super().__init__()
        check_sizes(dim, blocks, shuffle)
        if residual not in RESIDUALS:
            raise UserError(f"residual {residual}: choose {', '.join(RESIDUALS)}")
        self.dim, self.blocks, self.residual, self.shuffle = dim, blocks, residual, shuffle
        self.pre = nn.Sequential(nn.Conv2d(3 * shuffle**2, dim, 3, padding=1))
        self.g1, self.g2, self.g3 = (Group(dim, blocks) for _ in range(GROUPS))
        outputs = 3 * shuffle**2 + (6 if residual == "affine" else 0)
        self.post = nn.Sequential(nn.Conv2d(GROUPS * dim, dim, 3, padding=1), nn.Conv2d(dim, outputs, 3, padding=1))
        if residual == "affine":
            # Unlike random weights, zeros give the pixels of a shuffled square no pattern that must be unlearnt.
            for weight in self.post[1].parameters():
                nn.init.zeros_(weight)

    @property
    def halo(self) -> int:
        """Radius in pixels beyond which, with fixed channel gates, no pixel acts on another."""
        # Beyond the convolutions: the rest of a shuffled square, and the neighbours that smooth gains are interpolated from.
        reach = GROUPS * (2 * self.blocks + 1) + 3 + (self.residual == "affine")
        return reach * self.shuffle + self.shuffle - 1

    @property
    def feature_channels(self) -> int:
        """Channels of the features: those of the three groups together."""
        return GROUPS * self.dim

    def features(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (r1, r2, r3) of the groups for a normalised image whose sides are multiples of `shuffle`."""
        r1 = self.g1(self.pre(F.pixel_unshuffle(x, self.shuffle)))
        r2 = self.g2(r1)
        return r1, r2, self.g3(r2)

    def forward(
        self, x: Float[Tensor, "b 3 h w"], return_features: bool = False
    ) -> Float[Tensor, "b 3 h w"] | tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b c h2 w2"]]:
        """Estimate the clean image, unclamped, in the scale of [0, 1].

        Args:
            x: normalised degraded image of any size.
            return_features: also return the concatenated group outputs, of 3 dim channels and 1 / shuffle the size.
        """
        height, width = x.shape[-2:]
        bottom, right = -height % self.shuffle, -width % self.shuffle
        padded = F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x
        f = torch.cat(self.features(padded), 1)
        out = self.post(f).to(x.dtype)
        change = F.pixel_shuffle(out[:, : 3 * self.shuffle**2], self.shuffle)[..., :height, :width]
        if self.residual == "normalized":
            estimate = change + x
        else:
            image = denormalize(x)
            estimate = change + image
            if self.residual == "affine":
                smooth = F.interpolate(out[:, -6:], scale_factor=self.shuffle, mode="bilinear")[..., :height, :width]
                gain, offset = smooth.chunk(2, 1)
                estimate = estimate + gain * image + offset
        return (estimate, f) if return_features else estimate

    @torch.inference_mode()
    def restore(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Restore images in [0, 1]; the result is clamped to [0, 1]. See `weatherkr.restore_image` for files and large pictures."""
        estimate = self(normalize(image))
        return estimate.clamp(0, 1)

    def channel_attentions(self) -> list[ChannelAttention]:
        """The channel attention layers, from input to output."""
        return [module for module in self.modules() if isinstance(module, ChannelAttention)]

    def latest_gates(self) -> list[Tensor]:
        """The channel gates of the last forward pass, of the mean over its batch."""
        gates = [layer.latest for layer in self.channel_attentions()]
        if any(gate is None for gate in gates):
            raise RuntimeError("no forward pass yet")
        return [gate.mean(0, keepdim=True) for gate in gates if gate is not None]

    @contextlib.contextmanager
    def fixed_gates(self, gates: list[Tensor]) -> Generator[None]:
        """Within the block, every channel attention uses these gates: the network is then local, with radius `halo`."""
        for layer, gate in zip(self.channel_attentions(), gates, strict=True):
            layer.fixed = gate
        try:
            yield
        finally:
            for layer in self.channel_attentions():
                layer.fixed = None
