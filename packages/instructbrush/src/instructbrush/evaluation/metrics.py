"""How near an edited picture is to the wanted one, and how well the edit goes the wanted way (paper §5; CLIP directions)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from instructbrush.evaluation.perceptual import DinoFeatures
from instructbrush.models.features import ClipFeatures
from tenfold.errors import UserError

CAP = 100.0
"""PSNR of equal pictures, in dB."""


def psnr(preds: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """PSNR in dB of each RGB picture in [0, 1], at most 100."""
    preds, target = preds.double(), target.double()
    each = peak_signal_noise_ratio(preds, target, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return each.clamp(max=CAP).float()


def region_psnr(
    preds: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"], source: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, " b"]:
    """PSNR over the pixels that the true edit changes by more than 0.02; NaN where it changes none."""
    changed = ((target - source).abs().amax(1, keepdim=True) > 0.02).double()
    count = 3 * changed.sum((1, 2, 3))
    error = ((preds - target).double().square() * changed).sum((1, 2, 3)) / count
    return (-10 * error.log10()).clamp(max=CAP).float()


def ssim(preds: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """SSIM of each RGB picture: Gaussian window of 11 taps and sigma 1.5, mean over channels, margin of five pixels left out.

    Raises:
        UserError: pictures of less than 11 pixels a side.
    """
    if min(preds.shape[-2:]) < 11:
        raise UserError(f"SSIM needs at least 11 pixels a side, got {preds.shape[-1]} x {preds.shape[-2]}")
    _, full = structural_similarity_index_measure(
        preds.double(), target.double(), sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    return torch.as_tensor(full)[..., 5:-5, 5:-5].mean((1, 2, 3)).float()


def direction_similarity(
    start: Float[Tensor, "b d"], end: Float[Tensor, "b d"], wanted: Float[Tensor, "b d"]
) -> Float[Tensor, " b"]:
    """Cosine of the way a picture went in feature space with the way it should go; 0 where either is no way at all.

    Args:
        start: features of the input picture.
        end: of the edited picture.
        wanted: the direction it should go: a difference of normalised features.
    """
    moved = F.normalize(end, dim=1) - F.normalize(start, dim=1)
    sizes = moved.norm(dim=1) * wanted.norm(dim=1)
    return torch.where(sizes > 1e-6, (moved * wanted).sum(1) / sizes.clamp(min=1e-12), torch.zeros_like(sizes))


def visual_direction(before: Float[Tensor, "b d"], after: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """n(f(y)) - n(f(x)): the wanted direction from true pairs, or from two texts."""
    return F.normalize(after, dim=1) - F.normalize(before, dim=1)


def clip_direction(
    start: Float[Tensor, "b d"], end: Float[Tensor, "b d"], before: Float[Tensor, "k d"], after: Float[Tensor, "k d"]
) -> Float[Tensor, " b"]:
    """Direction similarity to `after - before`: the true edits, captions, or (transfer) the mean of other pairs.

    Args:
        start: features of input pictures.
        end: features of edited pictures.
        before: features of the reference's first side; as many as pictures, or any number to be averaged.
        after: of its second side.
    """
    wanted = visual_direction(before, after)
    if len(wanted) != len(start):
        wanted = wanted.mean(0, keepdim=True).expand(len(start), -1)
    return direction_similarity(start, end, wanted)


@dataclass
class Scorer:
    """Measures edited pictures with whatever networks are at hand.

    Attributes:
        clip: for the CLIP metrics; None leaves them out.
        lpips: from `tenfold.perceptual.lpips_network`; None leaves it out.
        dino: for the similarity of class tokens; None leaves it out.
    """

    clip: ClipFeatures | None = None
    lpips: torch.nn.Module | None = None
    dino: DinoFeatures | None = None

    def measure(
        self,
        source: Float[Tensor, "b 3 h w"],
        edited: Float[Tensor, "b 3 h w"],
        truth: Float[Tensor, "b 3 h w"],
        train: tuple[Float[Tensor, "k 3 _ _"], Float[Tensor, "k 3 _ _"]] | None = None,
        captions: tuple[str, str] | None = None,
    ) -> dict[str, float]:
        """Means over pictures, after rounding to eight bits.

        Args:
            source: input pictures in [0, 1].
            edited: what was made of them.
            truth: what should have been.
            train: the pairs learnt from, for the transfer direction.
            captions: what the picture shows before and after, for the text direction.
        """
        source, edited, truth = ((each * 255).round() / 255 for each in (source, edited, truth))
        region = region_psnr(edited, truth, source)
        scores = {
            "psnr": float(psnr(edited, truth).mean()),
            "psnr edited region": float(region.nanmean()),
        }
        if min(edited.shape[-2:]) >= 11:
            scores["ssim"] = float(ssim(edited, truth).mean())
        if self.lpips is not None:
            with torch.no_grad():
                scores["lpips"] = float(self.lpips(edited, truth, normalize=True).mean())
        if self.dino is not None:
            tokens = self.dino.images(edited), self.dino.images(truth)
            scores["dino"] = float(F.cosine_similarity(*tokens).mean())
        if self.clip is not None:
            scores |= self._clip_scores(source, edited, truth, train, captions)
        return scores

    def _clip_scores(
        self,
        source: Tensor,
        edited: Tensor,
        truth: Tensor,
        train: tuple[Tensor, Tensor] | None,
        captions: tuple[str, str] | None,
    ) -> dict[str, float]:
        assert self.clip is not None
        start, end, goal = (self.clip.images(each) for each in (source, edited, truth))
        scores = {
            "clip-i": float(F.cosine_similarity(end, goal).mean()),
            "clip-dir": float(clip_direction(start, end, start, goal).mean()),
        }
        if train is not None:
            pair = (self.clip.images(train[0]), self.clip.images(train[1]))
            if len(pair[0]) == len(start):
                wanted = visual_direction(*pair).mean(0, keepdim=True).expand(len(start), -1)
                scores["clip-dir transfer"] = float(direction_similarity(start, end, wanted).mean())
            else:
                scores["clip-dir transfer"] = float(clip_direction(start, end, *pair).mean())
        if captions is not None:
            first, second = self.clip.texts(captions).split(1)
            wanted = visual_direction(first, second).expand(len(start), -1)
            scores["clip-dir text"] = float(direction_similarity(start, end, wanted).mean())
        return scores


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of scores as aligned text."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max((len(name) for name in rows), default=0)
    lines = [f"{'':<{width}}  " + "  ".join(f"{name:>{max(7, len(name))}}" for name in columns)]
    for name, row in rows.items():
        cells = (f"{row.get(each, float('nan')):>{max(7, len(each))}.3f}" for each in columns)
        lines.append(f"{name:<{width}}  " + "  ".join(cells))
    return "\n".join(lines)
