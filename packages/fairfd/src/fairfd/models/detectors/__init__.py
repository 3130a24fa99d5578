"""The detectors by name (paper, "Detection models").

Importing this module imports no network: each is loaded when it is created.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold import UserError
from tenfold.reading import CONFIG_LIMIT, read_json_object

if TYPE_CHECKING:
    from fairfd.models.detectors.detector import Detector

DETECTORS: Mapping[str, str] = {
    "xception": "xception:XceptionDetector",
    "core": "core:CoreDetector",
    "spsl": "spsl:SpslDetector",
    "f3net": "f3net:F3NetDetector",
    "ffd": "ffd:FfdDetector",
    "recce": "recce:RecceDetector",
    "ucf": "ucf:UcfDetector",
    "srm": "srm:SrmDetector",
    "capsule": "capsule:CapsuleDetector",
    "meso4": "compact:Meso4Detector",
    "mesoinception4": "compact:MesoInception4Detector",
    "dag-fdd": "dag_daw_fdd:DagFddDetector",
    "daw-fdd": "dag_daw_fdd:DawFddDetector",
    "pgfdd": "pgfdd:PgFddDetector",
    "small-rgb": "compact:SmallDetector",
    "small-gray": "compact:SmallDetector",
    "small-spsl": "compact:SmallDetector",
    "small-f3net": "compact:SmallDetector",
    "small-srm": "compact:SmallDetector",
}
"""Registry names and where they live. Besides these, `timm:NAME`, `probe:NAME` and `hf:NAME_OR_FOLDER` are detectors."""

PREFIXES: Mapping[str, str] = {
    "timm": "wrapping:TimmDetector",
    "probe": "wrapping:LinearProbe",
    "hf": "wrapping:HuggingFaceDetector",
}
"""Families that take the name of a model after a colon."""


def create_detector(
    name: str, pretrained: str | Path | None = None, in_size: int | None = None, **options: Any
) -> "Detector":
    """Make a detector.

    Args:
        name: one of `DETECTORS`, `timm:NAME` (any timm model), `probe:NAME` (a linear probe on a frozen timm model) or
            `hf:NAME_OR_FOLDER` (an image classifier of transformers with two labels).
        pretrained: where to start from. None: random weights. `imagenet`: the backbone's ImageNet weights, downloaded or
            cached. A file: ImageNet weights of the backbone. A folder: a detector saved by `save_pretrained` or a training
            run. `deepfakebench:FILE`: a whole detector trained in DeepfakeBench. `mesonet:FILE`: the MesoNet authors' Keras
            weights (.h5) for `meso4` and `mesoinception4`. An `hf:` detector brings its own weights.
        in_size: height and width of the input. None: 256, 48 for the `small-` ones, a `hf:` model's own.
        **options: of the detector, see its class.

    Raises:
        UserError: an unknown name or option, or weights that cannot be had or do not fit.
    """
    family, _, model = name.partition(":")
    if in_size is not None:
        options["in_size"] = in_size
    if pretrained is not None and Path(pretrained).is_dir():
        return _load_same_kind(name, Path(pretrained), in_size)
    if family == "hf" and model:
        from fairfd.models.detectors.wrapping import hugging_face_detector

        return hugging_face_detector(model, **options)
    if family == "probe" and pretrained is None:
        raise UserError(f"{name}: a linear probe needs a pretrained model; give pretrained=imagenet or a weights file")
    if family in PREFIXES and model:
        detector = _build(PREFIXES[family], name, model=model, **options)
    elif name in DETECTORS:
        if name.startswith("small-"):
            options["front"] = name.removeprefix("small-")
        if str(pretrained).startswith("mesonet:") and DETECTORS[name].startswith("compact:Meso"):
            options.setdefault("variant", "mesonet")
        detector = _build(DETECTORS[name], name, **options)
    else:
        known = ", ".join([*DETECTORS, *(f"{prefix}:NAME" for prefix in PREFIXES)])
        raise UserError(f"--detector {name}: unknown; there is {known}")
    if pretrained is not None:
        _start_from(detector, str(pretrained))
    return detector


def load_detector(source: str | Path) -> "Detector":
    """Load a detector saved by `save_pretrained` or by a training run, in evaluation mode.

    Args:
        source: the folder, or the folder of a run (its best checkpoint is taken).

    Raises:
        UserError: no such folder, or one that holds no detector.
    """
    folder = Path(source)
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        raise UserError(f"{source}: holds no detector (config.json and model.safetensors); train one first")
    config = read_json_object(folder / "config.json", CONFIG_LIMIT)
    registered = {
        **{name: place for name, place in DETECTORS.items() if not name.startswith("small-")},
        "small": "compact:SmallDetector",
        **PREFIXES,
    }
    kind = config.get("detector", "")
    if not isinstance(kind, str) or kind not in registered:
        raise UserError(f"{folder / 'config.json'}: names no detector of this package ({str(kind)[:60]!r})")
    try:
        return _class(registered[kind]).from_pretrained(folder)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a stranger's values make a network raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{folder}: its config.json describes no detector ({reason})") from None


def _class(place: str) -> type["Detector"]:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def _build(place: str, name: str, **options: Any) -> "Detector":
    import inspect

    detector_class = _class(place)
    accepted = inspect.signature(detector_class.__init__).parameters
    unknown = sorted(options.keys() - accepted.keys())
    if unknown:
        allowed = ", ".join(sorted(accepted.keys() - {"self"}))
        raise UserError(f"{name}: has no option {', '.join(unknown)}; there is {allowed}")
    return detector_class(**options)


def _start_from(detector: "Detector", pretrained: str) -> None:
    from fairfd.models.detectors.pretrained import imagenet_backbone, load_deepfakebench, load_mesonet, read_backbone

    if pretrained.startswith("deepfakebench:"):
        load_deepfakebench(detector, pretrained.removeprefix("deepfakebench:"))
    elif pretrained.startswith("mesonet:"):
        load_mesonet(detector, pretrained.removeprefix("mesonet:"))
    elif pretrained == "imagenet":
        if not detector.backbone:
            raise UserError(f"{detector.name}: has no ImageNet backbone; leave pretrained unset")
        detector.load_backbone(imagenet_backbone(detector.backbone))
    else:
        detector.load_backbone(read_backbone(pretrained))


def _load_same_kind(name: str, folder: Path, in_size: int | None) -> "Detector":
    detector = load_detector(folder)
    if name not in (detector.name, detector.full_name):
        raise UserError(f"{folder}: holds a {detector.full_name}, not a {name}")
    if in_size is not None and detector.in_size != in_size:
        raise UserError(
            f"{folder}: was trained on {detector.in_size} pixels; create it with in_size={detector.in_size}"
        )
    return detector
