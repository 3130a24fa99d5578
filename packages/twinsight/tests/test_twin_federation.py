"""Partitions, rounds, resuming, and the Flower apps."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import UserError
from tenfold.config import load_preset
from twinsight.benchmark import arm_config, compare
from twinsight.config import FederationConfig, from_run_config
from twinsight.data.datasets import Pictures, load
from twinsight.data.partition import client_data, dirichlet_split, draw_partition, labelled_clients, partition_of
from twinsight.evaluation.inference import accuracy, running_mean_accuracy
from twinsight.models import build_model
from twinsight.pipeline.simulation import simulate
from twinsight.training.client_app import make_client_app
from twinsight.training.local_grid import LocalGrid
from twinsight.training.loop import accuracies, load_model, rounds_to
from twinsight.training.strategy import TwinStrategy

TINY = load_preset("twinsight", "tiny", FederationConfig, "simulate", rounds=3, clients_per_round=3)


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(["dirichlet", "pathological", "iid"]),
    st.integers(4, 8),
    st.integers(0, 30),
    st.sampled_from([0.3, 2.0]),
)
def test_a_partition_is_disjoint_covers_all_and_keeps_the_smallest_size(
    kind: str, clients: int, seed: int, alpha: float
) -> None:
    labels = np.arange(600) % 6
    config = FederationConfig(
        partition=kind, clients=clients, labelled=1, clients_per_round=1, seed=seed, alpha=alpha, min_client_size=5
    )
    split = draw_partition(labels, config)
    joined = np.concatenate(split.indices)
    assert sorted(joined) == list(range(600))
    assert min(map(len, split.indices)) >= 5
    again = draw_partition(labels, config)
    assert all(np.array_equal(one, two) for one, two in zip(split.indices, again.indices, strict=True))
    assert split.labelled == again.labelled


def shape_of(partition: list[np.ndarray] | tuple[np.ndarray, ...], labels: np.ndarray) -> tuple[float, ...]:
    """Spread of the sizes, largest share, effective classes of a client (1 / sum of squared shares), classes that it has."""
    counts = np.stack([np.bincount(labels[each], minlength=int(labels.max()) + 1) for each in partition])
    sizes, shares = counts.sum(1), counts / counts.sum(1, keepdims=True)
    effective = (1 / (shares**2).sum(1)).mean()
    return sizes.std() / sizes.mean(), sizes.max() / sizes.sum(), effective, (counts > 0).sum(1).mean()


@pytest.mark.parametrize(
    ("classes", "alpha", "draws", "expected"),
    [
        (10, 0.1, 400, ((0.436, 0.027), (0.167, 0.005), (2.08, 0.07), (5.51, 0.14))),
        (10, 0.05, 200, ((0.516, 0.041), (0.178, 0.007), (1.68, 0.07), (4.03, 0.16))),
        (100, 0.1, 60, ((0.072, 0.013), (0.108, 0.001), (17.4, 0.6), (51.5, 1.3))),
    ],
)
def test_partitions_have_the_statistics_of_the_official_code(
    classes: int, alpha: float, draws: int, expected: tuple[tuple[float, float], ...]
) -> None:
    """Means over as many partitions of 50,000 pictures over ten clients; tolerance four standard errors of the difference of two such means."""
    labels = np.repeat(np.arange(classes), 50_000 // classes)
    base = FederationConfig(alpha=alpha)
    splits = [draw_partition(labels, replace(base, seed=seed)).indices for seed in range(draws)]
    # As many pictures as there are classes.
    assert min(len(each) for split in splits for each in split) >= classes
    found = np.mean([shape_of(split, labels) for split in splits], axis=0)
    for number, (value, tolerance) in zip(found, expected, strict=True):
        assert abs(number - value) <= tolerance, (found, expected)


def test_a_client_that_is_full_gets_no_more() -> None:
    """With K = 2 and one client at n / K or above, the rest of each later class is the other's."""
    labels = np.repeat(np.arange(8), 100)
    for seed in range(30):
        split = dirichlet_split(labels, 2, 0.1, np.random.default_rng(seed))
        assert split is not None
        counts = np.stack([np.bincount(labels[each], minlength=8) for each in split])
        held = np.cumsum(counts, axis=1)
        for label in range(1, 8):
            assert (counts[held[:, label - 1] >= 400, label] == 0).all()


def test_the_labelled_clients_are_the_official_ones_where_there_is_a_list() -> None:
    expected = {"cifar10": (1, 3, 6, 8), "cifar100": (0, 1, 7, 8), "fashionmnist": (1, 3, 5, 9), "svhn": (1, 2, 4, 9)}
    for data, clients in expected.items():
        config = FederationConfig(data=data)
        for seed in range(3):
            assert labelled_clients(config, seed) == clients
        assert labelled_clients(replace(config, labelled_clients=(0, 1, 2, 3)), 0) == (0, 1, 2, 3)
        # 90, 80, 70, 50 and 40 % unlabelled; at 40 % the list is another one.
        for labelled in (1, 2, 3, 5, 6):
            assert len(labelled_clients(replace(config, labelled=labelled), 0)) == labelled
        drawn = {labelled_clients(replace(config, labelled_choice="drawn"), seed) for seed in range(20)}
        assert len(drawn) > 5
    assert labelled_clients(FederationConfig(data="cifar10", labelled=6), 0) == (1, 2, 3, 5, 6, 8)
    assert len({labelled_clients(FederationConfig(data="cifar10", labelled=7), seed) for seed in range(20)}) > 5
    assert len({labelled_clients(FederationConfig(data="digits"), seed) for seed in range(20)}) > 5


def test_the_official_accuracy_has_its_spread() -> None:
    correct = torch.arange(10_000) < 7_000
    values = [running_mean_accuracy(correct, torch.Generator().manual_seed(seed)) for seed in range(500)]
    # Tolerances: four standard errors of 500 values with a standard deviation of .44; the best of 500 normal values is 3.04 of them above the mean.
    assert abs(np.mean(values) - 70) < 4 * 0.44 / 500**0.5
    assert abs(np.std(values) - 0.44) < 4 * 0.44 / 1000**0.5
    assert 0.9 < max(values) - 70 < 2.1
    assert running_mean_accuracy(torch.ones(7, dtype=torch.bool), torch.Generator()) == 100
    halves = torch.tensor([True] * 64 + [False] * 64)
    first = [running_mean_accuracy(halves, torch.Generator().manual_seed(seed)) for seed in range(5)]
    assert all(25 < value < 75 for value in first)


def test_both_accuracies_are_logged_and_one_counts(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((finished / "result.json").read_text())
    assert all(line["accuracy"] == line["top_1"] != line["running_mean"] for line in lines)
    assert result["best_top_1"] == max(line["top_1"] for line in lines) == result["best"]
    assert result["best_running_mean"] == max(line["running_mean"] for line in lines)
    for number, line in enumerate(lines[-1:], len(lines)):
        again = accuracies(load_model(finished), load(TINY)[1], replace(TINY, accuracy="running-mean"), number)
        assert again == {**{name: line[name] for name in again}, "accuracy": line["running_mean"]}


def test_damped_clients_without_labels_return_what_they_were_sent(tmp_path: Path) -> None:
    """The control: the labelled clients' progress, thinned by the pictures of the others."""
    config = replace(TINY, method="damped", clients_per_round=10, rounds=1)
    damped = simulate(tmp_path / "damped", config)
    assert damped.result["rejected"] == []
    every = replace(config, method="lower-bound", labelled_per_round=4)
    labelled = simulate(tmp_path / "labelled", every).model.state_dict()
    start = build_model(config, 10, mean=(0.3,) * 3, std=(0.35,) * 3).state_dict()
    sizes = np.array([len(each) for each in partition_of(config).indices])
    share = sizes[list(partition_of(config).labelled)].sum() / sizes.sum()
    assert 0.05 < share < 0.95
    for name, each in damped.model.state_dict().items():
        if each.is_floating_point():
            torch.testing.assert_close(each, start[name] + share * (labelled[name] - start[name]), rtol=1e-4, atol=1e-6)


def test_small_alpha_skews_and_another_seed_draws_another_partition() -> None:
    labels = np.arange(4000) % 10
    base = FederationConfig(alpha=0.1)
    skewed, even = draw_partition(labels, base), draw_partition(labels, replace(base, alpha=100.0))

    def top_share(split: object) -> float:
        counts = split.counts(labels, 10)  # ty: ignore[unresolved-attribute]
        return float((counts.max(1) / counts.sum(1)).mean())

    assert top_share(skewed) > 0.3 > 0.15 > top_share(even)
    other = draw_partition(labels, replace(base, seed=1))
    assert not np.array_equal(skewed.indices[0], other.indices[0])


def test_labelled_clients_can_be_named_and_hold_every_class_when_asked() -> None:
    split = partition_of(TINY)
    counts = split.counts(load(TINY)[0].labels.numpy(), 10)
    assert counts[list(split.labelled)].sum(0).min() >= 5
    named = replace(TINY, labelled=2, labelled_clients=(1, 3), min_labelled_per_class=0)
    with pytest.warns(UserWarning, match="cannot be learnt") if _absent(named) else _nothing():
        assert partition_of(named).labelled == (1, 3)
    with pytest.raises(UserError, match="no dirichlet partition"):
        draw_partition(np.arange(40) % 10, replace(TINY, clients=8, min_client_size=6))


def _absent(config: FederationConfig) -> bool:
    labels = load(config)[0].labels.numpy()
    return bool((draw_partition(labels, config).counts(labels, 10)[list(config.labelled_clients)].sum(0) == 0).any())


def _nothing() -> "object":
    import contextlib

    return contextlib.nullcontext()


def test_clients_know_only_the_labels_that_they_have() -> None:
    split = partition_of(TINY)
    for client in range(TINY.clients):
        data = client_data(TINY, client)
        assert len(data.labelled) == (len(data) if client in split.labelled else 0)
        assert (data.unlabelled.labels == -1).all()
    partial = client_data(replace(TINY, setting="partial-data"), 0)
    assert len(partial.labelled) == math.ceil(0.05 * len(partial))
    assert not len(client_data(replace(TINY, method="upper-bound"), 0).unlabelled)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    simulate(out, TINY)
    return out


def test_a_run_leaves_its_configuration_log_result_and_model(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["best"] == max(result["accuracy"])
    assert len(result["accuracy"]) == 3
    assert result["clients_per_round"] == 3
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"loss-instance", "loss-neighbourhood", "accuracy"} <= set(lines[0])
    model = load_model(finished)
    assert model.classes == tuple("0123456789")
    assert accuracy(model, load(TINY)[1], "float32") == pytest.approx(result["last"])
    assert torch.allclose(model.predict(load(TINY)[1].images[:4] / 255).sum(1), torch.ones(4))


def test_a_finished_run_is_resumed_to_itself(finished: Path) -> None:
    again = simulate(finished, TINY, resume=True)
    assert again.result == json.loads((finished / "result.json").read_text())
    assert all(
        torch.equal(each, again.model.state_dict()[name]) for name, each in load_model(finished).state_dict().items()
    )
    assert not (finished / "run.lock").exists()


def test_another_configuration_cannot_take_up_a_run(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match="another configuration"):
        simulate(copy, replace(TINY, alpha=0.7), resume=True)
    (copy / "checkpoints/last.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="damaged"):
        simulate(copy, TINY, resume=True)


def test_one_network_resumes_although_its_encoder_has_two_names(tmp_path: Path) -> None:
    config = replace(TINY, method="one-network", rounds=1)
    first = simulate(tmp_path / "one", config)
    again = load_model(tmp_path / "one")
    for name, each in first.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], each), name
    assert again.twin is not None
    assert again.twin.encoder is again.encoder


def test_the_lower_bound_draws_from_labelled_clients_and_says_how_many(tmp_path: Path) -> None:
    results = compare(replace(TINY, rounds=1), ["lower-bound", "lower-bound:all", "upper-bound"], tmp_path / "arms")
    assert results["lower-bound"]["clients_per_round"] == 2
    assert results["lower-bound:all"]["clients_per_round"] == 4
    assert len(results["upper-bound"]["labelled_clients"]) == 10
    assert arm_config(TINY, "twin-sight:official").normalisation == "official"
    with pytest.raises(UserError, match="lower-bound: already holds a run"):
        compare(replace(TINY, rounds=1), ["twin-sight", "lower-bound"], tmp_path / "arms")
    assert not (tmp_path / "arms/twin-sight").exists()
    (tmp_path / "arms/lower-bound/result.json").write_text("{}")
    with pytest.raises(UserError, match=r"result\.json: is damaged"):
        compare(replace(TINY, rounds=1), ["lower-bound"], tmp_path / "arms", resume=True)
    with pytest.raises(UserError, match="no such arm"):
        arm_config(TINY, "twin-sight:nonsense")


def test_a_loss_that_is_no_number_leaves_its_client_out_and_says_what_to_do(tmp_path: Path) -> None:
    config = replace(TINY, learning_rate=1e30, method="upper-bound", weight_decay=0.0, rounds=1, clients_per_round=2)
    words = r"round 1: .*client \d+: the loss is not a number in round 1; lower --learning-rate; client \d+: the loss"
    with pytest.raises(UserError, match=words):
        simulate(tmp_path / "run", config)
    assert not (tmp_path / "run/result.json").exists()
    (line,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert (line["rejected"], line["silent"]) == (2, "no sound reply: the model is as it was")


def test_a_federation_without_labels_is_refused() -> None:
    config = replace(TINY, rounds=1)
    app = make_client_app(config)

    class Blind(LocalGrid):
        def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)
            for reply in replies:
                reply.content["about"]["labelled"] = 0  # ty: ignore[invalid-assignment]
            return replies

    with pytest.raises(UserError, match="no labelled client"):
        TwinStrategy(config, tuple("0123456789")).meet(Blind(app, config.clients))


def test_nobody_is_asked_to_evaluate() -> None:
    grid = LocalGrid(make_client_app(TINY), 2)
    strategy = TwinStrategy(TINY, tuple("0123456789"))
    assert strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid) == []


def test_what_must_be_said_beside_the_numbers() -> None:
    paper = FederationConfig()
    assert paper.notes == []
    (note,) = replace(paper, normalisation="mean").notes
    assert "1/62 of what it weighs" in note
    assert replace(paper, normalisation="mean", method="twins-apart").notes == []
    (note,) = replace(paper, objective="byol").notes
    assert "not BYOL proper" in note
    assert replace(paper, objective="byol", byol_target="ema").notes == []


ACCIDENTS = {
    "momentum_across_rounds": True,
    "normalisation": "official",
    "pseudo_label_direction": "official",
    "np_feature": "official",
    "byol_target": "official",
    "integer_buffers": "official",
}


def test_the_paper_preset_is_the_official_code_and_the_others_leave_its_accidents_out() -> None:
    paper = load_preset("twinsight", "paper", FederationConfig, "simulate")
    assert paper == FederationConfig(data="cifar10", encoder="resnet18")
    assert {name: getattr(paper, name) for name in ACCIDENTS} == ACCIDENTS
    assert (paper.views, paper.accuracy, paper.labelled_choice) == ("official", "top-1", "official")
    for name in ("tiny", "small", "practical"):
        preset = load_preset("twinsight", name, FederationConfig, "simulate")
        assert not [field for field, value in ACCIDENTS.items() if getattr(preset, field) == value]
    assert preset.views == "tenfold"


def test_rounds_to_a_target() -> None:
    assert rounds_to([10.0, 30.0, 20.0, 40.0], 30.0) == 2
    assert rounds_to([10.0], 30.0) is None
    assert rounds_to([10.0], None) is None


def test_run_configurations_are_checked() -> None:
    config = from_run_config({"preset": "tiny", "rounds": 2, "labelled-clients": "1,2,3,4"})
    assert (config.rounds, config.labelled_clients, config.encoder) == (2, (1, 2, 3, 4), "small")
    with pytest.raises(UserError, match="rouns"):
        from_run_config({"rouns": 2})
    with pytest.raises(UserError, match="labelled-clients is '1,b'"):
        from_run_config({"labelled-clients": "1,b"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"alpha": 0.0}, "alpha: 0 is not above 0"),
        ({"labelled": 0}, "labelled: 0 is not a whole number"),
        ({"labelled": 11}, "--labelled must be between 1"),
        ({"clients_per_round": 20}, "more than --clients"),
        ({"image_size": 4}, "at least 8"),
        ({"batch_size": 1}, "at least 2"),
        ({"min_client_size": 1}, "at least 2"),
        ({"batch_size": 2, "normalisation": "official"}, "2 XOR 2"),
        ({"labelled_clients": (0, 0, 1, 2)}, "different clients"),
        ({"labelled_share": 0.0}, "--labelled-share"),
        ({"momentum": 1.0}, "--momentum must be below 1"),
        ({"threshold": 1.5}, "threshold: 1.5 is not from 0 to 1"),
        ({"instance_weight": -1.0}, "instance_weight: -1 is not 0 or above"),
        ({"max_samples": 0}, "max_samples: 0 is not a whole number from 1"),
        ({"image_size": 5000}, "at most 4096"),
        ({"data": "folder"}, "needs --root"),
        ({"labelled_per_round": 9}, "--labelled-per-round"),
        ({"setting": "partial-data", "method": "one-network"}, "partial-client setting only"),
    ],
)
def test_unusable_configurations_are_one_line(change: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(TINY, **change)


def test_more_clients_than_pictures() -> None:
    with pytest.raises(UserError, match="more than the 5 training pictures"):
        draw_partition(np.arange(5), replace(TINY, clients=8))


def test_a_node_with_its_own_folder_uses_it(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("3", "5"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("L", (20, 30), 80 * index).save(tmp_path / name / f"{index}.png")
    config = replace(TINY, clients=2, labelled=1, clients_per_round=2, min_labelled_per_class=0, image_size=16)
    grid = LocalGrid(make_client_app(config), 2)
    grid.contexts[1].node_config |= {"data": str(tmp_path), "labelled": True}
    grid.contexts[2].node_config |= {"data": str(tmp_path), "labelled": False}
    strategy = TwinStrategy(config, tuple("0123456789"))
    strategy.meet(grid)
    assert [(each.client, each.labelled, each.samples) for each in strategy.members] == [(0, 6, 6), (1, 0, 6)]
    (tmp_path / "11").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "11/0.png")
    from twinsight.training.client_app import own_data

    with pytest.raises(ValueError, match="11 are not among"):
        own_data(config, str(tmp_path), True, tuple("0123456789x"))


def test_torchvision_layouts_are_read(tmp_path: Path) -> None:
    """Tiny CIFAR-10 and Fashion-MNIST in torchvision's own files; only their check sums differ."""
    import pickle
    from unittest.mock import patch

    from torchvision.datasets import CIFAR10, FashionMNIST

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        data = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [0, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{index}" for index in range(10)]}))
    with (
        patch.object(CIFAR10, "_check_integrity", return_value=True),
        patch("torchvision.datasets.cifar.check_integrity", return_value=True),
    ):
        train, test = load(replace(TINY, data="cifar10", root=tmp_path))
    assert train.images.shape == (10, 3, 32, 32)
    assert len(test) == 2
    assert test.classes[0] == "c0"
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 4), ("t10k", 2)):
        images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.array([0x801, count], dtype=">i4").tobytes() + bytes(range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    train, _ = load(replace(TINY, data="fashionmnist", root=tmp_path))
    assert train.images.shape == (4, 3, 32, 32)
    assert FashionMNIST.classes[0] == train.classes[0]
    with pytest.raises(UserError, match="needs --root"):
        load(replace(TINY, data="svhn"))


def test_empty_pictures_have_a_length() -> None:
    assert len(Pictures(torch.empty(0, 3, 8, 8, dtype=torch.uint8), torch.empty(0).long(), ())) == 0
