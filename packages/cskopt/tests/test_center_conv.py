"""Paper §3.2: the centre-only convolution, its gradients, its memory, and what it leaves alone."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cskopt.method.baselines import ChannelConv2d
from cskopt.method.center_conv import CenterConv2d, center_conv2d, centre_gradient
from cskopt.method.kernel_elements import ConvGeometry, centre_tap, geometry_of, tap_counts, tap_input
from tenfold import UserError

CASES = [f"c{i}" for i in range(13)]


def geometry_from(meta: Tensor, weight: Tensor) -> ConvGeometry:
    g, sh, sw, ph, pw, dh, dw = meta[:7].tolist()
    return ConvGeometry((weight.shape[2], weight.shape[3]), (sh, sw), (ph, pw), (dh, dw), g)


def case(golden: Callable, name: str) -> dict[str, Tensor]:
    prefix = f"{name}_"
    return {key.removeprefix(prefix): each for key, each in golden("center_grad").items() if key.startswith(prefix)}


def saved_bytes(make_loss: Callable[[], Tensor], *known: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps, without those of `known`."""
    skip = {each.untyped_storage().data_ptr() for each in known}
    kept = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in skip:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = make_loss()
    total = sum(kept.values())
    loss.sum().backward()
    return total


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_reproduce_the_golden_case(golden: Callable, name: str) -> None:
    v = case(golden, name)
    geometry = geometry_from(v["meta"], v["w"])
    tap = (int(v["meta"][7]), int(v["meta"][8]))
    assert tap == centre_tap(geometry.kernel)
    x, b = v["x"].requires_grad_(), v["b"].requires_grad_()
    center = v["w"][:, :, *tap].clone().requires_grad_()
    y = center_conv2d(x, v["w"], b, center, None, geometry)
    y.backward(v["gy"])
    torch.testing.assert_close(y, v["y"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(center.grad, v["gcenter"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, v["gx"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(b.grad, v["gbias"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tap_input(v["x"].detach(), geometry, tap), v["xtap"], atol=1e-6, rtol=1e-6)
    if geometry.groups == 1:
        # The golden indices may be unsorted; the layer keeps them ascending.
        order = v["idx"].argsort()
        layer = CenterConv2d(v["w"], v["b"].detach(), geometry, index=v["idx"])
        layer(v["x"].detach()).backward(v["gy"])
        torch.testing.assert_close(layer.trained.grad, v["gcenter_sel"][:, order], atol=1e-5, rtol=1e-5)


SHAPES = st.tuples(
    st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 7), (3, 5)]),
    st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.tuples(st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from([(1, 4, 6), (2, 4, 6), (4, 4, 4), (4, 4, 8)]),
)


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.booleans())
def test_gradient_equals_the_masked_ordinary_gradient_for_any_shape(shape: tuple, selecting: bool) -> None:
    kernel, stride, padding, dilation, (groups, channels, outputs) = shape
    conv = nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, groups, dtype=torch.float64)
    x = torch.randn(2, channels, 15, 15, dtype=torch.float64)
    index = torch.tensor([3, 1]) if selecting and groups in (1, channels) else None
    layer = CenterConv2d.from_conv(conv, index)
    layer.bias.requires_grad_()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(ours)
    expected = conv(theirs)
    gy = torch.randn_like(expected)
    y.backward(gy)
    expected.backward(gy)
    u, v = centre_tap(kernel)
    full = conv.weight.grad[:, :, u, v]
    if index is not None:
        full = full[:, [1, 3]] if groups == 1 else full.view(channels, -1)[[1, 3]].view(-1, 1)
    assert torch.equal(y, expected)
    assert layer.trained.shape == full.shape
    assert (layer.trained.grad - full).abs().max() < 1e-9
    assert (ours.grad - theirs.grad).abs().max() < 1e-9
    assert (layer.bias.grad - conv.bias.grad).abs().max() < 1e-9


def test_gradcheck_passes_for_plain_strided_and_depthwise() -> None:
    for geometry, shape in (
        (ConvGeometry((3, 3), (1, 1), (1, 1)), (3, 2, 3, 3)),
        (ConvGeometry((3, 3), (2, 2), (0, 1), (2, 1)), (3, 2, 3, 3)),
        (ConvGeometry((3, 3), (1, 1), (1, 1), groups=2), (2, 1, 3, 3)),
    ):
        weight = torch.randn(shape, dtype=torch.float64)

        def call(
            x: Tensor, bias: Tensor, center: Tensor, weight: Tensor = weight, g: ConvGeometry = geometry
        ) -> Tensor:
            return center_conv2d(x, weight, bias, center, None, g)

        x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(shape[0], dtype=torch.float64, requires_grad=True)
        center = torch.randn(shape[:2], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(call, (x, bias, center))


def test_an_index_leaves_no_storage_for_the_other_columns() -> None:
    layer = CenterConv2d.from_conv(nn.Conv2d(8, 5, 3, padding=1), torch.tensor([6, 0, 3]))
    assert layer.trained.shape == (5, 3)
    assert layer.trained.untyped_storage().nbytes() == 5 * 3 * 4
    assert layer.index.tolist() == [0, 3, 6]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("selected", [None, 5])
def test_saved_bytes_are_the_formula_and_a_strided_layer_does_not_pin_its_input(
    stride: int, selected: int | None
) -> None:
    conv = nn.Conv2d(8, 4, 3, stride=stride, padding=1)
    layer = CenterConv2d.from_conv(conv, None if selected is None else torch.arange(selected))
    x = torch.randn(2, 8, 12, 12, requires_grad=True)
    channels, side = selected or 8, 12 // stride
    # The index itself (8 bytes a channel) is a buffer.
    known = [layer.frozen, layer.trained] + ([] if layer.index is None else [layer.index])
    assert saved_bytes(lambda: layer(x), *known) == 4 * 2 * channels * side * side


def test_nothing_is_kept_when_the_centre_is_frozen() -> None:
    layer = CenterConv2d.from_conv(nn.Conv2d(4, 4, 3, padding=1))
    layer.trained.requires_grad_(False)
    assert saved_bytes(lambda: layer(torch.randn(1, 4, 6, 6, requires_grad=True)), layer.frozen, layer.trained) == 0


def test_kernel_of_one_element_trains_exactly_like_the_whole_layer() -> None:
    conv = nn.Conv2d(5, 4, 1)
    layer = CenterConv2d.from_conv(conv)
    layer.bias.requires_grad_()
    x = torch.randn(3, 5, 4, 4)
    for module in (conv, layer):
        optimizer = torch.optim.Adam([each for each in module.parameters() if each.requires_grad], 1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layer.restore().weight, conv.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.restore().bias, conv.bias, atol=1e-6, rtol=0)


def test_all_but_the_selected_centre_elements_stay_bitwise_the_same() -> None:
    conv = nn.Conv2d(6, 4, 3, padding=1)
    layer = CenterConv2d.from_conv(conv, torch.tensor([1, 4]))
    optimizer = torch.optim.Adam([layer.trained], 1e-1, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(2, 6, 5, 5)).square().sum().backward()
        optimizer.step()
    changed = layer.restore().weight != conv.weight
    expected = torch.zeros_like(changed)
    expected[:, [1, 4], 1, 1] = True
    assert torch.equal(changed, expected)


def test_the_input_gradient_through_the_centre_alone_is_that_of_the_branch() -> None:
    for geometry in (ConvGeometry((3, 3), (1, 1), (1, 1)), ConvGeometry((3, 5), (2, 1), (0, 3), (2, 1))):
        weight = torch.randn(4, 3, *geometry.kernel, dtype=torch.float64)
        u, v = centre_tap(geometry.kernel)
        x = torch.randn(2, 3, 11, 11, dtype=torch.float64)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = center_conv2d(a, weight, None, weight[:, :, u, v].clone(), None, geometry, input_grad="centre")
        gy = torch.randn_like(y)
        y.backward(gy)
        only_centre = torch.zeros_like(weight)
        only_centre[:, :, u, v] = weight[:, :, u, v]
        F.conv2d(b, only_centre, None, geometry.stride, geometry.padding, geometry.dilation).backward(gy)
        torch.testing.assert_close(a.grad, b.grad)


def test_the_two_input_gradients_agree_for_a_kernel_of_one_element() -> None:
    conv = nn.Conv2d(3, 4, 1, stride=2)
    grads = []
    for input_grad in ("full", "centre"):
        torch.manual_seed(1)
        x = torch.randn(2, 3, 6, 6, requires_grad=True)
        CenterConv2d.from_conv(conv, input_grad=input_grad)(x).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_another_tap_receives_its_own_gradient() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, dtype=torch.float64)
    layer = CenterConv2d.from_conv(conv, tap=(0, 2))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for module in (conv, layer):
        module(x).square().sum().backward()
    torch.testing.assert_close(layer.trained.grad, conv.weight.grad[:, :, 0, 2])


def test_checkpointing_accumulation_and_copies_give_the_same_gradient() -> None:
    layer = CenterConv2d.from_conv(nn.Conv2d(3, 3, 3, padding=1), torch.tensor([0, 2]))
    x = torch.randn(4, 3, 6, 6, requires_grad=True)

    def gradient(run: Callable[[CenterConv2d], None], module: CenterConv2d) -> Tensor:
        module.zero_grad()
        run(module)
        return module.trained.grad.clone()

    plain = gradient(lambda m: m(x).square().sum().backward(), layer)
    checked = gradient(lambda m: checkpoint(m, x, use_reentrant=False).square().sum().backward(), layer)

    def two_forwards(m: CenterConv2d) -> None:
        first, second = m(x[:2]), m(x[2:])
        (first.square().sum() + second.square().sum()).backward()

    def accumulated(m: CenterConv2d) -> None:
        for half in x.split(2):
            m(half).square().sum().backward()

    copied = gradient(lambda m: m(x).square().sum().backward(), copy.deepcopy(layer))
    for other in (checked, gradient(two_forwards, layer), gradient(accumulated, layer), copied):
        torch.testing.assert_close(other, plain)


def test_a_copy_of_a_layer_that_has_just_stepped_computes_with_the_new_centre() -> None:
    layer = CenterConv2d.from_conv(nn.Conv2d(3, 3, 3, padding=1))
    with torch.no_grad():
        layer.trained.add_(1.0)
    x = torch.randn(1, 3, 5, 5)
    clone, moved = copy.deepcopy(layer), copy.deepcopy(layer).double()
    assert torch.equal(clone(x), layer(x))
    torch.testing.assert_close(moved(x.double()).float(), layer(x), atol=1e-5, rtol=1e-5)
    restored = CenterConv2d.from_conv(nn.Conv2d(3, 3, 3, padding=1))
    restored.load_state_dict(layer.state_dict())
    assert torch.equal(restored(x), layer(x))


def test_a_graph_older_than_the_weights_raises_instead_of_using_the_new_ones() -> None:
    layer = CenterConv2d.from_conv(nn.Conv2d(3, 3, 3, padding=1))
    stale = layer(torch.randn(1, 3, 5, 5, requires_grad=True)).sum()
    with torch.no_grad():
        layer.trained.add_(1.0)
    layer(torch.randn(1, 3, 5, 5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_double_backward_is_refused() -> None:
    layer = CenterConv2d.from_conv(nn.Conv2d(2, 2, 3, padding=1))
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_bf16_autocast_keeps_half_the_bytes_and_gives_the_stock_gradient() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    layer = CenterConv2d.from_conv(conv, torch.arange(6))
    layer.bias.requires_grad_()
    x = torch.randn(2, 8, 6, 6, requires_grad=True)

    def loss(module: nn.Module, source: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(source)

    kept = saved_bytes(lambda: loss(layer, x), layer.frozen, layer.trained, layer.index)
    assert kept == 2 * 2 * 6 * 36
    other = x.detach().clone().requires_grad_()
    loss(conv, other).sum().backward()
    assert layer.trained.grad.dtype == layer.bias.grad.dtype == torch.float32
    torch.testing.assert_close(layer.trained.grad, conv.weight.grad[:, :6, 1, 1], atol=0.05, rtol=0.02)
    torch.testing.assert_close(x.grad, other.grad, atol=0.05, rtol=0.02)


def test_a_layer_in_bf16_gives_the_stock_gradient() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.bfloat16)
    layer = CenterConv2d.from_conv(conv)
    x = torch.randn(2, 4, 6, 6, dtype=torch.bfloat16)
    for module in (conv, layer):
        module(x).sum().backward()
    assert layer.trained.grad.dtype == torch.bfloat16
    torch.testing.assert_close(layer.trained.grad, conv.weight.grad[:, :, 1, 1], atol=0.25, rtol=0.02)


def test_channels_of_a_sparse_update_get_the_ordinary_gradient() -> None:
    conv = nn.Conv2d(6, 4, 3, stride=2, padding=1, dtype=torch.float64)
    layer = ChannelConv2d.from_conv(conv, torch.tensor([5, 2]))
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(ours).square().sum().backward()
    conv(theirs).square().sum().backward()
    torch.testing.assert_close(layer.trained.grad, conv.weight.grad[:, [2, 5]])
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert saved_bytes(lambda: layer(x.clone()), layer.frozen, layer.trained, layer.index) == 8 * 2 * 2 * 49


def test_counts_say_how_often_a_tap_is_inside_the_picture() -> None:
    counts = tap_counts(ConvGeometry((3, 3), (1, 1), (1, 1)), 4, 4)
    assert counts.tolist() == [[9, 12, 9], [12, 16, 12], [9, 12, 9]]


def test_same_padding_is_resolved_and_other_padding_refused() -> None:
    assert geometry_of(nn.Conv2d(2, 2, 3, padding="same", dilation=2)).padding == (2, 2)
    with pytest.raises(UserError, match="differs between two sides"):
        geometry_of(nn.Conv2d(2, 2, 2, padding="same"))
    with pytest.raises(UserError, match="reflect"):
        geometry_of(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CenterConv2d.from_conv(nn.Conv2d(2, 2, 2)), "no centre element"),
        (lambda: CenterConv2d.from_conv(nn.Conv2d(2, 2, 3), tap=(3, 0)), "outside"),
        (lambda: CenterConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2), torch.tensor([0])), "2 groups"),
        (lambda: CenterConv2d.from_conv(nn.Conv2d(4, 4, 3), torch.tensor([0, 0])), "distinct"),
        (lambda: CenterConv2d.from_conv(nn.Conv2d(4, 4, 3), torch.tensor([4])), "0..3"),
        (lambda: ChannelConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=4), torch.tensor([0])), "grouped"),
        (lambda: CenterConv2d.from_conv(nn.Conv2d(4, 4, 3), grad_filter=0), "grad_filter"),
    ],
)
def test_what_cannot_be_trained_is_refused(make: Callable, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_centre_gradient_of_nothing_is_zero() -> None:
    assert centre_gradient(torch.zeros(1, 2, 3, 3), torch.randn(1, 4, 3, 3), 1).abs().sum() == 0
