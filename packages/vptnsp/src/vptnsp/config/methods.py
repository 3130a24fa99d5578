"""The method and its rivals, as changes to one configuration, so that all run in the same loop (paper Tables 1, 3 and 5)."""

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vptnsp.config.config import LearnerConfig, MethodName, TrainConfig

Config = TypeVar("Config", bound=LearnerConfig)


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes:
        summary: what it is, in a few words.
        changes: what it changes in the configuration of the full method.
    """

    summary: str
    changes: dict[str, Any] = field(default_factory=dict)


METHODS: dict[MethodName, Method] = {
    "nsp2": Method("both conditions and the LayerNorm constraint (the paper)"),
    "exact": Method("conditions with LayerNorm's weight and the prompts' spread kept", {"conditions": "exact"}),
    "seq": Method("prompts tuned one task after the other", {"projection": "none", "ln_weight": 0.0}),
    "affinity": Method("the first condition alone", {"eta2": 0.0}),
    "aggregation": Method("the second condition alone", {"eta1": 0.0}),
    "no-ln": Method("without the LayerNorm constraint", {"ln_weight": 0.0}),
    "frozen": Method("prompts frozen after the first task", {"train_prompts": "first-task", "projection": "none"}),
    "slow": Method("the same Frobenius norm, no direction", {"projection": "equal-norm"}),
    "pgp": Method(
        "gradient projection on the layer's inputs", {"consistency": "inputs", "eta2": 0.0, "ln_weight": 0.0}
    ),
    "joint": Method("all classes at once (upper bound)", {"projection": "none", "ln_weight": 0.0}),
    "ncm": Method("nearest class mean on frozen features"),
    "ranpac": Method("ridge regression on random features of frozen features"),
}
"""By name. `joint`, `ncm` and `ranpac` differ in the loop as well: see `vptnsp.training`."""

CLOSED_FORM: frozenset[str] = frozenset({"ncm", "ranpac"})
"""Methods that train no prompts."""


def for_method(config: Config) -> Config:
    """The configuration with the changes that its method makes."""
    if not isinstance(config, TrainConfig):
        return config
    return replace(config, **METHODS[config.method].changes)
