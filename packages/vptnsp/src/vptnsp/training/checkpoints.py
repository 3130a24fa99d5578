"""Where an interrupted stream goes on: after any epoch of any task, to the same result."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from tenfold import UserError
from tenfold.checkpoints import load_weights, read_metadata, read_tensors, write_tensors
from tenfold.config import from_dict
from vptnsp.evaluation.protocols import StreamRecord, to_lists, to_matrix
from vptnsp.method.projection import Nullity
from vptnsp.models.clip.heads import ClipHead
from vptnsp.training.learner import NSPLearner
from vptnsp.training.state import learner_tensors, moment_tensors, restore, restore_moments, texts_of
from vptnsp.training.step import TaskTraining


@dataclass
class StreamState:
    """How far a stream has come.

    Attributes:
        record: accuracies measured so far.
        task: the task in work, from 0.
        losses: mean loss of every epoch so far.
        first_features: features of the first task's test pictures after it was learnt; drift is measured from them.
    """

    record: StreamRecord
    task: int = 0
    losses: list[float] = field(default_factory=list)
    first_features: Tensor | None = None


@dataclass(frozen=True)
class _Notes:
    """What the file says beside its tensors.

    Attributes:
        tasks: labels of each task begun.
        names: of these labels.
        task: the task in work.
        epoch: the next one of that task; None between two tasks.
        losses: of every epoch so far.
        accuracy: see `StreamRecord`.
        aware: see `StreamRecord`.
        num_samples: see `StreamRecord`.
        nullities: of the projections in use, by layer.
    """

    tasks: list[list[int]]
    names: list[str]
    task: int
    epoch: int | None
    losses: list[float]
    accuracy: list[list[float | None]]
    aware: list[list[float | None]]
    num_samples: list[int]
    nullities: dict[str, Nullity] = field(default_factory=dict)


def save_checkpoint(path: Path, learner: NSPLearner, state: StreamState, training: TaskTraining | None) -> None:
    """Write everything that decides the rest of the stream, in one file.

    Args:
        path: a safetensors file.
        learner: the learner.
        state: how far the stream has come.
        training: the task in work; None between two tasks.
    """
    tensors = {f"model.{name}": value for name, value in learner_tensors(learner).items()}
    tensors |= {f"moments.{name}": value for name, value in moment_tensors(learner).items()}
    if training is not None:
        tensors |= {f"training.{name}": value for name, value in training.state_dict().items()}
    if state.first_features is not None:
        tensors["first_features"] = state.first_features
    notes = _Notes(
        tasks=learner.tasks,
        names=[learner.names[label] for label in learner.labels],
        task=state.task,
        epoch=None if training is None else training.epoch,
        losses=state.losses,
        accuracy=to_lists(state.record.accuracy),
        aware=to_lists(state.record.aware),
        num_samples=state.record.num_samples.tolist(),
        nullities=dict(learner.nullities),
    )
    write_tensors(path, tensors, {"stream": json.dumps(asdict(notes))})


def load_checkpoint(path: Path, learner: NSPLearner) -> tuple[StreamState, TaskTraining | None]:
    """Bring a fresh learner to where the file was written.

    Returns:
        How far the stream had come, and the task in work; None between two tasks.

    Raises:
        UserError: a damaged file, or one that does not fit the learner.
    """
    tensors, metadata = read_tensors(path)
    notes = from_dict(read_metadata(metadata, "stream", path), _Notes, str(path))
    size, labels = len(notes.num_samples), sum(map(len, notes.tasks))
    square = all(len(rows) == size and all(len(row) == size for row in rows) for rows in (notes.accuracy, notes.aware))
    begun = notes.task + (notes.epoch is not None)
    if not square or len(notes.names) != labels or len(notes.tasks) != begun or not notes.task <= begun <= size:
        raise UserError(f"{path}: its tasks, names and accuracies do not fit together")
    record = StreamRecord(size)
    record.accuracy, record.aware = to_matrix(notes.accuracy), to_matrix(notes.aware)
    record.num_samples[:] = notes.num_samples
    state = StreamState(record, notes.task, notes.losses, tensors.get("first_features"))
    if notes.task and state.first_features is None:
        raise UserError(f"{path}: features of the first task are missing")
    model, moments, training = (_below(tensors, prefix) for prefix in ("model.", "moments.", "training."))
    if notes.epoch is None:
        restore(learner, model, notes.tasks, notes.names, path)
        if moments:
            restore_moments(learner, moments, path)
        opened = None
    else:
        opened = _restore_training(learner, model, moments, training, notes, path)
    learner.nullities = notes.nullities
    return state, opened


def _restore_training(
    learner: NSPLearner,
    model: dict[str, Tensor],
    moments: dict[str, Tensor],
    training: dict[str, Tensor],
    notes: _Notes,
    path: Path,
) -> TaskTraining:
    *done, current = notes.tasks
    head = _below(model, "head.")
    # The exact conditions read the prompts as they were when the task began.
    reference = {f"prompts.{name}": value for name, value in _below(training, "reference.").items()}
    earlier = {f"head.{name}": value for name, value in _earlier_heads(learner, head, done).items()}
    restore(learner, reference | earlier, done, notes.names[: sum(map(len, done))], path)
    if moments:
        restore_moments(learner, moments, path)
    names = dict(zip(current, notes.names[-len(current) :], strict=True))
    is_clip = isinstance(learner.head, ClipHead)
    texts = texts_of(head, [len(task) for task in notes.tasks])[-1] if is_clip else None
    opened = learner.begin_task(current, names, texts)
    load_weights(learner.head, head, path)
    learner.vit.load_prompt_state_dict(_below(model, "prompts."))
    try:
        opened.load_state_dict(training, notes.epoch or 0)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: the optimizer's state does not fit ({error})") from None
    return opened


def _earlier_heads(learner: NSPLearner, head: dict[str, Tensor], done: list[list[int]]) -> dict[str, Tensor]:
    if isinstance(learner.head, ClipHead):
        return {name: value[: sum(map(len, done))] if name == "texts" else value for name, value in head.items()}
    ours = {f"heads.{task}.{part}" for task in range(len(done)) for part in ("weight", "bias")}
    return {name: value for name, value in head.items() if name in ours}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
