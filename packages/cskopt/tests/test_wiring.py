"""Each step of the paper's method reaches the weights: without it, a session learns another network.

| paper | test |
|---|---|
| null-space projection of the updates (§3.4) | `projection` |
| selection of channels by their gradient (§3.3) | `selection` |
| prototypes of old classes in the loss (§3.5) | `prototypes` |
| covariances of every session's features (§3.4) | `test_without_the_old_features_another_network_is_learnt` |
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cskopt.config import METHODS
from cskopt.models.networks import CompactResNet
from cskopt.training import learner as learner_module
from cskopt.training import loop as loop_module
from cskopt.training.learner import IncrementalLearner
from cskopt.training.loop import SessionRecipe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RECIPE = SessionRecipe(epochs=3, lr=1e-2, head_lr=1e-2, precision="fp32")


def pictures(labels: range) -> DataLoader:
    generator = torch.Generator().manual_seed(labels.start)
    y = torch.tensor(list(labels)).repeat_interleave(6)
    x = torch.randn(len(y), 3, 16, 16, generator=generator) + y[:, None, None, None] * 0.3
    return DataLoader(TensorDataset(x, y), 6)


def after_base() -> IncrementalLearner:
    torch.manual_seed(5)
    model = CompactResNet(3, (4, 8, 8)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 16, 16))
    learner = IncrementalLearner(model.eval(), method=METHODS["csko"], accelerator=Accelerator(cpu=True))
    learner.begin(pictures(range(3)), range(3))
    return learner


def learnt(change: Callable[[IncrementalLearner], None] = lambda _: None) -> dict[str, Tensor]:
    """The weights after a second session."""
    learner = after_base()
    change(learner)
    learner.fit_session(pictures(range(3, 5)), range(3, 5), RECIPE)
    return learner.plain_model().state_dict()


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Between the weights, relative to one step of the optimizer."""
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first) / RECIPE.lr


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return learnt()


def test_the_same_steps_give_the_same_network(whole: dict[str, Tensor]) -> None:
    assert distance(learnt(), whole) == 0


def unprojected(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = learner_module.attach_projection
    monkeypatch.setattr(learner_module, "attach_projection", lambda optimizer, model, _: attach(optimizer, model, {}))


def unselected(monkeypatch: pytest.MonkeyPatch) -> None:
    select = learner_module.select_channels

    def others(*arguments: Any) -> dict[str, Tensor]:
        return {name: (each + 1) % (int(each.max()) + 1) for name, each in select(*arguments).items()}

    monkeypatch.setattr(learner_module, "select_channels", others)


def without_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = loop_module.session_loss
    monkeypatch.setattr(
        loop_module, "session_loss", lambda logits, labels, temperature, *_: loss(logits, labels, temperature)
    )


@pytest.mark.parametrize(
    "unplug", [unprojected, unselected, without_prototypes], ids=["projection", "selection", "prototypes"]
)
def test_without_a_step_another_network_is_learnt(
    unplug: Callable[[pytest.MonkeyPatch], None], whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    unplug(monkeypatch)
    assert distance(learnt(), whole) > 0.1


def test_without_the_old_features_another_network_is_learnt(whole: dict[str, Tensor]) -> None:
    def forget(learner: IncrementalLearner) -> None:
        for moment in learner.covariance.matrices.values():
            moment.copy_(torch.eye(len(moment)))

    assert distance(learnt(forget), whole) > 0.1
