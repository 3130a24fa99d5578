"""The robustness table: sources x attacks x policies x budgets x targets, on 8-bit results, with the controls beside them."""

import hashlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from asmattack.benchmark.baselines import GLOBAL_ATTACKS, GlobalAttack
from asmattack.config import preset
from asmattack.data.corruptions import UNTREATED, parse_treatment, treated
from asmattack.data.layouts import FaceSet
from asmattack.evaluation.metrics import attack_rates, distortion, wilson
from asmattack.evaluation.report import Report, Row
from asmattack.method.masks import MaskMaker, check_empty, choose, warn_of_no_choice
from asmattack.method.region_attack import AdversarialBatch, AttackConfig, RegionAttack
from asmattack.method.selection import Policy, RegionOrder, calibrated_order, region_scores
from asmattack.models.class_activation import activation_map
from asmattack.models.detector import Detector, warn_if_wrong
from tenfold import UserError
from tenfold.runs import track

Looks = list[tuple[Int64[Tensor, "_ h w"], Float[Tensor, "_ h w"]]]
"""Label maps and activation maps of each batch."""


@dataclass(frozen=True)
class Bench:
    """What is attacked, with what, where.

    Attributes:
        sources: detectors whose gradients are used.
        targets: detectors that are asked; the sources when empty. No gradient is ever taken of a target that is no source.
        attacks: names from `PRESETS` or `GLOBAL_ATTACKS`.
        policies: of the regions; whole-image baselines have `full` only.
        eps_grid: budgets as fractions; None is each attack's own.
        maker: parser, activation map and rule (its policy is replaced by each of `policies`).
        calibration: faces that set the order of the policy calibrated; the attacked ones when absent.
        steps: iterations, where not the attack's own.
        eot: gradients averaged at each step, for detectors that answer at random.
        stop_early: let each face go once it is fooled: faster, and no measure of what all steps can do.
        precision: of the attack's passes, see `AttackConfig`.
        after: treatments of the attacked pictures (`jpeg:75`, `resize:0.5`) under which the targets are asked once more.
        batch_size: faces at a time; halved once when memory runs out.
        seed: of random starts and regions.
    """

    sources: Sequence[Detector]
    targets: Sequence[Detector] = ()
    attacks: Sequence[str] = ("pgd",)
    policies: Sequence[Policy] = ("full", "fixed", "budget", "random", "worst")
    eps_grid: Sequence[float | None] = (8 / 255,)
    maker: MaskMaker = field(default_factory=MaskMaker)
    calibration: FaceSet | None = None
    steps: int | None = None
    eot: int = 1
    stop_early: bool = False
    precision: Literal["float32", "auto"] = "float32"
    after: Sequence[str] = ()
    batch_size: int = 64
    seed: int = 0

    def run(self, faces: FaceSet) -> Report:
        """Measure everything on a set of faces; each detector computes where its weights are.

        Raises:
            UserError: no detector, two of one name, an unknown attack or treatment, or no face with a region to perturb.
        """
        targets = list(self.targets) or list(self.sources)
        everyone = list({id(each): each for each in [*self.sources, *targets]}.values())
        names = [each.name for each in everyone]
        if not self.sources or len(set(names)) < len(names):
            raise UserError("name at least one detector, and each by a name of its own")
        for each in self.after:
            parse_treatment(each)
        for each in everyone:
            each.calibrate(faces.pixels(), faces.labels, self.batch_size)
        clean = {
            treatment: {
                each.name: logits(each, treated(faces.pixels(), treatment), self.batch_size) for each in everyone
            }
            for treatment in (UNTREATED, *self.after)
        }
        for each in everyone:
            self._check(each, faces, clean[UNTREATED][each.name])
        rows: list[Row] = []
        plan = [(source, name, eps) for source in self.sources for name in self.attacks for eps in self.eps_grid]
        looked = {id(source): self._look(source, faces) for source in self.sources}
        for source, name, eps in track(plan, "attacking"):
            looks = looked[id(source)]
            policies: Sequence[Policy] = ("full",) if name in GLOBAL_ATTACKS else self.policies
            for policy in policies:
                started = time.perf_counter()
                batch = self._attack(source, faces, looks, name, eps, policy)
                seconds = time.perf_counter() - started
                measured = measure(faces, batch, looks, self._activation(source, faces, looks, batch.images))
                for treatment, before in clean.items():
                    images = treated(batch.images, treatment)
                    after = {each.name: logits(each, images, self.batch_size) for each in targets}
                    shared = torch.stack([each.argmax(1) == faces.labels for each in before.values()]).all(0)
                    for target in targets:
                        counted = None if target is source else shared
                        found = attack_rates(before[target.name], after[target.name], faces.labels, counted)
                        low, high = wilson(found.asr, found.n)
                        rows.append(
                            Row(
                                source=source.name,
                                target=target.name,
                                attack=name,
                                policy=policy,
                                eps=float(self.budget(name, eps)),
                                after=treatment,
                                n=found.n,
                                n_fake=found.n_fake,
                                n_real=found.n_real,
                                clean_acc=found.clean_acc,
                                adv_acc=found.adv_acc,
                                robust_acc=found.robust_acc,
                                asr=found.asr,
                                ci_low=low,
                                ci_high=high,
                                evasion_rate=found.evasion_rate,
                                false_alarm_rate=found.false_alarm_rate,
                                seconds=seconds,
                                **measured,
                            )
                        )
        return Report(
            tuple(rows),
            self.seed,
            len(faces),
            faces.unreadable,
            self._notes(everyone, max((row.n_budget_covers_all for row in rows), default=0), len(faces)),
            {each.name: weights_hash(each) for each in everyone},
            data_hash(faces),
        )

    def attacked(
        self, source: Detector, faces: FaceSet, name: str, eps: float | None, policy: Policy
    ) -> tuple[AdversarialBatch, Float[Tensor, "n h w"]]:
        """One attack on some faces; also the activation maps that chose the regions."""
        looks = self._look(source, faces)
        return self._attack(source, faces, looks, name, eps, policy), torch.cat([maps for _, maps in looks])

    def budget(self, name: str, eps: float | None) -> float:
        """The budget of an attack, its own where none is given."""
        return self._config(name, eps).eps

    def _notes(self, everyone: Sequence[Detector], covered: int, faces: int) -> dict[str, str]:
        notes = {f"Outputs of {each.name}": f"{each.reading()}." for each in everyone}
        if covered:
            notes["Nothing to choose"] = (
                f"on {covered} of {faces} faces every candidate region fits into the area budget;"
                " budget, calibrated, random and worst do not differ there."
            )
        if self.stop_early:
            notes["Stopped early"] = (
                "each face was let go once fooled: rates and distortions are not those of all steps."
            )
        if self.eot > 1:
            notes["Averaged gradients"] = f"{self.eot} at each step."
        return notes

    def _check(self, detector: Detector, faces: FaceSet, found: Tensor) -> None:
        answers = found.argmax(1)
        if len(faces.labels.unique()) == 2:
            warn_if_wrong(detector.name, float((answers == faces.labels).float().mean()), float(answers.float().mean()))
        again = logits(detector, faces.pixels()[: self.batch_size], self.batch_size)
        if not torch.equal(again, found[: self.batch_size]):
            warnings.warn(f"{detector.name}: two clean passes differ; average gradients with eot", stacklevel=3)

    def _config(self, name: str, eps: float | None) -> AttackConfig:
        if name in GLOBAL_ATTACKS:
            return AttackConfig(eps=8 / 255 if eps is None else eps, steps=self.steps or 10, seed=self.seed)
        config = replace(
            preset(name, eps, self.seed), eot=self.eot, stop_early=self.stop_early, precision=self.precision
        )
        return config if self.steps is None or config.steps <= 1 else replace(config, steps=self.steps)

    def _look(self, source: Detector, faces: FaceSet) -> Looks:
        """Label and activation maps of each batch, on the CPU: once for all policies."""
        found = [
            self.maker.look(source, batch.pixels(source.device), **batch.of_parser(source.device))
            for batch in faces.batches(self.batch_size)
        ]
        return [(labels.cpu(), maps.cpu()) for labels, maps in found]

    def _activation(
        self, source: Detector, faces: FaceSet, looks: Looks, attacked: Tensor
    ) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
        """The source's own activation before and after, by the method that chose the regions (saliency with a generator)."""
        method = "saliency" if self.maker.generator is not None else self.maker.config.method

        def maps(images: Tensor) -> Tensor:
            found = []
            for part, (labels, _) in zip(images.split(self.batch_size), looks, strict=True):
                part, labels = part.to(source.device), labels.to(source.device)
                each = activation_map(
                    source, part, method=method, labels=labels, candidates=self.maker.config.candidates
                )
                found.append(each.cpu())
            return torch.cat(found)

        known = self.maker.generator is None
        return torch.cat([each for _, each in looks]) if known else maps(faces.pixels()), maps(attacked)

    def _order(self, source: Detector, looks: Looks) -> RegionOrder:
        if self.calibration is not None:
            looks = self._look(source, self.calibration)
        labels, maps = torch.cat([each for each, _ in looks]), torch.cat([each for _, each in looks])
        return calibrated_order(region_scores(maps, labels, self.maker.config.candidates))

    def _attack(
        self, source: Detector, faces: FaceSet, looks: Looks, name: str, eps: float | None, policy: Policy
    ) -> AdversarialBatch:
        config = self._config(name, eps)
        rule = replace(self.maker.config, policy=policy)
        if policy == "calibrated" and rule.order is None:
            rule = replace(rule, order=self._order(source, looks))
        done = []
        for number, (batch, (labels, maps)) in enumerate(zip(faces.batches(self.batch_size), looks, strict=True)):
            seed = self.seed + 1000 * number
            if name in GLOBAL_ATTACKS:
                run = GlobalAttack(source, name, config.eps, config.steps, seed).run
                done.append(run(batch.pixels(source.device), batch.labels.to(source.device)))
                continue
            chosen = choose(labels, maps, replace(rule, seed=seed))
            found = attack_halving(RegionAttack(source, replace(config, seed=seed)), batch, chosen.mask)
            done.append(replace(found, budget_covers_all=chosen.selection.covers_all))
        whole = joined(done)
        check_empty(whole.empty_mask, replace(self.maker, config=rule))
        warn_of_no_choice(whole.budget_covers_all, policy)
        return whole


def attack_halving(attack: RegionAttack, batch: FaceSet, mask: Tensor) -> AdversarialBatch:
    """The attack where its detector is, in two halves when memory runs out."""
    device = attack.detector.device
    try:
        return attack.run(batch.pixels(device), batch.labels.to(device), mask.to(device))
    except torch.OutOfMemoryError:
        if len(batch) < 2:
            raise
        warnings.warn(f"out of memory with {len(batch)} faces: in two halves", stacklevel=2)
        half = len(batch) // 2
        rows = torch.arange(len(batch)).split([half, len(batch) - half])
        parts = [batch.subset(each) for each in rows]
        return joined(
            [
                attack.run(part.pixels(device), part.labels.to(device), mask[each].to(device))
                for part, each in zip(parts, rows, strict=True)
            ]
        )


def joined(parts: Sequence[AdversarialBatch]) -> AdversarialBatch:
    """Batches one after another, on the CPU."""
    return AdversarialBatch(
        *(
            torch.cat([getattr(part, name).cpu() for part in parts])
            for name in (
                "images",
                "mask",
                "success",
                "within_budget",
                "empty_mask",
                "zero_gradient",
                "budget_covers_all",
            )
        )
    )


@torch.no_grad()
def logits(detector: Detector, images: Float[Tensor, "n 3 h w"], batch_size: int = 64) -> Float[Tensor, "n 2"]:
    """The detector's answers, in evaluation mode and without a graph, on the CPU."""
    training = detector.training
    detector.eval()
    found = torch.cat([detector(part.to(detector.device)).cpu() for part in images.split(batch_size)]).float()
    detector.train(training)
    return found


def measure(faces: FaceSet, batch: AdversarialBatch, looks: Looks, activation: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """What the pictures underwent, and what happened to the activation inside and outside the mask.

    Args:
        faces: clean.
        batch: attacked.
        looks: label maps, and the activation maps that chose the regions.
        activation: of the source before and after.
    """
    changes = [
        distortion(before, after) for before, after in zip(levels(faces.pixels()), levels(batch.images), strict=True)
    ]
    finite = [each for each in changes if np.isfinite(each.psnr)]
    shift = (activation[1] - activation[0]).abs()
    inside, outside = batch.mask[:, 0], 1 - batch.mask[:, 0]

    def mean(name: str, of: Sequence[object] = changes) -> float:
        return float(np.mean([getattr(each, name) for each in of])) if of else float("inf")

    def weighted(values: Tensor, weight: Tensor) -> float:
        return float((values * weight).sum() / weight.sum()) if bool(weight.any()) else float("nan")

    return {
        "mask_area": float(batch.mask.mean()),
        "n_empty_mask": int(batch.empty_mask.sum()),
        "n_budget_covers_all": int(batch.budget_covers_all.sum()),
        "over_budget": int((~batch.within_budget).sum()),
        "zero_grad_fraction": float(batch.zero_gradient.float().mean()),
        "psnr": mean("psnr", finite),
        "psnr_inf": len(changes) - len(finite),
        "psnr_in_mask": mean("psnr_in_mask", finite),
        "ssim": mean("ssim"),
        "l0": mean("l0"),
        "linf": mean("linf"),
        "l2": mean("l2"),
        "activation_in_mask": weighted(torch.cat([maps for _, maps in looks]), inside),
        "activation_shift_in": weighted(shift, inside),
        "activation_shift_out": weighted(shift, outside),
    }


def levels(images: Float[Tensor, "n 3 h w"]) -> list[np.ndarray]:
    """8-bit pictures, height x width x 3."""
    return list((images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())


LENGTH = 16
"""Hexadecimal digits that are kept of a SHA-256."""


def weights_hash(module: nn.Module) -> str:
    """Of all parameters and buffers, by name, type, shape and bytes; the same on every device."""
    return _hash(sorted(module.state_dict().items()))


def data_hash(faces: FaceSet) -> str:
    """Of pixels and labels, in their order."""
    return _hash([("images", faces.images), ("labels", faces.labels)])


def _hash(tensors: list[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:LENGTH]
