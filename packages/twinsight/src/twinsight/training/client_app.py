"""The client side as a Flower app: `query` says who one is, `train` runs a round on what one holds.

A client of a simulation, or of a deployment without data of its own, holds the part `partition-id` of the configured set.
A node with data of its own says so in its node configuration: `data="FOLDER" labelled=true` (one folder per class) or
`labelled=false` (any pictures). What a client keeps between rounds goes to `state-dir="FOLDER"` of the node or of the run configuration, else
into Flower's context, which lasts as long as the node's process.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tenfold import UserError
from tenfold.runs import pick_device
from twinsight.config import FederationConfig, from_run_config
from twinsight.data.datasets import Pictures, description, labelled_folder, load, unlabelled_folder, view_maker
from twinsight.data.partition import ClientData, client_data
from twinsight.models import TwinModel, build_model
from twinsight.training.local_training import local_round
from twinsight.training.state import ClientState, ContextStore, FileStore, StateStore


@lru_cache(maxsize=2)
def working_model(config: FederationConfig, num_classes: int, device: torch.device) -> TwinModel:
    """The model that this process trains on behalf of its clients, one after the other."""
    about = description(config)
    return build_model(config, num_classes, mean=about.mean, std=about.std, channels=about.channels).to(device)


@lru_cache(maxsize=4096)
def held_by(config: FederationConfig, client: int) -> ClientData:
    """`client_data`, kept between rounds."""
    return client_data(config, client)


@lru_cache(maxsize=4)
def own_data(config: FederationConfig, folder: str, labelled: bool, classes: tuple[str, ...]) -> ClientData:
    """The pictures of a node that has its own; folders of a labelled node must be named like the federation's classes."""
    nothing = Pictures(
        torch.empty(0, 3, config.image_size, config.image_size, dtype=torch.uint8), torch.empty(0).long(), classes
    )
    if not labelled:
        return ClientData(nothing, unlabelled_folder(Path(folder), config.image_size, classes), view_maker(config))
    own = labelled_folder(Path(folder), config.image_size)
    unknown = set(own.classes) - set(classes)
    if unknown:
        raise ValueError(
            f"{folder}: {', '.join(sorted(unknown))} are not among the federation's classes {', '.join(classes)}"
        )
    index = torch.tensor([classes.index(name) for name in own.classes])
    return ClientData(Pictures(own.images, index[own.labels], classes), nothing, view_maker(config))


def data_of(config: FederationConfig, context: Context, classes: tuple[str, ...]) -> ClientData:
    """What the node of `context` holds."""
    folder = context.node_config.get("data")
    if folder is not None:
        return own_data(config, str(folder), bool(context.node_config.get("labelled", False)), classes)
    return held_by(config, int(context.node_config["partition-id"]))


def store_of(config: FederationConfig, context: Context, folder: Path | None) -> StateStore:
    """Where the node of `context` keeps its states.

    Args:
        config: of the federation.
        context: of the node.
        folder: for all clients; the node's own `state-dir` comes first.
    """
    named = context.node_config.get("state-dir") or folder or context.run_config.get("state-dir")
    if not named:
        return ContextStore(context)
    return FileStore(Path(str(named)), int(context.node_config["partition-id"]), config)


def make_client_app(
    config: FederationConfig | None = None, device: torch.device | None = None, state_dir: Path | None = None
) -> ClientApp:
    """A client app.

    Args:
        config: of the federation; None reads it from the run configuration that Flower hands over.
        device: where clients train; None takes the best there is.
        state_dir: where all clients keep what lives through rounds; None leaves it to the node's configuration.
    """
    app = ClientApp()

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        """Which client this is, how many pictures it holds and whether any is labelled."""
        chosen = config or from_run_config(dict(context.run_config))
        orders: Any = message.content["config"]
        data = data_of(chosen, context, tuple(str(orders["classes"]).split("\n")))
        about = MetricRecord(
            {
                "client": int(context.node_config["partition-id"]),
                "labelled": len(data.labelled),
                "num-examples": len(data),
            }
        )
        return Message(RecordDict({"about": about}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Local epochs from the global weights."""
        chosen = config or from_run_config(dict(context.run_config))
        orders: Any = message.content["config"]
        classes = tuple(str(orders["classes"]).split("\n"))
        model = working_model(chosen, len(classes), device or pick_device())
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        model.load_state_dict(arrays.to_torch_state_dict())
        client = int(context.node_config["partition-id"])
        number, last = int(orders["round"]), int(orders["last"])
        store = store_of(chosen, context, state_dir)
        found = store.load(last) if chosen.keeps_state else ClientState()
        state = found or ClientState()
        state.check(model, f"client {client}")
        result = local_round(model, data_of(chosen, context, classes), chosen, number, client, state)
        if not result.is_finite:
            raise UserError(f"the loss is not a number in round {number}; lower --learning-rate")
        if chosen.keeps_state:
            # On the disk before the reply: the server never counts on a state that a crash could take back.
            store.save(number, result.state, last)
        metrics = MetricRecord(
            {"num-examples": result.samples, "client": client, "round": number, "steps": result.steps}
        )
        if result.skipped:
            metrics["skipped"] = result.skipped
        if found is None:
            metrics["restarted"] = 1
        for name, value in result.parts.items():
            metrics[f"loss-{name}"] = value
        if result.gradient_cosine is not None:
            metrics["gradient-cosine"] = result.gradient_cosine
        reply = {
            "arrays": ArrayRecord({name: each.cpu() for name, each in model.state_dict().items()}),
            "metrics": metrics,
        }
        return Message(RecordDict(reply), reply_to=message)

    return app


def class_names(config: FederationConfig) -> tuple[str, ...]:
    """The classes of the configured set."""
    return load(config)[1].classes


app = make_client_app()
