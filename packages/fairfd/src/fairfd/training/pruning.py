"""Pruning a trained detector on the genuine images of one split, to be judged on another (paper, "BPFA", tables 3 and 8)."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from fairfd.data.datasets import as_dataset
from fairfd.data.manifest.manifest import Manifest
from fairfd.data.manifest.samples import REAL
from fairfd.method.pruning import (
    MEAN_OF_NORM,
    NORM_OF_MEAN,
    Method,
    apply_masks,
    check_rate,
    group_norms,
    make_permanent,
    pruning_masks,
    require_disjoint_identities,
)
from fairfd.models.detectors import load_detector
from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.config import from_dict
from tenfold.files import atomic_folder, check_writable
from tenfold.runs import track

STATISTICS = {"mean_of_norm": MEAN_OF_NORM, "norm_of_mean": NORM_OF_MEAN}


def prune_detector(
    manifest: Manifest,
    source: Path,
    out: Path,
    method: Method = "bpfa",
    rate: float = 0.01,
    statistic: str = "mean_of_norm",
    calibration: str = "val",
    evaluation: str = "test",
    batch_size: int = 32,
) -> tuple[int, int]:
    """Prune a trained detector and save it, with its masks.

    Args:
        manifest: images with splits.
        source: folder of the trained detector.
        out: folder that receives the pruned detector (load it like any other) and masks.safetensors.
        method: `bpfa`, `weig` or `roba`.
        rate: share of each layer's weights to zero.
        statistic: `mean_of_norm` (paper, eq. 4) or `norm_of_mean` (official code).
        calibration: the split whose genuine images give the channel statistics.
        evaluation: the split that will judge; no person may be in both.
        batch_size: images at a time.

    Returns:
        Number of weights set to zero, and of layers.

    Raises:
        UserError: see `fairfd.prune`; people in both splits; an output folder that is not empty.
    """
    check_rate(rate)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not an empty folder; choose another --out")
    check_writable(out)
    genuine = manifest.subset(calibration, REAL)
    judges = manifest.subset(evaluation)
    require_disjoint_identities([sample.identity for sample in genuine], [sample.identity for sample in judges])
    detector = load_detector(source)
    groups = genuine.groups()
    images = as_dataset(genuine, detector.in_size)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in track(torch.arange(len(images)).split(batch_size), "calibrating"):
            pixels = images.pixels(rows.tolist()).float() / 255
            yield pixels, torch.tensor([groups.index(images.samples[row].group) for row in rows.tolist()])

    norms = group_norms(detector, batches(), groups, statistic=STATISTICS[statistic], forward=detector.predict_proba)
    masks = pruning_masks(detector, method, rate, norms)
    apply_masks(detector, masks)
    make_permanent(detector)
    with atomic_folder(out) as folder:
        detector.save_pretrained(folder)
        write_masks(folder / "masks.safetensors", masks, PruningRecord(method, rate, statistic, groups))
    return sum(int((~mask).sum()) for mask in masks.values()), len(masks)


FORMAT = "fairfd-pruning-masks-1"


@dataclass(frozen=True)
class PruningRecord:
    """How a set of masks was made.

    Attributes:
        method: "bpfa", "weig" or "roba".
        rate: fraction of each layer's weights that is zero.
        statistic: "mean_of_norm" (paper Eq. 4) or "norm_of_mean" (official code).
        groups: the groups of the calibration data.
    """

    method: Method
    rate: float
    statistic: str
    groups: tuple[str, ...]


def write_masks(path: Path, masks: Mapping[str, Bool[Tensor, "..."]], record: PruningRecord) -> None:
    """Write the masks and their record to one safetensors file, whole or not at all."""
    header = {"format": FORMAT} | {key: str(value) for key, value in asdict(record).items() if key != "groups"}
    header["groups"] = "\n".join(record.groups)
    write_tensors(path, masks, header)


def read_masks(path: Path) -> tuple[dict[str, Bool[Tensor, "..."]], PruningRecord]:
    """Masks and record of a file written by `write_masks`.

    Raises:
        UserError: no such file, not safetensors, or a safetensors file of something else.
    """
    masks, header = read_tensors(path)
    if header.get("format") != FORMAT or any(mask.dtype != torch.bool for mask in masks.values()):
        raise UserError(f"{path} holds no pruning masks: expected a file written by `fairfd prune`")
    try:
        rate = float(header["rate"])
        groups = tuple(header["groups"].split("\n"))
        return masks, from_dict(
            {"method": header["method"], "rate": rate, "statistic": header["statistic"], "groups": groups},
            PruningRecord,
            str(path),
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: the record of its pruning masks is damaged ({error})") from None
