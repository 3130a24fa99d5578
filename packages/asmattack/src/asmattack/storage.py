"""Detectors by reference: what a command line names, what a folder holds."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import save_file

from asmattack.checkpoint import load_weights
from asmattack.detector import Detector
from asmattack.mask_generator import MaskGenerator
from asmattack.surrogates import Surrogate
from tenfold import UserError
from tenfold.files import atomic_path, write_text

WEIGHTS = "model.safetensors"


def load_detector(reference: str, fake_index: int | None = None) -> Detector:
    """A detector by what names it.

    - a folder that `train` or `harden` made (the run or its `model/`), or a transformers image classifier's
    - `timm:NAME` or `timm:NAME@FILE`: with two classes, weights from the file
    - `hf:ID`: an image classifier of transformers, from the hub or a folder
    - `MODULE:FACTORY` or `FILE.py:FACTORY`: your own; the factory takes nothing and returns a module from pixels in [0, 1] to
      two logits (real, fake) or one, or a `Detector` with its statistics. The code of the module is run.

    Args:
        reference: one of these.
        fake_index: which output means fake, where it is not 1 and label names do not tell.

    Raises:
        UserError: nothing there, or something else.
    """
    path = Path(reference)
    if path.is_dir():
        detector = _from_folder(path, fake_index)
    elif reference.startswith("timm:"):
        name, _, file = reference.removeprefix("timm:").partition("@")
        detector = Detector.from_timm(name, file or None, fake_index=1 if fake_index is None else fake_index)
    elif reference.startswith("hf:"):
        detector = Detector.from_transformers(reference.removeprefix("hf:"), fake_index=fake_index)
    elif ":" in reference:
        detector = _from_factory(reference, fake_index)
    else:
        raise UserError(f"{reference}: no such folder, and none of timm:NAME, hf:ID, MODULE:FACTORY")
    return detector.eval()


def _from_folder(path: Path, fake_index: int | None) -> Detector:
    folder = path / "model" if (path / "model" / "config.json").is_file() else path
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: holds no detector (no config.json that can be read)") from None
    if isinstance(config, dict) and "architecture" in config:
        detector = Surrogate(config["architecture"], path.name)
        load_weights(detector, folder / WEIGHTS)
        return detector
    if isinstance(config, dict) and "detector" in config:
        detector = load_detector(config["detector"], config.get("fake_index"))
        load_weights(detector.network, folder / WEIGHTS)
        detector.name = path.name
        return detector
    if isinstance(config, dict) and "model_type" in config:
        detector = Detector.from_transformers(folder, fake_index=fake_index)
        detector.name = path.name
        return detector
    raise UserError(f"{folder}: its config.json is of no detector")


def _from_factory(reference: str, fake_index: int | None) -> Detector:
    place, _, name = reference.rpartition(":")
    try:
        factory = getattr(_module(place), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(f"{reference}: cannot be imported ({error})") from None
    made = factory()
    if isinstance(made, Detector):
        return made
    if not callable(made):
        raise UserError(f"{reference}: returned {type(made).__name__}, neither a module nor a callable")
    return Detector(made, fake_index=1 if fake_index is None else fake_index, name=name)


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(place)
    if not Path(place).is_file():
        raise ImportError(f"no file {place}")
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_detector(detector: Detector, folder: Path, reference: str | None = None) -> None:
    """Write a detector where `load_detector` finds it again.

    Args:
        detector: a surrogate is kept with its architecture, any other with what it was loaded from.
        folder: for model.safetensors and config.json.
        reference: for a detector that is no surrogate, what `load_detector` was given.

    Raises:
        UserError: a detector that is no surrogate, without a reference.
    """
    if isinstance(detector, Surrogate):
        detector.save_pretrained(folder)
        return
    if reference is None:
        raise UserError("only surrogates know how to be made again; say what the detector was loaded from")
    weights = {name: value.detach().cpu().contiguous() for name, value in detector.network.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    place = Path(reference)
    kept = str(place.resolve()) if place.is_dir() else reference
    write_text(folder / "config.json", json.dumps({"detector": kept, "fake_index": detector.fake_index}))


def load_generator(path: Path) -> MaskGenerator:
    """A mask generator that `train-generator` made: the run or its `model/`.

    Raises:
        UserError: nothing there, or something else.
    """
    folder = path / "model" if (path / "model" / "config.json").is_file() else path
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        generator = MaskGenerator(**config)
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: holds no mask generator") from None
    load_weights(generator, folder / WEIGHTS)
    return generator.eval()
