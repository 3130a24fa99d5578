"""Pruning masks as safetensors files with method, rate and statistic in the header (paper, version 3)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fairfd.prune import Method
from tenfold.errors import UserError
from tenfold.files import atomic_path

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
    with atomic_path(path) as temporary:
        save_file({name: mask.cpu().contiguous() for name, mask in masks.items()}, temporary, metadata=header)


def read_masks(path: Path) -> tuple[dict[str, Bool[Tensor, "..."]], PruningRecord]:
    """Masks and record of a file written by `write_masks`.

    Raises:
        UserError: no such file, not safetensors, or a safetensors file of something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError(f"{path} holds no pruning masks: expected a file written by `fairfd prune`")
            masks = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read pruning masks from {path}: {error}") from error
    record = PruningRecord(
        method=header["method"],
        rate=float(header["rate"]),
        statistic=header["statistic"],
        groups=tuple(header["groups"].split("\n")),
    )
    return masks, record
