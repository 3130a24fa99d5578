"""Projected CLIP features of pictures and texts, with whatever version of transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from instructbrush.models.checkpoints import network, preparation
from tenfold.hub import model_folder

CHUNK = 2048
"""Texts that are encoded at once."""


def projected(output: Any) -> Float[Tensor, "b d"]:
    """The projected feature: transformers 4 returns the tensor, transformers 5 an object that holds it."""
    return output if isinstance(output, Tensor) else output.pooler_output


@dataclass
class ClipFeatures:
    """A CLIP with what prepares its inputs.

    Attributes:
        model: any `CLIPModel`.
        processor: its picture preparation: size, mean and deviation are read from it.
        tokenizer: its tokenizer.
        name: how to call it in reports.
    """

    model: CLIPModel
    processor: CLIPImageProcessor
    tokenizer: CLIPTokenizer
    name: str = "CLIP"

    @classmethod
    def load(cls, source: str | Path, device: torch.device, revision: str | None = None) -> "ClipFeatures":
        """A CLIP by Hub name or folder.

        Args:
            source: its name or folder.
            device: where to compute.
            revision: branch, tag or commit of the Hub.

        Raises:
            UserError: a folder that holds none, or a model that cannot be fetched.
        """
        folder = model_folder(source, revision)
        return cls(
            network(CLIPModel, folder).to(device),
            preparation(CLIPImageProcessor, folder, "preprocessor_config.json"),
            preparation(CLIPTokenizer, folder, "tokenizer_config.json"),
            str(source),
        )

    @property
    def side(self) -> int:
        """Of the pictures that it takes."""
        config: Any = self.model.config
        return config.vision_config.image_size

    @torch.no_grad()
    def images(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Features of pictures in [0, 1], not normalised."""
        side = self.side
        height, width = pictures.shape[-2:]
        factor = side / min(height, width)
        size = (max(side, round(height * factor)), max(side, round(width * factor)))
        small = pictures if size == (height, width) else F.interpolate(pictures, size, mode="bicubic", antialias=True)
        top, left = (small.shape[-2] - side) // 2, (small.shape[-1] - side) // 2
        small = small[..., top : top + side, left : left + side].clamp(0, 1)
        mean, deviation = (
            torch.tensor(each, device=small.device)[:, None, None]
            for each in (self.processor.image_mean, self.processor.image_std)
        )
        inputs = ((small - mean) / deviation).to(self.model.device, self.model.dtype)
        return projected(self.model.get_image_features(pixel_values=inputs)).float().cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Features of texts, not normalised."""
        found = []
        for start in range(0, len(texts), CHUNK):
            tokens = self.tokenizer(
                list(texts[start : start + CHUNK]), padding="max_length", truncation=True, return_tensors="pt"
            ).to(self.model.device)
            output = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            found.append(projected(output).float().cpu())
        return torch.cat(found)
