"""The detector of a client: a shared extractor, a shared branch, a personal branch."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from pfrforgery.models.backbones import cut_backbone
from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors
from tenfold.config import from_dict
from tenfold.hub import model_folder
from tenfold.options import Count, Share
from tenfold.reading import CONFIG_LIMIT, read_json_object

Predict = Literal["fused", "summed", "shared", "personal"]
SHARED_PREFIXES = ("extractor.", "shared.")
COUNTER = "num_batches_tracked"
"""Never sent nor kept: an average makes a fraction of this step counter, and clipping would see only it."""


@dataclass(frozen=True)
class DetectorDescription:
    """What `config.json` beside a detector's weights may say; see `TwoBranchDetector`.

    Attributes:
        backbone: see there.
        split: see there.
        num_classes: see there.
        dropout: see there.
        personal: see there.
    """

    backbone: str = "resnet18"
    split: Count = 3
    num_classes: Count = 2
    dropout: Share = 0.0
    personal: bool = True


class TwoBranchDetector(nn.Module, PyTorchModelHubMixin, library_name="pfrforgery", tags=["face-forgery-detection"]):
    """Extractor F, shared branch S and, unless switched off, personal branch P. Class 1 is fake.

    Args:
        backbone: `tiny`, `resnet18`, `resnet34`, `resnet50` or `timm:NAME`.
        split: the stage with which the branches begin, 1 to 4.
        num_classes: outputs of each branch.
        dropout: before the last linear layers.
        personal: whether there is a personal branch.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        split: int = 3,
        num_classes: int = 2,
        dropout: float = 0.0,
        personal: bool = True,
    ) -> None:
        super().__init__()
        self.extractor, self.shared = cut_backbone(backbone, split, num_classes, dropout)
        self.personal: nn.Module | None = copy.deepcopy(self.shared) if personal else None
        if self.personal is not None:
            # Convolutions and normalisation start alike, the last layers do not.
            last = self.personal.get_submodule("fc")
            assert isinstance(last, nn.Linear)
            last.reset_parameters()

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]  # fewer options: the mixin reads any weights, with any left out
        cls, model: str | Path, *, revision: str | None = None
    ) -> "TwoBranchDetector":
        """Read a detector that `save_pretrained` or `pfrforgery export` wrote, ready to predict.

        Args:
            model: its folder, or its name on the Hub.
            revision: branch, tag or commit of the Hub.

        Raises:
            UserError: no such detector, a damaged one, or weights that are not exactly its own.
        """
        folder = model_folder(model, revision)
        description = read_json_object(folder / "config.json", CONFIG_LIMIT)
        about = from_dict(description, DetectorDescription, str(folder / "config.json"))
        tensors, _ = read_tensors(folder / "model.safetensors")
        if "personal" in description and issubclass(cls, PersonalModelDetector):
            raise UserError(f"{folder}: holds one network with branches; read it with TwoBranchDetector")
        detector = cls(**{name: getattr(about, name) for name in description})
        load_weights(detector, tensors, folder / "model.safetensors")
        return detector.eval()

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Float[Tensor, "n c"]]:
        """Logits of each branch for RGB images in [0, 1]: `shared` and, where there is one, `personal`."""
        z = self.extractor(x)
        logits = {"shared": self.shared(z)}
        return logits if self.personal is None else logits | {"personal": self.personal(z)}

    @torch.inference_mode()
    def predict_proba(self, x: Float[Tensor, "n 3 h w"], predict: Predict = "fused") -> Float[Tensor, " n"]:
        """P(fake) of RGB images in [0, 1], in evaluation mode: the statistic operations are the identity.

        Args:
            x: face crops.
            predict: see `fake_probability`.

        Raises:
            UserError: the prediction needs a personal branch and there is none.
        """
        was_training = self.training
        self.eval()
        try:
            return fake_probability(self(x), predict)
        finally:
            self.train(was_training)

    def shared_state(self) -> OrderedDict[str, Tensor]:
        """What FedPR uploads: all of extractor and shared branch but the step counters."""
        return OrderedDict(pick(self, lambda name: name.startswith(SHARED_PREFIXES)))

    def personal_state(self) -> OrderedDict[str, Tensor]:
        """What never leaves the client."""
        return OrderedDict(pick(self, lambda name: name.startswith("personal.")))

    def load_shared(self, state: Mapping[str, Tensor]) -> None:
        """Load what `shared_state` gave; exactly its names and shapes.

        Raises:
            UserError: another set of names, or another shape; the message lists them.
        """
        load_exactly(self, state, self.shared_state().keys())

    def load_personal(self, state: Mapping[str, Tensor]) -> None:
        """Load what `personal_state` gave; exactly its names and shapes."""
        load_exactly(self, state, self.personal_state().keys())

    def load_backbone(self, weights: Mapping[str, Tensor], source: str = "") -> None:
        """Start extractor and both branches from the weights of the plain backbone; last layers stay as drawn.

        Args:
            weights: of the backbone.
            source: where they come from, for errors.

        Raises:
            UserError: weights of another network.
        """
        for part in (self.extractor, self.shared, self.personal):
            if part is not None:
                wanted = [name for name in part.state_dict() if not name.startswith("fc.")]
                load_exactly(part, {name: weights[name] for name in wanted if name in weights}, wanted, source)


class PersonalModelDetector(TwoBranchDetector):
    """A shared network and a personal network of the same shape beside it (Ditto): `personal` is a whole detector."""

    def __init__(self, backbone: str = "resnet18", split: int = 3, num_classes: int = 2, dropout: float = 0.0) -> None:
        super().__init__(backbone, split, num_classes, dropout, personal=False)
        # Ditto's personal model starts from the common one.
        self.personal = nn.Sequential(
            OrderedDict(extractor=copy.deepcopy(self.extractor), shared=copy.deepcopy(self.shared))
        )

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> dict[str, Float[Tensor, "n c"]]:
        """Logits of the shared and of the personal network."""
        assert self.personal is not None
        return {"shared": self.shared(self.extractor(x)), "personal": self.personal(x)}


def fake_probability(logits: Mapping[str, Float[Tensor, "n c"]], predict: Predict) -> Float[Tensor, " n"]:
    """P(fake) from the branches' logits.

    Args:
        logits: `shared` and, where there is one, `personal`.
        predict: `fused` averages the branches' probabilities, `summed` adds their logits (FedRoD), `shared` and `personal` take one branch.

    Raises:
        UserError: a personal branch is needed and there is none.
    """
    if predict == "shared":
        return logits["shared"].float().softmax(1)[:, 1]
    if "personal" not in logits:
        raise UserError(f"predict {predict}: this model has no personal branch; use predict shared")
    if predict == "personal":
        return logits["personal"].float().softmax(1)[:, 1]
    if predict == "summed":
        return (logits["shared"].float() + logits["personal"].float()).softmax(1)[:, 1]
    return (logits["shared"].float().softmax(1)[:, 1] + logits["personal"].float().softmax(1)[:, 1]) / 2


def batchnorm_names(model: nn.Module) -> set[str]:
    """The state entries of every batch normalisation."""
    return {
        f"{name}.{entry}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for entry in module.state_dict()
    }


def normalisation_affine(module: nn.Module) -> list[nn.Parameter]:
    """Weight and bias of every batch normalisation, in the order of the modules."""
    return [
        parameter
        for each in module.modules()
        if isinstance(each, nn.BatchNorm2d)
        for parameter in (each.weight, each.bias)
    ]


def pick(model: nn.Module, chosen: Callable[[str], bool]) -> dict[str, Tensor]:
    """The state entries whose names are chosen, without the step counters."""
    return {name: value for name, value in model.state_dict().items() if not name.endswith(COUNTER) and chosen(name)}


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], expected: Iterable[str], source: str = "") -> None:
    """Copy a part of the state into a model; exactly the expected names and shapes.

    Args:
        model: takes it.
        state: by name.
        expected: names.
        source: where the state comes from, for errors.

    Raises:
        UserError: names missing or unknown, or another shape; the first few are listed.
    """
    names, what = list(expected), f"{source}: weights of another model" if source else "weights of another model"
    missing, extra = sorted(set(names) - state.keys()), sorted(state.keys() - set(names))
    if missing or extra:
        faults = [f"missing {', '.join(missing[:3])}"] * bool(missing) + [f"unknown {', '.join(extra[:3])}"] * bool(
            extra
        )
        raise UserError(f"{what}: {'; '.join(faults)} ({len(missing)} missing, {len(extra)} unknown)")
    own = model.state_dict()
    for name in names:
        if own[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)} for {tuple(own[name].shape)}"
            raise UserError(f"{what}: {name} has shape {shapes}")
    with torch.no_grad():
        for name in names:
            own[name].copy_(state[name])
