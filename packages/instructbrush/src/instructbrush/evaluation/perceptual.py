"""Self-supervised features of pictures (DINO, Caron et al. 2021): the class token of a timm vision transformer."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.errors import UserError

DINO = "vit_base_patch16_224.dino"


@dataclass
class DinoFeatures:
    """A vision transformer with what prepares its inputs.

    Attributes:
        model: any timm model with `forward_features` that returns tokens, the class token first.
        side: of the pictures that it takes.
        mean: of its inputs, by channel.
        deviation: of its inputs, by channel.
        name: how to call it in reports.
    """

    model: nn.Module
    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    name: str

    @classmethod
    def load(cls, name: str = DINO, pretrained: bool = True) -> "DinoFeatures":
        """A timm model by name, its weights fetched by timm.

        Raises:
            UserError: timm is missing, or it has no such model, or the weights can not be had.
        """
        try:
            import timm
            from timm.data.config import resolve_model_data_config
        except ImportError:
            raise UserError("DINO similarity needs timm: pip install 'instructbrush[dino]'") from None
        if not timm.is_model(name):
            raise UserError(f"--dino {name}: timm has no such model")
        try:
            model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"--dino {name}: {str(error).splitlines()[0]}") from None
        data = resolve_model_data_config(model)
        model = model.eval().requires_grad_(False)
        return cls(model, data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]), name)

    @torch.no_grad()
    def images(self, pictures: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Class tokens of square pictures in [0, 1], not normalised."""
        sized = F.interpolate(pictures, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, deviation = (torch.tensor(each)[:, None, None] for each in (self.mean, self.deviation))
        model: Any = self.model
        return model.forward_features((sized - mean) / deviation)[:, 0].float()
