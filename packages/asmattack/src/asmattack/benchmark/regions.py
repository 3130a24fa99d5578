"""Which regions a detector's decision hangs on: the report that the owner of a detector acts upon."""

from typing import Any

import torch
from torch import Tensor

from asmattack.benchmark.comparison import attack_halving, joined, logits
from asmattack.config import preset
from asmattack.data.layouts import FaceSet
from asmattack.data.regions import REGIONS, region_mask
from asmattack.method.masks import MaskMaker
from asmattack.method.region_attack import RegionAttack
from asmattack.method.selection import region_scores
from asmattack.models.class_activation import occlusion
from asmattack.models.detector import Detector
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
    detector.calibrate(faces.pixels(), faces.labels)
    found = logits(detector, faces.pixels()).argmax(1)
    seen = faces.subset(((found == 1) & (faces.labels == 1)).nonzero().flatten())
    if not len(seen):
        raise UserError("the detector finds none of the fakes: there is no decision to examine")
    candidates, device = maker.config.candidates, detector.device
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in seen.batches(64):
        images = batch.pixels(device)
        parsed, activation = maker.look(detector, images, **batch.of_parser(device))
        kept.append((parsed.cpu(), activation.cpu(), occlusion(detector, images, parsed, 1, candidates).cpu()))
    labels, maps, painted = (torch.cat(each) for each in zip(*kept, strict=True))
    scores, drops = region_scores(maps, labels, candidates), region_scores(painted, labels, candidates)
    names, rows = list(REGIONS), {}
    for column, k in enumerate(candidates):
        present = scores.area[:, column] > 0
        row: dict[str, Any] = {"density": None, "occlusion_drop": None, "evasion": None, "area": None}
        if bool(present.any()):
            mask = region_mask(labels[present], (k,)).float()
            attack, rows_of_k = RegionAttack(detector, preset("pgd", eps)), present.nonzero().flatten()
            batch = joined(
                [
                    attack_halving(attack, part, each)
                    for part, each in zip(seen.subset(rows_of_k).batches(64), mask.split(64), strict=True)
                ]
            )
            row = {
                "density": float(scores.density[present, column].mean()),
                "occlusion_drop": float(drops.density[present, column].mean()),
                "evasion": float(batch.success.float().mean()),
                "area": float(mask.mean()),
            }
        rows[names[k]] = row | {"faces": int(present.sum())}
    return dict(sorted(rows.items(), key=lambda each: -(each[1]["density"] or -1.0)))
