"""The graph of a network: which layer feeds which, and where the frozen part ends.

With no augmentation the maps at that border are the same in every epoch: they are computed once and kept, and the forward pass of the
frozen layers, which dominates the cost of a step, is gone from all but the first epoch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, TensorDataset

CACHE_LIMIT = 4 * 2**30
"""Bytes of maps that are kept at most; above, they are computed anew in every epoch."""


class _Tracer(fx.Tracer):
    """Stops at layers without parts, at batch normalisations of any subclass (timm's carry their activation), and at our own.

    A convolution that pads by the size of its input has an `if` in it; what is inside such a layer need not be known.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_ours = callable(getattr(m, "restore", None))
        is_whole = isinstance(m, nn.BatchNorm2d) or next(m.children(), None) is None
        return is_ours or is_whole or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph | None:
    """The graph of a model, or None where it cannot be traced (control flow that depends on the input)."""
    try:
        return _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, NameError, ValueError):
        # What symbolic tracing meets in code that was not written for it.
        return None


def layers_of_output(model: nn.Module) -> list[str] | None:
    """Names of the layers that the model's output depends on, in the order in which they are first used; None without a trace."""
    graph = trace(model)
    if graph is None:
        return None
    needed: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    used = [str(node.target) for node in graph.nodes if node.op == "call_module" and node in needed]
    return list(dict.fromkeys(used))


@dataclass(frozen=True)
class SplitModel:
    """A model in two parts that share its layers.

    Attributes:
        prefix: from the input to the maps at the border, a tuple; depends on nothing that is trained.
        suffix: from those maps to the logits.
    """

    prefix: fx.GraphModule
    suffix: fx.GraphModule


def split_frozen_prefix(model: nn.Module, example_input: Tensor) -> SplitModel | None:
    """Split a model where its frozen part ends; None where it cannot be traced or the border is not made of maps.

    Args:
        model: parameters that are trained require a gradient.
        example_input: a batch of at least one picture, to see what crosses the border.
    """
    graph = trace(model)
    if graph is None:
        return None
    trained = _trained_nodes(model, graph)
    border = [
        node
        for node in graph.nodes
        if node not in trained and node.op != "get_attr" and any(user in trained for user in node.users)
    ]
    if not border:
        return None
    split = SplitModel(_prefix(model, graph, trained, border), _suffix(model, graph, trained, border))
    with torch.no_grad():
        maps = split.prefix(example_input)
    are_maps = all(isinstance(each, Tensor) and each.ndim > 0 and len(each) == len(example_input) for each in maps)
    return split if are_maps else None


def _trained_nodes(model: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value depends on a trained parameter, and the output."""
    trained: set[fx.Node] = set()
    for node in graph.nodes:
        own = False
        if node.op == "call_module":
            own = any(each.requires_grad for each in model.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            value = _attribute(model, str(node.target))
            own = isinstance(value, Tensor) and value.requires_grad
        if own or node.op == "output" or any(source in trained for source in node.all_input_nodes):
            trained.add(node)
    return trained


def _attribute(model: nn.Module, name: str) -> object:
    parent, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(parent), leaf)


def _prefix(model: nn.Module, graph: fx.Graph, trained: set[fx.Node], border: list[fx.Node]) -> fx.GraphModule:
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node not in trained:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in border))
    return fx.GraphModule(model, part, "FrozenPrefix")


def _suffix(model: nn.Module, graph: fx.Graph, trained: set[fx.Node], border: list[fx.Node]) -> fx.GraphModule:
    part = fx.Graph()
    copies = {node: part.placeholder(node.name) for node in border}
    for node in graph.nodes:
        if node in trained or (node.op == "get_attr" and node not in copies):
            copies[node] = part.node_copy(node, copies.__getitem__)
    return fx.GraphModule(model, part, "TrainedSuffix")


@torch.no_grad()
def cached_maps(
    prefix: nn.Module, loader: Iterable[list[Tensor]], batch_size: int, device: torch.device, order: torch.Generator
) -> DataLoader | None:
    """A shuffled loader of (maps at the border..., labels), computed once; None where they would exceed `CACHE_LIMIT`.

    Args:
        prefix: the frozen part.
        loader: (pictures, labels) batches; the same pictures in every epoch.
        batch_size: of the new loader.
        device: of the prefix. The maps are kept in main memory.
        order: what the shuffling draws from.
    """
    maps: list[tuple[Tensor, ...]] = []
    labels = []
    size = 0
    for pictures, targets in loader:
        maps.append(tuple(each.cpu() for each in prefix(pictures.to(device))))
        labels.append(targets.cpu())
        size += sum(each.nbytes for each in maps[-1])
        if size > CACHE_LIMIT:
            return None
    columns = [torch.cat(each) for each in zip(*maps, strict=True)]
    dataset = TensorDataset(*columns, torch.cat(labels))
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=order)
