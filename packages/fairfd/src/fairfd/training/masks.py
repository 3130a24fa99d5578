"""Pruning masks as safetensors files with method, rate and statistic in the header (paper, version 3)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from fairfd.method.pruning import Method
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.config import from_dict
from tenfold.errors import UserError

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
