"""What a training step really keeps, allocates and takes: measured, not computed."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from cskopt.benchmark.cost_model import LayerCost, PredictedMemory, layer_costs, predict_memory
from tenfold import UserError

LossFn = Callable[[Tensor, Tensor], Tensor]
OptimizerMaker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class SavedTensors:
    """Distinct storages that autograd keeps between forward and backward, by the layer that made them.

    Parameters, buffers and the input batch are not counted.

    Attributes:
        by_layer: bytes by layer name; the empty name is the loss and functions outside any layer.
    """

    def __init__(self, model: nn.Module, batch: Tensor) -> None:
        self._model = model
        known = [*model.parameters(), *model.buffers(), batch]
        self._skip = {each.untyped_storage().data_ptr() for each in known}
        # Holding the storages keeps their addresses from being used twice.
        self._held: dict[int, Any] = {}
        self._stack = [""]
        self.by_layer: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.by_layer.values())

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        address = storage.data_ptr()
        if address not in self._skip and address not in self._held:
            self._held[address] = storage
            self.by_layer[self._stack[-1]] = self.by_layer.get(self._stack[-1], 0) + storage.nbytes()
        return x

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Count what is kept while the block runs; run the forward pass and the loss in it."""
        handles = []
        for name, layer in self._model.named_modules():
            handles.append(layer.register_forward_pre_hook(lambda *_, name=name: self._stack.append(name)))
            handles.append(layer.register_forward_hook(self._leave, always_call=True))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x):
                yield
        finally:
            self._held.clear()
            for handle in handles:
                handle.remove()


def measure_saved_bytes(
    model: nn.Module, x: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], loss_fn: LossFn
) -> dict[str, int]:
    """Bytes kept for the backward pass by each layer, measured; the sum is the figure to compare."""
    saved = SavedTensors(model, x)
    with saved.watching():
        loss = loss_fn(model(x), labels)
    by_layer = dict(saved.by_layer)
    del loss
    return by_layer


@dataclass(frozen=True)
class MemoryReport:
    """One training step of a model, measured. Bytes, MACs and milliseconds.

    Attributes:
        saved: kept for the backward pass, distinct storages, without parameters, buffers and the batch.
        grads: gradients.
        optim_state: optimiser state.
        continual_state: prototypes, covariances, projectors, if a learner was given.
        peak_allocated: the most that torch's allocator held above the level before the step.
        peak_inference: the most that one forward pass without gradients held: what the device needs anyway.
        peak_rss: the most resident memory above the level before the step (Linux); noisy; None where unknown.
        peak_cuda: the same on the CUDA device; None on the CPU.
        macs_forward: multiply-adds of the forward pass, counted by torch.
        macs_backward: of the backward pass; torch's overcount of grouped weight gradients is corrected.
        step_ms: median wall time of a step.
        cpu_ms: median CPU time of a step.
        trained: trained parameters.
        predicted: the same memory by formula.
        layers: cost of each layer by formula.
        saved_by_layer: measured bytes kept by each layer.
    """

    saved: int
    grads: int
    optim_state: int
    continual_state: int
    peak_allocated: int
    peak_inference: int
    peak_rss: int | None
    peak_cuda: int | None
    macs_forward: int
    macs_backward: int
    step_ms: float
    cpu_ms: float
    trained: int
    predicted: PredictedMemory
    layers: tuple[LayerCost, ...]
    saved_by_layer: dict[str, int]

    @property
    def predicted_peak(self) -> int:
        """What inference needs anyway, plus kept activations and gradients by formula."""
        return self.peak_inference + self.predicted.kept + self.predicted.grads

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=2)


def profile_training(
    model: nn.Module,
    batch: tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]],
    loss_fn: LossFn = nn.functional.cross_entropy,
    optimizer_factory: OptimizerMaker = torch.optim.Adam,
    *,
    repeats: int = 5,
    continual_state: int = 0,
) -> MemoryReport:
    """Measure a training step of any model, stock or wrapped. The weights of the model change; give a copy.

    Args:
        model: in the mode to measure, on its device.
        batch: pictures and labels on the same device.
        loss_fn: of logits and labels.
        optimizer_factory: of the parameters that require a gradient.
        repeats: timed steps; the median counts.
        continual_state: bytes that a method keeps besides, to be reported.

    Raises:
        UserError: nothing to train.
    """
    x, labels = batch
    parameters = [each for each in model.parameters() if each.requires_grad]
    if not parameters:
        raise UserError("no parameter of the model requires a gradient: there is nothing to train")
    optimizer = optimizer_factory(parameters)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_fn(model(x), labels).backward()
        optimizer.step()

    costs = layer_costs(model, x)
    by_layer = measure_saved_bytes(model, x, labels, loss_fn)
    forward, backward = count_macs(model, x, labels, loss_fn)
    step()
    wall, cpu = time_steps(step, repeats, x.device)
    optimizer.zero_grad(set_to_none=True)
    allocated, cuda = peak_allocated(step, x.device)
    optimizer.zero_grad(set_to_none=True)
    rss = peak_rss(step)
    with torch.no_grad():
        inference, _ = peak_allocated(lambda: _discard(model(x)), x.device)
    return MemoryReport(
        saved=sum(by_layer.values()),
        grads=sum(each.grad.nbytes for each in parameters if each.grad is not None),
        optim_state=sum(
            value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        ),
        continual_state=continual_state,
        peak_allocated=allocated,
        peak_inference=inference,
        peak_rss=rss,
        peak_cuda=cuda,
        macs_forward=forward,
        macs_backward=backward,
        step_ms=wall,
        cpu_ms=cpu,
        trained=sum(each.numel() for each in parameters),
        predicted=predict_memory(costs, model),
        layers=tuple(costs),
        saved_by_layer=by_layer,
    )


def _discard(_: Tensor) -> None:
    """Let go of a result."""


def time_steps(step: Callable[[], None], repeats: int, device: torch.device) -> tuple[float, float]:
    """Median wall and CPU milliseconds of a call."""
    wall, cpu = [], []
    for _ in range(repeats):
        started = time.perf_counter(), time.process_time()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    return statistics.median(wall) * 1e3, statistics.median(cpu) * 1e3


def peak_allocated(step: Callable[[], None], device: torch.device) -> tuple[int, int | None]:
    """The most that torch's allocators held during a call above the level before it: (any device, CUDA alone).

    On the CPU from the profiler's record of every allocation, which is exact and repeatable, unlike resident memory.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        return peak, peak
    # Not `torch.profiler`: its profile imports torch's compilers, seconds in which nothing is measured.
    with _quiet_stderr(), profile(profile_memory=True, use_kineto=True) as record:
        step()
    if record.kineto_results is None:
        raise RuntimeError("the profiler gave no record")
    events = sorted((e for e in record.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    level = peak = 0
    for event in events:
        level += event.nbytes()
        peak = max(peak, level)
    return peak, None


@contextmanager
def _quiet_stderr() -> Generator[None]:
    """Keep the profiler from announcing its starts and stops: it writes to the file descriptor, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # a device, by its name
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_rss(step: Callable[[], None]) -> int | None:
    """The most resident memory of the process during a call above the level before it (Linux; None elsewhere)."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        clear.write_text("5")
    except OSError:
        return None
    before = _status_bytes(status, "VmRSS")
    step()
    peak = _status_bytes(status, "VmHWM")
    return None if before is None or peak is None else max(0, peak - before)


def _status_bytes(status: Path, key: str) -> int | None:
    for line in status.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def count_macs(
    model: nn.Module, x: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], loss_fn: LossFn
) -> tuple[int, int]:
    """Multiply-adds of a forward and a backward pass, counted by torch from the operations that run.

    torch counts the weight gradient of a grouped convolution g times too high; that is corrected here.
    """
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        loss = loss_fn(model(x), labels)
        forward = counter.get_total_flops()
        loss.backward()
        total = counter.get_total_flops()
    model.zero_grad(set_to_none=True)
    return forward // 2, (total - forward) // 2


def _convolution_backward_flops(grad_out_shape: Any, x_shape: Any, w_shape: Any, *arguments: Any, **_: Any) -> int:
    del x_shape
    output_mask = arguments[7]
    macs = grad_out_shape[0] * grad_out_shape[2] * grad_out_shape[3] * w_shape.numel()
    return 2 * macs * (int(output_mask[0]) + int(output_mask[1]))
