"""Capsule-Forensics (Nguyen et al., ICASSP 2019): VGG-19 features, ten primary capsules, dynamic routing to two.

The class probability is the mean over the four output dimensions of a softmax over the two output capsules. That is the
probability: the official code puts it through a second softmax, which confines scores to [.269, .731]. Here the logits are
its logarithms, so that the one softmax that `predict_proba` takes gives it back.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from fairfd.models.detectors.detector import Detector, DetectorOutput, TrainBatch, at_least_float32
from fairfd.models.detectors.losses import capsule_loss
from tenfold import UserError

CAPSULES = 10
CAPSULE_DIM = 8
OUT_DIM = 4
CLASSES = 2
VGG_STAGES = 11
ITERATIONS = 2


def squash(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Keeps the direction along the last axis and maps the length n to n^2 / (1 + n^2)."""
    square = x.square().sum(-1, keepdim=True)
    # A zero vector stays zero with a finite gradient.
    return square / (1 + square) * x * torch.rsqrt(square.clamp(min=torch.finfo(x.dtype).tiny))


def statistics(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2 c"]:
    """Mean and unbiased standard deviation over space."""
    std, mean = torch.std_mean(maps, dim=(2, 3), correction=1)
    return torch.stack([mean, std], dim=1)


def vgg19_to_third_pooling() -> nn.Sequential:
    """The first 19 layers of VGG-19's `features`: 256 channels at an eighth of the resolution; He initialisation."""
    layers = make_layers(cfgs["E"][:VGG_STAGES])
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return layers


class PrimaryCapsules(nn.Module):
    """The ten primary capsules, computed as ten groups of grouped convolutions.

    Each: conv 256 -> 64 -> 16 on the map, mean and std over space, 1-d convolutions 2 -> 8 -> 1, giving 8 numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(256, CAPSULES * 64, 3, padding=1),
            nn.BatchNorm2d(CAPSULES * 64),
            nn.ReLU(),
            nn.Conv2d(CAPSULES * 64, CAPSULES * 16, 3, padding=1, groups=CAPSULES),
            nn.BatchNorm2d(CAPSULES * 16),
            nn.ReLU(),
        )
        self.vectors = nn.Sequential(
            nn.Conv1d(CAPSULES * 2, CAPSULES * 8, 5, stride=2, padding=2, groups=CAPSULES),
            nn.BatchNorm1d(CAPSULES * 8),
            nn.Conv1d(CAPSULES * 8, CAPSULES, 3, padding=1, groups=CAPSULES),
            nn.BatchNorm1d(CAPSULES),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv1d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, h: Float[Tensor, "b 256 h w"]) -> Float[Tensor, "b 8 10"]:
        """Capsule vectors, squashed along the capsule axis (official code)."""
        summaries = statistics(self.maps(h).unflatten(1, (CAPSULES, 16)).flatten(0, 1))
        vectors = self.vectors(summaries.reshape(len(h), 2 * CAPSULES, 16))
        return squash(vectors.mT)


def route(
    capsules: Float[Tensor, "b d n"], weights: Float[Tensor, "classes n out d"], iterations: int = ITERATIONS
) -> Float[Tensor, "b out classes"]:
    """Dynamic routing: output capsules as agreement-weighted sums of what each input capsule predicts.

    Args:
        capsules: input capsules, one per column.
        weights: linear map from each input capsule to each class.
        iterations: rounds of agreement.

    Returns:
        The output capsules, one per column. Softmax over the columns, then the mean over rows, is the class probability.
    """
    priors = torch.einsum("knod,bdn->kbno", weights, capsules)
    logits = torch.zeros_like(priors)
    outputs = priors
    for iteration in range(iterations):
        # Routing weights are per data dimension, not per capsule (official code).
        outputs = squash((logits.softmax(2) * priors).sum(2))
        if iteration < iterations - 1:
            logits = logits + priors * outputs[:, :, None]
    return outputs.permute(1, 2, 0)


@dataclass(frozen=True)
class CapsuleAux:
    """The routed capsules.

    Attributes:
        outputs: before the softmax over the two classes.
    """

    outputs: Float[Tensor, "b 4 2"]


def class_log_probability(outputs: Float[Tensor, "b d 2"]) -> Float[Tensor, "b 2"]:
    """Logarithm of the mean over d of softmax over the classes."""
    return outputs.log_softmax(2).logsumexp(1) - torch.tensor(float(outputs.shape[1])).log().to(outputs)


class CapsuleDetector(Detector):
    """VGG-19 features to the third pooling, capsules, routing; CE summed over the four output dimensions.

    Args:
        in_size: height and width of the input.
        loss_input: what the cross-entropy reads. `outputs`, the capsules before the softmax, or `probabilities` as the
            official code does, which takes the softmax twice.
    """

    name = "capsule"
    backbone = "vgg19"

    def __init__(self, in_size: int = 256, loss_input: Literal["outputs", "probabilities"] = "outputs") -> None:
        super().__init__(in_size)
        self.loss_input = loss_input
        self.vgg = vgg19_to_third_pooling()
        self.primary = PrimaryCapsules()
        self.route_weights = nn.Parameter(torch.randn(CLASSES, CAPSULES, OUT_DIM, CAPSULE_DIM))

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        capsules = self.primary(self.vgg(x))
        with torch.autocast(x.device.type, enabled=False):
            outputs = route(at_least_float32(capsules), at_least_float32(self.route_weights))
        return DetectorOutput(class_log_probability(outputs), capsules.flatten(1), CapsuleAux(outputs))

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """CE summed over the output dimensions."""
        outputs = self(batch.images).aux.outputs
        loss = capsule_loss(outputs if self.loss_input == "outputs" else outputs.softmax(2), batch.labels)
        return loss, {"ce": loss.item()}

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start from an ImageNet VGG-19 (torchvision's names, with or without `features.`)."""
        weights = {key.removeprefix("features."): value for key, value in state.items()}
        wanted = self.vgg.state_dict()
        missing = wanted.keys() - weights.keys()
        if missing:
            raise UserError(f"pretrained: not the weights of a VGG-19 ({', '.join(sorted(missing)[:4])} ... missing)")
        self.vgg.load_state_dict({key: weights[key] for key in wanted})
