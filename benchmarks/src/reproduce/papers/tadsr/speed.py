"""Speed of tadsr: one step against the chain, and the UNet against its published arrangement."""

from collections.abc import Callable
from typing import Any

from reproduce.claims import Speed


def one_step_against_chain() -> tuple[Callable[[], object], Callable[[], object]]:
    """The same picture through student and teacher, from pixels to pixels."""
    import torch

    from tadsr.pipeline.pipeline import TADSRPipeline

    student, teacher = TADSRPipeline.load("perceptual"), TADSRPipeline.load("teacher")
    low = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return (lambda: student(low, output_type="pt")), (lambda: teacher(low, output_type="pt"))


def unet_against_published() -> tuple[Callable[[], object], Callable[[], object]]:
    """The x4 network at its published size, and the same weights in the published arrangement of the attention."""
    import torch

    from reproduce.papers.tadsr.published import published_unet
    from tadsr.models.networks import ResShiftUNet

    torch.manual_seed(0)
    ours = ResShiftUNet().eval()
    theirs = published_unet(ours)
    inputs = (torch.randn(1, 3, 64, 64), torch.tensor([7]), torch.randn(1, 3, 64, 64))

    @torch.inference_mode()
    def run(unet: ResShiftUNet) -> torch.Tensor:
        output: Any = unet(*inputs)
        return output.sample

    torch.testing.assert_close(run(ours), run(theirs), atol=1e-4, rtol=1e-4)
    return (lambda: run(ours)), (lambda: run(theirs))


SPEEDS = (
    Speed(
        "tadsr/one-step-vs-15",
        "128 x 128 to 512 x 512, from pixels to pixels: the one-step student against its 15-step teacher",
        one_step_against_chain,
        target=10,
        unit="picture",
    ),
    Speed(
        "tadsr/unet-vs-published",
        "The x4 Swin UNet (119 M parameters) at 64 x 64: against masks rebuilt in every block and attention written out, as published",
        unet_against_published,
        target=1.0,
        unit="call",
    ),
)
