"""`wrap` and `unwrap` (paper §3.2 and §3.6): same outputs, only the centres change, and back again."""

import copy
from collections.abc import Callable

import jaxtyping
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, resnet101, squeezenet1_1, vgg11
from torchvision.ops import FrozenBatchNorm2d

from cskopt.config import CsKOConfig
from cskopt.method.baselines import ChannelConv2d
from cskopt.method.center_conv import CenterConv2d
from cskopt.method.memory_efficient import FrozenConv2d, LeanMaxPool2d, LeanReLU, LeanReLU6
from cskopt.method.wrapping import apply_selection, partial_layers, report_of, target_layers, unwrap, wrap
from cskopt.models.folding import fold_batch_norm, stock_state
from cskopt.models.heads import captured_features, find_head, grow_head
from cskopt.models.networks import CompactResNet, build_model, resnet18_cifar
from tenfold import UserError


def settle(model: nn.Module) -> nn.Module:
    """Give batch normalisation statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return model.eval()


def changed_elements(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: before[key] != after[key] for key in before if not torch.equal(before[key], after[key])}


def train_a_little(model: nn.Module, x: Tensor, steps: int = 2) -> None:
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], 1e-2, weight_decay=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 2).backward()
        optimizer.step()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "compact": lambda: CompactResNet(5),
    "resnet18": lambda: resnet18(num_classes=5),
    "mobilenet_v2": lambda: mobilenet_v2(num_classes=5),
    "timm mobilenetv2": lambda: timm.create_model("mobilenetv2_050", num_classes=5),
    "timm convnext (no batch norm)": lambda: timm.create_model("convnext_atto", num_classes=5),
    "timm regnet": lambda: timm.create_model("regnetx_002", num_classes=5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrapped_model_computes_what_the_original_does_and_comes_back_bitwise(name: str) -> None:
    original = settle(NETWORKS[name]())
    x = torch.randn(2, 3, 32, 32)
    wrapped = wrap(original, example_input=x)
    folded = copy.deepcopy(original)
    fold_batch_norm(folded)
    with torch.no_grad():
        assert (original(x) - folded(x)).abs().max() < 1e-4
        assert (wrapped(x) - folded(x)).abs().max() < 1e-5
        assert (wrap(original.double())(x.double()) - original(x.double())).abs().max() < 1e-10
    plain = unwrap(wrapped)
    assert all(type(m).__module__.split(".")[0] != "cskopt" or type(m) is CompactResNet for m in plain.modules())
    assert plain.state_dict().keys() == folded.state_dict().keys()
    assert all(torch.equal(value, folded.state_dict()[key]) for key, value in plain.state_dict().items())
    assert torch.equal(plain(x), folded(x))


def test_the_release_target_of_a_resnet18_is_its_last_block() -> None:
    wrapped = wrap(resnet18_cifar(10).eval())
    assert report_of(wrapped).targets == ("layer4.1.conv1", "layer4.1.conv2")
    assert report_of(wrapped).head == "fc"
    apply_selection(wrapped, {name: torch.arange(384) for name in report_of(wrapped).targets})
    kernels = sum(layer.trained.numel() for layer in partial_layers(wrapped).values())
    assert kernels == 2 * 512 * 384


def test_trained_parameters_of_resnet18_are_those_of_the_table() -> None:
    for config, expected in ((CsKOConfig(), 575_588), (CsKOConfig(layers="none", train_bias=True), 56_100)):
        wrapped = wrap(resnet18(num_classes=100).eval(), config)
        assert sum(each.numel() for each in wrapped.parameters() if each.requires_grad) == expected


def test_everything_but_targets_and_head_is_frozen_in_networks_with_biases_and_other_layers() -> None:
    wrapped = wrap(timm.create_model("convnext_atto", num_classes=5).eval())
    report = report_of(wrapped)
    allowed = (*(f"{name}." for name in report.targets), f"{report.head}.")
    trained = [name for name, each in wrapped.named_parameters() if each.requires_grad]
    assert trained
    assert all(name.startswith(allowed) for name in trained)


def test_after_training_only_selected_centres_and_the_head_differ() -> None:
    original = settle(CompactResNet(4))
    wrapped = wrap(original)
    names = report_of(wrapped).targets
    assert names == ("blocks.3.conv1", "blocks.3.conv2")
    apply_selection(wrapped, {names[0]: torch.tensor([1, 5]), names[1]: torch.tensor([0, 63])})
    before = unwrap(wrapped).state_dict()
    train_a_little(wrapped, torch.randn(4, 3, 16, 16))
    changed = changed_elements(before, unwrap(wrapped).state_dict())
    assert set(changed) == {"fc.weight", "fc.bias", *(f"{name}.weight" for name in names)}
    for name, channels in zip(names, ([1, 5], [0, 63]), strict=True):
        mask = torch.zeros_like(changed[f"{name}.weight"])
        mask[:, channels, 1, 1] = True
        assert not (changed[f"{name}.weight"] & ~mask).any()
        assert changed[f"{name}.weight"][:, channels, 1, 1].any()


def test_the_given_model_is_left_alone_unless_asked() -> None:
    model = settle(CompactResNet(3))
    before = copy.deepcopy(model.state_dict())
    wrap(model)
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert wrap(model, inplace=True) is model


def test_the_wrapped_model_works_with_any_optimizer_and_survives_a_copy() -> None:
    x = torch.randn(4, 3, 16, 16)
    for make in (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop):
        wrapped = wrap(settle(CompactResNet(4)))
        optimizer = make([each for each in wrapped.parameters() if each.requires_grad], lr=1e-2)
        clone = copy.deepcopy(wrapped)
        wrapped(x).square().sum().backward()
        optimizer.step()
        assert not torch.equal(wrapped(x), clone(x))
        assert torch.equal(unwrap(clone)(x), clone(x))


def _trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [each for each in model.parameters() if each.requires_grad]


def _fused(kind: type[torch.optim.Optimizer]) -> Callable[[nn.Module, Tensor], None]:
    def step(model: nn.Module, x: Tensor) -> None:
        optimizer = kind(_trained_parameters(model), lr=1e-1, fused=True)
        model(x).square().sum().backward()
        optimizer.step()

    return step


def _shift_data(model: nn.Module, _: Tensor) -> None:
    for each in _trained_parameters(model):
        each.data.add_(0.1)


def _shift_vector(model: nn.Module, _: Tensor) -> None:
    parameters = _trained_parameters(model)
    vector = nn.utils.parameters_to_vector(parameters)
    nn.utils.vector_to_parameters(vector + 0.1, parameters)


UPDATES: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "fused Adam": _fused(torch.optim.Adam),
    "fused SGD": _fused(torch.optim.SGD),
    "fused Adagrad": _fused(torch.optim.Adagrad),
    "p.data": _shift_data,
    "vector_to_parameters": _shift_vector,
}


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("config", [CsKOConfig(layers="all"), CsKOConfig(layers="all", tap="all", channel_ratio=0.5)])
def test_a_change_of_parameters_has_effect_however_it_is_made(config: CsKOConfig, update: str) -> None:
    wrapped = wrap(settle(CompactResNet(3, (4, 8))), config)
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        before = wrapped(x)
        head = copy.deepcopy(wrapped.fc.state_dict())
    UPDATES[update](wrapped, x)
    with torch.no_grad():
        # The head as it was: a new one would hide kernels that are not refreshed.
        wrapped.fc.load_state_dict(head)
        after = wrapped(x)
        assert not torch.allclose(after, before, atol=1e-3)
        assert torch.equal(after, unwrap(wrapped)(x))
        again = wrap(settle(CompactResNet(3, (4, 8))), config)
        again.load_state_dict(wrapped.state_dict())
        assert torch.equal(again(x), after)


def test_a_compiled_model_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Shapes are checked by code that the compiler cannot read.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 2)).eval()
    x = torch.randn(2, 3, 4, 4)
    for config in (CsKOConfig(layers="all"), CsKOConfig(layers="all", tap="all", channel_ratio=0.5)):
        wrapped = wrap(net, config)
        compiled = torch.compile(wrapped, backend="aot_eager")
        before = compiled(x).detach()
        compiled(x).sum().backward()
        with torch.no_grad():
            wrapped[0].trained.data.sub_(0.1 * wrapped[0].trained.grad)
        assert not torch.allclose(compiled(x), before)
        torch.testing.assert_close(compiled(x), unwrap(wrapped)(x))


def test_parameters_can_be_lent_and_what_is_saved_agrees_with_itself() -> None:
    wrapped = wrap(settle(CompactResNet(3, (4, 8))), CsKOConfig(layers="all"))
    x = torch.randn(2, 3, 12, 12)
    lent = {name: each.detach() * 1.5 for name, each in wrapped.named_parameters() if each.requires_grad}
    with torch.no_grad():
        before = wrapped(x)
        other = torch.func.functional_call(wrapped, lent, (x,))
        assert torch.equal(wrapped(x), before)
        torch.func.functional_call(wrapped, lent, (x,))
    state = wrapped.state_dict()
    for name, layer in partial_layers(wrapped).items():
        assert torch.equal(state[f"{name}.frozen"][:, :, *layer.tap], state[f"{name}.trained"])
    wrapped.load_state_dict(lent, strict=False)
    assert torch.equal(wrapped(x), other)
    assert torch.equal(unwrap(wrapped)(x), other)


def test_stock_layout_loads_into_the_stock_architecture_and_computes_the_same() -> None:
    original = settle(resnet18(num_classes=3))
    x = torch.randn(1, 3, 32, 32)
    plain = unwrap(wrap(original))
    stock = resnet18(num_classes=3).eval()
    stock.load_state_dict(stock_state(plain, resnet18(num_classes=3)), strict=True)
    torch.testing.assert_close(stock(x), plain(x), atol=1e-4, rtol=1e-4)


def test_folding_reproduces_the_golden_case(golden: Callable) -> None:
    v = golden("fold_split_merge")
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6, eps=float(v["bn_eps"]))).double().eval()
    state = {"0.weight": v["w"], "0.bias": v["b"], "1.weight": v["bn_gamma"], "1.bias": v["bn_beta"]}
    model.load_state_dict(state | {"1.running_mean": v["bn_mean"], "1.running_var": v["bn_var"]}, strict=False)
    fold_batch_norm(model)
    torch.testing.assert_close(model[0].weight.data, v["w_folded"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model[0].bias.data, v["b_folded"], atol=1e-5, rtol=1e-5)
    layer = CenterConv2d.from_conv(model[0])
    torch.testing.assert_close(layer.trained.data, v["center"], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        layer.trained.copy_(v["center_new"])
    merged = layer.restore()
    torch.testing.assert_close(merged.weight.data, v["w_merged"], atol=1e-5, rtol=1e-5)
    # One convolution equals the release's frozen kernel plus 1x1 branch.
    branch = nn.functional.conv2d(v["x"], v["center_new"][:, :, None, None])
    release = nn.functional.conv2d(v["x"], v["w_frozen"], v["b_folded"], padding=1) + branch
    for y in (merged(v["x"]), layer(v["x"]), release):
        torch.testing.assert_close(y, v["y_merged"], atol=1e-5, rtol=1e-5)


class _Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        if x.sum() > 1e9:
            x = -x
        return self.fc(self.conv2(x).mean((2, 3)))


def test_a_model_that_cannot_be_traced_gets_frozen_batch_norm_and_the_report_says_so() -> None:
    model = settle(_Untraceable())
    wrapped = wrap(model, CsKOConfig(layers="all"))
    assert isinstance(wrapped.bn, FrozenBatchNorm2d)
    assert "cannot be traced" in str(report_of(wrapped))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(wrapped.train()(x), model(x))
    assert isinstance(unwrap(wrapped).bn, nn.BatchNorm2d)
    torch.testing.assert_close(unwrap(wrapped)(x), model(x))


def test_frozen_statistics_never_drift_whatever_the_mode() -> None:
    wrapped = wrap(settle(CompactResNet(3)), CsKOConfig(fold_bn=False)).train()
    before = copy.deepcopy(wrapped.state_dict())
    wrapped(torch.randn(4, 3, 16, 16))
    assert not changed_elements(before, wrapped.state_dict())


def test_batch_statistics_are_refused_by_name() -> None:
    for norm in (nn.BatchNorm2d(8, track_running_stats=False), nn.BatchNorm2d(8, track_running_stats=False).train()):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        for config in (CsKOConfig(layers="all"), CsKOConfig(layers="all", fold_bn=False)):
            with pytest.raises(UserError, match="1: BatchNorm2d without running statistics"):
                wrap(model.eval(), config)


def _net_with(norm: nn.Module) -> nn.Module:
    """A network with a normalisation of maps that no convolution precedes, and one of features."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), norm, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(4, 3, 9, 9))
    return model.eval()


@pytest.mark.parametrize(
    ("norm", "action"),
    [
        (nn.BatchNorm2d(8), "frozen"),
        (nn.BatchNorm2d(8, affine=False), "frozen"),
        (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), "frozen"),
        (nn.InstanceNorm2d(8), "kept"),
        (nn.GroupNorm(2, 8), "kept"),
        (timm.layers.EvoNorm2dB0(8), "frozen"),
        (timm.layers.BatchNormAct2d(8), "frozen"),
    ],
)
def test_every_normalisation_is_reported_computes_the_same_and_never_drifts(norm: nn.Module, action: str) -> None:
    model = _net_with(norm)
    wrapped = wrap(model, CsKOConfig(layers="all"))
    actions = {note.name: note.action for note in report_of(wrapped).notes}
    assert actions["0.2"] == action
    assert actions["0.4"] == "folded"
    assert actions["3"] == "frozen"
    x = torch.randn(2, 3, 9, 9)
    before = copy.deepcopy(wrapped.state_dict())
    torch.testing.assert_close(wrapped.train()(x), model(x), atol=1e-5, rtol=1e-5)
    assert not changed_elements(before, wrapped.state_dict())
    plain = unwrap(wrapped).eval()
    torch.testing.assert_close(plain(x), model(x), atol=1e-5, rtol=1e-5)
    assert all(not type(each).__module__.startswith("cskopt") for each in plain.modules())


class _Registered(nn.Module):
    """Layers whose order of registration says nothing about their use."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        self.first, self.between = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.auxiliary = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3))
        self.projection = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.between(self.first(x).relu())
        logits = self.fc(self.last(maps.relu()).mean((2, 3)))
        return (logits, self.projection(self.auxiliary(maps).mean((2, 3)))) if self.training else logits


def test_head_and_targets_follow_the_flow_of_data() -> None:
    for model in (_Registered().eval(), _Registered().train()):
        wrapped = wrap(model, CsKOConfig(layers="all"))
        assert report_of(wrapped).head == "fc"
        assert report_of(wrapped).targets == ("first", "between", "last")
        assert report_of(wrap(model, CsKOConfig(layers=2))).targets == ("between", "last")
        trained = {name for name, each in wrapped.named_parameters() if each.requires_grad}
        assert trained == {"fc.weight", "fc.bias", "first.trained", "between.trained", "last.trained"}


def test_refusals_of_large_networks_are_short() -> None:
    with torch.device("meta"):
        networks = squeezenet1_1(num_classes=2), resnet101(num_classes=2)
    for model, config in zip(networks, (CsKOConfig(), CsKOConfig(layers="nothing_like_it")), strict=True):
        with pytest.raises(
            UserError, match=r"its last layer is classifier\.1, a Conv2d|no convolution matches"
        ) as caught:
            wrap(model.eval(), config)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "change",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        lambda conv: nn.utils.prune.l1_unstructured(conv, "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_computed_weights_become_plain_ones(change: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    for place in (0, 2):
        change(model[place])
    x = torch.randn(2, 3, 8, 8)
    model(x)
    model.eval()
    wrapped = wrap(model, CsKOConfig(layers=1), x)
    torch.testing.assert_close(wrapped.train()(x), model(x), atol=1e-5, rtol=1e-5)
    assert [type(wrapped[place]) for place in (0, 2)] == [FrozenConv2d, CenterConv2d]
    assert [(n.action, n.name) for n in report_of(wrapped).notes if n.name in "02"] == [
        ("folded", "0"),
        ("folded", "2"),
        ("frozen", "0"),
        ("trained", "2"),
    ]
    wrapped(x).sum().backward()
    assert wrapped[2].trained.grad is not None
    torch.testing.assert_close(unwrap(wrapped).eval()(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_wrapped_layer_answers_as_the_stock_layer_and_keeps_its_hooks() -> None:
    body = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, (3, 5), groups=2, dilation=(2, 1))]
    model = nn.Sequential(
        *body, nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2)
    ).eval()
    called = []
    for place in range(5):
        model[place].register_forward_hook(lambda *_, place=place: called.append(place))
    wrapped = wrap(model, CsKOConfig(layers=("1",)), inplace=False)
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "in_channels", "out_channels"):
        assert [getattr(wrapped[i], name) for i in (0, 1)] == [getattr(model[i], name) for i in (0, 1)]
    assert (wrapped[3].kernel_size, wrapped[3].stride, wrapped[4].kernel_size) == ((3, 3), (2, 2), (2, 2))
    x = torch.randn(1, 3, 25, 13)
    for each in (wrapped, unwrap(wrapped)):
        called.clear()
        each(x)
        assert called == [0, 1, 2, 3, 4]
    alone = x[0].requires_grad_()
    maps = wrapped[:5](alone)
    torch.testing.assert_close(maps, wrapped[:5](x)[0])
    maps.sum().backward()
    assert alone.grad.abs().sum() > 0


@pytest.mark.parametrize("config", [CsKOConfig(layers="all"), CsKOConfig(layers="2", tap="all", channel_ratio=0.5)])
def test_gradients_of_functions_are_those_of_training(config: CsKOConfig) -> None:
    body = [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.ReLU6(),
        nn.AvgPool2d(2),
    ]
    wrapped = wrap(nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 2)).double().eval(), config)
    parameters = {name: each for name, each in wrapped.named_parameters() if each.requires_grad}
    x, y = torch.randn(3, 3, 12, 12, dtype=torch.float64), torch.tensor([0, 1, 1])

    def loss(values: dict[str, Tensor], pictures: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(wrapped, values, (pictures,)), labels)

    def loss_of_one(values: dict[str, Tensor], picture: Tensor, label: Tensor) -> Tensor:
        return loss(values, picture[None], label[None])

    loss(parameters, x, y).backward()
    whole = torch.func.grad(loss)(parameters, x, y)
    one_by_one = torch.func.vmap(torch.func.grad(loss_of_one), (None, 0, 0))(parameters, x, y)
    for name, each in parameters.items():
        torch.testing.assert_close(whole[name], each.grad)
        torch.testing.assert_close(one_by_one[name].mean(0), each.grad)


def test_the_baselines_are_wrapped_as_what_they_train() -> None:
    model = settle(mobilenet_v2(num_classes=3))
    kinds = {
        name: [type(m) for m in wrap(model, config).modules()]
        for name, config in {
            "head": CsKOConfig(layers="none"),
            "all taps": CsKOConfig(tap="all", channel_ratio=1.0),
            "off": CsKOConfig(lean_activations="off"),
        }.items()
    }
    assert CenterConv2d not in kinds["head"]
    assert FrozenConv2d in kinds["head"]
    assert LeanReLU6 in kinds["head"]
    assert nn.Conv2d in kinds["all taps"]
    assert LeanReLU6 not in kinds["off"]
    assert LeanMaxPool2d in [type(m) for m in wrap(settle(resnet18(num_classes=2))).modules()]
    sparse = wrap(settle(CompactResNet(3)), CsKOConfig(tap="all", channel_ratio=0.5, train_bias=True))
    assert sum(isinstance(m, ChannelConv2d) for m in sparse.modules()) == 2
    assert sparse.conv1.bias.requires_grad


def test_a_layer_registered_twice_is_replaced_twice_and_its_gradients_add_up() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Flatten(), nn.Linear(48, 2)).eval()
    wrapped = wrap(model, CsKOConfig(layers="all"))
    assert wrapped[0] is wrapped[2]
    x = torch.randn(2, 3, 4, 4)
    for each in (model, wrapped):
        each(x).sum().backward()
    torch.testing.assert_close(wrapped[0].trained.grad, shared.weight.grad[:, :, 1, 1])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last_block", ["blocks.3.conv1", "blocks.3.conv2"]),
        (1, ["blocks.3.conv2"]),
        ("2", ["blocks.3.conv1", "blocks.3.conv2"]),
        ("none", []),
        ("conv1,blocks.0.conv2", ["conv1", "blocks.0.conv2"]),
        (("blocks.0.conv2", "conv1"), ["conv1", "blocks.0.conv2"]),
        (r"^blocks\.1\.", ["blocks.1.conv1", "blocks.1.conv2", "blocks.1.downsample.0"]),
    ],
)
def test_layers_are_found(layers: str | int | tuple[str, ...], expected: list[str]) -> None:
    assert target_layers(CompactResNet(2), layers) == expected


def test_a_network_without_blocks_trains_its_last_two_convolutions() -> None:
    with torch.device("meta"):
        model = vgg11(num_classes=2)
    assert target_layers(model, "last_block") == ["features.16", "features.18"]


def test_the_head_is_found_grows_and_keeps_old_rows_and_logits() -> None:
    assert find_head(mobilenet_v2(num_classes=3)) == "classifier.1"
    assert find_head(timm.create_model("mobilenetv2_050", num_classes=3)) == "classifier"
    model = CompactResNet(3).eval()
    old = copy.deepcopy(model.fc)
    x = torch.randn(2, 3, 16, 16)
    before = model(x)
    new = grow_head(model, "fc", 7)
    assert torch.equal(new.weight[:3], old.weight)
    assert torch.equal(new.bias[:3], old.bias)
    with captured_features(model, "fc") as captured:
        after = model(x)[:, :3]
    # A wider product may sum in another order: two float32 sums of 64 products and a bias, each within 65 roundings of 2**-24.
    size = captured.features().abs() @ old.weight.abs().T + old.bias.abs()
    assert ((after - before).abs() <= 2 * 65 * 2**-24 * size).all()
    assert new.weight[3:].abs().max() <= 64**-0.5
    assert new.bias[3:].abs().max() <= 64**-0.5
    with captured_features(model, "fc") as captured:
        torch.testing.assert_close(model(x), new(captured.features()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wrap(wrap(CompactResNet(2).eval())), "wrapped already"),
        (lambda: wrap(nn.DataParallel(CompactResNet(2))), "DataParallel"),
        (lambda: wrap(CompactResNet(2).train(), CsKOConfig(fold_bn=False)), "would drift"),
        (lambda: wrap(CompactResNet(2), CsKOConfig(layers="nothing_like_it")), "no convolution matches"),
        (lambda: wrap(CompactResNet(2), CsKOConfig(layers=("conv9",))), "conv9"),
        (lambda: wrap(CompactResNet(2), CsKOConfig(layers="(")), "regular expression"),
        (lambda: wrap(nn.Sequential(nn.Conv2d(3, 3, 3))), "no linear layer"),
        (lambda: wrap(CompactResNet(2), head="conv1"), "conv1"),
        (
            lambda: wrap(nn.Sequential(nn.Conv2d(3, 3, 2), nn.Flatten(), nn.Linear(3, 2)), CsKOConfig(layers=("0",))),
            "0: .*no centre",
        ),
        (lambda: wrap(CompactResNet(2), example_input=torch.zeros(1, 4, 8, 8)), "does not accept"),
        (lambda: report_of(CompactResNet(2)), "not wrapped"),
        (lambda: apply_selection(wrap(CompactResNet(2).eval()), {"conv1": torch.tensor([0])}), "conv1"),
        (lambda: grow_head(CompactResNet(4), "fc", 2), "cannot shrink"),
        (lambda: build_model("resnet1000", 2), "resnet1000"),
        (lambda: build_model("timm:resnet1000", 2), "resnet1000"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_in_one_line(call: Callable, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_kernels_without_centre_are_passed_over_when_not_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 2), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(3 * 25, 2)).eval()
    wrapped = wrap(model, CsKOConfig(layers="all"), torch.randn(1, 3, 8, 8))
    assert "no centre element" in str(report_of(wrapped))
    assert list(partial_layers(wrapped)) == ["1"]


@settings(max_examples=20, deadline=None)
@given(
    st.one_of(
        st.fixed_dictionaries(
            {"channel_ratio": st.one_of(st.floats(max_value=0), st.floats(min_value=1.0001), st.just(float("nan")))}
        ),
        st.fixed_dictionaries({"thres": st.one_of(st.floats(max_value=0), st.just(float("nan")))}),
        st.fixed_dictionaries({"temperature": st.floats(max_value=0)}),
        st.fixed_dictionaries({"energy": st.floats(min_value=1.0001)}),
        st.fixed_dictionaries({"proto_weight": st.floats(max_value=-0.001)}),
        st.fixed_dictionaries({"grad_filter": st.integers(-5, 0)}),
    )
)
def test_settings_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        CsKOConfig(**values)


def test_lean_relu_is_used_once_per_module_even_in_blocks_that_call_it_twice() -> None:
    wrapped = wrap(CompactResNet(2).eval())
    assert isinstance(wrapped.blocks[0].relu, LeanReLU)
