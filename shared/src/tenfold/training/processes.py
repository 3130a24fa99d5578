"""One process or several: which device, which share of a batch, who writes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from tenfold.errors import UserError
from tenfold.runs import RunFolder, pick_device, track

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


def start_accelerator(device: str = "auto") -> "tuple[Accelerator, torch.device]":
    """accelerate for this process, and the device to compute on.

    Placement and precision stay with the loop, whatever the machine's accelerate configuration says.

    Args:
        device: `auto`, or a torch device name; of several processes each takes its own.

    Raises:
        UserError: no such device here.
    """
    from accelerate import Accelerator

    # Without being told, accelerate does not let processes on CPUs find each other.
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu, device_placement=False, mixed_precision="no")
    chosen = device != "auto" and accelerator.num_processes == 1
    return accelerator, pick_device(device) if chosen else accelerator.device


def check_batch_size(batch_size: int, processes: int) -> None:
    """Refuse a batch that the processes cannot share equally.

    Raises:
        UserError: it is no multiple.
    """
    if batch_size % processes:
        raise UserError(f"batch size {batch_size} cannot be shared by {processes} processes; make it a multiple")


def share_of(rows: Sequence[Item], accelerator: "Accelerator") -> Sequence[Item]:
    """This process's part of a batch: every n-th row."""
    return rows[accelerator.process_index :: accelerator.num_processes]


def open_run(accelerator: "Accelerator", path: Path, config: Any, resume: bool) -> RunFolder:
    """The run folder, made by the main process and seen by all.

    Raises:
        UserError: see `RunFolder.create`.
    """
    if accelerator.is_main_process:
        RunFolder.create(path, config, resume)
    accelerator.wait_for_everyone()
    return RunFolder(path)


def track_in_main(
    accelerator: "Accelerator", items: Iterable[Item], description: str, total: int | None = None
) -> Iterable[Item]:
    """Iterate with a progress bar in the main process; see `tenfold.runs.track`."""
    return track(items, description, total) if accelerator.is_main_process else items
