"""Diffusion approaches from local weights, through the optional extra `diffusion` (classes of SDSwap, DCFace, Face2Diffusion).

Nothing is downloaded: `weights` is a folder in the diffusers format (safetensors). Loaded models are kept for the process.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fairfd.data.faces.geometry import batch_to_image, feather, image_to_batch
from fairfd.data.faces.regions import RegionError, eye_distance, face_region
from fairfd.data.forgers.registry import ForgeResult, SkippedFaceError, register_forger
from tenfold.errors import UserError
from tenfold.reading import read_json_object
from tenfold.runs import has_fast_bf16, pick_device


@dataclass(frozen=True)
class _LocalWeights:
    """What all approaches with local weights share.

    Attributes:
        weights: folder of the model in the diffusers format.
        region: "face" (feathered) or the whole "image" is replaced.
        device: "auto" or a torch device.
        softness: width of the feathered edge in eye distances.
    """

    needs_landmarks: ClassVar[bool] = False
    # The model is large and may sit on an accelerator: the builder keeps it in one process.
    one_process: ClassVar[bool] = True
    version: ClassVar[str] = "1"

    weights: str = ""
    region: str = "face"
    device: str = "auto"
    softness: float = 0.3

    def __post_init__(self) -> None:
        name = getattr(self, "name", type(self).__name__)
        if not self.weights or not Path(self.weights).is_dir():
            raise UserError(
                f"{name}: weights {self.weights!r} is not a folder; give local weights in the diffusers format "
                f"(weights=FOLDER), nothing is downloaded"
            )
        if self.region not in ("face", "image"):
            raise UserError(f"{name}: region {self.region!r} is not face or image")

    def weights_sha256(self) -> str:
        """Digest of all weight files, for the record."""
        return _weights_digest(self.weights)

    def _inside(
        self,
        base: Float[np.ndarray, "h w 3"],
        forged: Float[np.ndarray, "h w 3"],
        base_lm: Float[np.ndarray, "k 2"] | None,
    ) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
        """The base with the forged image in the region, and the weights of the latter."""
        if self.region == "image":
            return forged, np.ones(base.shape[:2], np.float32)
        soft = self._soft(base, base_lm)
        return (base + soft[..., None] * (forged - base)).astype(np.float32), soft

    def _soft(
        self, base: Float[np.ndarray, "h w 3"], base_lm: Float[np.ndarray, "k 2"] | None
    ) -> Float[np.ndarray, "h w"]:
        try:
            face = face_region(base_lm, *base.shape[:2])
        except RegionError as error:
            raise SkippedFaceError(str(error)) from error
        assert base_lm is not None
        return feather(face, self.softness * eye_distance(base_lm))


@register_forger("vae_resynth")
@dataclass(frozen=True)
class VaeResynth(_LocalWeights):
    """Encode and decode the image by the autoencoder of a latent diffusion model: its decoder's traces, nothing else."""

    deterministic: ClassVar[bool] = True

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],  # noqa: ARG002  # a resynthesis has no donor
        base_lm: Float[np.ndarray, "k 2"] | None,
        driving_lm: Float[np.ndarray, "k2 2"] | None,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002  # the mode of the latent is taken, not a draw
    ) -> ForgeResult:
        """See `Forger`."""
        device = pick_device(self.device)
        decoded = resynthesise(load_autoencoder(self.weights, device), image_to_batch(base).to(device))
        return ForgeResult(*self._inside(base, batch_to_image(decoded.cpu()), base_lm))


@torch.no_grad()
def resynthesise(autoencoder: Any, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Decode(encode(image)) for images in [0, 1]; sides are padded to multiples of 64 by mirroring and cut again."""
    height, width = images.shape[-2:]
    padding = (0, -width % 64, 0, -height % 64)
    padded = torch.nn.functional.pad(images, padding, mode="replicate") * 2 - 1
    encoded = autoencoder.encode(padded)
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    decoded = autoencoder.decode(latents).sample
    return ((decoded[..., :height, :width] + 1) / 2).clamp(0, 1)


@dataclass(frozen=True)
class _Prompted(_LocalWeights):
    """What the pipelines with a text prompt share.

    Attributes:
        prompt: text; several, separated by "|", are drawn from at random.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
    """

    deterministic: ClassVar[bool] = False

    prompt: str = "a photograph of a person's face"
    steps: int = 30
    guidance: float = 5.0

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Arguments of a pipeline call that come from the generator and the parameters."""
        prompts = [text.strip() for text in self.prompt.split("|")]
        seed = int(rng.integers(2**31))
        return {
            "prompt": prompts[int(rng.integers(len(prompts)))],
            # The noise is drawn on the CPU: the same on every device.
            "generator": torch.Generator("cpu").manual_seed(seed),
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "output_type": "np",
        }


@register_forger("diffusers_img2img")
@dataclass(frozen=True)
class Img2Img(_Prompted):
    """Noise the image part of the way and denoise it again under a prompt.

    Attributes:
        strength: share of the noise schedule that is redone.
    """

    strength: float = 0.4

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],  # noqa: ARG002  # the base alone is edited
        base_lm: Float[np.ndarray, "k 2"] | None,
        driving_lm: Float[np.ndarray, "k2 2"] | None,  # noqa: ARG002
        rng: np.random.Generator,
    ) -> ForgeResult:
        """See `Forger`."""
        pipeline = load_pipeline("AutoPipelineForImage2Image", self.weights, pick_device(self.device))
        drawn = self._draw(rng)
        output = pipeline(image=image_to_batch(base), strength=self.strength, **drawn)
        image, soft = self._inside(base, _picture(output, base.shape), base_lm)
        return ForgeResult(image, soft, {"prompt": drawn["prompt"]})


@register_forger("diffusers_inpaint")
@dataclass(frozen=True)
class Inpaint(_Prompted):
    """Paint the inner face anew; with an IP-adapter after the driving face: a diffusion face swap.

    Attributes:
        strength: share of the noise schedule that is redone.
        ip_adapter: folder or file of local IP-adapter weights; empty: none.
        ip_adapter_scale: weight of the driving face.
    """

    needs_landmarks: ClassVar[bool] = True

    strength: float = 0.9
    ip_adapter: str = ""
    ip_adapter_scale: float = 0.7

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],
        base_lm: Float[np.ndarray, "k 2"] | None,
        driving_lm: Float[np.ndarray, "k2 2"] | None,  # noqa: ARG002  # the adapter sees the whole driving image
        rng: np.random.Generator,
    ) -> ForgeResult:
        """See `Forger`."""
        soft = self._soft(base, base_lm)
        pipeline = load_pipeline("AutoPipelineForInpainting", self.weights, pick_device(self.device), self.ip_adapter)
        drawn = self._draw(rng)
        if self.ip_adapter:
            pipeline.set_ip_adapter_scale(self.ip_adapter_scale)
            drawn["ip_adapter_image"] = _pil(driving)
        mask = torch.from_numpy((soft > 0).astype(np.float32))[None, None]
        height, width = base.shape[:2]
        output = pipeline(
            image=image_to_batch(base), mask_image=mask, height=height, width=width, strength=self.strength, **drawn
        )
        # The autoencoder changes the surroundings too: outside the face the base stays.
        image = base + soft[..., None] * (_picture(output, base.shape) - base)
        return ForgeResult(image.astype(np.float32), soft, {"prompt": drawn["prompt"]})


@register_forger("diffusers_instruct")
@dataclass(frozen=True)
class Instruct(_Prompted):
    """Edit an attribute by an instruction (InstructPix2Pix).

    Attributes:
        image_guidance: how closely the base is kept.
    """

    prompt: str = "make the person older|make the person younger|give the person glasses|make the person smile"
    guidance: float = 7.5
    image_guidance: float = 1.5
    region: str = "image"

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],  # noqa: ARG002  # the base alone is edited
        base_lm: Float[np.ndarray, "k 2"] | None,
        driving_lm: Float[np.ndarray, "k2 2"] | None,  # noqa: ARG002
        rng: np.random.Generator,
    ) -> ForgeResult:
        """See `Forger`."""
        pipeline = load_pipeline("StableDiffusionInstructPix2PixPipeline", self.weights, pick_device(self.device))
        drawn = self._draw(rng)
        output = pipeline(image=image_to_batch(base), image_guidance_scale=self.image_guidance, **drawn)
        image, soft = self._inside(base, _picture(output, base.shape), base_lm)
        return ForgeResult(image, soft, {"prompt": drawn["prompt"]})


@lru_cache(maxsize=2)
def load_autoencoder(weights: str, device: torch.device) -> Any:
    """Load an AutoencoderKL or AutoencoderTiny from a local folder, or from the `vae` folder of a whole pipeline.

    Raises:
        UserError: the extra is missing, or the folder holds no autoencoder.
    """
    diffusers = _diffusers("vae_resynth")
    folder = Path(weights)
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no autoencoder in the diffusers format (config.json and safetensors)")
    try:
        kind = read_json_object(folder / "config.json").get("_class_name", "")
        if kind not in ("AutoencoderKL", "AutoencoderTiny"):
            raise UserError(f"{folder}: holds {kind or 'no model'}; an AutoencoderKL or AutoencoderTiny is needed")
        model = getattr(diffusers, kind).from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's configuration makes diffusers raise
        raise UserError(f"{folder}: no autoencoder in the diffusers format (config.json and safetensors)") from error
    return model.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=2)
def load_pipeline(kind: str, weights: str, device: torch.device, ip_adapter: str = "") -> Any:
    """Load a diffusers pipeline from a local folder; bf16 on accelerators that have it.

    Raises:
        UserError: the extra is missing, or the folder holds no such pipeline.
    """
    diffusers = _diffusers("diffusers_*")
    check_index(Path(weights), diffusers)
    dtype = torch.bfloat16 if device.type == "cuda" and has_fast_bf16(device) else torch.float32
    try:
        pipeline = getattr(diffusers, kind).from_pretrained(weights, local_files_only=True, use_safetensors=True)
        if ip_adapter:
            path = Path(ip_adapter)
            place, name = (str(path.parent), path.name) if path.is_file() else (str(path), "ip-adapter.safetensors")
            pipeline.load_ip_adapter(place, subfolder="", weight_name=name, local_files_only=True)
    except Exception as error:  # whatever a stranger's configuration makes diffusers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{weights}: cannot load it as {kind} in the diffusers format ({reason})") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)


def check_index(folder: Path, diffusers: Any) -> None:
    """Refuse a pipeline whose index names classes of anything but diffusers and transformers.

    diffusers imports the module that an index names, and takes a pipeline's own class from a file that comes with it.

    Raises:
        UserError: names the entry.
    """
    index = read_json_object(folder / "model_index.json")
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or not hasattr(diffusers, pipeline):
        raise UserError(f"{folder}: names a pipeline that diffusers does not have ({str(pipeline)[:60]!r})")
    for name, entry in index.items():
        if isinstance(entry, list) and (len(entry) != 2 or entry[0] not in LIBRARIES):
            raise UserError(f"{folder}: its part {name} is of neither diffusers nor transformers ({str(entry)[:60]})")


LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")
"""Where the parts of a pipeline may come from; the last is diffusers' own name for its safety checker."""


def _diffusers(approach: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"approach {approach} needs the extra: pip install 'fairfd[diffusion]'") from error
    return diffusers


def _picture(output: Any, shape: tuple[int, ...]) -> Float[np.ndarray, "h w 3"]:
    """The image of a pipeline's output, at the base's shape (pipelines round sides to multiples of 8)."""
    image = np.asarray(output.images[0], np.float32)
    if image.shape != shape:
        resized = torch.nn.functional.interpolate(image_to_batch(image), size=shape[:2], mode="bilinear")
        image = batch_to_image(resized)
    return image


def _pil(image: Float[np.ndarray, "h w 3"]) -> Any:
    from PIL import Image

    return Image.fromarray((image * 255).round().astype(np.uint8))


@lru_cache(maxsize=8)
def _weights_digest(weights: str) -> str:
    """SHA-256 over the names and contents of all safetensors files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(weights).rglob("*.safetensors")):
        digest.update(path.relative_to(weights).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
