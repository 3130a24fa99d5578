"""What several training processes must share so that they compute what one would: batch statistics and batch features.

Both are needed because this method looks across the batch: a batch norm over all pictures, memories that every picture updates.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """A sum over all processes. Each one's loss depends on the sum, so the gradient is summed over processes too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004  # torch's signature
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # noqa: ARG004  # as above
        total = grad_outputs[0].clone()
        dist.all_reduce(total)
        return total


class CrossProcessBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes. torch has one for CUDA only; this one works wherever `all_reduce` does."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  # torch's name
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Float[Tensor, "b c *rest"]) -> Float[Tensor, "b c *rest"]:  # noqa: A002  # torch's name
        """Normalise by the mean and variance of the whole batch; in evaluation mode by the running ones."""
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        values = input.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = torch.cat([values.sum(axes), values.square().sum(axes), count])
        sums = cast(Tensor, _SumOverProcesses.apply(sums))
        total = sums[-1]
        mean, square = (sums[:-1] / total).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        self._track(mean.detach(), variance.detach() * total / (total - 1).clamp_min(1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shape = [1, -1] + [1] * (input.dim() - 2)
        return (values * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.lerp_(mean, self.momentum or 0.1)
        self.running_var.lerp_(variance, self.momentum or 0.1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def share_batch_statistics(model: nn.Module) -> None:
    """Make every batch norm of a model normalise over all processes, in place; weights and names stay."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.__class__ = CrossProcessBatchNorm  # same state, other forward


def gather_batch(accelerator: Accelerator, features: Float[Tensor, "b d"]) -> Float[Tensor, "w d"]:
    """The features of all processes in order; gradients flow into this process's own.

    Every process computes the loss of the whole batch from them. Multiply it by the number of processes: the gradient
    of each holds the share of its own pictures, and the average over processes would divide their sum.
    """
    if accelerator.num_processes == 1:
        return features
    parts = [torch.empty_like(features) for _ in range(accelerator.num_processes)]
    dist.all_gather(parts, features.detach().contiguous())
    parts[accelerator.process_index] = features
    return torch.cat(parts)
