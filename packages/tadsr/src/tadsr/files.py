"""Enlarging files: folders walked, alpha and bit depth kept, nothing half written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tadsr.colour import ColourFix
from tadsr.pipeline import Sampler, TADSRPipeline
from tadsr.resampling import enlarge
from tenfold import UserError
from tenfold.images import ImageError, list_images, read_picture, write_image
from tenfold.runs import track


@dataclass(frozen=True)
class UpscaleOptions:
    """How pictures are enlarged.

    Attributes:
        steps: Network calls; the model's own number by default, 0 for its whole chain.
        sampler: auto, one_step, ddim or ancestral.
        tile: Side of the tiles in input pixels; 0 for the whole picture at once.
        overlap: Of neighbouring tiles.
        colour_fix: none, wavelet or adain.
        seed: Of the noise.
    """

    steps: int | None = None
    sampler: Sampler = "auto"
    tile: int = 512
    overlap: int = 64
    colour_fix: ColourFix = "none"
    seed: int = 12345


@dataclass
class UpscaleReport:
    """What was done.

    Attributes:
        written: the new files.
        skipped: files that could not be read, with the reason.
        megapixels: written in all.
    """

    written: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    megapixels: float = 0.0


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


def upscale_files(pipeline: TADSRPipeline, source: Path, out: Path, options: UpscaleOptions) -> UpscaleReport:
    """Enlarge a file, or every picture below a folder; unreadable ones are skipped and named.

    Args:
        pipeline: the model.
        source: a picture or a folder.
        out: a file when `source` is one and `out` has a suffix, otherwise a folder.
        options: how.

    Raises:
        UserError: nothing could be written.
    """
    paths = list_images(source)
    report = UpscaleReport()
    for path in track(paths, "upscaling") if len(paths) > 1 else paths:
        target = out
        if source.is_dir() or not out.suffix:
            below = path.relative_to(source) if source.is_dir() else Path(path.name)
            target = out / below.with_suffix(".png")
        try:
            report.megapixels += upscale_file(pipeline, path, target, options)
        except ImageError as error:
            if len(paths) == 1:
                raise
            report.skipped.append(str(error))
            continue
        report.written.append(target)
    if not report.written:
        raise UserError(f"{source}: no picture could be enlarged ({report.skipped[0]})")
    return report
