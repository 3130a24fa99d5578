"""Detectors by reference: what a command line names, what a folder holds.

Nothing that a file says is imported or run: of what comes with weights only data is taken. A detector that a factory built
is built by that factory again, and whoever loads it names the factory.
"""

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from asmattack.models.detector import Detector, hub_detector
from asmattack.models.masks import MaskGenerator
from asmattack.models.networks import BODIES, Surrogate
from asmattack.models.pretrained import load_weights
from tenfold import UserError
from tenfold.checkpoints import write_tensors
from tenfold.files import write_text
from tenfold.reading import CONFIG_LIMIT, read_json_object

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def load_detector(
    reference: str, fake_index: int | None = None, *, factory: str | None = None, revision: str | None = None
) -> Detector:
    """A detector by what names it.

    - a folder that `train` or `harden` made (the run or its `model/`), or a transformers image classifier's
    - `timm:NAME` or `timm:NAME@FILE`: with two classes, weights from the file
    - `hf:ID`: an image classifier of transformers, from the hub or a folder
    - `MODULE:FACTORY` or `FILE.py:FACTORY`: your own; the factory takes nothing and returns a module from pixels in [0, 1] to
      one output or two (see `Detector`), or a `Detector` with its statistics. The code of the module is run; modules of the
      current folder are named by their file.

    Args:
        reference: one of these.
        fake_index: which output means fake, where neither label names nor labelled faces are to tell.
        factory: what built the detector of a folder, where a factory did. What the folder says of it is never run.
        revision: branch, tag or commit of an `hf:ID`.

    Raises:
        UserError: nothing there, or something else.
    """
    path = Path(reference)
    if path.is_dir():
        detector = _from_folder(path, fake_index, factory)
    elif reference.startswith("timm:"):
        name, _, file = reference.removeprefix("timm:").partition("@")
        detector = Detector.from_timm(name, file or None, fake_index=fake_index)
    elif reference.startswith("hf:"):
        detector = Detector.from_transformers(reference.removeprefix("hf:"), revision, fake_index=fake_index)
    elif ":" in reference:
        detector = _from_factory(reference, fake_index)
    else:
        raise UserError(f"{reference}: no such folder, and none of timm:NAME, hf:ID, MODULE:FACTORY")
    return detector.eval()


def _from_folder(path: Path, fake_index: int | None, factory: str | None) -> Detector:
    folder, config = _configuration(path, "detector")
    if "model_type" in config:
        detector = Detector.from_transformers(folder, fake_index=fake_index)
    elif "architecture" in config:
        detector = Surrogate(_known_architecture(config["architecture"], folder))
        load_weights(detector, folder / WEIGHTS)
    elif "detector" in config:
        detector = _rebuilt(config, folder, factory)
        load_weights(detector.network, folder / WEIGHTS)
    else:
        raise UserError(f"{folder / CONFIG}: is of no detector")
    detector.name = path.name
    return detector


def _configuration(path: Path, what: str) -> tuple[Path, dict[str, Any]]:
    """The folder that holds a model, a run's `model/` or itself, and its configuration."""
    folder = path / "model" if (path / "model" / CONFIG).is_file() else path
    if not (folder / CONFIG).is_file():
        raise UserError(f"{path}: holds no {what} (no {CONFIG})")
    return folder, read_json_object(folder / CONFIG, CONFIG_LIMIT)


def _known_architecture(name: object, folder: Path) -> str:
    """An architecture that this package or timm has under this name; other names could lead elsewhere."""
    import timm

    known = isinstance(name, str) and (name in BODIES or timm.is_model(name.removeprefix("timm:")))
    if not known:
        raise UserError(f"{folder / CONFIG}: architecture {str(name)[:60]!r} is not known here")
    return str(name)


def _rebuilt(config: dict[str, Any], folder: Path, factory: str | None) -> Detector:
    """The detector that a configuration of `save_detector` describes, without its weights."""
    kind, fake_index = config["detector"], config.get("fake_index", 1)
    if fake_index not in (0, 1) or not isinstance(kind, str):
        raise UserError(f"{folder / CONFIG}: is of no detector")
    if kind.startswith("timm:"):
        name = _known_architecture(kind, folder).removeprefix("timm:")
        return Detector.from_timm(name, num_classes=_one_or_two(config, folder), fake_index=fake_index)
    if kind == "transformers":
        return hub_detector(config, folder / CONFIG)
    if factory is None:
        raise UserError(
            f"{folder}: was built by a factory ({kind[:60]}); give the factory again with --factory FILE.py:NAME,"
            " for code that a file names is not run"
        )
    return _from_factory(factory, fake_index)


def _one_or_two(config: dict[str, Any], folder: Path) -> int:
    outputs = config.get("num_classes", 2)
    if outputs not in (1, 2):
        raise UserError(f"{folder / CONFIG}: a detector has one or two outputs, not {str(outputs)[:20]}")
    return int(outputs)


def _from_factory(reference: str, fake_index: int | None) -> Detector:
    place, _, name = reference.rpartition(":")
    try:
        made = getattr(_module(place), name)()
    except UserError:
        raise
    except Exception as error:  # whatever a person's own code raises
        raise UserError(
            f"{reference}: cannot be imported and called ({type(error).__name__}: {error});"
            " name a module of the current folder by its file, FILE.py:NAME"
        ) from error
    if not callable(made):
        raise UserError(f"{reference}: returned {type(made).__name__}, neither a module nor a callable")
    if not isinstance(made, Detector):
        made = Detector(made, fake_index=fake_index, name=name)
    made.origin = {"detector": reference}
    return made


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    if not Path(place).is_file():
        raise UserError(f"{place}: no such file of a factory")
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None:
        raise UserError(f"{place}: is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_detector(detector: Detector, folder: Path) -> None:
    """Write a detector where `load_detector` finds it again.

    Args:
        detector: one that `train` or `load_detector` made.
        folder: for model.safetensors and config.json.

    Raises:
        UserError: a detector that does not know what it was made of.
        WriteError: the place cannot be written.
    """
    if isinstance(detector, Surrogate):
        save_model(detector, {"architecture": detector.architecture}, folder)
    elif detector.origin is not None:
        save_model(detector.network, detector.origin | {"fake_index": detector.fake_index}, folder)
    else:
        raise UserError("only detectors that train or load_detector made can be saved: others cannot be made again")


def save_model(module: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Write a configuration and the weights that go with it, each file whole or not at all."""
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_tensors(folder / WEIGHTS, module.state_dict())


def load_generator(path: Path) -> MaskGenerator:
    """A mask generator that `train-generator` made: the run or its `model/`.

    Raises:
        UserError: nothing there, or something else.
    """
    folder, config = _configuration(path, "mask generator")
    if config.keys() != {"width", "size"} or not all(type(value) is int for value in config.values()):
        raise UserError(f"{folder / CONFIG}: is of no mask generator")
    generator = MaskGenerator(**config)
    load_weights(generator, folder / WEIGHTS)
    return generator.eval()
