"""Query pictures to features."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from multreid.data.datasets import CropSet
from multreid.data.layouts import Crops, Modality
from multreid.models.features import extract
from multreid.models.networks import TwoStreamResNet
from tenfold import UserError
from tenfold.images import list_images


def query_features(
    model: TwoStreamResNet, query: Path, modality: Modality, device: torch.device
) -> tuple[list[Path], Float[np.ndarray, "q d"], list[str]]:
    """Unit features of one picture, or of all pictures below a folder that can be read.

    Returns:
        The pictures, their features in the same order, and those that could not be read with the reason of each.

    Raises:
        UserError: no such file, no picture in the folder, or none that can be read.
    """
    paths = list_images(query)
    nobody = np.full(len(paths), -1)
    crops = CropSet(Crops(tuple(paths), nobody, nobody, modality), model.height, model.width)
    faults: dict[int, str] = {}
    features = extract(
        model,
        crops,
        np.arange(len(paths)),
        device=device,
        description="queries",
        on_fault=lambda number, reason: faults.update({number: " ".join(reason.split())}),
    )
    if len(faults) == len(paths):
        alone = len(paths) == 1
        raise UserError(faults[0] if alone else f"{query}: no picture could be used: {faults[0]}")
    kept = [row for row in range(len(paths)) if row not in faults]
    return [paths[row] for row in kept], features[kept], list(faults.values())
