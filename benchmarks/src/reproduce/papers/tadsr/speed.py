"""Speed of tadsr: one step against the chain, and the UNet against its published arrangement."""

from collections.abc import Callable

from reproduce.claims import Speed


def one_step_against_chain() -> tuple[Callable[[], object], Callable[[], object]]:
    """The same picture through student and teacher, from pixels to pixels."""
    import torch

    from tadsr.pipeline import TADSRPipeline

    student, teacher = TADSRPipeline.load("fidelity"), TADSRPipeline.load("teacher")
    low = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return (lambda: student(low, output_type="pt")), (lambda: teacher(low, output_type="pt"))


def unet_against_published() -> tuple[Callable[[], object], Callable[[], object]]:
    """The published layout at its size, and the same with masks rebuilt for each block and attention written out."""
    import torch

    from tadsr.networks import ResShiftUNet
    from tadsr.swin import SwinBlock, shift_mask

    torch.manual_seed(0)
    unet = ResShiftUNet(model_channels=64, swin_embed_dim=64).eval()
    inputs = (torch.randn(1, 3, 64, 64), torch.tensor([7]), torch.randn(1, 3, 64, 64))
    blocks = [each for each in unet.modules() if isinstance(each, SwinBlock)]

    def rebuilt(block: SwinBlock) -> Callable[..., object]:
        def mask(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
            return shift_mask(height, width, block.window, block.shift).to(like)

        return mask

    @torch.inference_mode()
    def run(published: bool) -> object:
        for block in blocks:
            block.attn.fused_attn = not published  # ty: ignore[invalid-assignment]  # final for TorchScript only
            if published:
                block.mask = rebuilt(block)  # ty: ignore[invalid-assignment]
            else:
                block.__dict__.pop("mask", None)
        return unet(*inputs)

    return (lambda: run(False)), (lambda: run(True))


SPEEDS = (
    Speed(
        "tadsr/one-step-vs-15",
        "128 x 128 to 512 x 512, from pixels to pixels: the one-step student against its 15-step teacher",
        one_step_against_chain,
        target=10,
        unit="picture",
    ),
    Speed(
        "tadsr/unet-vs-published-arrangement",
        "A Swin UNet forward at 64 x 64: cached masks and fused attention against masks rebuilt in every block and attention written out",
        unet_against_published,
        target=1.0,
        repeats=5,
        unit="call",
    ),
)
