"""RECCE's graph and attention, and FFD's mask, against golden vectors; the optional losses; the graph against its loop."""

from pathlib import Path

import numpy as np
import torch
from timm.models.xception import SeparableConv2d
from torch import Tensor

from fairfd.models.detectors.ffd import FfdDetector
from fairfd.models.detectors.recce import (
    Decoder,
    GraphReasoning,
    GuidedAttention,
    add_noise_to_half,
    children_of,
    metric_loss,
    reconstruction_loss,
)

GOLDEN = np.load(Path(__file__).parent / "golden" / "ffd_recce_ucf_modules.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def weights(prefix: str, names: dict[str, str]) -> dict[str, Tensor]:
    """Golden weights under our names; `names` maps a golden prefix to ours."""
    found = {}
    for entry in GOLDEN.files:
        key = entry.removeprefix(f"{prefix}_w__").replace("__", ".")
        for old, new in names.items():
            if entry.startswith(f"{prefix}_w__") and key.startswith(old):
                found[new + key.removeprefix(old)] = golden(entry)
    return found


def golden_graph() -> GraphReasoning:
    graph = GraphReasoning(8, 6, 5, 6, 4, 6, (2, 4)).eval()
    names = {
        "va_embedding": "node_embedding",
        "va_gated_b.0": "first.gate",
        "va_gated_c.0": "second.gate",
        "vb_embedding": "first.embedding",
        "vc_embedding": "second.embedding",
        "reweight_ab.0": "first.affinity",
        "reweight_ac.0": "second.affinity",
        "reproject": "reproject",
    }
    graph.load_state_dict(weights("gr", names))
    return graph


def test_ffd_mask_reproduces_the_golden_mask() -> None:
    with torch.device("meta"):
        detector = FfdDetector()
    detector.attention = SeparableConv2d(8, 1, 3, 1, 1)
    detector.attention.load_state_dict(weights("ffd", {"c.c": "conv1", "c.pointwise": "pointwise"}))
    assert torch.allclose(detector.mask(golden("ffd_x")), golden("ffd_mask"), atol=1e-5)


def test_graph_reasoning_reproduces_the_golden_map() -> None:
    out = golden_graph()(golden("gr_a"), golden("gr_b"), golden("gr_c"))
    assert torch.allclose(out, golden("gr_out"), atol=1e-5)


def test_children_lie_under_their_node() -> None:
    fine = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert children_of(fine, 2)[0, 1, :, 0].tolist() == [2, 3, 6, 7]


def test_vectorised_graph_equals_a_loop_over_its_nodes() -> None:
    graph, h, maps = golden_graph(), golden("gr_a"), golden("gr_b")
    part, nodes = graph.first, graph.node_embedding(h).flatten(2).mT
    looped = torch.zeros(2, 6, 3, 3)
    for row in range(3):
        for column in range(3):
            node = nodes[:, 3 * row + column]
            patch = maps[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(2).mT
            embedded = part.embedding(patch)
            pairs = torch.cat([node[:, None].expand(-1, 4, -1), embedded], dim=2)
            share = part.affinity(pairs).relu().softmax(1)
            looped[:, :, row, column] = (share * embedded).sum(1)
    looped = looped * (1 - part.gate(h).sigmoid())
    assert torch.allclose(part(h, nodes, maps), looped, atol=1e-5)


def test_guided_attention_reproduces_the_golden_map() -> None:
    attention = GuidedAttention(8).eval()
    attention.load_state_dict(weights("ga", {"gated": "gate", "h": "project"}))
    out = attention(golden("ga_x"), golden("ga_pred"), golden("ga_emb"))
    assert torch.allclose(out, golden("ga_out"), atol=1e-5)


def test_decoder_maps_are_two_four_and_eight_times_finer() -> None:
    d2, d4, image = Decoder().eval()(torch.randn(1, 728, 2, 2))
    assert (d2.shape, d4.shape, image.shape) == ((1, 256, 4, 4), (1, 128, 8, 8), (1, 3, 16, 16))
    assert image.abs().max() <= 1


def test_noise_is_faint_and_stays_in_range() -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 3, 8, 8) * 2 - 1
    noisy = add_noise_to_half(x)
    changed = (noisy != x).flatten(1).any(1)
    assert 16 < changed.sum() < 48
    assert (noisy - x).abs().max() < 1e-5
    assert add_noise_to_half(torch.ones(8, 3, 4, 4)).max() <= 1


def test_reconstruction_loss_reads_the_reals_only() -> None:
    x, labels = torch.zeros(3, 3, 4, 4), torch.tensor([0, 1, 1])
    reconstruction = torch.stack([torch.full((3, 4, 4), value) for value in (0.5, 9.0, 9.0)])
    assert reconstruction_loss(reconstruction, x, labels).item() == 0.5
    assert reconstruction_loss(reconstruction, x, torch.ones(3, dtype=torch.long)).item() == 0


def test_metric_loss_is_0_for_equal_reals_and_opposite_fakes() -> None:
    features = torch.tensor([[1.0, 0], [2.0, 0], [-1.0, 0]])
    assert metric_loss(features, torch.tensor([0, 0, 1])).item() == 0
