"""A run through a sequence of classes: base session, incremental sessions, evaluation, checkpoints (paper §3.6, §5).

Works under `accelerate launch` on several processes: gradients are shared, what is only measured is measured by each. A run that
was interrupted continues from its last base epoch or session, and ends as if it had never stopped.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn

from cskopt.config import TrainConfig
from cskopt.data.datasets import ClassOrder, Corpus, SessionPictures, as_loader, class_order
from cskopt.evaluation.metrics import IncrementalScores, incremental_scores
from cskopt.method.losses import session_loss
from cskopt.models.checkpoints import DESCRIPTION, PictureFormat, load_network
from cskopt.models.networks import build_model
from cskopt.training.learner import IncrementalLearner
from cskopt.training.loop import SessionRecipe, let_go, precision_context
from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.runs import RunFolder, seed_everything


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    Attributes:
        scores: accuracies and forgetting.
        matrix: accuracy on the classes of session j after session t.
        learner: after the last session.
    """

    scores: IncrementalScores
    matrix: tuple[tuple[float, ...], ...]
    learner: IncrementalLearner


def make_accelerator(device: torch.device) -> Accelerator:
    """accelerate on a device, batches split over processes."""
    return Accelerator(cpu=device.type == "cpu", dataloader_config=DataLoaderConfiguration(split_batches=True))


def learning_rate_factor(progress: float, one_cycle: bool) -> float:
    """Share of the largest learning rate at `progress` in [0, 1]: cosine decay, or up for 30 % and down (one cycle)."""
    if not one_cycle:
        return 0.5 * (1 + math.cos(math.pi * progress))
    if progress < 0.3:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * progress / 0.3))
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.3) / 0.7))


def train_base(
    model: nn.Module,
    dataset: SessionPictures,
    config: TrainConfig,
    accelerator: Accelerator,
    checkpoint: Path | None = None,
    log: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train the base session in the ordinary way, from a checkpoint if there is one.

    Args:
        model: changed in place.
        dataset: base classes.
        config: epochs, rates, temperature, seed.
        accelerator: device and processes.
        checkpoint: a safetensors file written after each epoch, and taken up if it exists.
        log: called with the epoch from 1 and its mean loss.

    Returns:
        The model, in evaluation mode.
    """
    temperature = config.resolved_method().config.temperature
    model = model.to(accelerator.device)
    optimizer = _base_optimizer(model, config)
    start = _resume_base(model, optimizer, checkpoint)
    network, prepared = accelerator.prepare(model, optimizer)
    for epoch in range(start, config.base_epochs):
        seed_everything(config.seed * 7919 + epoch)
        order = torch.Generator().manual_seed(config.seed * 7919 + epoch)
        loader = accelerator.prepare_data_loader(as_loader(dataset, config.batch_size, order, config.workers))
        network.train()
        losses = []
        for step, (pictures, labels) in enumerate(loader):
            progress = (epoch + step / len(loader)) / config.base_epochs
            for group in prepared.param_groups:
                group["lr"] = config.base_lr * learning_rate_factor(progress, config.base_optimizer == "adam")
            with precision_context(config.precision, accelerator.device):
                logits = network(pictures)
            loss = session_loss(logits, labels, temperature)
            prepared.zero_grad()
            accelerator.backward(loss)
            prepared.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise FloatingPointError("base session: the loss is not finite; lower --base-lr")
        # The log first: a line without its checkpoint is rewound by the resumed run, a checkpoint without its line is not.
        if log is not None:
            log(epoch + 1, mean)
        if accelerator.is_main_process and checkpoint is not None:
            _save_base(checkpoint, model, optimizer, epoch + 1)
    let_go(accelerator)
    return model.eval()


def _base_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if config.base_optimizer == "adam":
        return torch.optim.Adam(model.parameters(), config.base_lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        model.parameters(), config.base_lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )


def _save_base(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    tensors = {f"model/{key}": each for key, each in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer/{index}/{key}": torch.as_tensor(each) for key, each in state.items() if each is not None
        }
    write_tensors(path, tensors | {"epoch": torch.tensor(epoch)})


def _resume_base(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path | None) -> int:
    """Take up weights, moments and the number of finished epochs; 0 without a checkpoint."""
    if path is None or not path.exists():
        return 0
    tensors, _ = read_tensors(path)
    weights = {key.removeprefix("model/"): each for key, each in tensors.items() if key.startswith("model/")}
    load_network(model, weights, path)
    state: dict[int, dict[str, Tensor]] = {}
    for key, each in tensors.items():
        if key.startswith("optimizer/"):
            index, _, name = key.removeprefix("optimizer/").partition("/")
            if not index.isdecimal():
                raise UserError(f"{path}: holds {key}, which is no state of an optimizer")
            state.setdefault(int(index), {})[name] = each
    try:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: the optimizer's state does not fit ({error})") from None
    return _epoch_of(tensors, path)


def _epoch_of(tensors: dict[str, Tensor], path: Path) -> int:
    epoch = tensors.get("epoch")
    if epoch is None or epoch.ndim or epoch.dtype != torch.long or epoch < 1:
        raise UserError(f"{path}: is no checkpoint of a base session (no epoch in it)")
    return int(epoch)


def recipe_of(config: TrainConfig) -> SessionRecipe:
    """The recipe of the incremental sessions of a run."""
    return SessionRecipe(
        config.epochs,
        config.lr,
        config.head_lr,
        config.lr_drop,
        config.weight_decay,
        config.penalty_weight,
        cache_prefix=not config.augment,
        precision=config.precision,
    )


@torch.no_grad()
def session_accuracies(
    learner: IncrementalLearner, corpus: Corpus, order: ClassOrder, session: int, batch_size: int
) -> list[float]:
    """Accuracy on the test pictures of each session up to `session`, single head, no session given."""
    seen = torch.cat([order.labels_of(each) for each in range(session + 1)])
    dataset = SessionPictures(corpus.test, order, seen, corpus)
    hits, labels = [], []
    for pictures, targets in as_loader(dataset, max(batch_size, 256)):
        hits.append(learner.predict(pictures).cpu() == targets)
        labels.append(targets)
    correct, ids = torch.cat(hits), torch.cat(labels)
    return [
        float(correct[(ids >= each.start) & (ids < each.stop)].float().mean()) for each in order.sessions[: session + 1]
    ]


def run_sessions(
    learner: IncrementalLearner,
    corpus: Corpus,
    order: ClassOrder,
    config: TrainConfig,
    rows: list[list[float]] | None = None,
    after: Callable[[int, list[float], dict[str, float]], None] | None = None,
) -> RunResult:
    """Take the learner through the sessions that it has not seen, measuring after each.

    Args:
        learner: new, or loaded in the middle.
        corpus: pictures.
        order: sessions.
        config: batch size, recipe, augmentation, seed.
        rows: accuracies after the sessions that the learner has seen.
        after: called after each session with its number, its row of accuracies and what `fit_session` said.
    """
    rows = list(rows or [])
    recipe = recipe_of(config)
    for session in range(len(learner.sessions), len(order.sessions)):
        seed_everything(config.seed * 104_729 + session)
        shuffle = torch.Generator().manual_seed(config.seed * 104_729 + session)
        dataset = SessionPictures(corpus.train, order, order.labels_of(session), corpus, config.augment)
        loader = as_loader(dataset, config.batch_size, shuffle, config.workers)
        said: dict[str, float] = {}
        if session == 0:
            learner.begin(loader, order.sessions[0])
        else:
            said = learner.fit_session(loader, order.sessions[session], recipe)
        rows.append(session_accuracies(learner, corpus, order, session, config.batch_size))
        if after is not None:
            after(session, rows[-1], said)
    return RunResult(scores_of(rows, corpus, order), tuple(map(tuple, rows)), learner)


def scores_of(rows: list[list[float]], corpus: Corpus, order: ClassOrder) -> IncrementalScores:
    """Scores from the rows of accuracies."""
    size = len(rows)
    matrix = torch.zeros(size, size)
    for index, row in enumerate(rows):
        matrix[index, : len(row)] = torch.tensor(row)
    counts = [int(torch.isin(corpus.test.labels, order.labels_of(each)).sum()) for each in range(size)]
    return incremental_scores(matrix, torch.tensor(counts))


def train_run(
    corpus: Corpus, config: TrainConfig, out: Path, device: torch.device, resume: bool = False
) -> tuple[RunFolder | None, IncrementalScores, tuple[tuple[float, ...], ...]]:
    """The whole run, in a folder: base session, incremental sessions, result.

    Returns the folder (None in all processes but the first), the scores, and the matrix of accuracies.

    Args:
        corpus: pictures.
        config: the run.
        out: the run folder.
        device: where to compute.
        resume: continue the run in `out`.

    Raises:
        UserError: the folder holds another run; the data does not fit the configuration.
    """
    accelerator = make_accelerator(device)
    order = class_order(len(corpus.classes), config)
    is_main = accelerator.is_main_process
    run = RunFolder.create(out, config, resume) if is_main else RunFolder(out)
    accelerator.wait_for_everyone()
    finished = sorted(each.parent for each in run.checkpoints.glob(f"session-*/{DESCRIPTION}"))
    rows = _finished_rows(run, len(finished))
    if is_main and resume:
        run.rewind(_last_step(run, config, len(finished)))
    if finished:
        learner = IncrementalLearner.load(finished[-1], accelerator=accelerator)
    else:
        learner = IncrementalLearner(
            _base_model(corpus, order, config, accelerator, run),
            method=config.resolved_method(),
            accelerator=accelerator,
            seed=config.seed,
        )
        learner.architecture = config.model
        learner.pictures = picture_format(corpus, order, config.image_size)
    started = time.perf_counter()

    def after(session: int, row: list[float], said: dict[str, float]) -> None:
        if is_main:
            so_far = scores_of([*rows, row] if session else [row], corpus, order)
            rows.append(row)
            run.log(
                step=config.base_epochs + session,
                session=session,
                accuracies=row,
                seen=so_far.last,
                seconds=time.perf_counter() - started,
                **said,
            )
            learner.save(run.checkpoints / f"session-{session:03d}")

    result = run_sessions(learner, corpus, order, config, list(rows), after)
    if is_main:
        run.finish(_summary(result, corpus, config))
    accelerator.wait_for_everyone()
    return (run if is_main else None), result.scores, result.matrix


def picture_format(corpus: Corpus, order: ClassOrder, size: int) -> PictureFormat:
    """What a learner must know to be given pictures from files."""
    return PictureFormat(tuple(corpus.classes[each] for each in order.order), size, corpus.mean, corpus.std)


def _finished_rows(run: RunFolder, finished: int) -> list[list[float]]:
    """Accuracies after each finished session, from the log.

    Raises:
        UserError: the log lacks one: without it the result would be another.
    """
    found = {line["session"]: line.get("accuracies") for line in run.lines() if isinstance(line.get("session"), int)}
    rows = [found.get(session) for session in range(finished)]
    for session, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == session + 1 and all(isinstance(each, float) for each in row)):
            raise UserError(f"{run.path / 'metrics.jsonl'}: has no accuracies of session {session}; start anew")
    return rows  # ty: ignore[invalid-explicit-return]  # checked above


def _last_step(run: RunFolder, config: TrainConfig, finished: int) -> int:
    """The last step whose checkpoint was written."""
    if finished:
        return config.base_epochs + finished - 1
    base = run.checkpoints / "base.safetensors"
    return _epoch_of(read_tensors(base)[0], base) if base.exists() else 0


def _base_model(
    corpus: Corpus, order: ClassOrder, config: TrainConfig, accelerator: Accelerator, run: RunFolder
) -> nn.Module:
    seed_everything(config.seed)
    model = build_model(config.model, len(order.sessions[0]))
    if config.weights is not None:
        load_network(model, read_tensors(config.weights)[0], Path(config.weights))
        return model.eval()
    dataset = SessionPictures(corpus.train, order, order.labels_of(0), corpus, config.augment)

    def log(epoch: int, loss: float) -> None:
        if accelerator.is_main_process:
            run.log(step=epoch, base_loss=loss)

    return train_base(model, dataset, config, accelerator, run.checkpoints / "base.safetensors", log)


def _summary(result: RunResult, corpus: Corpus, config: TrainConfig) -> dict[str, Any]:
    learner = result.learner
    state = sum(each.nbytes for each in learner.covariance.matrices.values()) + learner.prototypes.means.nbytes
    return {
        "data": corpus.name,
        "method": config.method,
        "scores": asdict(result.scores),
        "accuracies": [list(row) for row in result.matrix],
        "classes": learner.classes_seen,
        "trained_layers": list(learner.report.targets),
        "continual_bytes": state,
    }
