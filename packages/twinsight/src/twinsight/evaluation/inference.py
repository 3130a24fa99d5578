"""What a classifier says of a whole set of pictures."""

import torch
from torch import Tensor

from tenfold.runs import autocast
from twinsight.data.datasets import Pictures
from twinsight.models import TwinModel

TEST_BATCH = 500


@torch.no_grad()
def predict_labels(model: TwinModel, pictures: Pictures, precision: str = "auto") -> Tensor:
    """The most likely class of each picture, in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    with autocast(device) if precision == "auto" else torch.autocast(device.type, enabled=False):
        batches = pictures.images.split(TEST_BATCH)
        return torch.cat([model(model.normalise(images.to(device) / 255)).argmax(1).cpu() for images in batches])


def accuracy(model: TwinModel, pictures: Pictures, precision: str = "auto") -> float:
    """Top-1 accuracy in per cent."""
    return 100 * (predict_labels(model, pictures, precision) == pictures.labels).double().mean().item()
