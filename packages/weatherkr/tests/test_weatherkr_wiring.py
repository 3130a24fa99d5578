"""Each term of the paper's loss reaches the weights: without it, what is learnt is another network.

| paper (official code, cl_all_in_one.py) | test |
|---|---|
| contrast on new patches | `new_contrast` |
| knowledge replay: the old network's answers | `old_l1` |
| contrast on replayed patches | `old_contrast` |
| projected features | `projection` |
| the memory of earlier weathers | `test_without_the_memory_another_network_is_learnt` |
"""

import dataclasses

import pytest
import torch
from accelerate import Accelerator

from tenfold.config import load_preset
from weatherkr import Task, TensorPairs, TrainConfig, degrade
from weatherkr.method.losses import Terms
from weatherkr.training.learner import learn_task
from weatherkr.training.state import LearnerState

CPU = torch.device("cpu")
CONFIG = load_preset(
    "weatherkr", "tiny", TrainConfig, steps=4, batch_size=2, crop=16, precision="float32", contrast="random"
)


def weather_task(kind: str) -> Task:
    coarse = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    clean = torch.nn.functional.interpolate(coarse, (24, 24), mode="bicubic").clamp(0, 1)
    pairs = TensorPairs(degrade(clean, kind, torch.Generator().manual_seed(0), scale=0.4), clean)
    return Task(kind, pairs, pairs.first(2))


def learn(state: LearnerState, kind: str) -> LearnerState:
    return learn_task(state, weather_task(kind), CONFIG, Accelerator(cpu=True, device_placement=False), CPU)


def distance(first: LearnerState, second: LearnerState) -> float:
    """Between the weights, relative to one step of the optimizer."""
    pairs = zip(first.net.parameters(), second.net.parameters(), strict=True)
    return max(float((one - two).abs().max()) for one, two in pairs) / CONFIG.learning_rate


@pytest.fixture(scope="module")
def after_haze() -> LearnerState:
    return learn(LearnerState.fresh(CONFIG), "haze")


@pytest.fixture(scope="module")
def whole(after_haze: LearnerState) -> LearnerState:
    return learn(after_haze, "rain")


def test_the_same_terms_give_the_same_network(after_haze: LearnerState, whole: LearnerState) -> None:
    assert distance(learn(after_haze, "rain"), whole) == 0


@pytest.mark.parametrize("term", ["new_contrast", "old_l1", "old_contrast", "projection"])
def test_without_a_term_another_network_is_learnt(
    term: str, after_haze: LearnerState, whole: LearnerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = Terms.total
    monkeypatch.setattr(
        Terms, "total", lambda terms, weights: total(dataclasses.replace(terms, **{term: torch.zeros(())}), weights)
    )
    assert distance(learn(after_haze, "rain"), whole) > 0.1


def test_without_the_memory_another_network_is_learnt(
    after_haze: LearnerState, whole: LearnerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = after_haze.memory.stored["haze"]
    other = dataclasses.replace(stored, inputs=255 - stored.inputs)
    monkeypatch.setitem(after_haze.memory.stored, "haze", other)
    assert distance(learn(after_haze, "rain"), whole) > 0.1
