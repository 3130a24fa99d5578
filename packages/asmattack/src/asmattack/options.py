"""What the measuring verbs have in common: which faces, which detectors, how the attacks run."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tenfold import UserError

Names = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)]
Activation = Literal["saliency", "gradcam", "cam", "occlusion"]


@Parameter(name="*")
class FaceOptions:
    """Which faces, and how they are parsed.

    Args:
        data: Folder with real/ and fake/ crops, or a CSV manifest; drawn faces when absent.
        images: Size of the drawn set, half of it forged.
        size: Side to which square crops are resized.
        parser: geometric, segformer, segformer:ID_OR_FOLDER, masks:FOLDER or masks:FOLDER@bisenet.
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
        images: int = 80,
        size: int | None = None,
        parser: str = "geometric",
        activation: Activation = "saliency",
        generator: Path | None = None,
        candidates: Names = (),
        area: float | None = None,
        device: str = "auto",
        seed: int = 1000,
    ) -> None:
        self.data, self.images, self.size, self.parser = data, images, size, parser
        self.activation, self.generator, self.seed = activation, generator, seed
        self.candidates, self.area, self.device = candidates, area, device

    def faces(self) -> Any:
        """The set."""
        from asmattack.drawn import drawn_set
        from asmattack.sets import read_faces

        if not 0 <= self.seed < 2**62:
            raise UserError(f"--seed {self.seed}: must lie in [0, 2**62)")
        if self.data is not None:
            return read_faces(self.data, size=self.size)
        if self.images < 2:
            raise UserError("--images must be at least 2")
        return drawn_set(self.images, self.size or 48, self.seed)

    def maker(self) -> Any:
        """Parser or generator, and the activation map."""
        from asmattack.pipeline import MaskConfig, MaskMaker
        from asmattack.regions import CANDIDATES, REGIONS
        from asmattack.storage import load_generator
        from tenfold.runs import pick_device

        if unknown := [name for name in self.candidates if name not in REGIONS]:
            raise UserError(f"--candidates {unknown[0]}: no such region; there are {', '.join(REGIONS)}")
        if self.area is not None and not 0 < self.area <= 1:
            raise UserError(f"--area {self.area}: a share of the picture lies in (0, 1]")
        classes = tuple(REGIONS[name] for name in self.candidates) or CANDIDATES
        config = MaskConfig(
            budget="fixed_area" if self.area is None else self.area, method=self.activation, candidates=classes
        )
        generator = None
        if self.generator is not None:
            generator = load_generator(self.generator).to(pick_device(self.device))
        return MaskMaker(make_parser(self.parser), config, generator)

    def detectors(self, references: tuple[str, ...], fake_index: int | None) -> list[Any]:
        """The detectors that are named, on the device."""
        from asmattack.storage import load_detector
        from tenfold.runs import pick_device

        if not references:
            raise UserError(
                "name at least one detector: a run of `asmattack train`, timm:NAME@FILE, hf:ID or MODULE:FACTORY"
            )
        device = pick_device(self.device)
        return [load_detector(each, fake_index).to(device) for each in references]


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
        steps: int | None = None,
        eot: int = 1,
        stop_early: Annotated[bool, Parameter(negative=())] = False,
        precision: Literal["float32", "auto"] = "float32",
        after: Names = (),
    ) -> None:
        self.steps, self.eot, self.stop_early, self.precision, self.after = steps, eot, stop_early, precision, after

    def check(self, attacks: tuple[str, ...]) -> None:
        """Refuse what cannot be run before anything is loaded."""
        from asmattack.baselines import GLOBAL_ATTACKS, library_class
        from asmattack.presets import preset
        from asmattack.treatments import parse_treatment

        for name in attacks:
            if name in GLOBAL_ATTACKS:
                library_class(name)
            elif preset(name).objective == "cafa_batch" and self.stop_early:
                raise UserError(f"--stop-early: {name} ties each face to its neighbours, none can be let go")
        for each in self.after:
            parse_treatment(each)
        if self.steps is not None and self.steps < 1:
            raise UserError("--steps must be at least 1")
        if self.eot < 1:
            raise UserError("--eot must be at least 1")

    def for_bench(self) -> dict[str, Any]:
        """As a `Bench` takes them."""
        return {
            "steps": self.steps,
            "eot": self.eot,
            "stop_early": self.stop_early,
            "precision": self.precision,
            "after": self.after,
        }


def make_parser(name: str) -> Any:
    """A parser by its name on the command line."""
    from asmattack.geometric import GeometricParser
    from asmattack.parsers import PrecomputedParser, SegformerParser

    kind, _, rest = name.partition(":")
    if name == "geometric":
        return GeometricParser()
    if kind == "segformer":
        return SegformerParser(rest) if rest else SegformerParser()
    if kind == "masks" and rest:
        folder, _, order = rest.partition("@")
        if order not in ("", "canonical", "bisenet", "celebamask"):
            raise UserError(f"--parser {name}: orders are canonical, bisenet, celebamask")
        return PrecomputedParser(folder, order or "canonical")
    raise UserError(f"--parser {name}: none of geometric, segformer[:ID], masks:FOLDER[@ORDER]")
