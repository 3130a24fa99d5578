"""The ClientApp: what a client does when a message arrives. It receives the shared part, brings its own, and sends only the shared part back."""

import contextlib
import functools
import math
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from pfrforgery.config import FederationConfig, fingerprint, from_run_config
from pfrforgery.data.datasets import ClientData, DataRequest, ImageSet, client_data, pooled_train
from pfrforgery.method.baselines import ALGORITHMS, Algorithm, create_detector, kept_names, predictions_of
from pfrforgery.models.networks import TwoBranchDetector, load_exactly
from pfrforgery.training.local_training import (
    Turn,
    choose_predict,
    fine_tune,
    score_client,
    steps_in_round,
    train_client,
)
from pfrforgery.training.state import ContextStore, FileStore, PersonalState, PersonalStore, is_finite, lost_state
from tenfold import UserError
from tenfold.errors import WriteError
from tenfold.runs import pick_device


def create_client_app(bound: Mapping[str, Any] | None = None) -> ClientApp:
    """The ClientApp.

    Args:
        bound: run configuration where Flower gives none, as in its Python simulation.
    """
    app = ClientApp()
    defaults = dict(bound or {})

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        """Say which client this is and on how many images it trains: the server holds it to that."""
        with _named(context):
            return _describe(message, context, defaults)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train one round; the reply holds the entries that were sent, trained."""
        with _named(context):
            return _train(message, Visit.of(message, context, defaults))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Test the new shared part with the client's own part."""
        with _named(context):
            return _evaluate(message, Visit.of(message, context, defaults))

    return app


@contextlib.contextmanager
def _named(context: Context) -> Generator[None]:
    """Put the client's number before its errors: the server may know the node only."""
    client = context.node_config.get("partition-id", "?")
    try:
        yield
    except WriteError:
        raise  # names its file, and no other client could write either
    except UserError as error:
        text = re.sub(rf"^client {client}\b[: ]*", "", str(error))
        raise UserError(f"client {client}: {text}") from None


@dataclass(frozen=True)
class Visit:
    """One message to one client, with all that it takes to answer.

    Attributes:
        config: of the run.
        algorithm: of the run.
        client: number of the client.
        clients: how many there are.
        round: of the message.
        learning_rate: of the round.
        expected_round: the round in which the server last averaged this client's reply; 0 for never.
        model: ready to use: received part and own part in place.
        personal_round: the round of the own part; 0 for the common initial one.
        store: of the own part.
        request: of the data.
    """

    config: FederationConfig
    algorithm: Algorithm
    client: int
    clients: int
    round: int
    learning_rate: float
    expected_round: int
    model: TwoBranchDetector
    personal_round: int
    store: PersonalStore
    request: DataRequest

    @classmethod
    def of(cls, message: Message, context: Context, defaults: Mapping[str, Any]) -> "Visit":
        """Read a message and its context.

        Raises:
            UserError: a node without a number, or weights of another model.
        """
        values = {**defaults, **context.run_config}
        config, client, request = _own(context, values)
        node = context.node_config
        told = message.content.config_records["config"]
        expected = expected_round(told, client)
        store = open_store(context, values, config, client)
        device = str(node.get("device", values.get("device", "auto")))
        received = message.content.array_records["arrays"].to_torch_state_dict()
        model, personal_round = assemble(config, dict(received), store, expected, device)
        return cls(
            config=config,
            algorithm=ALGORITHMS[config.algorithm],
            client=client,
            clients=request.clients,
            round=int(str(told["server-round"])),
            learning_rate=float(str(told["lr"])),
            expected_round=expected,
            model=model,
            personal_round=personal_round,
            store=store,
            request=request,
        )

    @property
    def turn(self) -> Turn:
        """What decides the random numbers of this visit."""
        return Turn(self.config.seed, self.round, self.client)

    @property
    def data(self) -> ClientData:
        """The client's images."""
        return client_data(self.request, self.client)


def _own(context: Context, values: Mapping[str, Any]) -> tuple[FederationConfig, int, DataRequest]:
    """The configuration, the number of this client, and where its images are.

    Raises:
        UserError: a node without a number.
    """
    config, node = from_run_config(values), context.node_config
    if "partition-id" not in node:
        raise UserError("this node has no number; start it with --node-config 'partition-id=0 num-partitions=5'")
    clients = config.clients or int(node.get("num-partitions", 1))
    request = DataRequest.of(config, clients, str(node["data"]) if "data" in node else None)
    return config, int(node["partition-id"]), request


def _training_images(config: FederationConfig, request: DataRequest, client: int) -> ImageSet:
    is_pooled = ALGORITHMS[config.algorithm].is_pooled
    return pooled_train(request) if is_pooled else client_data(request, client).train


def _describe(message: Message, context: Context, defaults: Mapping[str, Any]) -> Message:
    config, client, request = _own(context, {**defaults, **context.run_config})
    images = len(_training_images(config, request, client))
    about = MetricRecord({"partition-id": client, "num-examples": images})
    return Message(RecordDict({"about": about}), reply_to=message)


def expected_round(told: ConfigRecord, client: int) -> int:
    """The round in which the server last averaged this client's reply, from the book that it sends along; 0 for never."""
    clients, rounds = (cast("list[int]", told[name]) for name in ("book-clients", "book-rounds"))
    return dict(zip(clients, rounds, strict=True)).get(client, 0)


def open_store(context: Context, values: Mapping[str, Any], config: FederationConfig, client: int) -> PersonalStore:
    """Where the client keeps its own part: the node's folder, else the run's, else Flower's context."""
    if folder := context.node_config.get("state-dir"):
        return FileStore(Path(str(folder)) / str(context.run_id), client, fingerprint(config))
    if folder := values.get("state-dir"):
        return FileStore(Path(folder), client, fingerprint(config))
    return ContextStore(context)


@functools.lru_cache(maxsize=4)
def _skeleton(config: FederationConfig, device: str) -> tuple[TwoBranchDetector, dict[str, Tensor]]:
    """A detector to load states into, and its initial state; made once in a process."""
    model = create_detector(config).to(pick_device(device))
    return model, {name: value.detach().clone() for name, value in model.state_dict().items()}


def assemble(
    config: FederationConfig, received: dict[str, Tensor], store: PersonalStore, expected_round: int, device: str
) -> tuple[TwoBranchDetector, int]:
    """Put a client's detector together: the received part, and its own part, from the store or the common initial one.

    Returns:
        The detector, and the round of the own part.

    Raises:
        UserError: weights of another model, or an own part that is older than the server remembers: training on would overwrite what may
            still be found.
    """
    model, initial = _skeleton(config, device)
    algorithm = ALGORITHMS[config.algorithm]
    model.load_state_dict(initial)
    load_exactly(model, received, algorithm.uploads(model))
    names = kept_names(model, algorithm)
    if not names:
        return model, expected_round
    kept = store.load(expected_round)
    kept_round = 0 if kept is None else kept.round
    if kept_round < expected_round and not config.allow_state_reset:
        raise UserError(lost_state(expected_round, kept_round))
    if kept is None:
        return model, 0
    load_exactly(model, kept.tensors, names)
    return model, kept.round


def _train(message: Message, visit: Visit) -> Message:
    config, model, algorithm = visit.config, visit.model, visit.algorithm
    train = _training_images(config, visit.request, visit.client)
    steps = _steps(train, visit)
    losses = train_client(model, train, algorithm, config, visit.turn, visit.learning_rate, steps)
    state = model.state_dict()
    kept = {name: state[name] for name in kept_names(model, algorithm)}
    if not is_finite(kept):
        # Not saved: the client goes on from its last sound state.
        raise UserError(f"the personal part is not finite after round {visit.round}; lower the learning rate")
    if kept:
        # Durable before the reply: a server never counts on a state that a crash could take back.
        visit.store.save(PersonalState(kept, visit.round))
    half = config.upload_dtype == "float16"
    sent = {name: state[name].detach().cpu() for name in algorithm.uploads(model)}
    arrays = ArrayRecord({name: value.half() if half else value for name, value in sent.items()})
    metrics = MetricRecord(
        {
            "num-examples": len(train),
            "partition-id": visit.client,
            "round": visit.round,
            "personal-round": visit.personal_round,
            "loss-shared": losses.shared,
            "loss-personal": losses.personal,
            "loss-adversarial": losses.adversarial,
        }
    )
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def _steps(train: ImageSet, visit: Visit) -> int:
    """A pooled run takes as many steps as all clients together."""
    factor = visit.clients if visit.algorithm.is_pooled and visit.config.local_steps else 1
    return factor * steps_in_round(len(train), visit.config)


def _evaluate(message: Message, visit: Visit) -> Message:
    config, model, data, algorithm = visit.config, visit.model, visit.data, visit.algorithm
    fine_tune(model, data, algorithm, config, visit.turn)
    predict = choose_predict(model, data, algorithm, config)
    scores = score_client(model, data.test, algorithm, predict)
    values: dict[str, float | int] = {
        "num-examples": len(data.test),
        "partition-id": visit.client,
        "round": visit.round,
        "personal-round": visit.personal_round,
        "acc": scores.frames.acc,
        "bacc": scores.frames.bacc,
        "auc": scores.frames.auc,
        "eer": scores.frames.eer,
        "ap": scores.frames.ap,
        "video-acc": scores.videos.acc,
        "video-auc": scores.videos.auc,
        "video-eer": scores.videos.eer,
        # A number, as Flower's metrics are: the place in `predictions_of`.
        "predict": predictions_of(algorithm).index(predict),
    }
    for branch, (acc, auc) in scores.alone.items():
        values |= {f"acc-{branch}": acc, f"auc-{branch}": auc}
    if not math.isfinite(scores.frames.acc):
        raise UserError("predictions are not finite")
    return Message(RecordDict({"metrics": MetricRecord({**values})}), reply_to=message)


client_app = create_client_app()
"""What `flwr run` loads."""
