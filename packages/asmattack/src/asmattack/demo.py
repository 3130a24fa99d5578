"""The demonstration: two surrogates and a hardened one, on drawn faces, in under a minute."""

import copy
from pathlib import Path

from asmattack.benchmark.comparison import Bench
from asmattack.benchmark.figures import contact_sheet, example_pictures
from asmattack.config import HardenConfig, TrainConfig
from asmattack.data.synthetic import drawn_set
from asmattack.evaluation.report import Example, Report
from asmattack.training.loop import faces_of, fit, train
from asmattack.training.step import Hardening
from tenfold.images import write_image


def demonstrate(out: Path, seed: int) -> tuple[Report, list[Example]]:
    """Train, harden, attack; writes faces.png."""
    detectors = [train(TrainConfig(model=name, holdout=0.05, seed=seed)) for name in ("plain", "separable")]
    hardened = copy.deepcopy(detectors[0])
    hardened.name = "plain hardened"
    recipe = HardenConfig(images=600, epochs=2, seed=seed)
    fit(Hardening(hardened, *faces_of(recipe), recipe), recipe, None, False, "auto")
    everyone = [each.cpu() for each in (*detectors, hardened)]
    faces = drawn_set(60, seed=seed + 1000)
    bench = Bench(everyone, policies=("full", "budget", "random"), seed=seed)
    report = bench.run(faces)
    examples = example_pictures(bench, everyone[0], faces, "pgd", 8 / 255)
    text = {"asma:adversarial": "pgd 8/255 budget, drawn faces"}
    write_image(out / "faces.png", contact_sheet(examples), text=text)
    return report, examples
