"""The methods that share one loop: Twin-sight, its ablations and its baselines (paper tables 1 and 2)."""

from dataclasses import dataclass
from typing import Literal

Pool = Literal["all", "labelled"]
Consistency = Literal["off", "fixmatch", "freematch", "consistency"]


@dataclass(frozen=True)
class Method:
    """What a method does differently.

    Attributes:
        summary: in a few words.
        kind: which model it trains (`TwinModel`).
        pool: which clients take part in the rounds.
        everyone_labelled: give every client its labels (the upper bound).
        on_unlabelled: what the supervised model learns on clients without labels, whatever the configuration says.
        constraint: whether the neighbourhood-preserving loss is on.
        proximal: whether the FedProx term is on.
    """

    summary: str
    kind: Literal["twins", "shared", "classifier"] = "classifier"
    pool: Pool = "all"
    everyone_labelled: bool = False
    on_unlabelled: Consistency = "off"
    constraint: bool = False
    proximal: bool = False


METHODS = {
    "twin-sight": Method("twin models with the neighbourhood-preserving constraint", "twins", constraint=True),
    "twins-apart": Method("twin models without the constraint", "twins"),
    "one-network": Method("one encoder with both objectives", "shared"),
    "lower-bound": Method("FedAvg on the labelled clients", pool="labelled"),
    "upper-bound": Method("FedAvg with every client labelled", everyone_labelled=True),
    "fedprox": Method("FedProx on the labelled clients", pool="labelled", proximal=True),
    "fixmatch": Method("FedAvg, FixMatch where there are no labels", on_unlabelled="fixmatch"),
    "freematch": Method("FedAvg, FreeMatch where there are no labels", on_unlabelled="freematch"),
    "fedprox-fixmatch": Method("FedProx, FixMatch where there are no labels", on_unlabelled="fixmatch", proximal=True),
    "fedprox-freematch": Method(
        "FedProx, FreeMatch where there are no labels", on_unlabelled="freematch", proximal=True
    ),
    "consistency": Method("FedAvg, consistency of two views where there are no labels", on_unlabelled="consistency"),
}
"""By the name that `--method` takes."""
