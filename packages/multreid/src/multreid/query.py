"""Query pictures to features."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from multreid.crops import CropSet
from multreid.extraction import extract
from multreid.layouts import Crops, Modality
from multreid.networks import TwoStreamResNet
from tenfold.images import list_images


def query_features(
    model: TwoStreamResNet, query: Path, modality: Modality, device: torch.device
) -> tuple[list[Path], Float[np.ndarray, "q d"]]:
    """Unit features of one picture, or of all pictures below a folder, with the files in the same order.

    Raises:
        UserError: no such file, or no picture in the folder.
    """
    paths = list_images(query)
    nobody = np.full(len(paths), -1)
    crops = CropSet(Crops(tuple(paths), nobody, nobody, modality), model.height, model.width)
    return paths, extract(model, crops, np.arange(len(paths)), device=device, description="queries")
