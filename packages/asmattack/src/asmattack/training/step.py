"""What is learned: to detect, to withstand the attack, to say where a detector looks. One loss each; `training` has the loop."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from asmattack.config import FitConfig, GeneratorConfig, HardenConfig, preset
from asmattack.data.layouts import FaceSet
from asmattack.data.transforms import compressed, drawn_flips, mirrored, mirrored_labels
from asmattack.method.masks import MaskConfig, MaskMaker
from asmattack.method.region_attack import AttackConfig, RegionAttack
from asmattack.models.checkpoints import save_detector, save_model
from asmattack.models.detector import Detector
from asmattack.models.masks import MaskGenerator, generator_loss


@runtime_checkable
class Task(Protocol):
    """Something that can be trained.

    Attributes:
        loss: a module from a batch's tensors to the scalar loss; it holds what is trained.
        trained: the part whose weights are kept.
        count: how many training faces there are.
        training: they.
    """

    loss: nn.Module
    count: int
    training: FaceSet

    @property
    def trained(self) -> nn.Module:
        """See above."""
        ...

    def batch(self, rows: Int64[Tensor, " b"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """The tensors of some training faces, augmented."""
        ...

    def validation(self) -> dict[str, float]:
        """How good it is on faces it has not seen."""
        ...

    def save(self, folder: Path) -> None:
        """Write the weights where they can be loaded from."""
        ...


class DetectionLoss(nn.Module):
    """Cross-entropy of clean faces."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Float[Tensor, "b 3 h w"], labels: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        """The mean over the batch."""
        return F.cross_entropy(self.detector(images).float(), labels)


class HardeningLoss(nn.Module):
    """Cross-entropy of clean and attacked faces (adversarial training, Madry et al. 2018), in one pass."""

    def __init__(self, detector: Detector, clean_share: float) -> None:
        super().__init__()
        self.detector, self.clean_share = detector, clean_share

    def forward(
        self, images: Float[Tensor, "b 3 h w"], attacked: Float[Tensor, "b 3 h w"], labels: Int64[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """clean_share of the clean mean plus the rest of the attacked mean."""
        clean, adversarial = self.detector(torch.cat([images, attacked])).float().chunk(2)
        share = self.clean_share
        return share * F.cross_entropy(clean, labels) + (1 - share) * F.cross_entropy(adversarial, labels)


class GenerationLoss(nn.Module):
    """See `generator_loss`."""

    def __init__(self, generator: MaskGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        label_maps: Int64[Tensor, "b h w"],
        maps: Float[Tensor, "b h w"],
    ) -> Float[Tensor, ""]:
        """The mean over the batch."""
        classes, activation = self.generator(images)
        return generator_loss(classes.float(), activation.float(), label_maps, maps)


@dataclass
class Detection:
    """Train a detector."""

    trained: Detector
    training: FaceSet
    held_out: FaceSet
    config: FitConfig

    def __post_init__(self) -> None:
        self.loss: nn.Module = DetectionLoss(self.trained)
        self.count = len(self.training)

    def batch(self, rows: Int64[Tensor, " b"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Pixels and labels."""
        return _augmented(self.training.images[rows], self.config, generator)[0], self.training.labels[rows]

    def validation(self) -> dict[str, float]:
        """Accuracy on held-out faces."""
        return {"accuracy": accuracy(self.trained, self.held_out)}

    def save(self, folder: Path) -> None:
        """See `save_detector`."""
        save_detector(self.trained, folder)


@dataclass
class Hardening:
    """Fine-tune a detector on its own attacked faces."""

    trained: Detector
    training: FaceSet
    held_out: FaceSet
    config: HardenConfig

    def __post_init__(self) -> None:
        self.loss: nn.Module = HardeningLoss(self.trained, self.config.clean_share)
        self.count = len(self.training)
        attack = preset(self.config.attack, self.config.eps / 255)
        self.attack_config: AttackConfig = replace(attack, steps=self.config.steps)
        self.maker = MaskMaker(config=MaskConfig(policy=self.config.policy))

    def batch(self, rows: Int64[Tensor, " b"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Pixels, their attacked copies against the detector as it is, labels."""
        seed = int(torch.randint(2**31, (1,), generator=generator))
        images, flips = _augmented(self.training.images[rows], self.config, generator)
        labels = self.training.labels[rows]
        # Parsed as they lie in the set, whose landmarks do not know of mirrors.
        maps = mirrored_labels(self._label_maps(self.training.subset(rows)), flips)
        device = self.trained.device
        return images, self.attacked(images.to(device), labels.to(device), maps.to(device), seed).cpu(), labels

    def _label_maps(self, faces: FaceSet) -> Int64[Tensor, "b h w"]:
        if faces.label_maps is not None:
            return faces.label_maps
        return self.maker.parser(faces.pixels(), landmarks=faces.landmarks, names=faces.names)

    def attacked(self, images: Tensor, labels: Tensor, maps: Tensor, seed: int) -> Tensor:
        """Attacked copies inside regions of each face."""
        maker = replace(self.maker, config=replace(self.maker.config, seed=seed))
        mask = maker(self.trained, images, maps).mask
        return RegionAttack(self.trained, replace(self.attack_config, seed=seed))(images, labels, mask)

    def validation(self) -> dict[str, float]:
        """Accuracy on held-out faces, clean and attacked."""
        device = next(self.trained.parameters()).device
        right = 0
        for batch in self.held_out.batches(64):
            labels, maps = batch.labels.to(device), self._label_maps(batch).to(device)
            attacked = self.attacked(batch.pixels(device), labels, maps, seed=0)
            right += int((answers(self.trained, attacked) == labels).sum())
        return {
            "accuracy": accuracy(self.trained, self.held_out),
            "attacked_accuracy": right / len(self.held_out),
        }

    def save(self, folder: Path) -> None:
        """See `save_detector`."""
        save_detector(self.trained, folder)


@dataclass
class Generation:
    """Teach a mask generator where parts of the face are and where a detector looks."""

    trained: MaskGenerator
    detector: Detector
    training: FaceSet
    held_out: FaceSet
    config: GeneratorConfig

    def __post_init__(self) -> None:
        self.loss: nn.Module = GenerationLoss(self.trained)
        self.count = len(self.training)
        self.maker = MaskMaker(config=MaskConfig(method=self.config.method))
        self.targets = self._targets(self.training)
        self.held_out_targets = self._targets(self.held_out)

    def _targets(self, faces: FaceSet) -> tuple[Tensor, Tensor]:
        device = next(self.detector.parameters()).device
        found = [
            self.maker.look(self.detector, batch.pixels(device), **batch.of_parser(device))
            for batch in faces.batches(64)
        ]
        return torch.cat([labels.cpu() for labels, _ in found]), torch.cat([maps.cpu() for _, maps in found])

    def batch(self, rows: Int64[Tensor, " b"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Pixels, label maps and activation maps. Left and right trade places where a face is mirrored."""
        images, flips = _augmented(self.training.images[rows], self.config, generator)
        labels, maps = self.targets
        return images, mirrored_labels(labels[rows], flips), mirrored(maps[rows], flips)

    @torch.no_grad()
    def validation(self) -> dict[str, float]:
        """Share of pixels with the parser's class, and mean correlation with the detector's activation map."""
        device = next(self.trained.parameters()).device
        right, correlations = 0.0, []
        labels, maps = self.held_out_targets
        for rows in torch.arange(len(self.held_out)).split(64):
            found, activation = self.trained.generate(self.held_out.subset(rows).pixels(device))
            right += float((found.cpu() == labels[rows]).float().mean((1, 2)).sum())
            pair = torch.stack([activation.cpu().flatten(1), maps[rows].flatten(1)], 1)
            correlations += [float(torch.corrcoef(each)[0, 1].nan_to_num()) for each in pair]
        return {
            "pixel_accuracy": right / len(self.held_out),
            "activation_correlation": sum(correlations) / len(correlations),
        }

    def save(self, folder: Path) -> None:
        """With its configuration; `load_generator` and `MaskGenerator.from_pretrained` read it."""
        save_model(self.trained, {"width": self.trained.width, "size": self.trained.size}, folder)


def _augmented(images: Tensor, config: FitConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    flips = drawn_flips(len(images), generator) if config.flip else torch.zeros(len(images), dtype=torch.bool)
    return mirrored(compressed(images, config.jpeg, generator), flips).float() / 255, flips


@torch.no_grad()
def answers(detector: Detector, images: Float[Tensor, "b 3 h w"]) -> Int64[Tensor, " b"]:
    """The detector's classes, in evaluation mode."""
    training = detector.training
    detector.eval()
    found = detector(images).argmax(1)
    detector.train(training)
    return found


def accuracy(detector: Detector, faces: FaceSet) -> float:
    """Share of right answers."""
    device = next(detector.parameters()).device
    right = [(answers(detector, batch.pixels(device)).cpu() == batch.labels).sum() for batch in faces.batches(256)]
    return float(torch.stack(right).sum() / len(faces))
