"""What is timed: training steps, and the operations that make them cheap."""

from collections.abc import Callable

from reproduce.claims import Speed


def _stepper(network: str, scheme: str) -> Callable[[], object]:
    """One training step at batch 8, 96 x 96, on one thread."""
    import torch

    from cskopt import build_model
    from cskopt.benchmark.comparison import scheme_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = scheme_model(build_model(network, 100), scheme)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad])
    x, labels = torch.randn(8, 3, 96, 96), torch.randint(0, 100, (8,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    step()
    return step


def _step_speed(network: str, other: str, target: float) -> Speed:
    return Speed(
        f"cskopt/{network}-step-against-{other}",
        f"a training step of {network} at batch 8, 96 x 96: csko against {other}",
        lambda: (_stepper(network, "csko"), _stepper(network, other)),
        target,
        repeats=7,
        unit="step",
    )


def _weight_gradients() -> tuple[Callable[[], object], Callable[[], object]]:
    import torch
    from torch.nn.grad import conv2d_weight

    from cskopt.method.center_conv import centre_gradient

    torch.set_num_threads(1)
    gy, x = torch.randn(8, 512, 3, 3), torch.randn(8, 512, 3, 3)
    return (
        lambda: centre_gradient(gy, x, 1),
        lambda: conv2d_weight(x, (512, 512, 3, 3), gy, padding=1),
    )


def _bit_packing() -> tuple[Callable[[], object], Callable[[], object]]:
    import torch

    from cskopt.method.memory_efficient import pack_bits

    torch.set_num_threads(1)
    mask = torch.rand(8, 64, 48, 48) > 0.5
    powers = 2 ** torch.arange(8, dtype=torch.uint8)
    return lambda: pack_bits(mask), lambda: (mask.view(-1, 8) * powers).sum(1, dtype=torch.uint8)


def _eigen_decompositions() -> tuple[Callable[[], object], Callable[[], object]]:
    import torch

    from cskopt.method.projection import null_space_projector

    torch.set_num_threads(1)
    few, many = torch.randn(2000, 96), torch.randn(2000, 96 * 9)
    small, large = few.T @ few, many.T @ many
    return (
        lambda: null_space_projector(small, "energy", energy=0.9),
        lambda: null_space_projector(large, "energy", energy=0.9),
    )


SPEEDS = (
    _step_speed("resnet18", "full", 2.5),
    _step_speed("resnet18", "all-taps", 1.2),
    _step_speed("resnet18", "sparse-update", 1.5),
    _step_speed("resnet18", "head", 0.7),
    _step_speed("mobilenet_v2", "full", 1.5),
    _step_speed("mobilenet_v2", "sparse-update", 1.5),
    _step_speed("mobilenet_v2", "head", 0.5),
    Speed(
        "cskopt/centre-gradient-against-whole-kernel",
        "weight gradient of a 3x3 convolution with 512 channels on 3 x 3 maps: centre against all taps",
        _weight_gradients,
        8.0,
        repeats=9,
        unit="gradient",
    ),
    Speed(
        "cskopt/bit-packing-against-the-plain-way",
        "packing the mask of a ReLU: one multiplication for eight values against shifting and adding",
        _bit_packing,
        4.0,
        repeats=9,
        unit="mask",
    ),
    Speed(
        "cskopt/projector-against-full-null-space",
        "projector of a 96-channel layer: C x C against the 9C x 9C of Adam-NSCL",
        _eigen_decompositions,
        50.0,
        repeats=3,
        unit="projector",
    ),
)
