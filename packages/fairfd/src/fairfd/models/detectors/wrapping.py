"""Detectors that come from elsewhere: a user's own network, any timm model, a transformers classifier, a linear probe.

All of them take the same float RGB images in [0, 1] as the built-in detectors and can be trained, scored and audited alike.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import timm
import timm.data
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from fairfd.models.detectors.detector import Detector, DetectorOutput, in_float32
from tenfold import UserError
from tenfold.hub import model_folder

OutputKind = Literal["softmax2", "sigmoid1", "prob"]
"""What a user's model returns: two logits (real, fake), one logit of fake, or P(fake)."""


def from_softmax2(output: Float[Tensor, "b 2"]) -> Float[Tensor, "b 2"]:
    """Two logits are what a detector returns."""
    return output


def from_sigmoid1(output: Float[Tensor, " b"] | Float[Tensor, "b 1"]) -> Float[Tensor, "b 2"]:
    """One logit z as (0, z): softmax gives sigmoid(z)."""
    logit = output.reshape(-1, 1)
    return torch.cat([torch.zeros_like(logit), logit], dim=1)


def from_probability(output: Float[Tensor, " b"] | Float[Tensor, "b 1"]) -> Float[Tensor, "b 2"]:
    """P(fake) as log-probabilities: softmax gives it back.

    Raises:
        UserError: values outside [0, 1].
    """
    fake = output.reshape(-1, 1).float()
    if not ((fake >= 0) & (fake <= 1)).all():
        raise UserError(
            f'wrap: output="prob" but the model returned {fake.min():.4g} to {fake.max():.4g}; use output="sigmoid1" for a logit'
        )
    return torch.cat([1 - fake, fake], dim=1).log()


_CONVERT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax2": from_softmax2,
    "sigmoid1": from_sigmoid1,
    "prob": from_probability,
}


class WrappedDetector(Detector):
    """A user's model as a detector; made by `wrap`.

    Args:
        model: a network, or any callable.
        preprocess: what turns images in [0, 1] into the model's input; None passes them on.
        output: what the model returns.
        in_size: height and width of the images.
    """

    name = "wrapped"

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        preprocess: Callable[[Tensor], Tensor] | None = None,
        output: OutputKind = "softmax2",
        in_size: int = 256,
    ) -> None:
        super().__init__(in_size)
        if output not in _CONVERT:
            raise UserError(f"wrap: output={output!r} is unknown; there is {', '.join(_CONVERT)}")
        self.model, self.preprocess, self.output = model, preprocess, output

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1], which are brought back to [0, 1] for the user's preprocessing."""
        images = (x + 1) / 2
        output = self.model(images if self.preprocess is None else self.preprocess(images))
        values = getattr(output, "logits", output)
        columns = values.shape[1] if isinstance(values, Tensor) and values.ndim == 2 else 1
        wanted = 2 if self.output == "softmax2" else 1
        if not isinstance(values, Tensor) or len(values) != len(x) or values.ndim > 2 or columns != wanted:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UserError(
                f'wrap: output="{self.output}" needs {wanted} number(s) for each of {len(x)} images, the model returned {got}'
            )
        logits = _CONVERT[self.output](values)
        return DetectorOutput(logits, logits)

    def _save_pretrained(self, save_directory: Any) -> None:
        if not isinstance(self.model, nn.Module):
            raise UserError(f"{save_directory}: a wrapped function has no weights to save")
        super()._save_pretrained(save_directory)


def wrap(
    model: Callable[[Tensor], Any],
    preprocess: Callable[[Tensor], Tensor] | None = None,
    output: OutputKind = "softmax2",
    in_size: int = 256,
) -> WrappedDetector:
    """Make a detector of any callable on images.

    Args:
        model: an `nn.Module` or function of the preprocessed images; may return a tensor or an object with `.logits`.
        preprocess: from float RGB in [0, 1], shape (b, 3, in_size, in_size), to the model's input.
        output: `softmax2`, two logits (real, fake); `sigmoid1`, one logit of fake; `prob`, P(fake).
        in_size: size to which images are resized before `preprocess`.

    Raises:
        UserError: an unknown `output`; when called, results of another shape or range.
    """
    return WrappedDetector(model, preprocess, output, in_size)


# ----------------------------------------------------------------------------------------------------------- timm models


class Normalise(nn.Module):
    """(image - mean) / std per channel.

    Args:
        mean: three numbers.
        std: three numbers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalised images."""
        return (images - self.mean) / self.std


class TimmDetector(Detector):
    """Any timm model with two classes; cross-entropy.

    Args:
        in_size: height and width of the input.
        model: timm's name, e.g. `resnet34` or `vit_tiny_patch16_224`.
    """

    name = "timm"

    def __init__(self, in_size: int = 256, model: str = "resnet34") -> None:
        super().__init__(in_size)
        self.model = self.backbone = model
        self.net = _timm_network(model, in_size, num_classes=2)
        data = timm.data.resolve_model_data_config(self.net)
        self.normalise = Normalise(data["mean"], data["std"])

    @property
    def full_name(self) -> str:
        """`timm:` and the model."""
        return f"{self.name}:{self.model}"

    def features(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """What the classifier reads, for images in [-1, 1]."""
        maps = self.net.forward_features(self.normalise((x + 1) / 2))
        return self.net.forward_head(maps, pre_logits=True).flatten(1)

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        features = self.features(x)
        return DetectorOutput(in_float32(self.net.get_classifier(), features), features)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start from pretrained weights of the same timm model; the classifier stays as it is."""
        _load_timm(self.net, state, self.model)


def _timm_network(model: str, in_size: int, num_classes: int) -> Any:
    if not timm.is_model(model):
        near = ", ".join(timm.list_models(f"*{model[:6]}*")[:4])
        raise UserError(f"timm:{model}: no such model in timm {timm.__version__}{'; near: ' + near if near else ''}")
    config = timm.get_pretrained_cfg(model)
    size: dict[str, Any] = {"img_size": in_size} if config is not None and config.fixed_input_size else {}
    return timm.create_model(model, num_classes=num_classes, **size)


def _load_timm(net: Any, state: dict[str, Tensor], model: str) -> None:
    own = net.state_dict()
    heads = net.pretrained_cfg.get("classifier") or "classifier"
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    wanted = {key for key in own if not key.startswith(tuple(f"{head}." for head in heads))}
    wrong = sorted(key for key in wanted if key not in state or state[key].shape != own[key].shape)
    if wrong:
        raise UserError(
            f"pretrained: not the weights of {model} at this size ({', '.join(wrong[:4])} ... missing or misshapen)"
        )
    net.load_state_dict({key: state[key] for key in wanted}, strict=False)


class LinearProbe(TimmDetector):
    """A linear classifier on the frozen features of a pretrained timm model: the baseline that any detector should beat.

    Args:
        in_size: height and width of the input.
        model: timm's name.
    """

    name = "probe"

    def __init__(self, in_size: int = 256, model: str = "resnet34") -> None:
        super().__init__(in_size, model)
        self.net.reset_classifier(0)
        self.net.requires_grad_(False)
        self.fc = nn.Linear(self.net.head_hidden_size, 2)

    def train(self, mode: bool = True) -> "LinearProbe":
        """Only the classifier has a training mode: batch statistics of the backbone stay frozen."""
        super().train(mode)
        self.net.eval()
        return self

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        with torch.no_grad():
            features = self.features(x)
        return DetectorOutput(in_float32(self.fc, features), features)


# ---------------------------------------------------------------------------------------------------------- transformers


class HuggingFaceDetector(Detector):
    """An image classifier of transformers with two labels; made by `hugging_face_detector`.

    Args:
        settings: the transformers configuration as a dictionary.
        fake_index: which of its labels means fake.
        mean: of its normalisation.
        std: of its normalisation.
        in_size: height and width of the input.
    """

    name = "hf"

    def __init__(
        self, settings: dict[str, Any], fake_index: int, mean: list[float], std: list[float], in_size: int = 224
    ) -> None:
        super().__init__(in_size)
        transformers = _transformers()
        # Settings come from files: only classes of transformers itself are made, code beside a model is not run.
        config = transformers.AutoConfig.for_model(**{key: each for key, each in settings.items() if key != "auto_map"})
        self.net = transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        self.fake_index = fake_index
        self.normalise = Normalise(mean, std)

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        logits = self.net(pixel_values=self.normalise((x + 1) / 2)).logits
        ordered = logits if self.fake_index == 1 else logits.flip(1)
        return DetectorOutput(ordered, ordered)


FAKE_WORDS = ("fake", "deepfake", "forged", "manipulated", "synthetic", "generated", "ai")


def fake_label_index(labels: Mapping[int, str], fake_label: str | None, source: str) -> int:
    """Which of two labels means fake.

    Args:
        labels: index to label.
        fake_label: the label, or None to look for a word such as "fake".
        source: what to call the model in an error.

    Raises:
        UserError: not two labels, no such label, or none or both that sound like fake.
    """
    names = ", ".join(labels.values())
    if len(labels) != 2:
        raise UserError(f"{source}: has {len(labels)} labels ({names[:80]}); a detector needs two")
    if fake_label is None:
        matches = [i for i, label in labels.items() if any(w in FAKE_WORDS for w in _words(label))]
    else:
        matches = [i for i, label in labels.items() if label.lower() == fake_label.lower()]
    if len(matches) != 1:
        raise UserError(f"{source}: cannot tell which of its labels ({names}) means fake; name it with fake_label")
    return matches[0]


def _words(label: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in label.lower()).split()


def hugging_face_detector(
    source: str, in_size: int | None = None, fake_label: str | None = None, revision: str | None = None
) -> HuggingFaceDetector:
    """Load an image classifier of transformers with its weights (safetensors) and its normalisation.

    Args:
        source: a folder, or a name on the Hub.
        revision: branch, tag or commit on the Hub; the commit that is used is printed.
        in_size: height and width of the input; None takes the processor's.
        fake_label: the label that means fake, where its name does not say so.

    Raises:
        UserError: transformers is not installed, the model cannot be had here, or its labels are not two.
    """
    transformers = _transformers()
    folder = str(model_folder(source, revision))
    strictly = {"trust_remote_code": False, "local_files_only": True}
    try:
        net = transformers.AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True, **strictly)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **strictly)
    except Exception as error:  # noqa: BLE001  # whatever a stranger's configuration makes transformers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"hf:{source}: cannot be loaded ({reason}); give a folder saved by save_pretrained") from None
    labels = {int(index): str(label) for index, label in net.config.id2label.items()}
    size = processor.size or {}
    found = size.get("height") or size.get("shortest_edge") or 224
    detector = HuggingFaceDetector(
        net.config.to_dict(),
        fake_label_index(labels, fake_label, f"hf:{source}"),
        [float(value) for value in processor.image_mean or [0.5] * 3],
        [float(value) for value in processor.image_std or [0.5] * 3],
        in_size or int(found),
    )
    detector.net = net
    return detector.eval()


def wrap_pipeline(pipeline: Callable[..., Any], fake_label: str, in_size: int = 224) -> WrappedDetector:
    """Make a detector of a transformers `pipeline("image-classification")`.

    The pipeline does its own resizing and normalising, image by image; `hf:NAME` of `create_detector` is faster.

    Args:
        pipeline: called with a list of PIL images and `top_k=None`.
        fake_label: the label whose score is P(fake).
        in_size: size at which images are handed to it.
    """

    def fake_probability(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        levels = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        answers = pipeline([Image.fromarray(level) for level in levels], top_k=None)
        scores = [{entry["label"]: float(entry["score"]) for entry in answer} for answer in answers]
        if scores and fake_label not in scores[0]:
            raise UserError(f"fake_label={fake_label}: the pipeline's labels are {', '.join(scores[0])}")
        return torch.tensor([score[fake_label] for score in scores], device=images.device)

    return wrap(fake_probability, output="prob", in_size=in_size)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("hf: needs transformers; install it with: pip install 'fairfd[diffusion]'") from None
    return transformers


def as_detector(detector: Detector | Callable[[Tensor], Tensor], in_size: int = 256) -> Detector:
    """A detector as it is; any other callable as a function from images in [0, 1] to P(fake)."""
    return detector if isinstance(detector, Detector) else wrap(detector, output="prob", in_size=in_size)
