"""Which regions a detector's decision hangs on: the report that the owner of a detector acts upon."""

from typing import Any

from asmattack.activation import occlusion
from asmattack.bench import logits
from asmattack.detector import Detector
from asmattack.pipeline import MaskMaker
from asmattack.presets import preset
from asmattack.region_attack import RegionAttack
from asmattack.regions import REGIONS, region_mask
from asmattack.selection import region_scores
from asmattack.sets import FaceSet
from tenfold import UserError


def region_vulnerability(detector: Detector, faces: FaceSet, maker: MaskMaker, eps: float) -> dict[str, dict[str, Any]]:
    """For each candidate region, over the fakes that the detector sees.

    Args:
        detector: what is examined.
        faces: labelled faces.
        maker: parser, activation map and candidates.
        eps: budget of the attack on one region alone, as a fraction.

    Returns:
        Region to density (mean activation), occlusion_drop (of logit fake - logit real), evasion (success of masked PGD
        in this region alone), area (share of the image) and faces (in which it occurs); None where it occurs in none.
    """
    found = logits(detector, faces.pixels()).argmax(1)
    seen = faces.subset(((found == 1) & (faces.labels == 1)).nonzero().flatten())
    if not len(seen):
        raise UserError("the detector finds none of the fakes: there is no decision to examine")
    images = seen.pixels()
    labels, maps = maker.look(detector, images, **seen.of_parser())
    scores = region_scores(maps, labels, maker.config.candidates)
    drops = region_scores(
        occlusion(detector, images, labels, 1, maker.config.candidates), labels, maker.config.candidates
    )
    names, rows = list(REGIONS), {}
    for column, k in enumerate(maker.config.candidates):
        present = scores.area[:, column] > 0
        row: dict[str, Any] = {"density": None, "occlusion_drop": None, "evasion": None, "area": None}
        if bool(present.any()):
            mask = region_mask(labels[present], (k,)).float()
            batch = RegionAttack(detector, preset("pgd", eps)).run(images[present], seen.labels[present], mask)
            row = {
                "density": float(scores.density[present, column].mean()),
                "occlusion_drop": float(drops.density[present, column].mean()),
                "evasion": float(batch.success.float().mean()),
                "area": float(mask.mean()),
            }
        rows[names[k]] = row | {"faces": int(present.sum())}
    return dict(sorted(rows.items(), key=lambda each: -(each[1]["density"] or -1.0)))
