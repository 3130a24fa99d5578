"""Transformation-oriented initialisation: which words an edit adds and removes (paper §4.2, eqs. 5 to 7)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from instructbrush.training.presets import Mode
from tenfold.errors import UserError

FLOOR = 0.05
"""Similarities below this count as this where a rise is taken relative to them."""


def mean_similarity(images: Float[Tensor, "k d"], phrases: Float[Tensor, "p d"]) -> Float[Tensor, " p"]:
    """Mean cosine of each phrase with a set of pictures (eq. 5)."""
    return (F.normalize(images, dim=1) @ F.normalize(phrases, dim=1).T).mean(0)


def phrase_sensitivity(
    before: Float[Tensor, "k d"], after: Float[Tensor, "k d"], phrases: Float[Tensor, "p d"], mode: Mode = "relative"
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """How much the edit removes and how much it adds each phrase (eq. 6).

    Args:
        before: features of the pictures before the edit.
        after: and after it.
        phrases: features of the phrases.
        mode: `difference` is s_y - s_x as in the paper; `relative` divides it by the similarity on the other side, at least 0.05:
            a threshold of 0.15 is then a rise of 15 %, where as a difference of cosines almost nothing would pass.

    Returns:
        S_x (removed) and S_y (added).
    """
    s_x, s_y = mean_similarity(before, phrases), mean_similarity(after, phrases)
    if mode == "difference":
        return s_x - s_y, s_y - s_x
    return (s_x - s_y) / s_y.clamp(min=FLOOR), (s_y - s_x) / s_x.clamp(min=FLOOR)


def pick_phrases(sensitivity: Float[Tensor, " p"], r: int, eta: float) -> list[int]:
    """Indices of the r most sensitive phrases that are above eta, best first, ties by lower index (eq. 7).

    Raises:
        UserError: r < 1 or eta < 0.
    """
    if r < 1 or eta < 0:
        raise UserError(f"r {r}, eta {eta}: r must be at least 1 and eta at least 0")
    order = sorted(range(len(sensitivity)), key=lambda index: (-float(sensitivity[index]), index))
    return [index for index in order[:r] if float(sensitivity[index]) > eta]


def fill_template(before: Sequence[str], after: Sequence[str]) -> str:
    """turn BEFORE into AFTER; with one side only, `turn it into AFTER` or `remove BEFORE`; with none, the empty instruction."""
    if before and after:
        return f"turn {', '.join(before)} into {', '.join(after)}"
    if after:
        return f"turn it into {', '.join(after)}"
    return f"remove {', '.join(before)}" if before else ""


def fitted_template(before: Sequence[str], after: Sequence[str], fits: Callable[[str], bool]) -> str:
    """The filled template, phrases dropped from the end of the longer side until it fits."""
    sides = [list(before), list(after)]
    while (sides[0] or sides[1]) and not fits(fill_template(*sides)):
        max(sides[::-1], key=len).pop()
    return fill_template(*sides)


@dataclass(frozen=True)
class InitResult:
    """What the initialisation found.

    Attributes:
        before: phrases that the edit removes, best first, each with its sensitivity.
        after: phrases that the edit adds.
        text: the initial instruction.
    """

    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]
    text: str

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def initial_instruction(
    before: Float[Tensor, "k d"],
    after: Float[Tensor, "k d"],
    phrases: Float[Tensor, "p d"],
    words: Sequence[str],
    fits: Callable[[str], bool],
    *,
    r: int = 5,
    eta: float = 0.15,
    mode: Mode = "relative",
) -> InitResult:
    """Phrases that tell the two sets apart, in the template.

    Args:
        before: features of the pictures before the edit.
        after: and after it.
        phrases: features of `words`.
        words: the vocabulary; of equal ones (case aside) the first counts.
        fits: whether an instruction is short enough.
        r: phrases of each side at most.
        eta: what a sensitivity must exceed.
        mode: of the sensitivity.
    """
    first = {word.lower(): index for index, word in reversed(list(enumerate(words)))}
    kept = sorted(first.values())
    removed, added = phrase_sensitivity(before, after, phrases[torch.tensor(kept)], mode)
    sides = [
        tuple((words[kept[each]], float(values[each])) for each in pick_phrases(values, r, eta))
        for values in (removed, added)
    ]
    text = fitted_template([word for word, _ in sides[0]], [word for word, _ in sides[1]], fits)
    return InitResult(sides[0], sides[1], text)
