"""What each step of training is given: the right loss of the right space, its targets, options, views and rate."""

import dataclasses
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from multreid.config import TrainConfig
from multreid.data.synthetic import write_people
from multreid.training import loop as training
from multreid.training.loop import train
from tenfold.config import load_preset

LOSSES = ("stage_one_loss", "visible_space_loss", "infrared_space_loss")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    visible, infrared = write_people(tmp_path_factory.mktemp("people"), 6, 5, seed=0, look_alikes=False)
    sizes = {"epochs": 3, "stage_two": 1, "steps": 2, "steps_two": 2, "identities": 4, "instances": 2, "k1": 5}
    options = {"eps": 0.8, "beta": 0.6, "alpha": 0.3, "start": "matching", "detach_target": True, "refinement": 0.25}
    base = load_preset("multreid", "tiny", TrainConfig)
    return dataclasses.replace(base, visible=visible, infrared=infrared, **sizes, **options)


@pytest.fixture(scope="module")
def seen(config, tmp_path_factory) -> Any:
    """A run of one epoch of stage one and two of stage two, with the calls of all that a step is made of."""
    calls: dict[str, list[Any]] = defaultdict(list)
    order: list[str] = []
    plans: list[training.EpochPlan] = []
    with pytest.MonkeyPatch.context() as patch:

        def spy(name: str) -> None:
            real = getattr(training, name)

            def watched(*args: Any, **options: Any) -> Any:
                if name == "augment":
                    calls["seed"].append(args[1].initial_seed())
                if name in LOSSES:
                    order.append(name)
                calls[name].append((args, options))
                return real(*args, **options)

            patch.setattr(training, name, watched)

        for name in (*LOSSES, "transfer_labels", "augment", "augment_channels"):
            spy(name)
        plan_epoch = training.plan_epoch

        def planned(*args: Any) -> training.EpochPlan:
            plans.append(plan_epoch(*args))
            return plans[-1]

        patch.setattr(training, "plan_epoch", planned)
        train(tmp_path_factory.mktemp("run") / "run", config, device="cpu")
    return SimpleNamespace(calls=calls, order=order, plans=plans)


def test_odd_epochs_of_stage_two_work_in_the_infrared_space_and_even_ones_in_the_visible(seen) -> None:
    assert seen.order == [name for name in (LOSSES[0], LOSSES[2], LOSSES[1]) for _ in range(2)]


def test_clusters_are_the_targets_of_stage_one(seen) -> None:
    plan = seen.plans[0]
    assert plan.association is None
    for batch, (args, _) in zip(plan.batches, seen.calls["stage_one_loss"], strict=True):
        assert args[3].tolist() == plan.visible.labels[batch.visible].tolist()
        assert args[4].tolist() == plan.infrared.labels[batch.infrared].tolist()
        assert (args[1].bank.shape[0], args[2].bank.shape[0]) == (plan.visible.count, plan.infrared.count)


@pytest.mark.parametrize(("epoch", "name"), [(1, "infrared_space_loss"), (2, "visible_space_loss")])
def test_mixed_labels_are_the_targets_of_stage_two(seen, config, epoch, name) -> None:
    plan = seen.plans[epoch]
    found = plan.association.mixed(config.beta)
    for batch, (args, options) in zip(plan.batches, seen.calls[name], strict=True):
        rows = (batch.visible, batch.infrared, batch.visible, batch.infrared)
        fields = dataclasses.astuple(args[2])
        for target, mixed, chosen in zip(fields, found, rows, strict=True):
            np.testing.assert_array_equal(target.numpy(), mixed[chosen])
        assert options == {"detach_target": True, "refinement": 0.25}


def test_batches_of_stage_two_pair_own_with_cross_labels(seen, config) -> None:
    for plan in seen.plans[1:]:
        found = plan.association
        shared = np.intersect1d(found.labels_a, found.cross_b).size
        half = min(config.identities // 2, shared) * config.instances
        for batch in plan.batches:
            first, second = slice(None, half), slice(half, None)
            assert found.labels_a[batch.visible[first]].tolist() == found.cross_b[batch.infrared[first]].tolist()
            assert found.cross_a[batch.visible[second]].tolist() == found.labels_b[batch.infrared[second]].tolist()


def test_the_association_is_made_with_the_options_of_the_run(seen, config) -> None:
    assert len(seen.calls["transfer_labels"]) == 2
    for _, options in seen.calls["transfer_labels"]:
        assert (options["alpha"], options["start"], options["temperature"]) == (0.3, "matching", config.temperature)


def test_views_are_pictures_in_the_unit_range_with_chance_of_their_own(seen) -> None:
    # Visible and infrared plainly, visible again with channels exchanged.
    assert len(seen.calls["augment"]) == 2 * len(seen.calls["augment_channels"]) == 12
    plain, exchanged = seen.calls["augment"][::2], seen.calls["augment_channels"]
    for (first, _), (second, _) in zip(plain, exchanged, strict=True):
        assert first[0] is second[0]
        assert 0 <= first[0].min() < 0.5 < first[0].max() <= 1
    streams = seen.calls["seed"][::2]
    assert len(set(streams)) == len(streams)


def test_steps_follow_the_learning_rate(config, tmp_path, monkeypatch) -> None:
    started = []
    new_model = training._new_model
    monkeypatch.setattr(training, "learning_rate", lambda *_: 0.0)
    monkeypatch.setattr(training, "_new_model", lambda each: started.append(new_model(each)) or started[0])
    before = {}
    monkeypatch.setattr(
        training,
        "plan_epoch",
        lambda *args, real=training.plan_epoch: (
            before.update({name: each.clone() for name, each in started[0].named_parameters()}) or real(*args)
        ),
    )
    train(tmp_path / "run", dataclasses.replace(config, epochs=1), device="cpu")
    assert before
    for name, value in started[0].named_parameters():
        torch.testing.assert_close(value.detach(), before[name].detach(), rtol=0, atol=0)
