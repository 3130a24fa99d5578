"""What can be chosen, and the presets as Python objects. Nothing here loads torch."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from tenfold.config import from_dict, preset_values
from tenfold.errors import UserError
from tenfold.options import Count, NonNegative, Positive, Seed, Share, Size, check_fields

Weights = Literal["float32", "bfloat16", "float16"]
Offload = Literal["none", "model", "sequential"]
Mode = Literal["relative", "difference"]
Fit = Literal["crop", "stretch"]
HEADS = 4
"""Of the attention in the embedded CLIP."""


@dataclass(frozen=True)
class BaseOptions:
    """Which editor, and how it is held in memory.

    Attributes:
        base: tiny (embedded), a folder, or a Hub name such as timbrooks/instruct-pix2pix.
        weights: number format of the weights: float32, bfloat16 or float16.
        slicing: Compute attention in slices: slower, less memory.
        offload: Keep the weights in the main memory: none, model (whole parts move to the GPU in turn) or sequential (layer by layer).
        clip: CLIP for the initialisation and the metrics; by default the embedded one for the embedded editor, ViT-L/14 for others.
        revision: Branch, tag or commit of an editor of the Hub.
        clip_revision: Branch, tag or commit of a CLIP of the Hub.
    """

    base: str = "tiny"
    weights: Weights = "float32"
    slicing: bool = False
    offload: Offload = "none"
    clip: str | None = None
    revision: str | None = None
    clip_revision: str | None = None


@dataclass(frozen=True)
class LearnConfig:
    """How an instruction is learnt.

    Attributes:
        method: kv is the paper's; text-embed learns the encoded text with the same loss; visii learns the initial text's own tokens with its guided loss and CLIP term; textual-inversion learns new words.
        steps: updates.
        batch_size: pairs in each.
        learning_rate: constant after a warm-up.
        warmup: updates of linear warm-up.
        tokens: text slots that kv replaces; all by default.
        partitions: parts of the time axis, each with keys and values of its own (kv).
        words: new words that textual-inversion learns.
        loss: plain, or guided: through three-way guidance, as Visii does (three times the rows).
        loss_guidance: instruction scale in the guided loss.
        loss_image_guidance: picture scale in the guided loss.
        strict_visii: With visii, also its traps: pair by time step, one noise for each time, weight decay, element-wise clipping, the step with the lowest loss.
        flip: Also learn from mirrored pairs; wrong for edits that know left from right.
        precision: auto (bfloat16 arithmetic where the hardware has it) or float32.
        checkpointing: Recompute activations: half the memory, a third more time.
        log_every: steps between lines of the log.
        save_every: steps between checkpoints.
        seed: of everything random.
    """

    method: Literal["kv", "text-embed", "visii", "textual-inversion"] = "kv"
    steps: Count = 1000
    batch_size: Count = 4
    learning_rate: Positive = 1e-3
    warmup: Size = 20
    tokens: Count | None = None
    partitions: Count = 5
    words: Count = 4
    loss: Literal["plain", "guided"] = "plain"
    loss_guidance: NonNegative = 7.5
    loss_image_guidance: NonNegative = 1.5
    strict_visii: bool = False
    flip: bool = False
    precision: Literal["auto", "float32"] = "auto"
    checkpointing: bool = False
    log_every: Count = 10
    save_every: Count = 50
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and traps of a method that is not used."""
        check_fields(self)
        if self.strict_visii and self.method != "visii":
            raise UserError("--strict-visii: is for --method visii")

    @property
    def space(self) -> str:
        """Where the parameters are."""
        return {"kv": "kv", "textual-inversion": "word"}.get(self.method, "text")

    @property
    def guided(self) -> bool:
        """Whether the loss goes through guidance."""
        return self.loss == "guided" or self.method == "visii"


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

    guidance: NonNegative | None = None
    image_guidance: NonNegative | None = None
    steps: Count | None = None
    seed: Seed = 0
    batch_size: Count = 1
    extra: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_fields(self)


@dataclass(frozen=True)
class PhraseOptions:
    """How the initial words are chosen.

    Attributes:
        top: phrases of each side at most (r).
        eta: what the sensitivity of a phrase must exceed.
        sensitivity: relative (a rise of eta times the similarity) or difference (of cosines, as printed in the paper).
        side: both, or after: the words that describe the after pictures best, without comparing, as Visii starts.
    """

    top: Count = 5
    eta: NonNegative = 0.15
    sensitivity: Mode = "relative"
    side: Literal["both", "after"] = "both"

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_fields(self)


@dataclass(frozen=True)
class Sizes:
    """How large the embedded model is.

    Attributes:
        side: of the pictures, in pixels.
        latent_channels: components kept of each patch of four pixels.
        channels: of the UNet at its first level; its second has twice as many.
        text_width: of the text encoder.
        text_layers: of the text encoder.
        vision_width: of the CLIP's picture tower.
        vision_layers: of the CLIP's picture tower.
    """

    side: Count = 48
    latent_channels: Count = 24
    channels: Count = 64
    text_width: Count = 64
    text_layers: Count = 3
    vision_width: Count = 96
    vision_layers: Count = 3

    def __post_init__(self) -> None:
        """Refuse sizes that do not go together."""
        check_fields(self)
        for name, multiple in (("side", 16), ("channels", 16), ("text_width", HEADS), ("vision_width", HEADS)):
            if getattr(self, name) % multiple:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be a multiple of {multiple}")
        if self.latent_channels > 48:
            raise UserError(f"--latent-channels {self.latent_channels}: must be 1 to 48")


@dataclass(frozen=True)
class TrainConfig(Sizes):
    """How the embedded model is trained.

    Attributes:
        clip_steps: updates of the CLIP.
        clip_batch: pictures with captions in each.
        clip_rate: peak learning rate of the CLIP.
        steps: updates of the editor.
        batch_size: edits in each.
        learning_rate: peak; a warm-up of a fortieth of the steps, then a cosine to zero.
        ema: decay of the average of the weights that is kept.
        fit_pictures: edits that the autoencoder is fitted to.
        log_every: steps between lines of the log.
        save_every: steps between checkpoints.
        seed: of everything random.
    """

    clip_steps: Count = 1200
    clip_batch: Count = 96
    clip_rate: Positive = 2e-3
    steps: Count = 4500
    batch_size: Count = 24
    learning_rate: Positive = 1.5e-3
    ema: Share = 0.999
    fit_pictures: Count = 400
    log_every: Count = 50
    save_every: Count = 250
    seed: Seed = 0


def learning_preset(name: str = "small", **overrides: Any) -> tuple[LearnConfig, PhraseOptions]:
    """How `instructbrush learn --preset NAME` learns, and how it chooses its first words.

    Args:
        name: tiny or small (for the embedded editor), or paper.
        overrides: fields of either.

    Raises:
        UserError: no such preset or field.
    """
    values = preset_values("instructbrush", name, "learn") | overrides
    own = {each.name for each in fields(PhraseOptions)}
    return (
        from_dict({key: value for key, value in values.items() if key not in own}, LearnConfig, f"preset {name}"),
        from_dict({key: value for key, value in values.items() if key in own}, PhraseOptions, f"preset {name}"),
    )
