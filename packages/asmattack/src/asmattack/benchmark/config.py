"""What the measuring verbs have in common: which faces, which detectors, how the attacks run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from asmattack.config import check_drawn
from tenfold import UserError
from tenfold.options import Count, Seed, Share, Size

Names = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)]
Activation = Literal["saliency", "gradcam", "cam", "layercam", "occlusion"]


@Parameter(name="*")
class FaceOptions:
    """Which faces, and how they are parsed.

    Args:
        data: Folder with real/ and fake/ crops, or a CSV manifest; drawn faces when absent.
        images: Size of the drawn set, half of it forged.
        size: Side to which square crops are resized.
        parser: geometric, segformer, segformer:ID_OR_FOLDER, masks:FOLDER or masks:FOLDER@bisenet.
        parser_revision: Branch, tag or commit of segformer on the Hub.
        activation: The map that scores regions.
        generator: A run of train-generator, in place of parser and activation map.
        candidates: Regions to choose from, by name: nose l_eye r_eye l_brow r_brow mouth u_lip l_lip when absent.
        area: Share of the picture that chosen regions may take; that of the five fixed regions of each face when absent.
        device: auto, cpu, cuda, cuda:1, mps.
        seed: Of the drawn set, random starts and random regions.
    """

    def __init__(
        self,
        data: Path | None = None,
        images: Count = 80,
        size: Count | None = None,
        parser: str = "geometric",
        parser_revision: str | None = None,
        activation: Activation = "saliency",
        generator: Path | None = None,
        candidates: Names = (),
        area: Share | None = None,
        device: str = "auto",
        seed: Seed = 1000,
    ) -> None:
        self.data, self.images, self.size = data, images, size
        self.parser, self.parser_revision = parser, parser_revision
        self.activation, self.generator, self.seed = activation, generator, seed
        self.candidates, self.area, self.device = candidates, area, device

    def faces(self) -> Any:
        """The set."""
        from asmattack.data.layouts import read_faces
        from asmattack.data.synthetic import drawn_set

        if self.data is not None:
            return read_faces(self.data, size=self.size)
        if self.images < 2:
            raise UserError("--images must be at least 2")
        check_drawn(self.images, self.size)
        return drawn_set(self.images, self.size or 48, self.seed)

    def maker(self) -> Any:
        """Parser or generator, and the activation map."""
        from asmattack.data.regions import CANDIDATES, REGIONS
        from asmattack.method.masks import MaskConfig, MaskMaker
        from asmattack.models.checkpoints import load_generator
        from tenfold.runs import pick_device

        if unknown := [name for name in self.candidates if name not in REGIONS]:
            raise UserError(f"--candidates {unknown[0]}: no such region; there are {', '.join(REGIONS)}")
        if self.area == 0:
            raise UserError("--area 0: regions need a share of the picture above 0")
        classes = tuple(REGIONS[name] for name in self.candidates) or CANDIDATES
        config = MaskConfig(method=self.activation, candidates=classes)
        if self.area is not None:
            config = replace(config, budget=self.area)
        generator = None
        if self.generator is not None:
            generator = load_generator(self.generator).to(pick_device(self.device))
        return MaskMaker(self.make_parser(), config, generator)

    def make_parser(self) -> Any:
        """The parser."""
        return make_parser(self.parser, self.parser_revision)

    def on_device(self, detectors: list[Any]) -> list[Any]:
        """Detectors where they compute."""
        from tenfold.runs import pick_device

        device = pick_device(self.device)
        return [each.to(device) for each in detectors]


@Parameter(name="*")
@dataclass(frozen=True)
class DetectorOptions:
    """How detectors are loaded.

    Attributes:
        fake_index: Which output means fake (of one output 1: high, 0: low); without it label names tell, or the labels of the faces.
        factory: FILE.py:NAME or MODULE:NAME that built the detectors of folders that say a factory built them.
        revision: Branch, tag or commit of hf:ID on the Hub.
    """

    fake_index: Size | None = None
    factory: str | None = None
    revision: str | None = None

    def load(self, *references: str) -> list[Any]:
        """The detectors that are named."""
        from asmattack.models.checkpoints import load_detector

        if not references:
            raise UserError(
                "name at least one detector: a run of `asmattack train`, timm:NAME@FILE, hf:ID or FILE.py:FACTORY"
            )
        if self.fake_index not in (None, 0, 1):
            raise UserError(f"--fake-index {self.fake_index}: a detector has the outputs 0 and 1")
        if self.revision is not None and not any(each.startswith("hf:") for each in references):
            raise UserError("--revision: is of models of the Hub, and no detector is named hf:ID")
        return [
            load_detector(
                each,
                self.fake_index,
                factory=self.factory,
                revision=self.revision if each.startswith("hf:") else None,
            )
            for each in references
        ]


@Parameter(name="*")
class AttackOptions:
    """How the attacks run.

    Args:
        steps: Iterations, where not the attack's own.
        eot: Gradients averaged at each step, for detectors that answer at random.
        stop_early: Let each face go once it is fooled: faster, but no measure of what all steps can do.
        precision: float32, or auto: bfloat16 in the attack's passes where the hardware has it.
        after: Also ask about the attacked pictures after jpeg:QUALITY or resize:FACTOR, such as jpeg:75 resize:0.5.
    """

    def __init__(
        self,
        steps: Count | None = None,
        eot: Count = 1,
        stop_early: Annotated[bool, Parameter(negative=())] = False,
        precision: Literal["float32", "auto"] = "float32",
        after: Names = (),
    ) -> None:
        self.steps, self.eot, self.stop_early, self.precision, self.after = steps, eot, stop_early, precision, after

    def check(self, attacks: tuple[str, ...]) -> None:
        """Refuse what cannot be run before anything is loaded."""
        from asmattack.benchmark.baselines import GLOBAL_ATTACKS, library_class
        from asmattack.config import preset
        from asmattack.data.corruptions import parse_treatment

        for name in attacks:
            if name in GLOBAL_ATTACKS:
                library_class(name)
            elif preset(name).objective == "cafa_batch" and self.stop_early:
                raise UserError(f"--stop-early: {name} ties each face to its neighbours, none can be let go")
        for each in self.after:
            parse_treatment(each)

    def for_bench(self) -> dict[str, Any]:
        """As a `Bench` takes them."""
        return {
            "steps": self.steps,
            "eot": self.eot,
            "stop_early": self.stop_early,
            "precision": self.precision,
            "after": self.after,
        }


def make_parser(name: str, revision: str | None = None) -> Any:
    """A parser by its name on the command line."""
    from asmattack.data.landmarks import GeometricParser
    from asmattack.data.parsers import PrecomputedParser, SegformerParser

    kind, _, rest = name.partition(":")
    if revision is not None and kind != "segformer":
        raise UserError(f"--parser-revision: is of a segformer of the Hub, not of {name}")
    if name == "geometric":
        return GeometricParser()
    if kind == "segformer":
        return SegformerParser(rest, revision) if rest else SegformerParser(revision=revision)
    if kind == "masks" and rest:
        folder, _, order = rest.partition("@")
        if order not in ("", "canonical", "bisenet", "celebamask"):
            raise UserError(f"--parser {name}: orders are canonical, bisenet, celebamask")
        return PrecomputedParser(folder, order or "canonical")
    raise UserError(f"--parser {name}: none of geometric, segformer[:ID], masks:FOLDER[@ORDER]")
