"""Where an interrupted stream goes on: after any epoch of any task, to the same result."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tenfold import UserError
from tenfold.files import atomic_path
from vptnsp.clip_head import ClipHead
from vptnsp.evaluation import StreamRecord, to_lists, to_matrix
from vptnsp.learner import NSPLearner
from vptnsp.storage import learner_tensors, moment_tensors, restore, restore_moments
from vptnsp.task import TaskTraining


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
        tensors |= {f"training.{name}": value.cpu().contiguous() for name, value in training.state_dict().items()}
    if state.first_features is not None:
        tensors["first_features"] = state.first_features.cpu()
    notes = {
        "tasks": learner.tasks,
        "names": [learner.names[label] for label in learner.labels],
        "task": state.task,
        "epoch": None if training is None else training.epoch,
        "losses": state.losses,
        "accuracy": to_lists(state.record.accuracy),
        "aware": to_lists(state.record.aware),
        "num_samples": state.record.num_samples.tolist(),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"stream": json.dumps(notes)})


def load_checkpoint(path: Path, learner: NSPLearner) -> tuple[StreamState, TaskTraining | None]:
    """Bring a fresh learner to where the file was written.

    Returns:
        How far the stream had come, and the task in work; None between two tasks.

    Raises:
        UserError: a damaged file.
    """
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["stream"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: not a checkpoint of a stream ({error})") from None
    record = StreamRecord(len(notes["num_samples"]))
    record.accuracy, record.aware = to_matrix(notes["accuracy"]), to_matrix(notes["aware"])
    record.num_samples[:] = notes["num_samples"]
    state = StreamState(record, notes["task"], notes["losses"], tensors.get("first_features"))
    model, moments, training = (_below(tensors, prefix) for prefix in ("model.", "moments.", "training."))
    if moments:
        restore_moments(learner, moments)
    if notes["epoch"] is None:
        restore(learner, model, notes["tasks"], notes["names"])
        return state, None
    return state, _restore_training(learner, model, training, notes)


def _restore_training(
    learner: NSPLearner, model: dict[str, Tensor], training: dict[str, Tensor], notes: dict[str, Any]
) -> TaskTraining:
    *done, current = notes["tasks"]
    head = _below(model, "head.")
    # The exact conditions read the prompts as they were when the task began.
    reference = {f"prompts.{name}": value for name, value in _below(training, "reference.").items()}
    earlier = {f"head.{name}": value for name, value in _earlier_heads(learner, head, done).items()}
    restore(learner, reference | earlier, done, notes["names"][: sum(map(len, done))])
    names = dict(zip(current, notes["names"][-len(current) :], strict=True))
    texts = head["texts"][-len(current) :] if isinstance(learner.head, ClipHead) else None
    opened = learner.begin_task(current, names, texts)
    learner.head.load_state_dict(head)
    learner.vit.load_prompt_state_dict(_below(model, "prompts."))
    opened.load_state_dict(training, notes["epoch"])
    return opened


def _earlier_heads(learner: NSPLearner, head: dict[str, Tensor], done: list[list[int]]) -> dict[str, Tensor]:
    if isinstance(learner.head, ClipHead):
        return head | {"texts": head["texts"][: sum(map(len, done))]}
    return {name: value for name, value in head.items() if int(name.split(".")[1]) < len(done)}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
