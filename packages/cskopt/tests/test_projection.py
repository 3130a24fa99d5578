"""Paper §3.3 and §3.4: channel selection, covariances, projectors, projected steps; GPM; Adam-NSCL's full covariance."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cskopt.config import CsKOConfig
from cskopt.method.center_conv import CenterConv2d
from cskopt.method.kernel_elements import ConvGeometry
from cskopt.method.projection import (
    attach_projection,
    energy_rank,
    gpm_basis,
    gpm_projector,
    null_space_projector,
    project_update,
    projectors_for,
)
from cskopt.method.second_moments import FeatureCovariance, batch_mean_moment, patches, per_sample_moment
from cskopt.method.selection import channel_importance, kept_channels, select_channels, top_channels
from cskopt.method.wrapping import apply_selection, partial_layers, wrap
from cskopt.models.networks import CompactResNet
from tenfold import UserError

FILES = ["projection", "projection_thres100"]
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("name", FILES)
def test_covariances_reproduce_the_golden_case(golden: Callable, name: str) -> None:
    v = golden(name)
    batch_mean = sum(batch_mean_moment(each) for each in v["features"])
    per_sample = sum(per_sample_moment(each) for each in v["features"])
    torch.testing.assert_close(batch_mean.double(), v["cov_batchmean"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(per_sample.double(), v["cov_persample"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_selection_reproduces_the_golden_case(golden: Callable, name: str) -> None:
    v = golden(name)
    importance = channel_importance(v["grad_batches"].sum(0))
    torch.testing.assert_close(importance, v["importance"], atol=1e-5, rtol=1e-5)
    chosen = top_channels(importance, len(v["idx"]))
    assert chosen.tolist() == v["idx"].tolist()
    assert sorted(v["topk_order"].tolist()) == chosen.tolist()
    assert kept_channels(16, len(v["idx"]) / 16) == len(v["idx"])


@quiet
@pytest.mark.parametrize("name", FILES)
def test_projectors_reproduce_the_golden_case(golden: Callable, name: str) -> None:
    v = golden(name)
    restricted = v["cov_batchmean"][v["idx"]][:, v["idx"]]
    torch.testing.assert_close(restricted, v["sub_cov"], atol=1e-5, rtol=1e-5)
    thres = float(v["thres"])
    literal, info = null_space_projector(restricted, "nscl", thres)
    assert info.kept == int(v["n_null"])
    torch.testing.assert_close(info.eigenvalues, v["eigvals"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(literal, v["P"], atol=1e-4 if name == "projection" else 1e-5, rtol=0)
    scaled, _ = null_space_projector(restricted, "nscl", thres, normalize="fro")
    torch.testing.assert_close(scaled, v["P_fro"], atol=1e-4 if name == "projection" else 1e-5, rtol=0)
    per_sample = v["cov_persample"][v["idx"]][:, v["idx"]]
    by_energy, energy_info = null_space_projector(per_sample, "energy", energy=float(v["energy"]))
    assert len(v["idx"]) - energy_info.kept == int(v["energy_rank"])
    torch.testing.assert_close(by_energy, v["P_energy"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FILES)
def test_updates_are_projected_as_in_the_golden_case(golden: Callable, name: str) -> None:
    v = golden(name)
    for expected, projector in (("projected", v["P"]), ("projected_fro", v["P_fro"])):
        update = torch.zeros_like(v["update"])
        update[:, v["idx"]] = project_update(v["update"][:, v["idx"]], projector)
        torch.testing.assert_close(update, v[expected], atol=1e-5, rtol=1e-5)


def layer_with(weights: Tensor, index: Tensor | None) -> CenterConv2d:
    kernel = torch.zeros(*weights.shape, 3, 3, dtype=weights.dtype)
    kernel[:, :, 1, 1] = weights
    return CenterConv2d(kernel, None, ConvGeometry((3, 3), padding=(1, 1)), index)


@pytest.mark.parametrize("name", FILES)
def test_three_projected_adam_steps_follow_the_golden_trajectory(golden: Callable, name: str) -> None:
    v = golden(name)
    lr, beta1, beta2, eps, decay = v["adam_hparams"].tolist()
    model = nn.Sequential(layer_with(v["adam_p0"], v["idx"]))
    optimizer = torch.optim.Adam(model.parameters(), lr, (beta1, beta2), eps, decay)
    attach_projection(optimizer, model, {"0": v["P_fro"]})
    for step in range(3):
        model[0].trained.grad = v["adam_grads"][step][:, v["idx"]].clone()
        optimizer.step()
        merged = model[0].restore().weight[:, :, 1, 1]
        torch.testing.assert_close(merged.data, v["adam_traj_fro"][step], atol=1e-5, rtol=1e-5)


def test_with_plain_sgd_projecting_the_update_is_projecting_the_gradient() -> None:
    model = nn.Sequential(layer_with(torch.randn(3, 4), None))
    p = null_space_projector(torch.diag(torch.tensor([5.0, 4.0, 0.1, 0.2])), "energy", energy=0.9)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    handle = attach_projection(optimizer, model, {"0": p})
    before, gradient = model[0].trained.detach().clone(), torch.randn(3, 4)
    model[0].trained.grad = gradient.clone()
    optimizer.step()
    torch.testing.assert_close(model[0].trained.data, before - 0.5 * gradient @ p)
    handle.remove()
    before = model[0].trained.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model[0].trained.data, before - 0.5 * gradient)


@quiet
def test_projector_properties() -> None:
    features = torch.randn(50, 6, 2, 2) * torch.logspace(0, -2, 6)[:, None, None]
    g = per_sample_moment(features).double()
    for rule, extra in (("nscl", {"thres": 50.0}), ("nscl_floor", {"thres": 50.0}), ("energy", {"energy": 0.9})):
        p, info = null_space_projector(g, rule, **extra)
        assert (p - p.T).abs().max() < 1e-12
        assert (p @ p - p).norm() < 1e-5
        assert p.trace().item() == pytest.approx(info.kept)
        scaled, _ = null_space_projector(g, rule, normalize="fro", **extra)
        assert scaled.norm().item() == pytest.approx(1)
        order = torch.tensor([3, 0, 5, 1, 2, 4])
        permuted, _ = null_space_projector(g[order][:, order], rule, **extra)
        torch.testing.assert_close(permuted, p[order][:, order])
    everything, _ = null_space_projector(g, "nscl", thres=1e30)
    torch.testing.assert_close(everything, torch.eye(6, dtype=torch.float64))
    scaled, _ = null_space_projector(g, "nscl", thres=1e30, normalize="fro")
    torch.testing.assert_close(scaled, torch.eye(6, dtype=torch.float64) / 6**0.5)


def test_a_dead_channel_degenerates_the_literal_rule_and_not_the_floored_one() -> None:
    g = torch.diag(torch.tensor([1e3, 10.0, 1e-2, 1e-3, 0.0], dtype=torch.float64))
    with pytest.warns(UserWarning, match="use 'nscl_floor'"):
        _, literal = null_space_projector(g, "nscl", 100.0, name="layer4.1.conv1")
    _, floored = null_space_projector(g, "nscl_floor", 100.0)
    assert (literal.kept, floored.kept) == (1, 3)


def test_nothing_or_everything_let_through_is_said() -> None:
    with pytest.warns(UserWarning, match="nothing is protected"):
        null_space_projector(torch.eye(3), "nscl_floor", 100.0)
    with pytest.warns(UserWarning, match="nothing can be learnt"):
        null_space_projector(torch.eye(3), "energy", energy=1.0)


def test_eigen_decomposition_never_sees_nan() -> None:
    with pytest.raises(FloatingPointError, match="conv9"):
        null_space_projector(torch.full((2, 2), float("nan")), name="conv9")


def test_old_inputs_are_protected_exactly_when_every_sample_counts() -> None:
    basis = torch.randn(3, 8, dtype=torch.float64)
    old = torch.einsum("nkhw,kc->nchw", torch.randn(20, 3, 2, 2, dtype=torch.float64), basis)
    p, info = null_space_projector(per_sample_moment(old), "energy", energy=1 - 1e-9)
    assert info.kept == 5

    def drift(projectors: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(layer_with(torch.randn(4, 8, dtype=torch.float64), None))
        before = model[0].trained.detach().clone()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        attach_projection(optimizer, model, projectors)
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(4, 8, 3, 3, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        rows = old.movedim(1, -1).reshape(-1, 8)
        return ((rows @ (model[0].trained - before).T).norm(dim=1) / rows.norm(dim=1)).detach()

    assert drift({"0": p}).max() < 1e-5
    assert drift({}).max() > 1e-3


def test_gpm_reproduces_the_golden_case(golden: Callable) -> None:
    v = golden("gpm")
    empty = torch.zeros(12, 0, dtype=torch.float64)
    first = gpm_basis(empty, v["rep1"] @ v["rep1"].T, float(v["th1"]))
    assert first.shape[1] == int(v["rank1"])
    torch.testing.assert_close(first @ first.T, v["proj_old_1"], atol=1e-5, rtol=0)
    second = gpm_basis(first, v["rep2"] @ v["rep2"].T, float(v["th2"]))
    assert second.shape[1] == int(v["rank2"])
    torch.testing.assert_close(second @ second.T, v["proj_old_2"], atol=1e-5, rtol=0)
    torch.testing.assert_close(project_update(v["grad"], gpm_projector(second)), v["grad_projected"], atol=1e-5, rtol=0)


def test_energy_rank_of_limits() -> None:
    values = torch.tensor([8.0, 1.0, 1.0])
    assert [energy_rank(values, e) for e in (0.5, 0.8, 0.81, 1.0)] == [1, 1, 2, 3]
    assert energy_rank(torch.zeros(3), 0.9) == 0


def tiny(config: CsKOConfig) -> nn.Module:
    return wrap(CompactResNet(3, (4, 4, 8)).eval(), config)


def batches(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 3, 16, 16, generator=generator)
    y = torch.randint(0, 3, (12,), generator=generator)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def test_covariance_adds_up_over_sessions_and_only_every_sample_ignores_batching() -> None:
    for mode, invariant in (("per_sample", True), ("batch_mean", False)):
        model = tiny(CsKOConfig(covariance=mode))
        whole, twice, other = (FeatureCovariance(model, mode) for _ in range(3))
        whole.collect(batches((6, 6)))
        for each in batches((6, 6)):
            twice.collect([each])
        other.collect(batches((2, 4, 1, 5))[::-1])
        for name, matrix in whole.matrices.items():
            torch.testing.assert_close(twice.matrices[name], matrix)
            close = torch.allclose(other.matrices[name], matrix, rtol=1e-5, atol=1e-5 * float(matrix.max()))
            assert close == invariant
    one = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(batch_mean_moment(one), per_sample_moment(one))


def test_covariance_of_a_centre_layer_is_k4_times_smaller_than_of_whole_kernels() -> None:
    centre, whole = tiny(CsKOConfig()), tiny(CsKOConfig(tap="all", channel_ratio=1.0))
    sizes = []
    for model in (centre, whole):
        covariance = FeatureCovariance(model)
        covariance.collect(batches((12,)))
        sizes.append([each.numel() for each in covariance.matrices.values()])
    assert [b / a for a, b in zip(*sizes, strict=True)] == [81.0, 81.0, 1.0]  # the shortcut is 1x1
    unfolded = patches(torch.randn(2, 3, 5, 5), ConvGeometry((3, 3), (2, 2), (1, 1)))
    assert unfolded.shape == (2, 27, 9, 1)


@quiet
def test_projectors_follow_the_current_channels_and_wrong_widths_are_refused() -> None:
    model = tiny(CsKOConfig())
    covariance = FeatureCovariance(model)
    name = next(iter(partial_layers(model)))
    with pytest.raises(UserError, match="no covariance yet"):
        covariance.restricted(name)
    covariance.collect(batches((12,)))
    apply_selection(model, {name: torch.tensor([1, 3])})
    assert torch.equal(covariance.restricted(name), covariance.matrices[name][[1, 3]][:, [1, 3]])
    projectors = projectors_for(covariance)
    assert projectors[name].shape == (2, 2)
    with pytest.raises(UserError, match="expected"):
        covariance.load_state_dict({name: torch.eye(5)})
    covariance.matrices[name] = torch.eye(5)
    with pytest.raises(UserError, match=f"{name}: covariance of 5 inputs"):
        covariance.restricted(name)


@quiet
def test_an_optimizer_built_before_the_selection_is_noticed() -> None:
    model = tiny(CsKOConfig())
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad])
    name = next(iter(partial_layers(model)))
    apply_selection(model, {name: torch.tensor([0, 2])})
    with pytest.raises(UserError, match="build it after apply_selection"):
        attach_projection(optimizer, model, {name: torch.eye(2)})
    fresh = torch.optim.Adam([each for each in model.parameters() if each.requires_grad])
    with pytest.raises(UserError, match="projector of 3 inputs"):
        attach_projection(fresh, model, {name: torch.eye(3)})


def test_covariance_of_values_that_are_not_finite_names_the_layer() -> None:
    model = tiny(CsKOConfig())
    with pytest.raises(FloatingPointError, match=next(iter(partial_layers(model)))):
        FeatureCovariance(model).collect([torch.full((1, 3, 8, 8), float("nan"))])


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


def test_selection_is_the_accumulated_gradient_and_ignores_the_scale_of_the_loss() -> None:
    model = tiny(CsKOConfig())
    data = batches((5, 7))
    chosen = select_channels(model, data, loss, 0.5)
    scaled = select_channels(model, data, lambda *each: 1e3 * loss(*each), 0.5)
    model.zero_grad()
    for x, y in data:
        loss(model(x), y).backward()
    for name, layer in partial_layers(model).items():
        assert torch.equal(chosen[name], scaled[name])
        assert torch.equal(chosen[name], top_channels(channel_importance(layer.trained.grad), layer.in_channels // 2))
    lowest = select_channels(model, data, loss, 0.5, "lowest")
    for name, each in chosen.items():
        assert sorted([*each.tolist(), *lowest[name].tolist()]) == list(range(2 * len(each)))


def test_other_selections() -> None:
    model = tiny(CsKOConfig())
    name = next(iter(partial_layers(model)))
    assert select_channels(model, [], loss, 0.5, "all") == {}
    assert select_channels(model, [], loss, 1.0) == {}
    by_weight = select_channels(model, [], loss, 0.5, "magnitude")[name]
    weights = partial_layers(model)[name].trained
    assert torch.equal(by_weight, top_channels(channel_importance(weights.detach()), len(by_weight)))
    first = select_channels(model, [], loss, 0.5, "random", torch.Generator().manual_seed(1))
    second = select_channels(model, [], loss, 0.5, "random", torch.Generator().manual_seed(1))
    assert torch.equal(first[name], second[name])


def test_ties_go_to_the_lower_index_and_the_count_is_rounded_down() -> None:
    assert top_channels(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [1, 2]
    assert [kept_channels(7, 0.5), kept_channels(512, 0.75), kept_channels(10, 0.3)] == [3, 384, 3]
    with pytest.raises(UserError, match="leaves none"):
        kept_channels(3, 0.2, "conv")


def test_depthwise_layers_select_channels_and_are_not_projected() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Flatten(), nn.Linear(96, 2))
    wrapped = wrap(model.eval(), CsKOConfig(layers="all", channel_ratio=0.5))
    data = [(torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 0, 1]))]
    selection = select_channels(wrapped, data, loss, 0.5)
    apply_selection(wrapped, selection)
    assert wrapped[1].trained.shape == (3, 1)
    covariance = FeatureCovariance(wrapped)
    covariance.collect(data)
    assert list(covariance.matrices) == ["0"]


def test_a_gradient_that_is_not_finite_names_the_layer() -> None:
    model = tiny(CsKOConfig())
    with pytest.raises(FloatingPointError, match="blocks"):
        select_channels(model, [(torch.full((2, 3, 8, 8), float("inf")), torch.tensor([0, 1]))], loss, 0.5)
    with pytest.raises(UserError, match="gave no batch"):
        select_channels(model, [], loss, 0.5)
