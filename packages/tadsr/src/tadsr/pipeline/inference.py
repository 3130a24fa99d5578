"""Work on picture files: enlarging, making small. Alpha and bit depth are kept, inputs are never written over."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tadsr.config import Degradation, UpscaleOptions
from tadsr.data.degradation import degrade
from tadsr.data.transforms import enlarge
from tadsr.evaluation.protocols import Upscaler
from tadsr.pipeline.pipeline import TADSRPipeline
from tenfold import UserError
from tenfold.data import to_tensor
from tenfold.files import check_writable
from tenfold.folders import FolderReport, Job, check_jobs, plan_outputs, work_on_files
from tenfold.images import read_picture, write_image
from tenfold.runs import track

ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Formats that one result can be asked for; folders get PNG files."""


def plan(source: Path, out: Path, overwrite: bool = False) -> list[Job]:
    """Where each picture goes: PNG files below a folder, or for one picture the file that `out` names.

    Args:
        source: a picture or a folder.
        out: a file when `source` is one and `out` ends like a picture, otherwise a folder.
        overwrite: allow results that exist.

    Raises:
        UserError: see `tenfold.folders.plan_outputs`.
    """
    if not (source.is_file() and out.suffix.lower() in ENDINGS and not out.is_dir()):
        return plan_outputs(source, out, overwrite=overwrite)
    check_writable(out)
    jobs = [Job(source, out)]
    check_jobs(jobs, overwrite)
    return jobs


def upscale_file(pipeline: TADSRPipeline, source: Path, target: Path, options: UpscaleOptions) -> float:
    """Enlarge one file; alpha is enlarged bicubically, 16 bits stay 16 bits.

    Returns:
        Megapixels written.

    Raises:
        ImageError: it cannot be read or written.
    """
    picture = read_picture(source)
    generator = torch.Generator().manual_seed(options.seed)
    images: Any = pipeline(
        picture.rgb,
        num_inference_steps=options.steps,
        generator=generator,
        tile=options.tile or None,
        tile_overlap=options.overlap,
        sampler=options.sampler,
        colour_fix=options.colour_fix,
        output_type="np",
    ).images
    result = images[0]
    alpha = None
    if picture.alpha is not None:
        alpha = enlarge(torch.from_numpy(np.array(picture.alpha))[None, None], pipeline.config.scale)
        alpha = alpha[0, 0].clamp(0, 1).numpy()
    write_image(target, result, alpha=alpha, bit_depth=picture.bit_depth)
    return result.shape[0] * result.shape[1] / 1e6


def upscale_files(pipeline: TADSRPipeline, jobs: Sequence[Job], options: UpscaleOptions) -> FolderReport[float]:
    """Enlarge files; those that cannot be read are passed over and named.

    Args:
        pipeline: the model.
        jobs: from `plan`.
        options: how.

    Returns:
        Megapixels written, by file, and what was passed over.

    Raises:
        UserError: options that the model has not, or no file could be read.
    """
    pipeline.steps_of(options.steps)
    targets = {job.source: job.target for job in jobs}
    return work_on_files(
        track(list(targets), "upscaling"),
        lambda path: upscale_file(pipeline, path, targets[path], options),
        alone=len(jobs) == 1,
    )


def degrade_files(jobs: Sequence[Job], kind: Degradation, seed: int) -> FolderReport[None]:
    """Make low-quality images of files; those that cannot be read are passed over and named.

    Args:
        jobs: from `plan`.
        kind: which pipeline.
        seed: with the number of the picture it decides what is drawn.

    Raises:
        UserError: no file could be read.
    """
    numbers = {job.source: index for index, job in enumerate(jobs)}

    def work(path: Path) -> None:
        high = to_tensor(path)[None]
        height, width = (side // 4 * 4 for side in high.shape[-2:])
        if not height or not width:
            raise UserError(f"{path}: smaller than 4 pixels")
        low = degrade(high[..., :height, :width], kind, [(seed, numbers[path])])
        write_image(jobs[numbers[path]].target, low[0].movedim(0, -1).numpy())

    return work_on_files(track(list(numbers), "degrading"), work, alone=len(jobs) == 1)


def upscaler(pipeline: TADSRPipeline, steps: int | None = None, seed: int = 12345) -> Upscaler:
    """A pipeline as a function from low-quality to enlarged picture."""

    def enlarge_one(low: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 _ _"]:
        generator = torch.Generator().manual_seed(seed)
        images: Any = pipeline(low, num_inference_steps=steps, generator=generator, output_type="pt").images
        return images

    return enlarge_one
