"""Memory and computation of one training step at batch 8, 96 x 96, and the gradient itself."""

from collections.abc import Sequence
from pathlib import Path

from reproduce.claims import Experiment, Measurement, at_most, claim, lower
from reproduce.papers.cskopt.words import ARMS, METRICS


def measure_memory(seed: int, tier: str, _: Path) -> Measurement:
    """ResNet-18; see `_memory`."""
    schemes = ("full", "head", "sparse-update", "csko")
    extra = () if tier == "smoke" else ("full-folded", "bias", "all-taps", "centre", "csko-25", "csko-filtered")
    return {"gradient": {"error": _gradient_error(seed)}} | _memory("resnet18", (*schemes, *extra), seed)


def measure_mobilenet_memory(seed: int, _: str, __: Path) -> Measurement:
    """MobileNetV2; see `_memory`."""
    return _memory("mobilenet_v2", ("full", "head", "sparse-update", "all-taps", "csko", "csko-all-layers"), seed)


def _memory(network: str, schemes: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """A training step at batch 8, 96 x 96, 100 classes: bytes kept, training memory in all, multiply-adds, peak."""
    import torch

    from cskopt import build_model
    from cskopt.benchmark.comparison import scheme_model
    from cskopt.benchmark.profiling import profile_training

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    x, labels = torch.randn(8, 3, 96, 96), torch.randint(0, 100, (8,))
    model = build_model(network, 100)
    reports = {scheme: profile_training(scheme_model(model, scheme), (x, labels), repeats=1) for scheme in schemes}
    full, found = reports["full"], {}
    for scheme, r in reports.items():
        training, most = r.saved + r.grads + r.optim_state, full.saved + full.grads + full.optim_state
        found[scheme] = {
            "kept_mib": r.saved / 2**20,
            "training_mib": training / 2**20,
            "training_share": 100 * training / most,
            "mac_share": 100 * (r.macs_forward + r.macs_backward) / (full.macs_forward + full.macs_backward),
            "kept_over_formula": r.saved / r.predicted.kept,
            "peak_mib": r.peak_allocated / 2**20,
            "peak_share": 100 * r.peak_allocated / full.peak_allocated,
            "peak_share_over_formula": (r.peak_allocated / full.peak_allocated)
            / (r.predicted_peak / full.predicted_peak),
        }
    return found


def _gradient_error(seed: int) -> float:
    """Largest difference between the centre gradient and the masked ordinary gradient, over random convolutions."""
    import torch

    from cskopt import CenterConv2d

    torch.manual_seed(seed)
    worst = 0.0
    for kernel, stride, padding, groups in ((3, 1, 1, 1), (3, 2, 1, 1), (5, 2, 2, 8), (1, 1, 0, 1), (3, 1, 0, 4)):
        conv = torch.nn.Conv2d(8, 16, kernel, stride, padding, groups=groups)
        layer = CenterConv2d.from_conv(conv)
        x = torch.randn(4, 8, 14, 14)
        for module in (conv, layer):
            module(x).square().mean().backward()
        middle = (kernel - 1) // 2
        assert conv.weight.grad is not None
        assert layer.trained.grad is not None
        worst = max(worst, float((conv.weight.grad[:, :, middle, middle] - layer.trained.grad).abs().max()))
    return worst


EXPERIMENTS = (
    Experiment(
        "memory",
        "A training step of ResNet-18, batch 8 of 96 x 96 pixels, 100 classes: bytes and multiply-adds.",
        {"smoke": 1, "small": 1},
        measure_memory,
        ARMS,
        METRICS,
    ),
    Experiment("mobilenet_memory", "The same of MobileNetV2.", {"small": 2}, measure_mobilenet_memory, ARMS, METRICS),
)

CLAIMS = (
    claim(
        "cskopt/training-memory-at-most-8-percent",
        "Training takes at most 8 % of the memory (kept activations, gradients and Adam's state, against full training of a ResNet-18).",
        at_most("training_share", "csko", 8.0),
        experiment="memory",
        source="abstract v2; the accounting is ours",
        deterministic=True,
    ),
    claim(
        "cskopt/computation-at-most-25-percent",
        "Training takes at most 25 % of the computation (multiply-adds of a step, against full training of a ResNet-18).",
        at_most("mac_share", "csko", 25.0),
        experiment="memory",
        source="abstract v2; the accounting is ours",
        deterministic=True,
        remark="The forward pass alone is a third of full training; methods with a second model or more augmentation cost more than full training.",
    ),
    claim(
        "cskopt/less-memory-than-sparse-update",
        "Less training memory than sparse update.",
        lower("training_mib", "csko", than="sparse-update"),
        experiment="memory",
        source="our README",
        deterministic=True,
    ),
    claim(
        "cskopt/less-memory-than-last-layer",
        "Less training memory than the last layer alone.",
        lower("training_mib", "csko", than="head"),
        experiment="memory",
        source="our control",
        deterministic=True,
        remark="Last layer + prototypes, which ties in accuracy, needs the least memory of all.",
    ),
    claim(
        "cskopt/kept-bytes-are-the-formula",
        "Activations kept are at most the formula's, plus 10 %.",
        at_most("kept_over_formula", "csko", 1.1),
        experiment="memory",
        source="our README",
        deterministic=True,
    ),
    claim(
        "cskopt/peak-is-the-formula",
        "The peak of allocated memory, as a share of full training's, is at most the formula's share, plus 10 %.",
        at_most("peak_share_over_formula", "csko", 1.1),
        experiment="memory",
        source="our README",
        deterministic=True,
    ),
    claim(
        "cskopt/gradient-is-the-masked-gradient",
        "The centre's gradient is the ordinary gradient, masked, to 1e-5.",
        at_most("error", "gradient", 1e-5),
        experiment="memory",
        source="paper §3.2",
        deterministic=True,
    ),
    claim(
        "cskopt/mobilenet-peak-is-the-formula",
        "On MobileNetV2 too the peak, as a share of full training's, is at most the formula's share, plus 10 %.",
        at_most("peak_share_over_formula", "csko", 1.1),
        experiment="mobilenet_memory",
        source="our README",
        deterministic=True,
    ),
)
