"""Memory and projector against golden vectors and invariants (section 14: 7-12)."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenfold import UserError
from weatherkr.method.memory import ReplayMemory, draw_exemplars, quotas
from weatherkr.models.networks import normalize
from weatherkr.models.projector import AttentionProjector, PCAProjector, ProjectionDecoder
from weatherkr.training.projector import cosine_rate, fit_attention_projector


def encoder_weights(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    weights = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}
    weights["W"] = weights.pop("w.W")
    return weights


def decoder_weights(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {
        k.removeprefix(prefix).replace("projector.", "layers."): torch.from_numpy(v)
        for k, v in arrays.items()
        if k.startswith(prefix)
    }


def coloured(task: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch whose value tells where it came from."""
    return torch.full((3, 4, 4), index / 255), torch.full((3, 4, 4), task / 255)


def filled(capacity: int, sizes: list[int], policy: str = "official", keep_targets: bool = False) -> ReplayMemory:
    memory = ReplayMemory(capacity, policy, keep_targets)
    for task, size in enumerate(sizes):
        memory.add(f"t{task}", size, lambda index, task=task: coloured(task, index), random.Random(task))
    return memory


def test_selection_matches_the_golden_indices(golden) -> None:
    g = golden("exemplar")
    memory, rng = ReplayMemory(10), random.Random(20240317)
    for task, size in enumerate((40, 50, 60, 45)):
        memory.add(f"t{task}", size, lambda index, task=task: coloured(task, index), rng)
        rows = [[number, index] for number, each in enumerate(memory.stored.values()) for index in each.indices]
        assert rows == g[f"M10_after{task + 1}"].tolist()
        assert quotas(10, task + 1)[0] == int(g[f"M10_quota{task + 1}"])


def test_sizes_of_both_policies() -> None:
    assert [sum(quotas(500, t)) for t in range(1, 7)] == [500, 500, 501, 500, 500, 504]
    assert quotas(10, 3, "exact") == [4, 3, 3]


@given(st.integers(1, 60), st.integers(1, 12))
def test_the_exact_policy_never_exceeds_and_is_balanced(capacity: int, tasks: int) -> None:
    shares = quotas(capacity, tasks, "exact")
    assert sum(shares) == capacity
    assert max(shares) - min(shares) <= 1


def test_shrinking_keeps_a_prefix_and_no_item_twice() -> None:
    memory = ReplayMemory(12)
    before: dict[str, list[int]] = {}
    for task in range(4):
        memory.add(f"t{task}", 30, lambda index, task=task: coloured(task, index), random.Random(task))
        for name, each in memory.stored.items():
            assert len(set(each.indices)) == len(each.indices)
            if name in before:
                assert each.indices == before[name][: len(each.indices)]
            before[name] = each.indices
    assert memory.tasks == ["t0", "t1", "t2", "t3"]


def test_small_tasks_give_all_they_have() -> None:
    memory = ReplayMemory(10)
    assert memory.add("few", 4, lambda index: coloured(0, index), random.Random(0)) == 6
    assert sorted(memory.stored["few"].indices) == [0, 1, 2, 3]
    assert draw_exemplars(random.Random(0), 0, 5) == []


def test_reading_normalises_eight_bit_patches_and_saving_keeps_them(tmp_path) -> None:
    memory = filled(6, [20, 30], keep_targets=True)
    index = torch.tensor([0, 5, 2])
    torch.testing.assert_close(memory.read(index), normalize(memory.read01(index)))
    assert memory.read01(index)[0, 0, 0, 0].item() * 255 == pytest.approx(memory.stored["t0"].indices[0])
    assert memory.read_targets(index)[1, 0, 0, 0].item() * 255 == pytest.approx(1)
    memory.save(tmp_path / "memory.safetensors")
    again = ReplayMemory.load(tmp_path / "memory.safetensors")
    assert again.fingerprint() == memory.fingerprint()
    assert again.tasks == memory.tasks
    assert again.patch == 4
    assert torch.equal(again.read_targets(index), memory.read_targets(index))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"broken\.safetensors: is not a safetensors file"):
        ReplayMemory.load(tmp_path / "broken.safetensors")


def test_no_labels_and_no_file_names_are_kept_unless_asked(tmp_path) -> None:
    memory = filled(6, [20])
    assert memory.stored["t0"].targets is None
    with pytest.raises(UserError, match="no labels"):
        memory.read_targets(torch.tensor([0]))
    memory.save(tmp_path / "memory.safetensors")
    assert b"/" not in (tmp_path / "memory.safetensors").read_bytes()[:400]


def test_the_projector_matches_the_golden_vectors(golden) -> None:
    g = golden("projector")
    projector, decoder = AttentionProjector(192, 16), ProjectionDecoder(192, 16)
    projector.load_state_dict(encoder_weights(g, "enc."))
    decoder.load_state_dict(decoder_weights(g, "dec."))
    f = torch.from_numpy(g["f"]).requires_grad_()
    np.testing.assert_allclose(projector.norm_layer(f).detach(), g["layernorm_out"], atol=1e-5)
    np.testing.assert_allclose(projector.attention(f).detach(), g["attention"], atol=1e-5)
    h = projector(f)
    np.testing.assert_allclose(h.detach(), g["h"], atol=1e-5)
    recon = decoder(h)
    np.testing.assert_allclose(recon.detach(), g["recon"], atol=1e-5)
    loss = (f.detach() - recon).abs().mean()
    assert loss.item() == pytest.approx(float(g["recon_l1"]), abs=1e-5)
    loss.backward()
    np.testing.assert_allclose(f.grad, g["grad_f"], atol=1e-6)
    np.testing.assert_allclose(projector.W.grad, g["grad_W"], atol=1e-6)
    np.testing.assert_allclose(projector.temperature.grad, g["grad_temperature"], atol=1e-6)
    torch.nn.init.constant_(projector.W, 1 / 192)
    torch.nn.init.ones_(projector.temperature)
    torch.nn.init.ones_(projector.norm_layer.weight)
    torch.nn.init.zeros_(projector.norm_layer.bias)
    np.testing.assert_allclose(projector(f).detach(), g["h_at_init"], atol=1e-5)


def test_projector_invariants_at_the_start() -> None:
    torch.manual_seed(0)
    projector = AttentionProjector(24, 5)
    f = torch.randn(2, 24, 6, 7)
    attention = projector.attention(f)
    assert (attention >= 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(attention, attention[:, :1].expand_as(attention), atol=1e-7, rtol=0)
    averages = projector.averages(f)
    torch.testing.assert_close(averages, averages[:, :1].expand_as(averages), atol=1e-6, rtol=0)
    for layer in (projector.v, projector.v_dwconv, projector.project_out):
        torch.nn.init.zeros_(layer.bias)
    torch.testing.assert_close(projector(3 * f), 3 * projector(f), rtol=1e-3, atol=1e-4)
    shuffled = torch.randperm(42)
    moved = projector(f.flatten(2)[..., shuffled].unflatten(2, (6, 7)))
    assert (moved - projector(f).flatten(2)[..., shuffled].unflatten(2, (6, 7))).abs().max() > 1e-4


def test_training_the_projector_matches_the_golden_run(golden) -> None:
    g, start = golden("ae_train"), golden("ae_train_init")
    projector, decoder = AttentionProjector(192, 4), ProjectionDecoder(192, 4)
    projector.load_state_dict(encoder_weights(start, "enc0."))
    decoder.load_state_dict(decoder_weights(start, "dec0."))
    features = list(torch.from_numpy(g["features"])[:4].split(1))
    report = fit_attention_projector(projector, decoder, features, epochs=3)
    expected = g["losses_printed_5dp"].reshape(3, 4).mean(1)
    np.testing.assert_allclose(report.losses, expected, atol=2e-5)
    np.testing.assert_allclose(projector.W, g["enc1_W"], atol=2e-6)
    np.testing.assert_allclose(projector.temperature, g["enc1_temperature"], atol=2e-6)
    np.testing.assert_allclose(projector.project_out.weight, g["enc1_project_out_weight"], atol=2e-6)
    np.testing.assert_allclose(decoder.layers[2].bias.detach(), g["dec1_last_bias"], atol=2e-6)
    np.testing.assert_allclose(decoder.layers[0].weight.detach(), g["dec1_first_weight"], atol=2e-6)
    before = {name: value.clone() for name, value in projector.state_dict().items()}
    fit_attention_projector(projector, decoder, list(torch.from_numpy(g["features"])[4:].split(1)), epochs=2)
    assert float(g["max_change_second_call_encoder"]) == 0
    assert all(torch.equal(before[name], value) for name, value in projector.state_dict().items())


def test_schedule_matches_the_golden_rates(golden) -> None:
    g = golden("lr")
    total = int(g["T"])
    rates = [cosine_rate(1e-4, int(t), total) for t in g["t"]]
    np.testing.assert_allclose(rates, g["lr_f64"], atol=1e-12, rtol=0)
    epochs = int(g["ae_epochs"])
    np.testing.assert_allclose(
        [cosine_rate(1e-4, e, epochs) for e in range(epochs)], g["ae_lr_f64"], atol=1e-12, rtol=0
    )
    assert (cosine_rate(1.0, 0, 8), cosine_rate(1.0, 4, 8), cosine_rate(1.0, 8, 8)) == (1.0, pytest.approx(0.5), 0.0)


def test_principal_components() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(12, 12)
    features = [torch.einsum("bchw,cd->bdhw", torch.randn(1, 12, 5, 6), mixing) + 3 for _ in range(6)]
    pca = PCAProjector(12, 4).fit(features)
    torch.testing.assert_close(pca.basis.T @ pca.basis, torch.eye(4), atol=1e-5, rtol=0)
    f = torch.cat(features)
    error = (pca.reconstruct(pca(f)) - f).square().sum(1).mean()
    assert error.item() == pytest.approx(pca.eigenvalues[4:].sum().item(), rel=1e-4)
    for _ in range(20):
        basis = torch.linalg.qr(torch.randn(12, 4))[0]
        centred = f - pca.mean[:, None, None]
        other = centred - torch.einsum("bchw,cr,dr->bdhw", centred, basis, basis)
        assert other.square().sum(1).mean() >= error
    again = PCAProjector(12, 4).fit(features[::-1])
    torch.testing.assert_close(again.basis, pca.basis, atol=1e-6, rtol=1e-5)
    full = PCAProjector(12, 12).fit(features)
    torch.testing.assert_close(full.reconstruct(full(f)), f, atol=1e-4, rtol=0)
    assert full.explained.sum().item() == pytest.approx(1, abs=1e-5)
    white = PCAProjector(12, 4, "global").fit(features)
    assert white(f).square().mean().item() == pytest.approx(1, rel=1e-3)
    with pytest.raises(UserError, match="memory is empty"):
        PCAProjector(12, 4).fit([])
    with pytest.raises(UserError, match="rank 13"):
        PCAProjector(12, 13)
