"""Features of whole sets of crops (section 3.5, inference)."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Subset

from multreid.augmentation import normalise
from multreid.crops import CropSet
from multreid.networks import TwoStreamResNet, unit_features
from tenfold import UserError
from tenfold.runs import autocast, track

Store = Callable[[int, Float[np.ndarray, "b d"]], None]


def load_model(folder: Path) -> TwoStreamResNet:
    """Read a model that `save_pretrained` wrote (a run folder's `model` is one, and so is the run folder itself).

    Raises:
        UserError: no model there, or one of another kind.
    """
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder}: holds no model (config.json and model.safetensors); name a finished run or a model folder"
        )
    try:
        # The hub client reports on standard output, which belongs to the verb.
        with contextlib.redirect_stdout(None):
            model = TwoStreamResNet.from_pretrained(folder)
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: not a multreid model ({str(error).splitlines()[0]})") from None
    return model.eval()


def extract(
    model: TwoStreamResNet,
    crops: CropSet,
    rows: Int[np.ndarray, " n"],
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 0,
    description: str = "features",
) -> Float[np.ndarray, "n d"]:
    """Unit features of some rows of a set.

    Args:
        model: put into evaluation mode for the time.
        crops: the pictures.
        rows: which of them.
        device: where to compute.
        batch_size: pictures at once.
        workers: processes that read pictures.
        description: for the progress bar.
    """
    features = np.empty((rows.size, model.dimension), dtype=np.float32)

    def store(start: int, batch: Float[np.ndarray, "b d"]) -> None:
        features[start : start + len(batch)] = batch

    extract_into(store, model, crops, rows, device, batch_size, workers, description)
    return features


def extract_into(
    store: Store,
    model: TwoStreamResNet,
    crops: CropSet,
    rows: Int[np.ndarray, " n"],
    device: torch.device,
    batch_size: int,
    workers: int,
    description: str,
) -> None:
    """`extract` for sets whose features need not fit in memory: `store` receives the first row number and the rows."""
    was_training = model.training
    model.eval()
    loader = DataLoader(Subset(crops, rows.tolist()), batch_size, num_workers=workers)
    start = 0
    for pictures in track(loader, description):
        with autocast(device):
            features = unit_features(model, normalise(pictures.to(device).float() / 255), crops.crops.modality)
        store(start, features.cpu().numpy())
        start += len(pictures)
    model.train(was_training)
