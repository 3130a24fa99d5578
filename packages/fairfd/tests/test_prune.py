"""Bias-guided pruning: golden vectors, exact counts, hooks by name, masks that survive files (spec 3.10, 14.25)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from fairfd.method.pruning import (
    MEAN_OF_NORM,
    NORM_OF_MEAN,
    STATISTICS,
    ChannelStatistic,
    GroupSums,
    apply_masks,
    bpfa_score,
    channel_bias,
    convolutions,
    group_norms,
    lowest_mask,
    make_permanent,
    pruning_masks,
    require_disjoint_identities,
    roba_score,
    weig_score,
)
from fairfd.training.pruning import PruningRecord, read_masks, write_masks
from tenfold.errors import UserError

GOLDEN = np.load(Path(__file__).parent / "golden" / "bpfa.npz")
GROUPS = ("A", "B", "C")


class LateRegistered(nn.Module):
    """Runs `first` before `second` although `second` is registered first, and never runs `unused`."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 4, 3)
        self.first = nn.Conv2d(3, 4, 3)
        self.unused = nn.Conv2d(4, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images).relu())


@pytest.fixture
def model() -> LateRegistered:
    torch.manual_seed(0)
    return LateRegistered()


def calibration(num_images: int = 12, size: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(num_images) % len(GROUPS)
    return torch.rand(num_images, 3, size, size, generator=generator) * (1 + group[:, None, None, None]), group


def golden_norms(statistic: ChannelStatistic, chunk: int) -> Tensor:
    sums = GroupSums(4)
    for race in range(4):
        for part in torch.from_numpy(GOLDEN[f"act_race{race}"]).split(chunk):
            sums.add(statistic.per_image(part), torch.full((len(part),), race))
    return statistic.per_group(sums.mean())


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("name", ["mean_of_norm", "norm_of_mean"])
def test_streamed_statistics_reproduce_the_golden_bias_and_scores(name: str, chunk: int) -> None:
    bias = channel_bias(golden_norms(STATISTICS[name], chunk))
    np.testing.assert_allclose(bias, GOLDEN[f"bias_{name}"], rtol=1e-5, atol=1e-6)
    score = bpfa_score(torch.from_numpy(GOLDEN["weight"]).double(), bias)
    np.testing.assert_allclose(score, GOLDEN[f"score_{name}"], rtol=1e-4)
    np.testing.assert_array_equal(lowest_mask(score, 0.1), GOLDEN[f"mask_{name}_10pct"] != 0)


def test_weig_reproduces_the_golden_mask() -> None:
    mask = lowest_mask(weig_score(torch.from_numpy(GOLDEN["weight"])), 0.1)
    np.testing.assert_array_equal(mask, GOLDEN["weig_mask_10pct"] != 0)


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0, 0.999), shape=st.tuples(*[st.integers(1, 4)] * 4), tied=st.booleans())
def test_exactly_int_rate_numel_weights_are_zeroed(rate: float, shape: tuple[int, ...], tied: bool) -> None:
    score = torch.ones(shape) if tied else torch.rand(shape, generator=torch.Generator().manual_seed(3))
    assert int((~lowest_mask(score, rate)).sum()) == int(rate * score.numel())


def test_constant_bias_makes_bpfa_prune_as_weig_does() -> None:
    weight = torch.from_numpy(GOLDEN["weight"]).double()
    bias = torch.full((len(weight),), 0.37, dtype=torch.float64)
    assert torch.equal(lowest_mask(bpfa_score(weight, bias), 0.3), lowest_mask(weig_score(weight), 0.3))


def test_roba_zeroes_the_most_biased_channels_first() -> None:
    bias = torch.tensor([0.1, 5.0, 0.2, 3.0], dtype=torch.float64)
    mask = lowest_mask(roba_score(torch.ones(4, 2, 1, 1, dtype=torch.float64), bias), 0.5)
    assert mask.flatten(1).any(1).tolist() == [True, False, True, False]


def test_channel_that_treats_groups_alike_is_pruned_last_and_stays_finite() -> None:
    bias = channel_bias(torch.tensor([[1.0, 2.0], [1.0, 4.0]], dtype=torch.float64))
    assert bias[0] == 1e-12
    score = bpfa_score(torch.full((2, 1, 1, 1), 1e-3, dtype=torch.float64), bias)
    assert torch.isfinite(score).all()
    assert lowest_mask(score, 0.5).flatten().tolist() == [True, False]


def test_statistics_belong_to_their_layer_when_execution_order_differs(model: LateRegistered) -> None:
    images, group = calibration()
    measured = group_norms(model, [(images, group)], GROUPS)
    with torch.no_grad():
        first = model.first(images)
        second = model.second(first.relu())
    assert list(measured.norms) == ["second", "first"]
    for name, activation in {"first": first, "second": second}.items():
        norms = activation.flatten(2).norm(dim=2)
        expected = torch.stack([norms[group == g].mean(0) for g in range(len(GROUPS))])
        np.testing.assert_allclose(measured.norms[name], expected.double(), rtol=1e-5, atol=1e-5)


def test_batches_of_any_size_give_the_same_statistics(model: LateRegistered) -> None:
    images, group = calibration()
    whole = group_norms(model, [(images, group)], GROUPS, statistic=NORM_OF_MEAN)
    split = group_norms(model, zip(images.split(5), group.split(5), strict=True), GROUPS, statistic=NORM_OF_MEAN)
    assert split.images == (4, 4, 4)
    for name in whole.norms:
        np.testing.assert_allclose(split.norms[name], whole.norms[name], rtol=1e-5, atol=1e-6)


def test_layers_that_never_run_are_listed_and_left_alone(model: LateRegistered) -> None:
    measured = group_norms(model, [calibration()], GROUPS)
    assert measured.skipped == {"unused": "never executed"}
    masks = pruning_masks(model, "bpfa", 0.25, measured)
    assert set(masks) == {"first", "second"}
    for name, mask in masks.items():
        assert int((~mask).sum()) == int(0.25 * convolutions(model)[name].weight.numel())


def test_layer_that_sees_something_else_than_one_map_per_image_is_listed() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.patch(torch.cat([images, images]))

    assert group_norms(Patches(), [calibration()], GROUPS).skipped == {"patch": "runs on 24 maps for 12 images"}


def test_model_comes_back_in_its_mode_without_hooks(model: LateRegistered) -> None:
    model.train()
    model.second.eval()
    group_norms(model, [calibration()], GROUPS)
    assert (model.training, model.first.training, model.second.training) == (True, True, False)
    assert not any(layer._forward_hooks for layer in convolutions(model).values())


def test_forward_option_decides_which_layers_run(model: LateRegistered) -> None:
    measured = group_norms(model, [calibration()], GROUPS, forward=model.first)
    assert list(measured.norms) == ["first"]


def test_masks_serialise_with_the_state_dict_and_survive_training(model: LateRegistered) -> None:
    images, group = calibration()
    masks = pruning_masks(model, "bpfa", 0.3, group_norms(model, [(images, group)], GROUPS))
    apply_masks(model, masks)
    model(images).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * (parameter.grad if parameter.grad is not None else 0)
    output = model(images)
    assert not model.first.weight[~masks["first"]].any()

    restored = LateRegistered()
    apply_masks(restored, {name: torch.ones_like(mask) for name, mask in masks.items()})
    restored.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(restored(images), output)


def test_permanent_masks_give_back_the_original_keys(model: LateRegistered) -> None:
    keys, (images, group) = set(model.state_dict()), calibration()
    masks = pruning_masks(model, "weig", 0.5, group_norms(model, [(images, group)], GROUPS))
    apply_masks(model, masks)
    output = model(images)
    make_permanent(model)
    assert set(model.state_dict()) == keys
    assert int((model.first.weight == 0).sum()) == int(0.5 * model.first.weight.numel())
    assert torch.equal(model(images), output)


def test_mask_file_round_trip(model: LateRegistered, tmp_path: Path) -> None:
    masks = pruning_masks(model, "roba", 0.1, group_norms(model, [calibration()], GROUPS))
    record = PruningRecord("roba", 0.1, "mean_of_norm", GROUPS)
    write_masks(tmp_path / "masks.safetensors", masks, record)
    loaded, loaded_record = read_masks(tmp_path / "masks.safetensors")
    assert loaded_record == record
    assert all(torch.equal(loaded[name], mask) for name, mask in masks.items())


def test_foreign_and_absent_mask_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(save({"a": torch.ones(1)}))
    (tmp_path / "text.safetensors").write_text("not a mask")
    for name in ("weights.safetensors", "text.safetensors", "absent.safetensors"):
        with pytest.raises(UserError, match=name):
            read_masks(tmp_path / name)


def test_shared_identities_are_refused_by_name() -> None:
    require_disjoint_identities(["a", "a", "b"], ["c"])
    with pytest.raises(UserError, match=r"6 identities .*p0, p1, p2, p3, p4 and 1 more"):
        require_disjoint_identities([f"p{i}" for i in range(6)] * 2, [f"p{i}" for i in range(9)])


def test_bad_input_is_refused(model: LateRegistered) -> None:
    images, group = calibration()
    with pytest.raises(UserError, match="no calibration image of group D"):
        group_norms(model, [(images, group)], (*GROUPS, "D"))
    with pytest.raises(UserError, match="outside the 2 groups"):
        group_norms(model, [(images, group)], ("A", "B"))
    with pytest.raises(UserError, match="at least 2 groups"):
        group_norms(model, [(images, group)], ("A",))
    with pytest.raises(UserError, match="one size"):
        group_norms(model, [calibration(), calibration(size=11)], GROUPS, statistic=NORM_OF_MEAN)
    assert group_norms(model, [calibration(), calibration(size=11)], GROUPS, statistic=MEAN_OF_NORM).norms
    with pytest.raises(UserError, match="first has non-finite activations"):
        group_norms(model, [(images * float("nan"), group)], GROUPS)
    measured = group_norms(model, [(images, group)], GROUPS)
    with pytest.raises(UserError, match=r"rate 7 is not a fraction in \[0, 1\); 7 % is 0.07"):
        pruning_masks(model, "bpfa", 7.0, measured)
    with pytest.raises(UserError, match="no convolution named head"):
        apply_masks(model, {"head": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(UserError, match="has shape"):
        apply_masks(model, {"first": torch.ones(1, dtype=torch.bool)})
    apply_masks(model, pruning_masks(model, "bpfa", 0.1, measured))
    with pytest.raises(UserError, match="already pruned"):
        pruning_masks(model, "bpfa", 0.1, measured)
