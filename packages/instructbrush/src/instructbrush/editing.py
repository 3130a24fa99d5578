"""Applying an instruction to new pictures (paper §4.1; three-way guidance)."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instructbrush.instruction import Instruction, Pipeline, encode_text
from instructbrush.pairs import Fit, read_rgb, rgb_of, squared
from tenfold.errors import UserError
from tenfold.images import list_images
from tenfold.runs import track


@dataclass(frozen=True)
class ApplyOptions:
    """How pictures are edited; what is not given comes from the instruction file.

    Attributes:
        guidance: instruction scale s_T: larger exaggerates the edit.
        image_guidance: picture scale s_I: larger preserves the picture.
        steps: sampling steps.
        seed: of the noise; each picture has its own.
        batch_size: pictures at once.
        extra: Words for the slots that the instruction leaves free (instructions of fewer tokens than the text).
    """

    guidance: float | None = None
    image_guidance: float | None = None
    steps: int | None = None
    seed: int = 0
    batch_size: int = 1
    extra: str = ""


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
    if steps < 1:
        raise UserError(f"steps {steps}: must be at least 1")
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
        name: where it belongs in the folder of results.
        before: what the editor saw.
        after: what it made of it.
    """

    name: Path
    before: Float[Tensor, "3 h w"]
    after: Float[Tensor, "3 h w"]


def result_names(sources: Sequence[Path]) -> dict[Path, Path]:
    """Each picture of some files and folders, and the name of its result: PNG, below folders as it lay below them.

    Raises:
        UserError: nothing to edit, or two pictures whose results would have one name.
    """
    names: dict[Path, Path] = {}
    for source in sources:
        for path in list_images(source):
            names[path] = (path.relative_to(source) if source.is_dir() else Path(path.name)).with_suffix(".png")
    if not names:
        raise UserError("name at least one picture or folder")
    taken: dict[Path, Path] = {}
    for path, name in names.items():
        if name in taken:
            raise UserError(f"{path}: its result would have the name of that of {taken[name]} ({name})")
        taken[name] = path
    return names


def edit_files(
    pipe: Pipeline, instruction: Instruction, names: dict[Path, Path], options: ApplyOptions, size: int, fit: Fit
) -> Iterator[EditedFile]:
    """Edit picture files, a batch after the other.

    Args:
        pipe: the editor.
        instruction: what to do.
        names: from `result_names`.
        options: how.
        size: side of the results.
        fit: how other shapes are made square.

    Raises:
        UserError: an unreadable picture: it is named before anything is edited.
    """
    if size % pipe.vae_scale_factor or size < 8:
        raise UserError(f"--size {size}: must be a multiple of {pipe.vae_scale_factor}")
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: must be at least 1")
    paths = list(names)
    for path in track(paths, "checking"):
        read_rgb(path)
    for start in track(range(0, len(paths), options.batch_size), "editing"):
        part = paths[start : start + options.batch_size]
        before = torch.stack([squared(read_rgb(path), size, fit) for path in part])
        edited = edit_batch(pipe, instruction, before, options, start)
        for path, first, second in zip(part, before, edited, strict=True):
            yield EditedFile(names[path], first, second)
