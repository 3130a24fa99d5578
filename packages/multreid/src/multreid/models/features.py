"""Features of whole sets of crops (section 3.5, inference)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multreid.data.datasets import CropSet
from multreid.data.transforms import normalise
from multreid.models.networks import Architecture, TwoStreamResNet, unit_features
from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors
from tenfold.config import from_dict
from tenfold.images import ImageError
from tenfold.options import Count
from tenfold.reading import read_json_object
from tenfold.runs import autocast, track

Store = Callable[[int, Float[np.ndarray, "b d"]], None]
OnFault = Callable[[int, str], None]


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
    config, weights = folder / "config.json", folder / "model.safetensors"
    try:
        about = from_dict(read_json_object(config), _ModelRecord, str(config))
        model = TwoStreamResNet(about.architecture, about.height, about.width)
        tensors = read_tensors(weights)[0]
        load_weights(model, tensors, weights)
        if not all(bool(each.isfinite().all()) for each in tensors.values() if each.is_floating_point()):
            raise UserError(f"{weights}: holds numbers that are not finite")
    except UserError as error:
        raise UserError(f"{error}; not a multreid model") from None
    return model.eval()


@dataclass(frozen=True)
class _ModelRecord:
    """What `config.json` of a model says: the arguments of `TwoStreamResNet`."""

    architecture: Architecture = "resnet50"
    height: Count = 288
    width: Count = 144


class _Read(Dataset[tuple[Tensor, str]]):
    """Rows of a set with, where a file cannot be read, a black picture and the reason: an error would end all of it."""

    def __init__(self, crops: CropSet, rows: Int[np.ndarray, " n"]) -> None:
        self.crops, self.rows = crops, rows.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        try:
            return self.crops[self.rows[index]], ""
        except UserError as error:
            return torch.zeros(3, self.crops.height, self.crops.width, dtype=torch.uint8), str(error)


def extract(
    model: TwoStreamResNet,
    crops: CropSet,
    rows: Int[np.ndarray, " n"],
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 0,
    description: str = "features",
    on_fault: OnFault | None = None,
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
        on_fault: see `extract_into`.
    """
    features = np.empty((rows.size, model.dimension), dtype=np.float32)

    def store(start: int, batch: Float[np.ndarray, "b d"]) -> None:
        features[start : start + len(batch)] = batch

    extract_into(store, model, crops, rows, device, batch_size, workers, description, on_fault)
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
    on_fault: OnFault | None = None,
) -> None:
    """`extract` for sets whose features need not fit in memory.

    Args:
        store: receives the first row number and the rows.
        model: see `extract`.
        crops: see `extract`.
        rows: see `extract`.
        device: see `extract`.
        batch_size: see `extract`.
        workers: see `extract`.
        description: see `extract`.
        on_fault: receives the number, among `rows`, of a picture that cannot be read, and the reason; its features mean
            nothing. Without it the first such picture is an error.

    Raises:
        ImageError: a picture that cannot be read.
    """
    was_training = model.training
    model.eval()
    loader = DataLoader(_Read(crops, rows), batch_size, num_workers=workers)
    start = 0
    for pictures, faults in track(loader, description):
        for number, fault in enumerate(faults, start):
            if fault and on_fault is None:
                raise ImageError(fault)
            if fault and on_fault is not None:
                on_fault(number, fault)
        with autocast(device):
            features = unit_features(model, normalise(pictures.to(device).float() / 255), crops.crops.modality)
        store(start, features.cpu().numpy())
        start += len(pictures)
    model.train(was_training)
