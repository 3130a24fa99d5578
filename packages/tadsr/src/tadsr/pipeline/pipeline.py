"""What users call: load a model, enlarge any picture."""

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tadsr.config import ColourFix, Sampler
from tadsr.data.transforms import enlarge
from tadsr.method.color_matching import fix_colours
from tadsr.models.checkpoints import FILES, INDEX, read_pipeline, write_index
from tadsr.models.diffusion import Latent, ResShiftScheduler, ancestral_sample, one_step_sample, teacher_solve
from tadsr.models.registry import Autoencoder, Network, in_fast_layout, latent_factor
from tadsr.pipeline.tiling import pad_to_multiple, run_tiled
from tenfold import UserError
from tenfold.hub import model_folder
from tenfold.runs import autocast, has_fast_bf16

SHIPPED = {"fidelity": ("fidelity", 1), "perceptual": ("perceptual", 1), "teacher": ("teacher", 0)}
"""Names of shipped models: the folder of the weights, and the network calls by default."""
Picture = Image.Image | np.ndarray | Tensor


class TADSRPipeline(DiffusionPipeline):
    """Super-resolution with a ResShift-like network, in one step or along the chain.

    Args:
        unet: the network.
        vae: the autoencoder.
        scheduler: the chain.
        scale: how many times larger results are.
        steps: network calls by default: 1 for students, 0 for the whole chain.
    """

    config: Any

    def __init__(
        self,
        unet: Network,
        vae: Autoencoder,
        scheduler: ResShiftScheduler,
        scale: int = 4,
        steps: int = 1,
    ) -> None:
        super().__init__()
        # Here, so that a pipeline computes the same however it came about.
        self.register_modules(unet=in_fast_layout(unet), vae=in_fast_layout(vae), scheduler=scheduler)
        self.register_to_config(scale=scale, steps=steps)
        self.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, model: str | Path = "fidelity", revision: str | None = None) -> "TADSRPipeline":
        """A shipped model by name, a folder of `save_pretrained` or of a run, or a model of the Hub.

        Args:
            model: its name or folder.
            revision: branch, tag or commit of a model of the Hub.

        Raises:
            UserError: no such model, a damaged one, or a folder that holds another.
        """
        if str(model) in SHIPPED:
            if revision is not None:
                raise UserError(f"{model}: comes with this package; --revision is for models of the Hub")
            name, steps = SHIPPED[str(model)]
            parts = read_pipeline(Path(str(files("tadsr") / "weights" / name)))
            parts["steps"] = steps
            return cls(**parts)
        folder = model_folder(model, revision, FILES)
        if (folder / "model" / INDEX).is_file():
            folder = folder / "model"
        if not (folder / INDEX).is_file():
            raise UserError(f"{model}: holds no model (no {INDEX}); give one of {', '.join(SHIPPED)} or a run folder")
        return cls(**read_pipeline(folder))

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]  # fewer options: diffusers' loader imports what a file names
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        torch_dtype: torch.dtype = torch.float32,
    ) -> "TADSRPipeline":
        """`load` under diffusers' name.

        Args:
            pretrained_model_name_or_path: as `model` of `load`.
            revision: as there.
            torch_dtype: of the weights.
        """
        return cls.load(pretrained_model_name_or_path, revision).to(torch_dtype)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *values: Any, **options: Any) -> None:
        """diffusers' own, but the index names this package and no module in it.

        Args:
            save_directory: the folder.
            values: of diffusers' method.
            options: likewise.
        """
        super().save_pretrained(save_directory, *values, **options)
        parts = {"scheduler": self.scheduler, "unet": self.unet, "vae": self.vae}
        write_index(Path(save_directory), parts, self.config.scale, self.config.steps)

    def steps_of(self, wanted: int | None) -> int:
        """How many network calls: the model's own number for None, its whole chain for 0.

        Raises:
            UserError: more than the chain has, or fewer than none.
        """
        total = self.scheduler.last + 1
        steps = (self.config.steps if wanted is None else wanted) or total
        if not 1 <= steps <= total:
            raise UserError(f"steps {steps}: this model has 1 to {total}")
        return steps

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        num_inference_steps: int | None = None,
        scale: int | None = None,
        generator: torch.Generator | None = None,
        tile: int | None = 512,
        tile_overlap: int = 64,
        batch_size: int = 1,
        output_type: Literal["pil", "pt", "np"] = "pil",
        sampler: Sampler = "auto",
        colour_fix: ColourFix = "none",
    ) -> ImagePipelineOutput:
        """Enlarge pictures.

        Args:
            image: one picture or several: PIL, arrays (h, w, 3) of uint8 or floats in [0, 1], tensors (3, h, w) or (b, 3, h, w)
                in [0, 1].
            num_inference_steps: network calls; the model's own number by default, 0 for the whole chain.
            scale: must be the model's.
            generator: of the noise; seeded with 12345 by default, so that results repeat.
            tile: side of the tiles in input pixels; None for the whole picture at once.
            tile_overlap: of neighbouring tiles.
            batch_size: pictures of one size that are processed together.
            output_type: PIL pictures, one (b, 3, h, w) tensor (a list when sizes differ), or arrays.
            sampler: one_step, ddim, ancestral; auto is one_step for one step, else ddim.
            colour_fix: none, wavelet, adain.

        Raises:
            ValueError: a scale that the model has not, steps out of range, NaN, or values outside [0, 1].
        """
        if scale not in (None, self.config.scale):
            raise UserError(f"scale {scale}: this model enlarges {self.config.scale} times")
        steps = self.steps_of(num_inference_steps)
        generator = generator or torch.Generator().manual_seed(12345)
        chosen: Sampler = sampler if sampler != "auto" else ("one_step" if steps == 1 else "ddim")
        pictures = image if isinstance(image, Sequence) else [image]
        inputs = [each for one in pictures for each in as_batch(one).split(1)]
        results: list[Tensor] = []
        for start in range(0, len(inputs), batch_size):
            group = inputs[start : start + batch_size]
            if len({each.shape for each in group}) > 1:
                results += [
                    self._enlarge(each, steps, chosen, generator, tile, tile_overlap, colour_fix) for each in group
                ]
            else:
                results += self._enlarge(
                    torch.cat(group), steps, chosen, generator, tile, tile_overlap, colour_fix
                ).split(1)
        return ImagePipelineOutput(images=_as_output(results, output_type))

    def _enlarge(
        self,
        lq: Float[Tensor, "b 3 h w"],
        steps: int,
        sampler: Sampler,
        generator: torch.Generator,
        tile: int | None,
        overlap: int,
        colour_fix: ColourFix,
    ) -> Float[Tensor, "b 3 _ _"]:
        """Enlarge a batch in [0, 1]. The noise is drawn for the whole picture, so that tiles agree on it."""
        height, width = lq.shape[-2:]
        multiple = self._multiple
        padded = pad_to_multiple(lq * 2 - 1, multiple)
        side = None if tile is None else max(multiple, tile // multiple * multiple)
        overlap = max(0, min(overlap // multiple * multiple, (side or 1) - multiple))
        factor = self.latent_factor
        scale = self.config.scale
        h, w = (length * scale // factor for length in padded.shape[-2:])
        noise = torch.randn(len(lq), self.latent_channels, h, w, generator=generator)

        def process(piece: Tensor, top: int, left: int) -> Tensor:
            rows = slice(top * scale // factor, (top + piece.shape[-2]) * scale // factor)
            columns = slice(left * scale // factor, (left + piece.shape[-1]) * scale // factor)
            return self._sample(piece, noise[..., rows, columns], steps, sampler)

        if side is None or max(padded.shape[-2:]) <= side:
            result = process(padded, 0, 0)
        else:
            margin = min(getattr(self.unet, "radius", 0), max(0, (overlap - 1) // 2))
            result = run_tiled(padded, process, side, overlap, scale, margin=margin if steps == 1 else 0)
        result = (result[..., : height * scale, : width * scale].float() / 2 + 0.5).clamp(0, 1)
        return fix_colours(result, lq, colour_fix).clamp(0, 1)

    def _sample(self, lq: Tensor, noise: Latent, steps: int, sampler: Sampler) -> Float[Tensor, "b 3 _ _"]:
        device, dtype = self._execution_device, next(self.unet.parameters()).dtype
        lq, noise = lq.to(device), noise.to(device)
        with (
            autocast(device)
            if dtype == torch.float32 and has_fast_bf16(device)
            else torch.autocast("cpu", enabled=False)
        ):
            z_y = self.vae.encode(enlarge(lq, self.config.scale).to(dtype)).latents
            lq, noise = lq.to(dtype), noise.to(dtype)
            match sampler:
                case "one_step":
                    z = one_step_sample(self.unet, self.scheduler, z_y, noise, lq)
                case "ddim":
                    z = teacher_solve(self.unet, self.scheduler, z_y, noise, lq, steps)
                case _:
                    z = ancestral_sample(self.unet, self.scheduler, z_y, noise, lq, steps)
            return self.vae.decode(z).sample.float().cpu()

    @property
    def latent_factor(self) -> int:
        """How many times smaller a latent is than the picture."""
        return latent_factor(self.vae)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.vae.config.latent_channels if "latent_channels" in self.vae.config else self.vae.latent_channels

    @property
    def _multiple(self) -> int:
        """What the sides of inputs are padded to: the network's multiple, in input pixels."""
        return max(1, self.unet.multiple * self.latent_factor // self.config.scale)


def as_batch(picture: Picture) -> Float[Tensor, "b 3 h w"]:
    """Any kind of picture as a float tensor in [0, 1].

    Raises:
        UserError: a shape that is no picture, NaN, or values outside [0, 1].
    """
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"))
    if isinstance(picture, np.ndarray):
        if picture.ndim == 2:
            picture = picture[..., None].repeat(3, axis=2)
        if picture.dtype == np.uint8:
            picture = picture.astype(np.float32) / 255
        picture = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32)).movedim(-1, 0)
    batch = picture[None] if picture.ndim == 3 else picture
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
        raise UserError(f"a picture has 3 channels, got shape {tuple(picture.shape)}")
    batch = batch.float()
    if not torch.isfinite(batch).all():
        raise UserError("pixels are NaN or infinite")
    low, high = batch.min().item(), batch.max().item()
    if low < 0 or high > 1:
        raise UserError(f"pixels must be in [0, 1], got {low:.3g} to {high:.3g}")
    return batch


def _as_output(results: list[Tensor], output_type: str) -> Any:
    if output_type == "pt":
        return torch.cat(results) if len({each.shape for each in results}) == 1 else results
    arrays = [np.ascontiguousarray(each[0].movedim(0, -1)) for each in results]
    if output_type == "np":
        return arrays
    return [Image.fromarray((array * 255).round().astype(np.uint8)) for array in arrays]
