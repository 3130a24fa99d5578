"""A detector as the attacks see it: pixels in [0, 1] to logits of (real, fake), with its own normalisation inside."""

import contextlib
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from asmattack.models.heads import HeadKind, calibrate, check_kind, head_kind, last_operation, pair_of_logits
from asmattack.models.pretrained import load_weights
from tenfold import UserError
from tenfold.hub import model_folder

UNDECIDED = "assumed: neither said nor decided by the faces"

TOKEN_NORMS = {"norm1", "layernorm_before"}
"""Names of the input norm of a transformer block in timm and transformers."""


@contextlib.contextmanager
def evaluated(module: nn.Module) -> Generator[None]:
    """In evaluation mode; the mode of every part is put back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class CallableModule(nn.Module):
    """Any differentiable function of images as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        """The function's logits; a vector of b values counts as one logit each."""
        output = self.function(images)
        return output[:, None] if output.ndim == 1 else output


class Detector(nn.Module):
    """Wrap any classifier.

    Args:
        module: network, or differentiable callable, with one output or two: logits or probabilities.
        mean: per-channel mean its training subtracted.
        std: per-channel deviation its training divided by.
        fake_index: which of two outputs means fake; of one output 1: high means fake, 0: high means real. None is 1 until
            `calibrate` sees labelled faces that say otherwise.
        head: how outputs are read; None is recognised at the first pass.
        input_size: side to which images are resized, differentiably; None keeps theirs.
        name: for tables.
        target_layer: module whose output activation maps use. By default the input norm of the last transformer block, or
            else the last 4-D output larger than one pixel.
    """

    mean: Tensor
    std: Tensor
    origin: dict[str, Any] | None = None
    """What `asmattack.storage.save_detector` writes beside the weights; None: nothing says how to make it again."""

    def __init__(
        self,
        module: nn.Module | Callable[[Tensor], Tensor],
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        fake_index: int | None = None,
        head: HeadKind | None = None,
        input_size: int | None = None,
        name: str | None = None,
        target_layer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if fake_index not in (None, 0, 1):
            raise UserError(f"fake_index {fake_index}: a detector has the outputs 0 and 1")
        self.network = module if isinstance(module, nn.Module) else CallableModule(module)
        self.fake_index = 1 if fake_index is None else fake_index
        self.order_from = UNDECIDED if fake_index is None else "given"
        self.head, self._head_seen, self.input_size = head, False, input_size
        self.name = name or type(module).__name__
        # Not `self.module`: huggingface_hub takes that for a wrapper around the model and saves its inside.
        # The layer is not registered: it is already part of the network.
        self._target = (target_layer,)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    @staticmethod
    def from_timm(
        name: str,
        checkpoint: str | Path | None = None,
        *,
        pretrained: bool = False,
        num_classes: int = 2,
        fake_index: int | None = None,
    ) -> "Detector":
        """A timm model with the statistics and input size of its data configuration.

        Args:
            name: as timm spells it.
            checkpoint: safetensors, or a torch file of nothing but tensors; `state_dict`, `model` and the like around them and
                `module.` prefixes are taken off.
            pretrained: start from timm's own weights (a download where they are not cached).
            num_classes: 2, or 1 for a sigmoid head.
            fake_index: which output means fake, see `Detector`.

        Raises:
            UserError: no such model, or weights of another one.
        """
        import timm
        from timm.data import resolve_model_data_config

        try:
            module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
        except (RuntimeError, OSError) as error:
            raise UserError(f"timm:{name}: {str(error).splitlines()[0]}") from None
        if checkpoint is not None:
            load_weights(module, Path(checkpoint))
        data: dict[str, Any] = resolve_model_data_config(module)
        made = Detector(
            module,
            mean=data["mean"],
            std=data["std"],
            input_size=data["input_size"][-1],
            fake_index=fake_index,
            name=name,
        )
        made.origin = {"detector": f"timm:{name}", "num_classes": num_classes}
        return made

    @staticmethod
    def from_transformers(
        model: str | Path, revision: str | None = None, *, fake_index: int | None = None
    ) -> "Detector":
        """An image classifier of transformers, with its processor's statistics and its labels' meaning.

        Only classes of transformers itself and safetensors are loaded: code that comes with a model is not run.

        Args:
            model: hub id or local folder.
            revision: branch, tag or commit of the hub model; the commit that is used is printed.
            fake_index: where the label names do not tell.

        Raises:
            UserError: not there, damaged, or labels that do not decide which output means fake.
        """
        transformers = _transformers(f"hf:{model}")
        folder = str(model_folder(model, revision))
        strictly = {"trust_remote_code": False, "local_files_only": True}
        try:
            network: Any = transformers.AutoModelForImageClassification.from_pretrained(
                folder, use_safetensors=True, **strictly
            )
            processor: Any = transformers.AutoImageProcessor.from_pretrained(folder, **strictly)
        except Exception as error:  # noqa: BLE001  # whatever a stranger's configuration makes transformers raise
            raise UserError(f"hf:{model}: holds no image classifier that can be loaded ({_reason(error)})") from None
        by_name = fake_index is None and network.config.num_labels != 1
        if by_name:
            fake_index = fake_index_of(network.config.id2label)
        size = processor.size
        side = (
            size.get("height") or size.get("shortest_edge") if hasattr(size, "get") else getattr(size, "height", None)
        )
        normalised = getattr(processor, "do_normalize", True)
        made = Detector(
            _LogitsOnly(network),
            mean=processor.image_mean if normalised else (0.0, 0.0, 0.0),
            std=processor.image_std if normalised else (1.0, 1.0, 1.0),
            input_size=side,
            fake_index=fake_index,
            name=Path(str(model)).name,
        )
        made.order_from = "label names" if by_name else made.order_from
        made.origin = {
            "detector": "transformers",
            "config": network.config.to_dict(),
            "mean": made.mean.flatten().tolist(),
            "std": made.std.flatten().tolist(),
            "input_size": side,
        }
        return made

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2"]:
        """Logits in the order real, fake; one logit z becomes (0, z), a probability p its log odds.

        Raises:
            UserError: outputs that are no detector's, or that contradict what was said of them.
        """
        output = self._outputs(images)
        if not self._head_seen:
            self._recognise(images, output)
        assert self.head is not None
        return pair_of_logits(output, self.head, self.fake_index)

    @torch.no_grad()
    def calibrate(self, images: Float[Tensor, "b 3 h w"], labels: Int64[Tensor, " b"], batch_size: int = 64) -> None:
        """Learn from labelled faces which way is fake, unless it was given or has been learned.

        Args:
            images: pixels in [0, 1].
            labels: 0 real, 1 fake.
            batch_size: faces at a time.

        Raises:
            UserError: the faces clearly contradict the names of the labels.
        """
        if self.order_from not in ("label names", UNDECIDED):
            return
        with evaluated(self):
            parts = [self(part.to(self.device)) for part in images.split(batch_size)]
        logits = torch.cat(parts)
        found = calibrate(logits[:, 1] - logits[:, 0], labels.to(logits.device))
        said = f"the labels of {found.faces} faces, AUC {max(found.auc, 1 - found.auc):.2f}"
        if found.order == "undecided":
            return
        if found.order == "kept":
            self.order_from = f"{self.order_from} and {said}" if self.order_from == "label names" else said
            return
        if self.order_from == "label names":
            raise UserError(
                f"{self.name}: output {self.fake_index} means fake by its name, and {said} say the opposite:"
                " say which with fake_index (--fake-index)"
            )
        self.fake_index, self.order_from = 1 - self.fake_index, said
        warnings.warn(f"{self.name} is read as {self.reading()}", stacklevel=3)

    def reading(self) -> str:
        """How its outputs are read, in words."""
        if self.head in (None, "logit", "probability"):
            order = "high means fake" if self.fake_index == 1 else "high means real"
        else:
            order = "real first" if self.fake_index == 1 else "fake first"
        kinds = {"logit": "one logit", "probability": "one probability", "logits": "two logits"}
        kind = "not seen yet" if self.head is None else kinds.get(self.head, "two probabilities")
        return f"{kind}, {order} ({self.order_from})"

    def _recognise(self, images: Tensor, output: Tensor) -> None:
        """Set how outputs are read, once; say so where it is not as two logits or one."""
        inside = bool(((output >= 0) & (output <= 1)).all())
        operation = last_operation(output)
        if inside and operation is None:
            # The graph of one face tells what the values of many can only suggest.
            with evaluated(self), torch.enable_grad():
                operation = last_operation(self._outputs(images[:1].detach().clone().requires_grad_()))
        try:
            if self.head is not None:
                check_kind(self.head, output, operation)
            else:
                self.head = head_kind(output, operation)
                if self.head.startswith("probabilit"):
                    warnings.warn(f"{self.name} is read as {self.reading()}", stacklevel=3)
        except UserError as fault:
            raise UserError(f"{self.name}: {fault}") from None
        self._head_seen = True

    def _outputs(self, images: Tensor) -> Float[Tensor, "b k"]:
        if self.input_size is not None and images.shape[-2:] != (self.input_size, self.input_size):
            images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear", align_corners=False)
        output = self.network((images - self.mean) / self.std)
        output = output[:, None] if output.ndim == 1 else output
        if output.shape[-1] not in (1, 2):
            raise UserError(f"{self.name} has {output.shape[-1]} outputs; a detector has one or two")
        return output

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k i j"]:
        """The output of the layer that activation maps use."""
        return as_map(self.with_activation(images)[1])

    def with_activation(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b ..."]]:
        """Logits and the target layer's output as it is (channels or tokens, see `as_map`), both in the graph.

        Raises:
            NoSpatialOutputError: nothing that could be laid out as a map.
        """
        target = self._target[0] or self._token_norm()
        logits, seen = self._recorded(images, [target] if target else list(self.network.modules()))
        spatial = [each for each in seen if _has_map(each)]
        if not spatial:
            raise NoSpatialOutputError(f"{self.name} has no layer with a square spatial output: use saliency instead")
        return logits, spatial[-1]

    def with_last_convolution(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b k i j"]]:
        """Logits and the raw output of the last Conv2d in module order (what CAFA compares)."""
        logits, seen = self._recorded(images, [self.last_convolution()[1]])
        return logits, seen[-1]

    def last_convolution(self) -> tuple[str, nn.Conv2d]:
        """Name and module of the last Conv2d in module order.

        Raises:
            UserError: there is none.
        """
        found = [(name, layer) for name, layer in self.network.named_modules() if isinstance(layer, nn.Conv2d)]
        if not found:
            raise UserError(f"{self.name} has no convolution: the cafa objective cannot be used, ce and margin can")
        return found[-1]

    def head_weight(self) -> Float[Tensor, "2 k"]:
        """Weight of the final linear layer, rows real, fake.

        Raises:
            UserError: there is no linear layer with two outputs.
        """
        heads = [layer for layer in self.network.modules() if isinstance(layer, nn.Linear) and layer.out_features == 2]
        if not heads:
            raise UserError(f"{self.name} has no final linear layer with two outputs: use ce or margin")
        weight = heads[-1].weight
        return weight if self.fake_index == 1 else weight.flip(0)

    def _token_norm(self) -> nn.Module | None:
        norms = [
            layer
            for name, layer in self.network.named_modules()
            if name.rsplit(".", 1)[-1] in TOKEN_NORMS and isinstance(layer, nn.LayerNorm)
        ]
        return norms[-1] if norms else None

    def _recorded(self, images: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor]]:
        seen: list[Tensor] = []

        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim in (3, 4):
                seen.append(output)

        handles = [layer.register_forward_hook(record) for layer in layers]
        try:
            logits = self(images)
        finally:
            for handle in handles:
                handle.remove()
        return logits, seen


def hub_detector(kept: dict[str, Any], source: Path) -> Detector:
    """The network of a classifier of transformers that was fine-tuned and saved, without its weights.

    Args:
        kept: `Detector.origin` of one that `Detector.from_transformers` made, and its fake_index.
        source: the file that it was read from, for errors.

    Raises:
        UserError: it describes no classifier that transformers has.
    """
    transformers = _transformers(str(source))
    try:
        settings = {key: value for key, value in kept["config"].items() if key != "auto_map"}
        config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        network = transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        mean, std = ([float(each) for each in kept[name]] for name in ("mean", "std"))
        side = None if kept["input_size"] is None else int(kept["input_size"])
        made = Detector(_LogitsOnly(network), mean=mean, std=std, input_size=side, fake_index=kept["fake_index"])
    except Exception as error:  # noqa: BLE001  # whatever a stranger's configuration makes transformers raise
        raise UserError(f"{source}: describes no detector that can be made again ({_reason(error)})") from None
    made.origin = {key: value for key, value in kept.items() if key != "fake_index"}
    return made


def _transformers(wanted: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError(f"{wanted} needs transformers: pip install 'asmattack[hub]'") from None
    return transformers


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


class NoSpatialOutputError(UserError):
    """A detector without a layer that could be shown as a map."""


class _LogitsOnly(nn.Module):
    """A transformers model whose output is its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.classifier = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(pixel_values=pixel_values).logits


def _has_map(output: Tensor) -> bool:
    if output.ndim == 4:
        return output.shape[-2] * output.shape[-1] > 1
    side = int(output.shape[1] ** 0.5)
    # At most a class token and a few registers come before the grid.
    return side > 1 and output.shape[1] - side**2 <= 8


def as_map(output: Float[Tensor, "b ..."]) -> Float[Tensor, "b k i j"]:
    """A convolution's output as it is; tokens on their square grid, class and register tokens (the first ones) dropped."""
    if output.ndim == 4:
        return output
    side = int(output.shape[1] ** 0.5)
    return output[:, output.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))


def warn_if_wrong(name: str, accuracy: float, fakes_called: float) -> None:
    """Say so when a detector's clean answers look as if its labels were swapped or constant."""
    if accuracy >= 0.6 and 0 < fakes_called < 1:
        return
    hint = f"; swapping real and fake would give {1 - accuracy:.2f}" if accuracy < 0.4 else ""
    constant = " (it gives one answer to everything)" if fakes_called in (0, 1) else ""
    warnings.warn(
        f"{name}: clean accuracy {accuracy:.2f}{constant}: detector or label mapping looks wrong (labels swapped?){hint}",
        stacklevel=2,
    )


FAKE = {"fake", "deepfake", "deepfakes", "forged", "forgery", "manipulated", "spoof", "spoofed", "ai", "synthetic"}
REAL = {"real", "realism", "bonafide", "live", "genuine", "original", "pristine", "human"}


def _kind(name: str) -> int | None:
    words = set(re.findall(r"[a-z]+", name.lower().replace("bona fide", "bonafide").replace("bona-fide", "bonafide")))
    fake, real = bool(words & FAKE), bool(words & REAL)
    return None if fake == real else int(fake)


def fake_index_of(id2label: Mapping[int, str]) -> int:
    """The index of the class whose name says fake; the other one must say real or nothing known.

    Raises:
        UserError: not two classes, or names that do not decide it.
    """
    names = {int(index): str(name) for index, name in id2label.items()}
    kinds = {index: _kind(name) for index, name in names.items()}
    listed = ", ".join(f"{index}: {name}" for index, name in sorted(names.items()))
    if sorted(names) != [0, 1]:
        raise UserError(f"labels {listed}: a detector has two classes, real and fake")
    fakes = [index for index, kind in kinds.items() if kind == 1]
    reals = [index for index, kind in kinds.items() if kind == 0]
    if len(fakes) == 1:
        return fakes[0]
    if len(reals) == 1 and not fakes:
        return 1 - reals[0]
    raise UserError(f"labels {listed}: which one means fake is not clear; say so with fake_index (--fake-index)")
