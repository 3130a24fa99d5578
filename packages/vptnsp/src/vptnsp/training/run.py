"""A stream of tasks from the first to the last: learn, test on all tasks so far, remember (paper Alg. 1, §5)."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from tenfold import UserError
from tenfold.runs import RunFolder, pick_device, track
from vptnsp.config import CLOSED_FORM, METHODS, TrainConfig, for_method
from vptnsp.data.datasets import natural, read_lines
from vptnsp.data.tasks import Stream, open_stream, plain_loader, training_loader
from vptnsp.evaluation.figures import plot_accuracy_matrix
from vptnsp.evaluation.protocols import Classifier, StreamRecord, count_correct
from vptnsp.method.baselines import NearestClassMean, RandomProjectionRidge
from vptnsp.models.backbones import CLIP_PREFIX, build_backbone, class_texts
from vptnsp.models.clip.backbones import ClipTower
from vptnsp.models.networks import PromptedViT, image_size, normalisation
from vptnsp.training.checkpoints import StreamState, load_checkpoint, save_checkpoint
from vptnsp.training.learner import NSPLearner


def stream_for(config: TrainConfig, vit: PromptedViT) -> Stream:
    """The configuration's stream in the input format of a backbone."""
    stream = open_stream(config, image_size(vit), *normalisation(vit))
    return stream.merged() if config.method == "joint" else stream


def feature_drift(now: Float[Tensor, "n d"], first: Float[Tensor, "n d"]) -> float:
    """||f_T - f_1|| / ||f_1||: how far features of the first task's test pictures have moved since it was learnt."""
    return (torch.linalg.norm(now - first) / torch.linalg.norm(first)).item()


@torch.no_grad()
def _features(learner: NSPLearner, pictures: Dataset, config: TrainConfig) -> Float[Tensor, "n d"]:
    return torch.cat([learner.features(images).float().cpu() for images, _ in plain_loader(pictures, config)])


def _test(classifier: Classifier, stream: Stream, after: int, config: TrainConfig, record: StreamRecord) -> None:
    for on in range(after + 1):
        record.add(after, on, count_correct(classifier, plain_loader(stream.tasks[on].test, config), on))


def run_prompts(
    config: TrainConfig,
    accelerator: Accelerator | None = None,
    run: RunFolder | None = None,
    stream: Stream | None = None,
) -> tuple[NSPLearner, dict[str, Any]]:
    """Learn a stream with prompts.

    Args:
        config: with its method's changes made.
        accelerator: where several processes learn together.
        run: where to log and keep checkpoints; a checkpoint that is there is taken up.
        stream: the tasks; opened from the configuration by default.

    Returns:
        The learner, and what is reported of it.
    """
    started = time.perf_counter()
    learner = NSPLearner(None, config, accelerator)
    stream = stream or stream_for(config, learner.vit)
    texts = _texts(config, stream)
    state, training = StreamState(StreamRecord(len(stream.tasks))), None
    checkpoint = None if run is None else run.checkpoints / "state.safetensors"
    if checkpoint is not None and checkpoint.exists():
        state, training = load_checkpoint(checkpoint, learner)
    is_main = learner.accelerator.is_main_process
    if run is not None and is_main:
        run.rewind(len(state.losses))

    def keep() -> None:
        if checkpoint is not None and is_main:
            save_checkpoint(checkpoint, learner, state, training)
        learner.accelerator.wait_for_everyone()

    while state.task < len(stream.tasks):
        task = stream.tasks[state.task]
        if training is None:
            names = {label: stream.class_names[label] for label in task.labels}
            training = learner.begin_task(task.labels, names, None if texts is None else texts[list(task.labels)])
        epochs = range(training.epoch, config.epochs)
        for epoch in track(epochs, f"task {state.task + 1}/{len(stream.tasks)}") if is_main else epochs:
            loss = learner.run_epoch(training, training_loader(task.train, config))
            state.losses.append(loss)
            if run is not None and is_main:
                run.log(
                    step=len(state.losses), task=state.task + 1, epoch=epoch + 1, loss=loss, lr=training.rates[epoch]
                )
            keep()
        last = state.task == len(stream.tasks) - 1
        learner.finish_task(training, plain_loader(task.stats, config), last=last)
        _test(learner, stream, state.task, config, state.record)
        if state.task == 0:
            state.first_features = _features(learner, task.test, config)
        state.task, training = state.task + 1, None
        keep()
    assert state.first_features is not None
    drift = feature_drift(_features(learner, stream.tasks[0].test, config), state.first_features)
    result = _result(config, stream, state.record) | {
        "drift": drift,
        "nullities": {name: asdict(each) for name, each in learner.nullities.items()},
        "final_loss": state.losses[-1] if state.losses else None,
        "processes": learner.accelerator.num_processes,
        "seconds": time.perf_counter() - started,
    }
    return learner, result


def run_closed_form(config: TrainConfig, device: torch.device, stream: Stream | None = None) -> dict[str, Any]:
    """Run a rival that trains nothing: nearest class mean, or ridge regression on random features."""
    started = time.perf_counter()
    vit = build_backbone(config)
    stream = stream or stream_for(config, vit)
    backbone = vit.detach_prompts()
    if config.backbone.startswith(CLIP_PREFIX):
        backbone = ClipTower(backbone)
    classifier: NearestClassMean | RandomProjectionRidge
    if config.method == "ncm":
        classifier = NearestClassMean(backbone, device)
    else:
        classifier = RandomProjectionRidge(backbone, seed=config.seed, device=device)
    record = StreamRecord(len(stream.tasks))
    for index, task in enumerate(stream.tasks):
        classifier.fit_task(plain_loader(task.stats, config), task.labels)
        _test(classifier, stream, index, config, record)
    return _result(config, stream, record) | {"drift": 0.0, "seconds": time.perf_counter() - started}


def _result(config: TrainConfig, stream: Stream, record: StreamRecord) -> dict[str, Any]:
    return {
        "method": config.method,
        "summary": METHODS[config.method].summary,
        "source": stream.source,
        **record.summary(),
        "tasks": [[stream.class_names[label] for label in task.labels] for task in stream.tasks],
    }


def _texts(config: TrainConfig, stream: Stream) -> Float[Tensor, "c e"] | None:
    if not config.backbone.startswith(CLIP_PREFIX):
        return None
    names = list(stream.class_names)
    if config.class_names is not None:
        lines = read_lines(config.class_names)
        if len(lines) != len(names):
            raise UserError(f"{config.class_names}: {len(lines)} names for {len(names)} classes")
        lines_of = dict(zip(natural(set(names)), lines, strict=True))
        names = [lines_of[name] for name in names]
    return class_texts(config.backbone, names, config.templates, config.revision)


def compare(config: TrainConfig, methods: Mapping[str, Any] | list[str]) -> dict[str, dict[str, Any]]:
    """Run several methods on the same stream, in memory.

    Args:
        config: of the full method; each method makes its changes.
        methods: names of `vptnsp.methods.METHODS`.

    Returns:
        What is reported of each, by name.
    """
    results = {}
    for name in track(list(methods), "methods"):
        chosen = for_method(replace(config, method=name))
        if name in CLOSED_FORM:
            results[name] = run_closed_form(chosen, torch.device("cpu"))
        else:
            results[name] = run_prompts(chosen)[1]
    return results


def train(out: Path, config: TrainConfig, device: str = "auto", resume: bool = False) -> dict[str, Any]:
    """Learn a stream into a run folder: `learner/`, `result.json`, `accuracy.png`, logs and checkpoints.

    Under `accelerate launch` every process calls this; the first one writes.

    Args:
        out: the run folder.
        config: the stream and the method.
        device: see `tenfold.runs.pick_device`.
        resume: go on with an interrupted run.

    Returns:
        What is reported.

    Raises:
        UserError: see `RunFolder.create`, and whatever a person can mend in the configuration.
    """
    place = pick_device(device)
    accelerator = Accelerator(cpu=place.type == "cpu", mixed_precision="no")
    if accelerator.is_main_process:
        run = RunFolder.create(out, config, resume)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        run = RunFolder(Path(out))
    if run.is_finished:
        return run.result()
    chosen = for_method(config)
    if config.method in CLOSED_FORM:
        result = run_closed_form(chosen, accelerator.device)
    else:
        learner, result = run_prompts(chosen, accelerator, run)
        if accelerator.is_main_process:
            learner.save(run.path / "learner")
    if accelerator.is_main_process:
        plot_accuracy_matrix(result["matrix"], run.path / "accuracy.png", f"{config.method}: {result['source']}")
        run.finish(result)
    accelerator.wait_for_everyone()
    return result
