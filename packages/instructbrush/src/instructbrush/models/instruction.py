"""The instruction: learned keys and values of every cross-attention layer, and the small file that holds them."""

import json
import os
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from instructbrush.models.attention import (
    Attachment,
    InjectionState,
    Route,
    attachment_of,
    cross_attention_layers,
    project_text,
)
from tenfold.checkpoints import read_metadata, read_tensors, write_tensors
from tenfold.config import from_dict
from tenfold.errors import UserError
from tenfold.files import write_text
from tenfold.hub import model_folder
from tenfold.options import Count, NonNegative

FILE = "instruction.safetensors"
FORMAT = 1

Pipeline = Any
"""A `StableDiffusionInstructPix2PixPipeline`; diffusers does not declare its parts."""


@dataclass(frozen=True)
class InstructionConfig:
    """What an instruction file says about itself.

    Attributes:
        base_model: name or folder of the editor it was learnt for.
        base_fingerprint: root mean squares of the editor's key and value projections, layer by layer.
        num_tokens: m, text slots that are replaced.
        num_partitions: J, parts of the time axis.
        num_train_timesteps: T of the editor.
        prediction_type: of the editor.
        layers: width of each cross-attention layer.
        init_text: the instruction it started from.
        phrases_before: words found to be removed by the edit.
        phrases_after: words found to be added.
        guidance_scale: default when applied.
        image_guidance_scale: default when applied.
        sampling_steps: default when applied.
        edit: what it does, in the user's words.
        licence: of the file.
        train: how it was learnt: method, steps, learning rate, number of pairs, seed, final loss.
        format_version: of the file.
    """

    base_model: str
    base_fingerprint: tuple[float, ...]
    num_tokens: Count
    num_partitions: Count
    num_train_timesteps: Count
    prediction_type: str
    layers: dict[str, Count]
    init_text: str = ""
    phrases_before: tuple[str, ...] = ()
    phrases_after: tuple[str, ...] = ()
    guidance_scale: NonNegative = 7.5
    image_guidance_scale: NonNegative = 1.5
    sampling_steps: Count = 20
    edit: str = ""
    licence: str = ""
    train: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT


_fingerprints: "weakref.WeakKeyDictionary[nn.Module, tuple[float, ...]]" = weakref.WeakKeyDictionary()


def fingerprint(unet: nn.Module) -> tuple[float, ...]:
    """Root mean squares of W_K and W_V of each cross-attention layer: near-equal for one model at any precision.

    Of weights that are offloaded layer by layer: what was found before.
    """
    layers = [layer for attn in cross_attention_layers(unet).values() for layer in (attn.to_k, attn.to_v)]
    if not any(layer.weight.is_meta for layer in layers):
        _fingerprints[unet] = tuple(
            float(f"{layer.weight.float().square().mean().sqrt().item():.6g}") for layer in layers
        )
    return _fingerprints.get(unet, ())


def check_editor(pipe: Pipeline) -> None:
    """Refuse a pipeline that is no InstructPix2Pix-style editor.

    Raises:
        UserError: the channels of its UNet are not those of a latent beside a picture's latent.
    """
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise UserError(f"{type(pipe).__name__}: not supported, it has no UNet with .attn2 layers")
    cross_attention_layers(unet)
    if getattr(unet.config, "addition_embed_type", None) or getattr(unet.config, "encoder_hid_dim", None):
        raise UserError("not supported: the UNet takes more than a text (Stable Diffusion XL and its kin)")
    latents = pipe.vae.config.latent_channels
    if unet.config.in_channels != 2 * latents:
        raise UserError(
            f"the UNet has {unet.config.in_channels} input channels; an InstructPix2Pix-style UNet needs {2 * latents}"
        )


LARGEST_SIDE = 4096
"""Of a picture that is edited or learnt from: beyond, attention would need more memory than there is."""


def check_size(pipe: Pipeline, size: int) -> None:
    """Refuse a side that the editor's latents cannot have.

    Raises:
        UserError: no multiple of the latents' factor, too small, or too large.
    """
    factor = pipe.vae_scale_factor
    if size % factor or not 8 <= size <= LARGEST_SIDE:
        raise UserError(f"--size {size}: must be a multiple of {factor} from 8 to {LARGEST_SIDE}")


@torch.no_grad()
def encode_text(pipe: Pipeline, text: str) -> Float[Tensor, "1 l c"]:
    """The text encoder's last hidden state, as the pipeline computes it.

    Raises:
        UserError: the pipeline has no text encoder.
    """
    if pipe.tokenizer is None or pipe.text_encoder is None:
        raise UserError("the pipeline has no text encoder: it cannot encode text")
    tokens = pipe.tokenizer(
        text, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    mask = tokens.attention_mask if getattr(pipe.text_encoder.config, "use_attention_mask", False) else None
    return pipe.text_encoder(tokens.input_ids.to(pipe._execution_device), attention_mask=mask)[0]


class Instruction(ModelHubMixin, library_name="instructbrush", tags=["image-editing", "instructbrush"]):
    """An edit as keys and values.

    Args:
        keys: gK by layer, (J, m, d).
        values: gV by layer.
        text_embedding: encoding of the initial instruction: what the slots that are not replaced attend to.
        about: everything else.
    """

    def __init__(
        self,
        keys: Mapping[str, Float[Tensor, "j m _"]],
        values: Mapping[str, Float[Tensor, "j m _"]],
        text_embedding: Float[Tensor, "1 l c"],
        about: InstructionConfig,
    ) -> None:
        self.keys, self.values = dict(keys), dict(values)
        self.text_embedding = text_embedding
        self.about = about

    @classmethod
    def from_embedding(
        cls,
        pipe: Pipeline,
        embedding: Float[Tensor, "1 l c"],
        num_tokens: int | None = None,
        num_partitions: int = 1,
        **about: Any,
    ) -> "Instruction":
        """The exact equivalent of `prompt_embeds=embedding`.

        Args:
            pipe: the editor.
            embedding: encoded text, or anything of its shape.
            num_tokens: m; None for all slots.
            num_partitions: J; all start alike.
            about: further fields of `InstructionConfig`.

        Raises:
            UserError: m outside 1..l, J outside 1..T, or no InstructPix2Pix-style editor.
        """
        check_editor(pipe)
        length, total = embedding.shape[1], pipe.scheduler.config.num_train_timesteps
        count = length if num_tokens is None else num_tokens
        if not 1 <= count <= length:
            raise UserError(f"tokens {count}: must be 1 to {length}, the length of this editor's text")
        if not 1 <= num_partitions <= total:
            raise UserError(f"partitions {num_partitions}: must be 1 to {total}")
        keys, values = {}, {}
        with torch.no_grad():
            for name, attn in cross_attention_layers(pipe.unet).items():
                projected = project_text(attn, embedding)
                keys[name], values[name] = (
                    each[:count].float().expand(num_partitions, -1, -1).clone() for each in projected
                )
        described = InstructionConfig(
            base_model=str(about.pop("base_model", getattr(pipe, "_name_or_path", None) or "")),
            base_fingerprint=fingerprint(pipe.unet),
            num_tokens=count,
            num_partitions=num_partitions,
            num_train_timesteps=total,
            prediction_type=pipe.scheduler.config.prediction_type,
            layers={name: value.shape[-1] for name, value in keys.items()},
            **about,
        )
        return cls(keys, values, embedding.detach().float().clone(), described)

    @classmethod
    def from_text(
        cls, pipe: Pipeline, text: str, num_tokens: int | None = None, num_partitions: int = 1, **about: Any
    ) -> "Instruction":
        """The exact equivalent of prompting with `text`; see `from_embedding`."""
        embedding = encode_text(pipe, text)
        return cls.from_embedding(pipe, embedding, num_tokens, num_partitions, **({"init_text": text} | about))

    # ------------------------------------------------------------------------------------------------------------ in use

    def state(self) -> InjectionState:
        """What the layers read."""
        return InjectionState(self.keys, self.values, self.about.num_train_timesteps)

    def attach(self, pipe: Pipeline, route: Route = "auto") -> Attachment:
        """Put the instruction into a pipeline; use as `with instruction.attach(pipe): ...`, or end it with `detach`.

        Only the first group of guidance's three receives it. A direct call of the UNet counts as guided if the pipeline's last call was.

        Args:
            pipe: the editor, used as it is.
            route: how; see `Attachment`.

        Raises:
            UserError: learnt for another kind of editor, or another instruction is in place.
        """
        self.check_compatible(pipe)

        def guided() -> bool:
            return getattr(pipe, "_guidance_scale", None) is not None and pipe.do_classifier_free_guidance

        return Attachment(pipe.unet, self.state(), guided, route)

    @staticmethod
    def detach(pipe: Pipeline) -> None:
        """Take out whatever instruction is in place."""
        if (found := attachment_of(pipe.unet)) is not None:
            found.remove()

    def check_compatible(self, pipe: Pipeline) -> bool:
        """Whether the fingerprint is that of the editor too.

        Raises:
            UserError: layers, widths, text length, time steps or prediction type differ; the first few are named.
        """
        check_editor(pipe)
        about, found = self.about, []
        layers = cross_attention_layers(pipe.unet)
        found += [f"the editor has no layer {name}" for name in about.layers if name not in layers]
        found += [f"the instruction has no layer {name}" for name in layers if name not in about.layers]
        for name, width in about.layers.items():
            if name in layers and layers[name].to_k.weight.shape[0] != width:
                found.append(f"{name} has width {layers[name].to_k.weight.shape[0]}, not {width}")
        for field_name in ("num_train_timesteps", "prediction_type"):
            there, here = getattr(pipe.scheduler.config, field_name), getattr(about, field_name)
            if there != here:
                found.append(f"{field_name} is {there}, not {here}")
        width = pipe.unet.config.cross_attention_dim
        if self.text_embedding.shape[2] != width:
            found.append(f"its text has width {width}, not {self.text_embedding.shape[2]}")
        if pipe.tokenizer is not None and pipe.tokenizer.model_max_length != self.text_embedding.shape[1]:
            found.append(f"its text has {pipe.tokenizer.model_max_length} tokens, not {self.text_embedding.shape[1]}")
        if found:
            raise UserError(
                f"the instruction was learnt for another editor ({about.base_model or 'unnamed'}): {'; '.join(found[:3])}"
            )
        own, other = torch.tensor(about.base_fingerprint), torch.tensor(fingerprint(pipe.unet))
        return own.shape == other.shape and torch.allclose(own, other, rtol=5e-3)

    # ------------------------------------------------------------------------------------------------------------- sums

    def interpolate(self, other: "Instruction", alpha: float) -> "Instruction":
        """(1 - alpha) self + alpha other, token by token; both must have the same shapes.

        Raises:
            UserError: they do not.
        """
        ours, theirs = self.about, other.about
        if (ours.layers, ours.num_tokens, ours.num_partitions) != (
            theirs.layers,
            theirs.num_tokens,
            theirs.num_partitions,
        ):
            raise UserError("the two instructions differ in layers, tokens or partitions")

        def mixed(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: torch.lerp(value.float(), second[name].float(), alpha) for name, value in first.items()}

        text = torch.lerp(self.text_embedding.float(), other.text_embedding.float(), alpha)
        return Instruction(mixed(self.keys, other.keys), mixed(self.values, other.values), text, self.about)

    def scale(self, alpha: float, reference: "Instruction") -> "Instruction":
        """reference + alpha (self - reference): weaker below 1, stronger above."""
        return reference.interpolate(self, alpha).described(**_kept(self.about))

    def merge_partitions(self) -> "Instruction":
        """One part for the whole time axis: the mean of the parts."""
        keys = {name: value.mean(0, keepdim=True) for name, value in self.keys.items()}
        values = {name: value.mean(0, keepdim=True) for name, value in self.values.items()}
        return Instruction(keys, values, self.text_embedding, replace(self.about, num_partitions=1))

    def described(self, **fields: Any) -> "Instruction":
        """The same with other fields of its description."""
        return Instruction(self.keys, self.values, self.text_embedding, replace(self.about, **fields))

    def distance_from(self, reference: "Instruction") -> dict[str, list[float]]:
        """Relative movement of keys and values from another instruction, per layer and partition.

        Both must have the same shapes.
        """
        out = {}
        for name in self.keys:
            pairs = ((self.keys[name], reference.keys[name]), (self.values[name], reference.values[name]))
            moved = sum((a.float() - b.float()).square().sum((1, 2)) for a, b in pairs)
            size = sum(b.float().square().sum((1, 2)) for _, b in pairs)
            out[name] = (moved / torch.as_tensor(size).clamp(min=1e-12)).sqrt().tolist()
        return out

    # ------------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype = torch.float16) -> None:
        """Write one safetensors file.

        Args:
            path: ending in .safetensors.
            dtype: float16 or float32.

        Raises:
            UserError: unwritable, another suffix, or numbers that the type cannot hold.
        """
        if Path(path).suffix != ".safetensors":
            raise UserError(f"{path}: an instruction is a .safetensors file")
        tensors = {f"{name}.key": value for name, value in self.keys.items()}
        tensors |= {f"{name}.value": value for name, value in self.values.items()}
        tensors |= {"text_embedding": self.text_embedding}
        stored = {name: value.detach().cpu().to(dtype).contiguous() for name, value in tensors.items()}
        if not all(value.isfinite().all() for value in stored.values()):
            raise UserError(f"{path}: numbers that {dtype} cannot hold; save in float32")
        write_tensors(path, stored, {"instructbrush": json.dumps(asdict(self.about)), "format": "pt"})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Instruction":
        """Read what `save` wrote.

        Raises:
            UserError: missing, not safetensors, not an instruction, or incomplete.
        """
        tensors, metadata = read_tensors(path)
        if "instructbrush" not in metadata:
            raise UserError(f"{path}: a safetensors file, but not an instruction of this package")
        values = read_metadata(metadata, "instructbrush", path)
        about = from_dict(values, InstructionConfig, str(path))
        if about.format_version > FORMAT:
            raise UserError(f"{path}: written by a newer version of this package")
        if missing := sorted(_expected(about) ^ tensors.keys()):
            raise UserError(f"{path}: not a whole instruction ({missing[0]} is missing or unknown)")
        shape = tensors["text_embedding"].shape
        if len(shape) != 3 or shape[0] != 1 or shape[1] < about.num_tokens:
            raise UserError(f"{path}: its text has shape {tuple(shape)}, which {about.num_tokens} tokens do not fit")
        if about.num_partitions > about.num_train_timesteps:
            raise UserError(f"{path}: has {about.num_partitions} partitions of {about.num_train_timesteps} time steps")
        if not all(each.isfinite().all() for each in tensors.values()):
            raise UserError(f"{path}: holds numbers that are not finite")
        keys = {name: tensors[f"{name}.key"].float() for name in about.layers}
        learned = {name: tensors[f"{name}.value"].float() for name in about.layers}
        for name, width in about.layers.items():
            shape = (about.num_partitions, about.num_tokens, width)
            if keys[name].shape != shape or learned[name].shape != shape:
                raise UserError(f"{path}: {name} is not of shape {shape}")
        return cls(keys, learned, tensors["text_embedding"].float(), about)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory / FILE)
        write_text(save_directory / "config.json", json.dumps(asdict(self.about), indent=2) + "\n")
        write_text(save_directory / "README.md", model_card(self.about))

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]  # fewer options: the mixin would read a second configuration
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, revision: str | None = None
    ) -> "Instruction":
        """An instruction of the Hub, or of a folder that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: its name or folder.
            revision: branch, tag or commit of the Hub.

        Raises:
            UserError: neither, or damaged.
        """
        return cls.load(model_folder(Path(pretrained_model_name_or_path), revision, (FILE,)) / FILE)


def _expected(about: InstructionConfig) -> set[str]:
    return {f"{name}.{part}" for name in about.layers for part in ("key", "value")} | {"text_embedding"}


def _kept(about: InstructionConfig) -> dict[str, Any]:
    return {name: getattr(about, name) for name in about.__dataclass_fields__}


def model_card(about: InstructionConfig) -> str:
    """What a person sees on the Hub."""
    words = f"\n- found words: {', '.join(about.phrases_before) or '-'} -> {', '.join(about.phrases_after) or '-'}"
    return (
        f"---\nlibrary_name: instructbrush\ntags: [image-editing, instructbrush]\n"
        f"{f'license: {about.licence}' if about.licence else ''}\n---\n\n# {about.edit or 'A learned edit'}\n\n"
        f"An instruction for `{about.base_model}`, learned from before/after pictures (InstructBrush, arXiv 2403.18660).\n\n"
        f"- {about.num_tokens} tokens, {about.num_partitions} time partitions, {len(about.layers)} layers"
        f"{words if about.phrases_before or about.phrases_after else ''}\n\n"
        "```console\n$ instructbrush apply instruction.safetensors photo.jpg\n```\n"
    )
