"""The columns of a score file as arrays: names coded as integers, scores and labels checked, decisions made.

Shared by everything that starts from raw scores: the rate table, utility and thresholds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from tenfold.errors import UserError

REAL = "real"
"""The approach of genuine images: row 0 of every accuracy matrix."""

Threshold = float | Mapping[str, float]
"""A decision threshold on P(fake), or one per group."""


@dataclass(frozen=True)
class Places:
    """How the rows of a column are called in messages.

    Attributes:
        word: singular.
        first: number of the first one.
        numbers: the rows' own numbers, where they are a selection.
    """

    word: str = "position"
    first: int = 0
    numbers: Int[np.ndarray, " n"] | None = None

    def take(self, rows: Int[np.ndarray, " m"]) -> "Places":
        """The places of some of the rows."""
        return Places(self.word, self.first, rows + self.first)

    def name(self, wrong: Bool[np.ndarray, " n"]) -> str:
        """The first five rows where `wrong` holds, for example "rows 2, 3, 9, 10, 11 and 4 more"."""
        places = np.flatnonzero(wrong) + self.first if self.numbers is None else self.numbers[wrong]
        return f"{self.word}{'s' if len(places) > 1 else ''} {listed([str(place) for place in places.tolist()])}"


POSITIONS = Places()
"""Array positions, counted from 0."""


def decide(
    scores: Float[np.ndarray, " n"], group: Int[np.ndarray, " n"], group_names: Sequence[str], threshold: Threshold
) -> Bool[np.ndarray, " n"]:
    """yhat = 1[p >= threshold]; a tie is fake (official code).

    The comparison is made in the scores' own precision, so that a float32 score of 0.7 meets the threshold 0.7.
    """
    if not isinstance(threshold, Mapping):
        return scores >= scores.dtype.type(threshold)
    missing = [name for name in group_names if name not in threshold]
    if missing:
        raise UserError(f"no threshold for group {listed(missing)}; give one per group")
    per_group = np.array([threshold[name] for name in group_names], dtype=scores.dtype)
    return scores >= per_group[group]


class Coded(NamedTuple):
    """A column of names as integers.

    Attributes:
        names: each name once.
        codes: index into `names` of each row.
    """

    names: tuple[str, ...]
    codes: Int[np.ndarray, " n"]

    def take(self, rows: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "Coded":
        """The column at some rows, by index or mask."""
        return Coded(self.names, self.codes[rows])

    def present(self) -> tuple[str, ...]:
        """The names that some row has."""
        return tuple(self.names[code] for code in np.unique(self.codes).tolist())

    def equals(self, name: str) -> Bool[np.ndarray, " n"]:
        """Where the column holds a name."""
        return self.codes == (self.names.index(name) if name in self.names else -1)


def encode(values: ArrayLike | Coded, order: Sequence[str | int] | None, what: str) -> Coded:
    """Code a column of strings or integers.

    Args:
        values: one-dimensional; a coded column is renumbered.
        order: the names to have, in order; by default those present, sorted (integers as numbers).
        what: what the column holds, for messages.

    Raises:
        UserError: the column is neither strings nor integers, or holds a name that `order` lacks.
    """
    if isinstance(values, Coded):
        present = np.bincount(values.codes, minlength=len(values.names)) > 0
        kept = sorted(np.flatnonzero(present).tolist(), key=values.names.__getitem__)
        if kept == list(range(len(values.names))):
            return _ordered(values, order, what)
        renumbered = np.zeros(len(values.names), values.codes.dtype)
        renumbered[kept] = np.arange(len(kept))
        return _ordered(Coded(tuple(values.names[code] for code in kept), renumbered[values.codes]), order, what)
    if isinstance(values, list | tuple) and values and isinstance(values[0], str):
        strings = cast("Sequence[str]", values)
    else:
        array = np.asarray(values)
        if array.ndim != 1:
            raise UserError(f"{what}: one value per image is needed, not an array of shape {array.shape}")
        if array.dtype.kind in "iu":
            numbers, codes = np.unique(array, return_inverse=True)
            return _ordered(Coded(tuple(str(number) for number in numbers.tolist()), codes), order, what)
        strings = array.tolist()
    # A dictionary codes half a million strings several times faster than sorting them would.
    distinct = set(strings)
    if not all(isinstance(value, str) for value in distinct):
        raise UserError(f"{what}: use strings or integers, and not both")
    names = tuple(sorted(distinct))
    index = {name: code for code, name in enumerate(names)}
    codes = np.fromiter(map(index.__getitem__, strings), np.int64, len(strings))
    return _ordered(Coded(names, codes), order, what)


def encode_approaches(
    values: ArrayLike | Coded, real: str | int = REAL, order: Sequence[str | int] | None = None
) -> Coded:
    """Code the approach column: "real" is always there, as row 0, whatever `real` is called in the data.

    Args:
        values: strings, or integers among which 0 means real unless `real` is another integer.
        real: what real images carry.
        order: the forgery approaches to have, in order (the real one may be listed too and stays first).

    Raises:
        UserError: as `encode`; or a forgery approach is called "real".
    """
    names, codes = encode(values, None, "approach")
    called = "0" if real == REAL and _are_integers(values) else str(real)
    forgeries = tuple(name for name in names if name != called)
    if order is not None:
        wanted = tuple(str(name) for name in order if str(name) not in (called, REAL))
        _check_order(forgeries, wanted, "approach")
        forgeries = wanted
    if REAL in forgeries:
        raise UserError(f"approach: '{REAL}' names the real row; rename the forgery approach of that name")
    index = {called: 0} | {name: row for row, name in enumerate(forgeries, start=1)}
    return Coded((REAL, *forgeries), np.array([index[name] for name in names], codes.dtype)[codes])


def checked_scores(scores: ArrayLike, places: Places = POSITIONS) -> Float[np.ndarray, " n"]:
    """The scores as a float array (their own precision), known to be finite and in [0, 1].

    Raises:
        UserError: they are not, with the first rows at fault.
    """
    array = np.asarray(scores)
    score = array if array.dtype.kind == "f" else array.astype(np.float64)
    if score.ndim != 1:
        raise UserError(f"scores: one P(fake) per image is needed, not an array of shape {score.shape}")
    finite = np.isfinite(score)
    if not finite.all():
        raise UserError(
            f"scores: not a finite number at {places.name(~finite)}; score these images again, or leave the rows out (--drop-missing)"
        )
    if score.size and (score.min() < 0 or score.max() > 1):
        raise UserError(
            f"scores: they run from {score.min():.4g} to {score.max():.4g}, outside [0, 1]; "
            "if they are logits, apply the sigmoid first (--logits)"
        )
    return score


def checked_labels(labels: ArrayLike, places: Places = POSITIONS) -> Int[np.ndarray, " n"]:
    """The labels as integers, known to be 0 (real) or 1 (fake).

    Raises:
        UserError: they are not, with the first rows at fault.
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise UserError(f"labels: one label per image is needed, not an array of shape {array.shape}")
    if array.dtype.kind not in "biuf":
        raise UserError("labels: use the numbers 0 (real) and 1 (fake)")
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        raise UserError(f"labels: neither 0 (real) nor 1 (fake) at {places.name(wrong)}")
    return array.astype(np.int64)


def check_labels_match_approaches(
    label: Int[np.ndarray, " n"], approach: Int[np.ndarray, " n"], places: Places = POSITIONS
) -> None:
    """An image is labelled 0 exactly when its approach is the real row.

    Raises:
        UserError: naming the first rows at fault.
    """
    wrong = (label == 0) != (approach == 0)
    if wrong.any():
        raise UserError(
            f"label and approach disagree at {places.name(wrong)}: label 0 goes with the real approach only"
        )


def group_of_identity(
    identity: Int[np.ndarray, " n"],
    identity_names: Sequence[str],
    group: Int[np.ndarray, " n"],
    group_names: Sequence[str],
) -> Int[np.ndarray, " i"]:
    """The one group of each identity.

    Raises:
        UserError: an identity has two groups.
    """
    group_of = np.zeros(len(identity_names), np.int64)
    group_of[identity] = group
    torn = np.unique(identity[group_of[identity] != group])
    if torn.size:
        names = listed([identity_names[i] for i in torn])
        first = np.unique(group[identity == torn[0]])
        pair = " and ".join(group_names[s] for s in first[:2])
        raise UserError(f"identity in two groups: {names} (the first in {pair}); fix the labels or drop them")
    return group_of


def listed(names: Sequence[str], shown: int = 5) -> str:
    """The first `shown` names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _ordered(coded: Coded, order: Sequence[str | int] | None, what: str) -> Coded:
    """Renumber sorted names to a wanted order."""
    if order is None:
        return coded
    wanted = tuple(str(name) for name in order)
    _check_order(coded.names, wanted, what)
    return Coded(wanted, np.array([wanted.index(name) for name in coded.names], np.int64)[coded.codes])


def _are_integers(values: ArrayLike | Coded) -> bool:
    if isinstance(values, Coded):
        return False
    first = values[:1] if isinstance(values, list | tuple) else values
    return np.issubdtype(np.asarray(first).dtype, np.integer)


def _check_order(present: Sequence[str], wanted: Sequence[str], what: str) -> None:
    if len(set(wanted)) != len(wanted):
        raise UserError(f"{what}: the given order names something twice")
    unknown = sorted(set(present) - set(wanted))
    if unknown:
        raise UserError(f"{what}: {listed(unknown)} in the data but not in the given order; add or drop it")


def check_lengths(**columns: np.ndarray) -> None:
    """The columns, given by name, are equally long and not empty.

    Raises:
        UserError: they are not.
    """
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise UserError("columns differ in length: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    if not next(iter(sizes.values())):
        raise UserError("no images: every column is empty")
