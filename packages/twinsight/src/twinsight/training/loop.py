"""The federation as the server sees it: rounds, test accuracy, checkpoints, the result."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor

from tenfold import UserError
from tenfold.checkpoints import read_metadata, read_tensors, write_tensors
from tenfold.federated import rejections_for_log, stop_when_silent, watch_replies
from tenfold.hub import model_folder
from tenfold.runs import RunFolder, track
from twinsight.config import FederationConfig
from twinsight.data.datasets import Pictures, description, load
from twinsight.evaluation.inference import predict_labels, running_mean_accuracy
from twinsight.models import FILES, TwinModel, build_model
from twinsight.training.client_app import class_names
from twinsight.training.local_training import draw_seed
from twinsight.training.strategy import TwinStrategy


def described_model(config: FederationConfig) -> TwinModel:
    """The untrained model of a configuration, which knows its classes and how pictures are normalised."""
    about = description(config)
    test = load(config)[1]
    return build_model(
        config,
        len(test.classes),
        classes=test.classes,
        mean=about.mean,
        std=about.std,
        image_size=test.images.shape[-1],
        channels=about.channels,
    )


def accuracies(model: TwinModel, test: Pictures, config: FederationConfig, number: int) -> dict[str, float]:
    """The accuracy of a round in per cent: plain, as the official code returns it, and the one of the two that counts."""
    correct = predict_labels(model, test, config.precision) == test.labels
    order = torch.Generator().manual_seed(draw_seed(config.seed, number, 6))
    top_1, running = 100 * correct.double().mean().item(), running_mean_accuracy(correct, order)
    counts = top_1 if config.accuracy == "top-1" else running
    return {"accuracy": counts, "top_1": top_1, "running_mean": running}


@dataclass(frozen=True)
class Outcome:
    """What came out of a federation.

    Attributes:
        model: after the last round, on the CPU.
        result: what `result.json` holds.
    """

    model: TwinModel
    result: dict[str, Any]


def rounds_to(accuracies: list[float], target: float | None) -> int | None:
    """The first round, counted from 1, that reaches a target; None if none does."""
    return next((index + 1 for index, each in enumerate(accuracies) if target is not None and each >= target), None)


def summarise(
    config: FederationConfig, lines: list[dict[str, Any]], strategy: TwinStrategy, payload: int
) -> dict[str, Any]:
    """The numbers of a run: best and last accuracy, the mean of the last five rounds, rounds to the target, bytes sent, who was left out."""
    curve = [line["accuracy"] for line in lines]
    cosines = [line["gradient-cosine"] for line in lines if line.get("gradient-cosine") is not None]
    return {
        "method": config.method,
        "notes": config.notes,
        "best": max(curve),
        "best_top_1": max(line["top_1"] for line in lines),
        "best_running_mean": max(line["running_mean"] for line in lines),
        "last": curve[-1],
        "mean_last_5": sum(curve[-5:]) / len(curve[-5:]),
        "target": config.target,
        "rounds_to_target": rounds_to(curve, config.target),
        "labelled_clients": [each.client for each in strategy.members if each.labelled],
        "clients_per_round": min(config.sampled, len(strategy.pool())),
        "rejected": [
            {"round": line["step"], "who": key.removeprefix("rejected/"), "why": value}
            for line in lines
            for key, value in line.items()
            if key.startswith("rejected/")
        ],
        "silent_rounds": [line["step"] for line in lines if "silent" in line],
        "megabytes_per_round": 2 * payload * min(config.sampled, len(strategy.pool())) / 1e6,
        "gradient_cosine": sum(cosines) / len(cosines) if cosines else None,
        "gradient_conflict_share": sum(each < 0 for each in cosines) / len(cosines) if cosines else None,
        "accuracy": curve,
    }


def federate(
    grid: Grid, config: FederationConfig, run: RunFolder, device: torch.device | None = None, patience: float = 3600.0
) -> Outcome:
    """Run the rounds that are left of a run.

    Args:
        grid: reaches the clients: Flower's, or a `LocalGrid`.
        config: of the federation.
        run: its folder; a checkpoint in it is where the rounds go on.
        device: where the global model is tested; the CPU when None.
        patience: seconds to wait for the nodes and for a round's answers.

    Raises:
        UserError: nodes that do not come, too many rounds in a row without a sound reply, a damaged checkpoint.
    """
    watch_replies(grid)
    model, test = described_model(config).to(device or "cpu"), load(config)[1]
    done, last_rounds = restore(run, model)
    run.rewind(done)
    arrays = ArrayRecord({name: each.cpu() for name, each in model.state_dict().items()})
    strategy = TwinStrategy(config, class_names(config), patience)
    strategy.last_rounds = last_rounds
    strategy.meet(grid)
    for number in track(range(done + 1, config.rounds + 1), f"{config.method} rounds"):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        combined, metrics = strategy.aggregate_train(number, grid.send_and_receive(messages, timeout=patience))
        rejections = strategy.taken_rejections()
        line: dict[str, Any] = dict(metrics or {}) | rejections_for_log(rejections) | strategy.taken_restarts()
        if combined is None:
            line["silent"] = "no sound reply: the model is as it was"
        else:
            arrays = combined
        model.load_state_dict(arrays.to_torch_state_dict())
        run.log(step=number, **accuracies(model, test, config, number), **line)
        # Before the round is kept as done: a resumed run repeats it.
        stop_when_silent(silent_rounds(run.lines()), config.rounds, number, rejections)
        save_checkpoint(run, model, number, strategy.last_rounds)
    payload = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    outcome = Outcome(model.cpu(), summarise(config, run.lines(), strategy, payload))
    model.save_pretrained(run.path / "model")
    run.finish(outcome.result)
    return outcome


def silent_rounds(log: list[dict[str, Any]]) -> int:
    """How many rounds without a sound reply a log ends with."""
    silent = ["silent" in line for line in log]
    return next((count for count, is_silent in enumerate(reversed(silent)) if not is_silent), len(silent))


def save_checkpoint(run: RunFolder, model: TwinModel, number: int, last_rounds: dict[int, int]) -> None:
    """Write the global weights after a round and in which round each client last took part, whole or not at all."""
    about = {"round": str(number), "last_rounds": json.dumps(dict(sorted(last_rounds.items())))}
    write_tensors(run.checkpoints / "last.safetensors", _unshared(model), about)


def _unshared(model: TwinModel) -> dict[str, Tensor]:
    """The state dict with each shared tensor under its first name only: safetensors refuses aliases."""
    seen: set[int] = set()
    state = {}
    for name, each in model.state_dict().items():
        if each.data_ptr() not in seen or each.numel() == 0:
            state[name] = each
            seen.add(each.data_ptr())
    return state


def restore(run: RunFolder, model: TwinModel) -> tuple[int, dict[int, int]]:
    """Load the last checkpoint of a run into `model`.

    Returns:
        The round it was written after, 0 where there is none; and the round in which each client last took part.
    """
    path = run.checkpoints / "last.safetensors"
    if not path.exists():
        return 0, {}
    state, metadata = read_tensors(path)
    number = metadata.get("round", "")
    last_rounds = read_metadata(metadata, "last_rounds", path)
    sound = all(name.isdecimal() and type(each) is int for name, each in last_rounds.items())
    if not number.isdecimal() or len(number) > 9 or not sound:
        raise UserError(f"{path}: damaged, or not of this run (it does not say its round)")
    model.load(state, path)
    return int(number), {int(client): each for client, each in last_rounds.items()}


def load_model(path: str | Path, revision: str | None = None) -> TwinModel:
    """The model of a run folder, of a folder that `save_pretrained` wrote, or of the Hub.

    Args:
        path: the folder, or a name on the Hub.
        revision: branch, tag or commit of a model of the Hub.

    Raises:
        UserError: no model there, or one of another kind.
    """
    folder = model_folder(path, revision, FILES)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    if not all((folder / name).exists() for name in FILES):
        raise UserError(f"{path}: holds no model (a run folder of `twinsight simulate`, or what save_pretrained wrote)")
    return TwinModel.from_folder(folder)
