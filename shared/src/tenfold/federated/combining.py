"""What becomes of the sound replies of a round: weighted mean, coordinate-wise median or trimmed mean, after clipping.

Every rule works value by value in 64 bits and returns each array in its own type; integers (step counters) are rounded. The median and the
trimmed mean are those of Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning" (ICML 2018), definitions 1 and 2.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tenfold.federated.safeguards import Safeguards

State = Mapping[str, np.ndarray]


def weighted_mean(states: Sequence[State], weights: Sequence[float | int]) -> dict[str, np.ndarray]:
    """The mean of each value, weighted; that of equal 32-bit states is that state bit for bit.

    Args:
        states: with the same names and shapes.
        weights: above 0; they need not sum to one.

    Raises:
        ValueError: no state, or weights that do not fit.
    """
    if not states or len(states) != len(weights) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"need as many positive weights as states, got {len(states)} states and weights {list(weights)}"
        )
    total = math.fsum(weights)

    def mean(values: list[np.ndarray]) -> np.ndarray:
        found = np.zeros(values[0].shape)
        for value, weight in zip(values, weights, strict=True):
            found += value.astype(np.float64) * (weight / total)
        return found

    return _value_by_value(states, mean)


def coordinate_median(states: Sequence[State]) -> dict[str, np.ndarray]:
    """The median of each value, every state counted once; of an even number of states the mean of the two in the middle."""
    return _value_by_value(states, lambda values: np.asarray(np.median(np.stack(values).astype(np.float64), axis=0)))


def trimmed_mean(states: Sequence[State], trim: float) -> dict[str, np.ndarray]:
    """The mean of each value without the largest and the smallest ones, every state counted once.

    Args:
        states: with the same names and shapes.
        trim: share that is left out at each end, rounded up to a whole state; at least one state stays.
    """
    count = len(states)
    dropped = min(math.ceil(trim * count), (count - 1) // 2)

    def mean(values: list[np.ndarray]) -> np.ndarray:
        ordered = np.sort(np.stack(values).astype(np.float64), axis=0)
        return np.asarray(ordered[dropped : count - dropped].mean(axis=0))

    return _value_by_value(states, mean)


def _value_by_value(states: Sequence[State], rule: Callable[[list[np.ndarray]], np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, first in states[0].items():
        value = rule([state[name] for state in states])
        # numpy makes a scalar of an array without dimensions wherever it can.
        found[name] = np.asarray(value if first.dtype.kind == "f" else np.rint(value), first.dtype)
    return found


def update_norm(state: State, reference: State, *, counters: bool = True) -> float:
    """The Euclidean length of `state - reference` over all entries, in 64 bits; NaN or infinite where the entries are.

    Args:
        state: what a client sends.
        reference: what it was sent.
        counters: count integer entries too.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(
            sum(
                float(np.square(each.astype(np.float64) - reference[name].astype(np.float64)).sum())
                for name, each in state.items()
                if counters or each.dtype.kind == "f"
            )
        )


def clip_update(state: State, reference: State, limit: float) -> dict[str, np.ndarray]:
    """Shorten an update to a length; one that is shorter stays as it is, bit for bit.

    Integer entries are neither counted nor changed: a step counter would outweigh all weights.

    Args:
        state: what a client sends.
        reference: what it was sent.
        limit: the largest length.
    """
    norm = update_norm(state, reference, counters=False)
    if norm <= limit:
        return dict(state)
    return {
        name: np.asarray(reference[name] + (limit / norm) * (each.astype(np.float64) - reference[name]), each.dtype)
        if each.dtype.kind == "f"
        else each
        for name, each in state.items()
    }


def combine(
    states: Sequence[State], weights: Sequence[float | int], reference: State, safeguards: Safeguards
) -> dict[str, np.ndarray]:
    """The new global state.

    Args:
        states: of the sound replies, in a fixed order: sums of floats depend on it.
        weights: of each.
        reference: the global state that the clients were sent.
        safeguards: which rule, and whether updates are clipped first.
    """
    if safeguards.clip_norm:
        states = [clip_update(state, reference, safeguards.clip_norm) for state in states]
    if safeguards.aggregation == "median":
        return coordinate_median(states)
    if safeguards.aggregation == "trimmed-mean":
        return trimmed_mean(states, safeguards.trim)
    return weighted_mean(states, weights)
