"""Applying an instruction to new pictures (paper §4.1; three-way guidance)."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instructbrush.config import ApplyOptions, Fit
from instructbrush.data.datasets import read_rgb, rgb_of, squared
from instructbrush.models.instruction import Instruction, Pipeline, check_size, encode_text
from tenfold.errors import UserError
from tenfold.files import check_writable
from tenfold.folders import FolderReport, Job, check_jobs, work_on_files
from tenfold.images import list_images, write_image
from tenfold.runs import track


@torch.no_grad()
def edit_batch(
    pipe: Pipeline, instruction: Instruction, images: Float[Tensor, "b 3 h w"], options: ApplyOptions, first: int = 0
) -> Float[Tensor, "b 3 h w"]:
    """Edit pictures in [0, 1] whose sides fit the editor.

    Args:
        pipe: the editor.
        instruction: what to do.
        images: the pictures.
        options: how.
        first: number of the first picture, for its noise.

    Raises:
        UserError: the instruction is of another editor, or scales and steps are out of range.
    """
    about = instruction.about
    guidance = about.guidance_scale if options.guidance is None else options.guidance
    image_guidance = about.image_guidance_scale if options.image_guidance is None else options.image_guidance
    steps = about.sampling_steps if options.steps is None else options.steps
    if steps > about.num_train_timesteps:
        raise UserError(f"steps {steps}: this editor has 1 to {about.num_train_timesteps}")
    if guidance < 1 or image_guidance < 0:
        raise UserError(f"guidance {guidance}, image guidance {image_guidance}: at least 1 and 0")
    if guidance <= 1 < image_guidance or image_guidance < 1 < guidance:
        warnings.warn(
            "guidance is off: it needs an instruction scale above 1 and a picture scale of at least 1", stacklevel=2
        )
    text, null = _texts(pipe, instruction, options.extra)
    count, device, dtype = len(images), pipe._execution_device, pipe.unet.dtype
    generators = [torch.Generator().manual_seed(options.seed + first + index) for index in range(count)]
    shape = (pipe.vae.config.latent_channels, *(side // pipe.vae_scale_factor for side in images.shape[-2:]))
    noise = torch.stack([torch.randn(shape, generator=each) for each in generators]).to(device, dtype)
    with instruction.attach(pipe):
        edited = pipe(
            image=images.to(device, dtype),
            prompt_embeds=text.to(device, dtype).expand(count, -1, -1),
            negative_prompt_embeds=null.to(device, dtype).expand(count, -1, -1),
            guidance_scale=guidance,
            image_guidance_scale=image_guidance,
            num_inference_steps=steps,
            generator=generators,
            latents=noise,
            output_type="latent",
        ).images
        decoded = pipe.vae.decode(edited / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return (decoded.float().cpu() / 2 + 0.5).clamp(0, 1)


def _texts(pipe: Pipeline, instruction: Instruction, extra: str) -> tuple[Tensor, Tensor]:
    text = instruction.text_embedding
    if extra:
        if instruction.about.num_tokens >= text.shape[1]:
            raise UserError("--extra: this instruction replaces all slots of the text; learn one with fewer --tokens")
        text = encode_text(pipe, f"{instruction.about.init_text} {extra}".strip())
    if pipe.text_encoder is None:
        raise UserError("the pipeline has no text encoder: guidance needs the encoding of the empty text")
    return text, encode_text(pipe, "")


def apply_instruction(
    pipe: Pipeline,
    instruction: Instruction,
    images: Sequence[Image.Image],
    options: ApplyOptions | None = None,
    *,
    size: int | None = None,
    fit: Fit = "crop",
) -> list[Image.Image]:
    """Edit PIL pictures.

    Args:
        pipe: the editor.
        instruction: what to do.
        images: the pictures.
        options: how.
        size: side of the results; by default the editor's own.
        fit: how other shapes are made square.
    """
    side = size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    tensors = [squared(rgb_of(each), side, fit) for each in images]
    options = options or ApplyOptions()
    done = []
    for start in range(0, len(tensors), options.batch_size):
        batch = torch.stack(tensors[start : start + options.batch_size])
        done.extend(edit_batch(pipe, instruction, batch, options, start))
    return [Image.fromarray((each.permute(1, 2, 0) * 255).round().byte().numpy()) for each in done]


@dataclass(frozen=True)
class EditedFile:
    """A picture that was edited.

    Attributes:
        target: where it belongs.
        before: what the editor saw.
        after: what it made of it.
    """

    target: Path
    before: Float[Tensor, "3 h w"]
    after: Float[Tensor, "3 h w"]


def plan(sources: Sequence[Path], out: Path, overwrite: bool = False) -> list[Job]:
    """Each picture of some files and folders, and its result: PNG, below folders as it lay below them.

    Args:
        sources: pictures and folders.
        out: folder of the results.
        overwrite: allow results that exist.

    Raises:
        UserError: nothing to edit, a place that cannot be written, or see `tenfold.folders.check_jobs`.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    names: dict[Path, Path] = {}
    for source in sources:
        for path in list_images(source):
            names[path] = (path.relative_to(source) if source.is_dir() else Path(path.name)).with_suffix(".png")
    if not names:
        raise UserError("name at least one picture or folder")
    check_writable(out)
    jobs = [Job(path, out / name) for path, name in names.items()]
    check_jobs(jobs, overwrite)
    return jobs


def readable(jobs: Sequence[Job]) -> FolderReport[None]:
    """Find the pictures that cannot be read before anything is edited.

    Raises:
        UserError: none can.
    """

    def read(path: Path) -> None:
        read_rgb(path)

    return work_on_files(track([job.source for job in jobs], "checking"), read, alone=len(jobs) == 1)


def edit_files(
    pipe: Pipeline, instruction: Instruction, jobs: Sequence[Job], options: ApplyOptions, size: int, fit: Fit
) -> Iterator[EditedFile]:
    """Edit picture files, a batch after the other; each result is written.

    Args:
        pipe: the editor.
        instruction: what to do.
        jobs: from `plan`, those that are `readable`.
        options: how.
        size: side of the results.
        fit: how other shapes are made square.
    """
    check_size(pipe, size)
    for start in track(range(0, len(jobs), options.batch_size), "editing"):
        part = jobs[start : start + options.batch_size]
        before = torch.stack([squared(read_rgb(job.source), size, fit) for job in part])
        edited = edit_batch(pipe, instruction, before, options, start)
        for job, first, second in zip(part, before, edited, strict=True):
            write_image(job.target, second.permute(1, 2, 0).numpy())
            yield EditedFile(job.target, first, second)
