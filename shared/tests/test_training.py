"""The pieces of a training loop."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.training.averaging import frozen_copy, update_ema
from tenfold.training.checkpoints import Checkpoint, save_checkpoint
from tenfold.training.precision import autocast_dtype, check_finite, deterministic, precision_context
from tenfold.training.processes import check_batch_size, open_run, share_of, start_accelerator, track_in_main
from tenfold.training.schedules import (
    cosine_decay,
    linear_warmup,
    set_learning_rate,
    step_decay,
    warmup_cosine,
)


@dataclass(frozen=True)
class Recipe:
    steps: int = 1


CPU = torch.device("cpu")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "momentum": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_learning_rate(optimizer, 0.01 * warmup_cosine(step, 10, 2))
        images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_checkpoint_equals_never_stopping(name: str, tmp_path: Path) -> None:
    whole = network()
    train(whole, OPTIMIZERS[name](whole.parameters()), range(10))

    first = network()
    optimizer = OPTIMIZERS[name](first.parameters())
    train(first, optimizer, range(4))
    save_checkpoint(tmp_path / "c", {"net": first}, {"all": optimizer}, {"step": 4, "losses": [0.1, 0.2]})

    second = network()
    again = OPTIMIZERS[name](second.parameters())
    checkpoint = Checkpoint(tmp_path / "c")
    checkpoint.restore_module("net", second)
    checkpoint.restore_optimizer("all", again)
    assert checkpoint.progress == {"step": 4, "losses": [0.1, 0.2]}
    train(second, again, range(4, 10))
    for mine, other in zip(second.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_a_checkpoint_keeps_shared_weights_and_plain_tensors(tmp_path: Path) -> None:
    model = network()
    save_checkpoint(tmp_path / "c", {"a": model, "b": model, "best": {"x": torch.ones(2).expand(3, 2)}}, {}, {})
    checkpoint = Checkpoint(tmp_path / "c")
    assert torch.equal(checkpoint.tensors("best")["x"], torch.ones(3, 2))
    assert checkpoint.tensors("none") == {}
    other = nn.Linear(2, 2)
    with pytest.raises(UserError, match="do not fit Linear"):
        checkpoint.restore_module("a", other)


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, range(1))
    save_checkpoint(tmp_path / "c", {}, {"all": optimizer}, {})
    with pytest.raises(UserError, match="another optimizer"):
        Checkpoint(tmp_path / "c").restore_optimizer("all", torch.optim.Adam([nn.Parameter(torch.zeros(1))]))
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="text"):
        Checkpoint(tmp_path / "text")


def test_schedules() -> None:
    assert [linear_warmup(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert linear_warmup(0, 0) == 1
    assert [cosine_decay(0, 10), cosine_decay(10, 10), cosine_decay(99, 10)] == [1, 0, 0]
    assert cosine_decay(5, 10) == pytest.approx(0.5)
    assert warmup_cosine(2, 12, 2) == 1
    assert warmup_cosine(0, 12, 2) == 0.5
    assert [step_decay(step, 3, 0.1) for step in (0, 2, 3, 6)] == pytest.approx([1, 1, 0.1, 0.01])


def test_an_average_follows_slowly_and_never_learns() -> None:
    model = network()
    average = frozen_copy(model)
    before = average[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(1)
        model[1].running_mean.add_(1)
    update_ema(average, model, 0.9)
    torch.testing.assert_close(average[0].weight, before + 0.1)
    assert torch.equal(average[1].running_mean, model[1].running_mean)
    assert not any(each.requires_grad for each in average.parameters())
    assert not average.training


def test_precision() -> None:
    assert autocast_dtype("float32", CPU) is None
    assert autocast_dtype("bfloat16", CPU) is torch.bfloat16
    with precision_context("bfloat16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with precision_context("float32", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_deterministic_gives_the_random_state_back() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        torch.manual_seed(9)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.rand(1), expected)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    assert check_finite(1.5, "epoch 1") == 1.5
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match="in epoch 3; lower the learning rate"):
            check_finite(bad, "epoch 3")


def test_processes(tmp_path: Path) -> None:
    accelerator, device = start_accelerator("cpu")
    assert device == CPU
    check_batch_size(6, 3)
    with pytest.raises(UserError, match="7 cannot be shared by 3"):
        check_batch_size(7, 3)
    assert share_of([1, 2, 3], accelerator) == [1, 2, 3]
    assert list(track_in_main(accelerator, [1, 2], "work")) == [1, 2]
    run = open_run(accelerator, tmp_path / "run", Recipe(), resume=False)
    assert (run.path / "config.toml").exists()
    run.finish({})
