"""The last layer: finding it, letting it grow with the classes, and reading the features before it (paper §3.5)."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cskopt.models.folding import set_submodule
from cskopt.models.tracing import layers_of_output
from tenfold import UserError


def find_head(model: nn.Module, name: str | None = None, flow: Sequence[str] | None = None) -> str:
    """The name of the linear layer that makes the logits.

    Looks at `name`, then at what timm's `get_classifier()` says, then takes the last linear layer that the output depends on;
    in a model that cannot be traced, the last one that it has.

    Args:
        model: not changed.
        name: of the head, where it is known.
        flow: from `layers_of_output`; traced when None.

    Raises:
        UserError: no such layer; the message names some of those that there are.
    """
    modules = dict(model.named_modules())
    linear = [each for each, module in modules.items() if isinstance(module, nn.Linear)]
    if name is not None:
        if name in linear:
            return name
        raise UserError(f"head {name!r}: not a linear layer of the model; there are {some_of(linear)}")
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        classifier = get_classifier()
        found = [each for each, module in modules.items() if module is classifier and each in linear]
        if found:
            return found[0]
    if flow is None:
        with evaluating(model):
            flow = layers_of_output(model)
    found = linear if flow is None else [each for each in flow if each in linear]
    if found:
        return found[-1]
    last = [each for each in flow or modules if next(modules[each].parameters(), None) is not None and each]
    made_by = f"; its last layer is {last[-1]}, a {type(modules[last[-1]]).__name__}" if last else ""
    raise UserError(f"the model has no linear layer that could be its head{made_by}")


def some_of(names: Sequence[str]) -> str:
    """The first few names, for a message of one line."""
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "") if names else "none"


def head_of(model: nn.Module, name: str) -> nn.Linear:
    """The head itself."""
    head = model.get_submodule(name)
    if not isinstance(head, nn.Linear):
        raise UserError(f"head {name!r} is a {type(head).__name__}, not a linear layer")
    return head


@torch.no_grad()
def grow_head(model: nn.Module, name: str, classes: int, generator: torch.Generator | None = None) -> nn.Linear:
    """Extend the head to `classes` rows, old rows copied, new ones drawn from U(-1/sqrt(F), 1/sqrt(F)) (paper §3.5).

    Args:
        model: changed in place.
        name: of the head.
        classes: rows afterwards, at least as many as before.
        generator: source of the new rows; torch's own when None.

    Returns:
        The new head.

    Raises:
        UserError: fewer classes than there are rows.
    """
    old = head_of(model, name)
    if classes < old.out_features:
        raise UserError(f"the head has {old.out_features} classes already and cannot shrink to {classes}")
    weight, bias = old.weight, old.bias
    new = nn.Linear(old.in_features, classes, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    bound = old.in_features**-0.5
    for parameter, rows in ((new.weight, weight), (new.bias, bias)):
        if parameter is not None:
            drawn = torch.empty(parameter.shape, dtype=parameter.dtype).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)
            parameter[: old.out_features] = rows
    set_submodule(model, name, new.train(old.training))
    return new


class _Capture:
    """Keeps what a module was last given."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.value = inputs[0]

    def features(self) -> Float[Tensor, "n f"]:
        """The input of the head in the last forward pass."""
        if self.value is None:
            raise RuntimeError("no forward pass has reached the head yet")
        return self.value


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """While the block runs, the model is in evaluation mode; afterwards each of its layers is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():
            # A layer that was put in meanwhile, such as a grown head, follows the model.
            module.training = modes.get(module, modes[model])


@contextmanager
def captured_features(model: nn.Module, head: str) -> Generator[_Capture]:
    """While the block runs, keep the features (input of the head) of each forward pass of `model`."""
    capture = _Capture()
    handle = head_of(model, head).register_forward_pre_hook(capture)
    try:
        yield capture
    finally:
        handle.remove()
