"""Two-stage training (sections 3.1 and 3.5): every epoch extracts, clusters, associates, and trains on what came out."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from torch import Tensor

from multreid.config import EvalConfig, TrainConfig
from multreid.data.datasets import CropSet, duplicated
from multreid.data.layouts import Crops, folder_crops, llcm_training, regdb_part, sysu_training
from multreid.data.samplers import Batch, stage_one_batches, stage_two_batches
from multreid.data.transforms import augment, augment_channels
from multreid.evaluation.metrics import pair_scores
from multreid.evaluation.protocols import evaluate, required
from multreid.method.clustering import Clustering, cluster_features
from multreid.method.label_transfer import Association, cluster_centres, start_labels, transfer_labels
from multreid.method.losses import (
    Memories,
    Targets,
    Views,
    infrared_space_loss,
    stage_one_loss,
    visible_space_loss,
)
from multreid.method.matching import transported_labels
from multreid.method.memory import ClusterMemory
from multreid.models.features import extract, load_model
from multreid.models.networks import TwoStreamResNet, load_imagenet_weights
from multreid.training.checkpoints import load_checkpoint, save_checkpoint
from multreid.training.distributed import gather_batch, share_batch_statistics
from tenfold import UserError
from tenfold.files import atomic_folder
from tenfold.runs import RunFolder, autocast, pick_device, seed_everything, track, unlock_run

_CHECKPOINT = "last.safetensors"


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains on.

    Attributes:
        batches: rows of each batch.
        association: labels in both spaces; None in stage one.
        visible: clusters of the visible instances.
        infrared: clusters of the infrared instances.
        visible_centres: raw means of the visible clusters.
        infrared_centres: raw means of the infrared clusters.
    """

    batches: list[Batch]
    association: Association | None
    visible: Clustering
    infrared: Clustering
    visible_centres: Float[np.ndarray, "kv d"]
    infrared_centres: Float[np.ndarray, "kr d"]


def training_crops(config: TrainConfig) -> tuple[Crops, Crops]:
    """The training pictures that a configuration names, visible and infrared.

    Raises:
        UserError: a folder that is missing or empty.
    """
    if config.dataset == "sysu":
        return sysu_training(required(config.root, "--root"))
    if config.dataset == "regdb":
        return regdb_part(required(config.root, "--root"), "train", config.trial)
    if config.dataset == "llcm":
        return llcm_training(required(config.root, "--root"))
    return (
        folder_crops(required(config.visible, "--visible"), "visible"),
        folder_crops(required(config.infrared, "--infrared"), "infrared"),
    )


def train(out: Path, config: TrainConfig, *, device: str = "auto", resume: bool = False) -> dict[str, Any]:
    """Train a network without identity labels and save it to `out/model`.

    Args:
        out: the run folder.
        config: everything the run depends on.
        device: `auto`, or a torch device name. Under `torchrun` each process takes its own.
        resume: continue an interrupted run; its result is the same as if it had never stopped.

    Returns:
        What `result.json` holds: clusters and pair scores of the last epoch, and scores on the test part where there is one.

    Raises:
        UserError: pictures or options that cannot be used.
    """
    accelerator = _accelerator(device)
    crops = training_crops(config)
    for each in crops:
        if copies := duplicated(each):
            first, second = copies[0]
            raise UserError(f"{second}: the same file as {first} ({len(copies)} such copies); delete the copies")
    try:
        if accelerator.is_main_process:
            RunFolder.create(out, config, resume)
        accelerator.wait_for_everyone()
        run = RunFolder(out)
        if run.is_finished:
            raise UserError(f"{out}: the run is finished; choose another --out")
        return _train_in(run, config, crops, accelerator, resume)
    finally:
        # One that failed is not kept from other processes.
        if accelerator.is_main_process:
            unlock_run(out)


def _train_in(
    run: RunFolder, config: TrainConfig, crops: tuple[Crops, Crops], accelerator: Accelerator, resume: bool
) -> dict[str, Any]:
    seed_everything(config.seed)
    model = _new_model(config)
    if accelerator.num_processes > 1:
        share_batch_statistics(model)
    adam = torch.optim.Adam(
        [each for each in model.parameters() if each.requires_grad],
        config.learning_rate,
        weight_decay=config.weight_decay,
    )
    done = 0
    model.to(accelerator.device)
    if resume and (run.checkpoints / _CHECKPOINT).exists():
        done = load_checkpoint(run.checkpoints / _CHECKPOINT, model, adam)
    if resume and accelerator.is_main_process:
        # An epoch is logged before its checkpoint is written: the line of one that must be done again goes.
        run.rewind(done)
    accelerator.wait_for_everyone()
    wrapped, optimizer = accelerator.prepare(model, adam)
    sets = tuple(CropSet(each, config.height, config.width) for each in crops)
    summary: dict[str, Any] = run.lines()[-1] if done and run.lines() else {}
    best = max((line.get("test_mean_ap", 0.0) for line in run.lines()), default=0.0)
    for epoch in range(done, config.epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, epoch)
        features = [_all_features(accelerator, model, each, config.workers) for each in sets]
        plan = plan_epoch(features[0], features[1], config, epoch)
        loss = _train_epoch(accelerator, wrapped, optimizer, sets, plan, config, epoch)
        summary = {"step": epoch + 1, "loss": loss, **_describe(plan, crops)}
        if config.evaluate_every and (epoch + 1) % config.evaluate_every == 0 and config.dataset != "folders":
            summary["test_mean_ap"] = _test(model, config, accelerator.device)["mean_ap"]
            best = max(best, summary["test_mean_ap"])
        if accelerator.is_main_process:
            run.log(**summary)
            save_checkpoint(run.checkpoints / _CHECKPOINT, model, adam, epoch + 1)
    result = {"epochs": config.epochs, **{key: value for key, value in summary.items() if key != "step"}}
    if config.dataset != "folders":
        # The last epoch is what is reported; choosing the best by its test score would be selection on the test set.
        result["test"] = _test(model, config, accelerator.device)
        if best:
            result["best_test_mean_ap_of_any_epoch"] = best
    if accelerator.is_main_process:
        # What a killed process left: the run is not finished.
        shutil.rmtree(run.path / "model", ignore_errors=True)
        with atomic_folder(run.path / "model") as temporary:
            model.cpu().save_pretrained(temporary)
        run.finish(result)
    accelerator.wait_for_everyone()
    return result


def _accelerator(device: str) -> Accelerator:
    # Precision is decided where it matters, by `autocast`: accelerate keeps one setting for all runs of a process.
    return Accelerator(cpu=pick_device(device).type == "cpu", mixed_precision="no")


def _new_model(config: TrainConfig) -> TwoStreamResNet:
    if config.initial is not None:
        model = load_model(config.initial)
        if (model.architecture, model.height, model.width) != (config.architecture, config.height, config.width):
            raise UserError(
                f"{config.initial}: is a {model.architecture} for {model.height} x {model.width} pictures, "
                f"not a {config.architecture} for {config.height} x {config.width}"
            )
        return model
    model = TwoStreamResNet(config.architecture, config.height, config.width)
    if config.weights is not None:
        load_imagenet_weights(model, config.weights)
    return model


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """A tenth for every milestone passed (section 5)."""
    return config.learning_rate * 0.1 ** sum(epoch >= each for each in config.milestones)


def _all_features(accelerator: Accelerator, model: TwoStreamResNet, crops: CropSet, workers: int) -> np.ndarray:
    """Features of a whole set on every process; each computes every n-th row."""
    processes, index = accelerator.num_processes, accelerator.process_index
    rows = np.arange(index, len(crops), processes)
    own = extract(model, crops, rows, device=accelerator.device, workers=workers)
    if processes == 1:
        return own
    share = -(-len(crops) // processes)
    padded = torch.zeros(share, own.shape[1], device=accelerator.device)
    padded[: len(own)] = torch.from_numpy(own)
    gathered = accelerator.gather(padded).cpu().numpy().reshape(processes, share, -1)
    return np.ascontiguousarray(gathered.transpose(1, 0, 2).reshape(processes * share, -1)[: len(crops)])


def plan_epoch(
    visible: Float[np.ndarray, "n d"], infrared: Float[np.ndarray, "m d"], config: TrainConfig, epoch: int
) -> EpochPlan:
    """Cluster both modalities, associate them in stage two, draw the batches (sections 3.1, 3.3, 3.4).

    Raises:
        UserError: no cluster in one of the modalities.
    """
    options = {"k1": config.k1, "k2": config.k2, "eps": config.eps, "min_samples": config.min_samples}
    in_v = cluster_features(visible, **options, name=f"epoch {epoch}, visible")
    in_r = cluster_features(infrared, **options, name=f"epoch {epoch}, infrared")
    centres = cluster_centres(visible, in_v.labels), cluster_centres(infrared, in_r.labels)
    generator = np.random.default_rng([config.seed, epoch])
    size = {"identities": config.identities, "instances": config.instances, "generator": generator}
    if epoch < config.stage_two:
        batches = stage_one_batches(in_v.labels, in_r.labels, steps=config.steps, **size)
        return EpochPlan(batches, None, in_v, in_r, *centres)
    make = _association if config.association == "mult" else _transport_association
    found = make(visible, infrared, in_v, in_r, config)
    batches = stage_two_batches(
        found.labels_a, found.cross_b, found.labels_b, found.cross_a, steps=config.steps_two, **size
    )
    return EpochPlan(batches, found, in_v, in_r, *centres)


def _association(
    visible: np.ndarray, infrared: np.ndarray, in_v: Clustering, in_r: Clustering, config: TrainConfig
) -> Association:
    return transfer_labels(
        visible,
        infrared,
        in_v.labels,
        in_r.labels,
        alpha=config.alpha,
        temperature=config.temperature,
        start=config.start,
        similarity_a=in_v.similarity,
        similarity_b=in_r.similarity,
    )


def _transport_association(
    visible: np.ndarray, infrared: np.ndarray, in_v: Clustering, in_r: Clustering, config: TrainConfig
) -> Association:
    """The same labels without the transfer: own ones by softmax, cross ones by plain transport (the start of MULT)."""
    centres = cluster_centres(visible, in_v.labels), cluster_centres(infrared, in_r.labels)
    own_v, own_r = (
        start_labels(each, centre, config.temperature)
        for each, centre in zip((visible, infrared), centres, strict=True)
    )
    cross_v, cross_r = transported_labels(visible, centres[1]), transported_labels(infrared, centres[0])
    return Association(
        labels_a=own_v.argmax(1),
        labels_b=own_r.argmax(1),
        cross_a=cross_v,
        cross_b=cross_r,
        soft_a=own_v,
        soft_b=own_r,
        soft_cross_a=np.eye(len(centres[1]), dtype=np.float32)[cross_v],
        soft_cross_b=np.eye(len(centres[0]), dtype=np.float32)[cross_r],
    )


def _describe(plan: EpochPlan, crops: tuple[Crops, Crops]) -> dict[str, Any]:
    """Numbers of an epoch's labels; pair scores where identities happen to be known (they are never trained on)."""
    summary: dict[str, Any] = {
        "visible_clusters": plan.visible.count,
        "infrared_clusters": plan.infrared.count,
        "visible_outliers": int((plan.visible.labels < 0).sum()),
        "infrared_outliers": int((plan.infrared.labels < 0).sum()),
    }
    found = plan.association
    known = crops[0].has_identities and crops[1].has_identities
    if found is not None and known and np.intersect1d(crops[0].identities, crops[1].identities).size:
        spaces = ((found.labels_a, found.cross_b), (found.cross_a, found.labels_b))
        scores = np.array([pair_scores(*each, crops[0].identities, crops[1].identities) for each in spaces]).mean(0)
        summary |= dict(zip(("pair_precision", "pair_recall", "pair_f1"), scores.tolist(), strict=True))
    return summary


def _train_epoch(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: Any,
    sets: tuple[CropSet, ...],
    plan: EpochPlan,
    config: TrainConfig,
    epoch: int,
) -> float:
    """One epoch of gradient steps; the mean loss."""
    device = accelerator.device
    step_loss = (
        _loss_of_stage_one(plan, config, device)
        if plan.association is None
        else _loss_of_stage_two(plan, config, epoch, device)
    )
    model.train()
    losses = []
    for number, batch in enumerate(track(plan.batches, f"epoch {epoch + 1}/{config.epochs}")):
        # One stream of chance per step: a resumed run and a split one draw the same.
        generator = torch.Generator().manual_seed(_stream(config.seed, epoch, number))
        visible, augmented, infrared = _views(accelerator, sets, batch, generator, config.pad)
        with autocast(device):
            first, second = model(torch.cat([visible, augmented]), infrared)
        first, second = first.float(), second.float()
        views = Views(*(gather_batch(accelerator, each) for each in (*first.split(len(visible)), second)))
        loss = step_loss(views, batch)
        optimizer.zero_grad()
        accelerator.backward(loss * accelerator.num_processes)
        optimizer.step()
        losses.append(loss.detach())
    mean = torch.stack(losses).mean().item()
    if not np.isfinite(mean):
        raise UserError(f"epoch {epoch}: the loss is {mean}; lower --learning-rate")
    return mean


def _stream(*numbers: int) -> int:
    """A seed of its own for every combination of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _views(
    accelerator: Accelerator, sets: tuple[CropSet, ...], batch: Batch, generator: torch.Generator, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pictures of this process's share of a batch: visible, augmented visible, infrared."""
    shares = [_share(rows.size, accelerator) for rows in (batch.visible, batch.infrared)]
    pictures = [
        _to_unit(crops.batch(rows[share.start : share.stop]), accelerator.device)
        for crops, rows, share in zip(sets, (batch.visible, batch.infrared), shares, strict=True)
    ]
    return (
        augment(pictures[0], generator, pad, shares[0]),
        augment_channels(pictures[0], generator, pad, shares[0]),
        augment(pictures[1], generator, pad, shares[1]),
    )


def _share(size: int, accelerator: Accelerator) -> slice:
    """Which rows of a batch this process holds; the step of the slice carries the size of the whole."""
    if size % accelerator.num_processes:
        raise UserError(
            f"a batch of {size} pictures cannot be shared evenly by {accelerator.num_processes} processes: "
            "choose --instances as a multiple of their number"
        )
    share = size // accelerator.num_processes
    return slice(share * accelerator.process_index, share * (accelerator.process_index + 1), size)


def _to_unit(pictures: UInt8[Tensor, "b 3 h w"], device: torch.device) -> Float[Tensor, "b 3 h w"]:
    return pictures.to(device).float() / 255


def _loss_of_stage_one(plan: EpochPlan, config: TrainConfig, device: torch.device) -> Any:
    v, r = (
        ClusterMemory(torch.from_numpy(centres), config.temperature, config.momentum).to(device)
        for centres in (plan.visible_centres, plan.infrared_centres)
    )
    labels = [torch.from_numpy(each.labels).to(device) for each in (plan.visible, plan.infrared)]

    def loss(views: Views, batch: Batch) -> Tensor:
        return stage_one_loss(views, v, r, labels[0][batch.visible], labels[1][batch.infrared])

    return loss


def _loss_of_stage_two(plan: EpochPlan, config: TrainConfig, epoch: int, device: torch.device) -> Any:
    assert plan.association is not None
    memories = Memories.starting_from(
        torch.from_numpy(plan.visible_centres).to(device),
        torch.from_numpy(plan.infrared_centres).to(device),
        config.temperature,
        config.momentum,
    )
    v, r, v_cross, r_cross = (torch.from_numpy(each).to(device) for each in plan.association.mixed(config.beta))
    # Even and odd epochs of stage two work in the two label spaces in turn.
    space = visible_space_loss if epoch % 2 == 0 else infrared_space_loss

    def loss(views: Views, batch: Batch) -> Tensor:
        targets = Targets(v[batch.visible], r[batch.infrared], v_cross[batch.visible], r_cross[batch.infrared])
        options = {"detach_target": config.detach_target, "refinement": config.refinement}
        return space(views, memories, targets, **options)

    return loss


def _test(model: TwoStreamResNet, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    test = EvalConfig(dataset=config.dataset, root=config.root, trial=config.trial)
    return dataclasses.asdict(evaluate(model, test, device=device, workers=config.workers))
