"""The network against golden vectors and its invariants."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import UserError
from weatherkr.models.networks import Block, ChannelAttention, Group, PixelAttention, WeatherNet, denormalize, normalize


def part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}


@pytest.mark.parametrize(
    ("module", "prefix", "output"),
    [
        (ChannelAttention(16), "ca.", "ca_out"),
        (PixelAttention(16), "pa.", "pa_out"),
        (Block(16), "block.", "block_out"),
        (Group(16, 2), "group.", "group_out"),
    ],
    ids=["channel attention", "pixel attention", "block", "group"],
)
def test_parts_match_the_golden_vectors(golden, module, prefix: str, output: str) -> None:
    arrays = golden("ffa_blocks")
    module.load_state_dict(part(arrays, prefix))
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    out = module(x)
    torch.testing.assert_close(out, torch.from_numpy(arrays[output]), atol=1e-5, rtol=0)
    if prefix == "block.":
        out.backward(torch.from_numpy(arrays["block_grad_out"]))
        torch.testing.assert_close(x.grad, torch.from_numpy(arrays["block_grad_in"]), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def one_block(golden) -> tuple[WeatherNet, dict[str, np.ndarray]]:
    arrays = golden("ffa_net")
    net = WeatherNet(64, 1)
    net.load_state_dict(part(arrays, "net."))
    return net.eval(), arrays


def test_the_network_matches_the_golden_vectors(one_block) -> None:
    net, arrays = one_block
    x = torch.from_numpy(arrays["x_u8"]).float() / 255
    normal = normalize(x)
    torch.testing.assert_close(normal, torch.from_numpy(arrays["x_norm"]), atol=1e-5, rtol=0)
    with torch.inference_mode():
        out, f = net(normal, return_features=True)
    torch.testing.assert_close(out, torch.from_numpy(arrays["out"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(f.mean((2, 3)), torch.from_numpy(arrays["feat_mean"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(f.std((2, 3)), torch.from_numpy(arrays["feat_std"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(f[:, :, 0], torch.from_numpy(arrays["feat_first_row"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(net.restore(x), torch.from_numpy(arrays["out_clamped"]), atol=1e-4, rtol=0)


def test_official_size_and_key_names() -> None:
    with torch.device("meta"):
        net = WeatherNet()
    assert sum(p.numel() for p in net.parameters()) == 4_753_823
    keys = set(net.state_dict())
    expected = {f"{layer}.{kind}" for layer in ("pre.0", "post.0", "post.1") for kind in ("weight", "bias")}
    for group in ("g1", "g2", "g3"):
        inner = [
            f"{block}.{name}"
            for block in range(20)
            for name in ("conv1", "conv2", "calayer.ca.0", "calayer.ca.2", "palayer.pa.0", "palayer.pa.2")
        ]
        expected |= {f"{group}.gp.{name}.{kind}" for name in [*inner, "20"] for kind in ("weight", "bias")}
    assert keys == expected
    assert len(keys) == 732
    assert len(WeatherNet(64, 1).state_dict()) == 48
    assert net.halo == 126
    assert WeatherNet(8, 1).halo == 12


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), shuffle=st.sampled_from([1, 2, 4]))
def test_output_size_is_input_size(height: int, width: int, shuffle: int) -> None:
    net = WeatherNet(8, 1, "image", shuffle)
    assert net.restore(torch.rand(1, 3, height, width)).shape == (1, 3, height, width)


def test_a_batch_is_its_images_and_normalisation_matters() -> None:
    torch.manual_seed(0)
    net = WeatherNet(16, 1).eval()
    x = torch.rand(2, 3, 20, 22)
    with torch.inference_mode():
        together = net(x)
        torch.testing.assert_close(together, torch.cat([net(x[:1]), net(x[1:])]), atol=1e-5, rtol=0)
        assert (net(x + 1) - net(x) - 1).abs().max() > 1e-3


@pytest.mark.parametrize("shuffle", [1, 2])
def test_with_fixed_gates_no_pixel_acts_beyond_the_halo(shuffle: int) -> None:
    torch.manual_seed(0)
    net = WeatherNet(8, 1, "image", shuffle).eval().double()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    changed = x.clone()
    changed[..., 31, 31] += 1
    with torch.inference_mode():
        net(x)
        gates = net.latest_gates()
        with net.fixed_gates(gates):
            moved = (net(changed) - net(x)).abs().amax((0, 1)).nonzero()
        assert (net(changed) - net(x)).abs().amax((0, 1)).count_nonzero() > len(moved), "free gates see everything"
    reach = (moved - 31).abs().max().item()
    assert reach <= net.halo
    assert reach >= net.halo - 2 * shuffle


def test_residuals_with_an_output_layer_of_zeros() -> None:
    x = torch.rand(1, 3, 9, 10)
    for residual, expected in (("normalized", normalize(x)), ("image", x)):
        net = WeatherNet(8, 1, residual)
        for weight in net.post.parameters():
            torch.nn.init.zeros_(weight)
        torch.testing.assert_close(net(normalize(x)), expected, atol=0 if residual == "normalized" else 1e-6, rtol=0)
    torch.testing.assert_close(denormalize(normalize(x)), x)


def test_save_and_load_keep_the_network(tmp_path) -> None:
    net = WeatherNet(8, 1, "image", 2).eval()
    net.save_pretrained(tmp_path / "net")
    again = WeatherNet.from_pretrained(tmp_path / "net").eval()
    x = torch.rand(1, 3, 12, 14)
    assert torch.equal(net.restore(x), again.restore(x))
    assert (again.residual, again.shuffle) == ("image", 2)


@pytest.mark.parametrize("wrong", [{"dim": 4}, {"blocks": 0}, {"shuffle": 0}, {"residual": "none"}])
def test_impossible_networks_are_refused(wrong) -> None:
    with pytest.raises(UserError):
        WeatherNet(**({"dim": 8, "blocks": 1} | wrong))


def test_gates_are_of_the_last_pass_and_copies_are_independent() -> None:
    net = WeatherNet(8, 1)
    with pytest.raises(RuntimeError, match="no forward pass"):
        net.latest_gates()
    net(torch.rand(1, 3, 8, 8))
    assert len(copy.deepcopy(net).latest_gates()) == 3
