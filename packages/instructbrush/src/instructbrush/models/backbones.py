"""The frozen editor: the embedded one, or any InstructPix2Pix-style checkpoint by folder or Hub name."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from instructbrush.config import BaseOptions
from instructbrush.models.checkpoints import FILES, is_tiny, load_tiny, network, preparation, scheduler, shipped_model
from instructbrush.models.features import ClipFeatures
from instructbrush.models.instruction import Pipeline, check_editor, fingerprint
from tenfold.errors import UserError
from tenfold.hub import model_folder
from tenfold.runs import pick_device

CLIP_OF_STABLE_DIFFUSION = "openai/clip-vit-large-patch14"


@dataclass
class Editor:
    """A frozen editor with its CLIP.

    Attributes:
        pipe: diffusers' pipeline.
        name: how it was asked for.
        clip_source: where its CLIP is.
        size: side of its pictures.
        clip_revision: branch, tag or commit of a CLIP of the Hub.
    """

    pipe: Pipeline
    name: str
    clip_source: str | Path
    size: int
    clip_revision: str | None = None
    _clip: ClipFeatures | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What instructions of this editor say about it; they are applied so unless told otherwise: the embedded one needs no guidance."""
        guidance, image_guidance, steps = (1.0, 1.0, 12) if self.embedded else (7.5, 1.5, 20)
        return {
            "base_model": self.name,
            "guidance_scale": guidance,
            "image_guidance_scale": image_guidance,
            "sampling_steps": steps,
        }

    @property
    def embedded(self) -> bool:
        """Whether this is a model of this package's own kind."""
        return hasattr(self.pipe.vae, "basis")

    @property
    def clip(self) -> ClipFeatures:
        """The CLIP, loaded when first asked for."""
        if self._clip is None:
            self._clip = ClipFeatures.load(self.clip_source, self.pipe.unet.device, self.clip_revision)
        return self._clip


def quiet_libraries() -> None:
    """Keep transformers and diffusers from printing bars and advice: for command lines."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


def load_editor(options: BaseOptions | None = None, device: str = "auto") -> Editor:
    """Load an editor.

    Raises:
        UserError: no such folder, a damaged one, or a model that is no InstructPix2Pix.
    """
    options = options or BaseOptions()
    where = _device(device)
    dtype = getattr(torch, options.weights)
    folder = _folder(options)
    if is_tiny(folder):
        model, processor = load_tiny(folder)
        pipe = model.pipeline()
        clip = ClipFeatures(model.clip.to(where), processor, model.tokenizer, "the embedded CLIP")
        editor = Editor(pipe, options.base, folder / "clip", clip.side, _clip=clip)
        if options.clip:
            editor = Editor(pipe, options.base, options.clip, clip.side, options.clip_revision)
    else:
        pipe = _from_diffusers(folder, options.base, dtype)
        size = pipe.unet.config.sample_size * pipe.vae_scale_factor
        source = options.clip or CLIP_OF_STABLE_DIFFUSION
        editor = Editor(pipe, options.base, source, size, options.clip_revision)
    check_editor(pipe)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    fingerprint(pipe.unet)  # offloaded weights can no longer be read
    _place(pipe, options, where, dtype)
    return editor


def _device(name: str) -> torch.device:
    """Of several processes each has its own."""
    if name == "auto" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        found = PartialState().device
        assert found is not None
        return found
    return pick_device(name)


def _folder(options: BaseOptions) -> Path:
    """Where the editor is on this machine."""
    if options.base == "tiny":
        if options.revision is not None:
            raise UserError("--base tiny: comes with this package; --revision is for models of the Hub")
        return shipped_model()
    folder = model_folder(options.base, options.revision, FILES)
    return folder / "model" if (folder / "model" / "unet").is_dir() else folder


def _from_diffusers(folder: Path, base: str, dtype: torch.dtype) -> Pipeline:
    """An editor as diffusers saves it, with the classes of Stable Diffusion, whatever its index names."""
    if not (folder / "unet").is_dir():
        raise UserError(f"--base {base}: holds no editor (no unet/)")
    pipe: Any = StableDiffusionInstructPix2PixPipeline(
        vae=network(AutoencoderKL, folder / "vae", torch_dtype=dtype),
        text_encoder=network(CLIPTextModel, folder / "text_encoder", dtype=dtype),
        tokenizer=preparation(CLIPTokenizer, folder / "tokenizer", "tokenizer_config.json"),
        unet=network(UNet2DConditionModel, folder / "unet", torch_dtype=dtype),
        scheduler=scheduler(folder / "scheduler"),
        safety_checker=None,  # ty: ignore[invalid-argument-type]  # optional
        feature_extractor=None,  # ty: ignore[invalid-argument-type]  # optional
        requires_safety_checker=False,
    )
    if pipe.scheduler.config.prediction_type == "epsilon":
        pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe


def _place(pipe: Pipeline, options: BaseOptions, device: torch.device, dtype: torch.dtype) -> None:
    if options.offload == "none":
        pipe.to(device, dtype) if pipe.unet.dtype != dtype else pipe.to(device)
    elif device.type == "cpu":
        raise UserError(f"--offload {options.offload}: needs a GPU to move weights to; use none on the CPU")
    elif options.offload == "model":
        pipe.to(dtype=dtype)
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(dtype=dtype)
        pipe.enable_sequential_cpu_offload(device=device)
    if options.slicing:
        pipe.enable_attention_slicing()
