"""What the method costs: a training step with and without it, and the pass that collects second moments."""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.profiler import profile

from vptnsp.config import LearnerConfig
from vptnsp.method.second_moments import collect_second_moments
from vptnsp.models.attention import PromptedAttention, attention_to_prompts
from vptnsp.models.networks import PromptedViT, image_size
from vptnsp.training.learner import NSPLearner
from vptnsp.training.step import TaskTraining


@dataclass(frozen=True)
class Costs:
    """Seconds per batch, medians.

    Attributes:
        sequential_step: a training step without projection.
        projected_step: a training step of the full method, in a second task.
        forward: features without gradients.
        moment_pass: the same with second moments.
        stored_pass: the same with every token stored and multiplied at the end.
        sequential_peak: MiB that a training step without projection holds at most beyond what it began with.
        projected_peak: the same of the full method.
        moment_peak: the same of the pass that collects second moments.
        stored_peak: the same of the pass that stores every token.
    """

    sequential_step: float
    projected_step: float
    forward: float
    moment_pass: float
    stored_pass: float
    sequential_peak: float
    projected_peak: float
    moment_peak: float
    stored_peak: float

    @property
    def step_overhead(self) -> float:
        """What the method adds to a step, as a share."""
        return self.projected_step / self.sequential_step - 1

    @property
    def pass_overhead(self) -> float:
        """What second moments add to a forward pass, as a share."""
        return self.moment_pass / self.forward - 1


def second_task(
    vit: PromptedViT, config: LearnerConfig, images: Float[Tensor, "b 3 h w"]
) -> tuple[NSPLearner, TaskTraining]:
    """A learner in its second task, so that whatever the method projects is projected."""
    learner = NSPLearner(vit, config)
    learner.finish_task(learner.begin_task([0, 1]), [images])
    return learner, learner.begin_task([2, 3])


@torch.no_grad()
def stored_token_moments(
    model: PromptedViT, batches: Sequence[Float[Tensor, "b 3 h w"]]
) -> dict[str, tuple[Float[Tensor, "d d"], Float[Tensor, "m m"]]]:
    """C_1 and C_2 the straightforward way: Omega_1 [B H N, D] and Omega_2 [B H N, M] of every layer, stored and then multiplied."""
    stored: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in model.attentions()}
    handles = []
    for name, layer in model.attentions().items():

        def hook(
            _module: object, _inputs: object, qkv: Tensor, name: str = name, layer: PromptedAttention = layer
        ) -> None:
            queries, keys, _ = layer.split_heads(qkv)
            affinity = torch.einsum("bhnd,hdc->bhnc", queries, layer.key_weights())
            aggregation = attention_to_prompts(queries, keys, layer.prompt_keys_values()[0])
            stored[name].append((affinity.flatten(0, 2), aggregation.flatten(0, 2)))

        handles.append(layer.attn.qkv.register_forward_hook(hook))
    try:
        for images in batches:
            model.features(images)
    finally:
        for handle in handles:
            handle.remove()
    moments = {}
    for name, pairs in stored.items():
        first, second = (torch.cat(rows) for rows in zip(*pairs, strict=True))
        moments[name] = (first.T @ first / len(first), second.T @ second / len(second))
    return moments


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """MiB that a call holds at most beyond what there was before, from torch's own record of its allocations."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    # The profiler of some builds chats on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # Not `torch.profiler`: its profile imports torch's compilers, seconds in which nothing is measured.
    with profile(profile_memory=True, use_kineto=True) as record:
        call()
    if record.kineto_results is None:
        raise RuntimeError("the profiler gave no record")
    events = record.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0)) / 2**20


def measure_costs(make_vit: Callable[[], PromptedViT], batch_size: int = 8, repeats: int = 5) -> Costs:
    """Time all of it in turn, in this process.

    Args:
        make_vit: a fresh prompted backbone.
        batch_size: pictures.
        repeats: how often each is timed; the medians count.
    """
    vit = make_vit()
    images = torch.rand(batch_size, 3, image_size(vit), image_size(vit))
    labels = 2 + torch.arange(batch_size) % 2
    base = LearnerConfig(precision="float32")
    plain, training = second_task(
        make_vit(), LearnerConfig(precision="float32", projection="none", ln_weight=0.0), images
    )
    full, projected = second_task(vit, base, images)
    device = full.device
    moved = images.to(device)

    def forward() -> None:
        with torch.no_grad():
            full.vit.features(moved)

    calls: dict[str, Callable[[], object]] = {
        "sequential_step": lambda: plain.step(training, moved, labels),
        "projected_step": lambda: full.step(projected, moved, labels),
        "forward": forward,
        "moment_pass": lambda: collect_second_moments(full.vit, [moved]),
        "stored_pass": lambda: stored_token_moments(full.vit, [moved]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(repeats + 1):
        for name, call in calls.items():
            seconds = _seconds(call, device)
            if round_number:  # the first round warms up
                times[name].append(seconds)
    peaks = {
        f"{name.removesuffix('_step').removesuffix('_pass')}_peak": peak_mib(calls[name], device)
        for name in ("sequential_step", "projected_step", "moment_pass", "stored_pass")
    }
    return Costs(**{name: statistics.median(values) for name, values in times.items()}, **peaks)
