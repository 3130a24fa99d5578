"""Transformation-oriented initialisation: which words an edit adds and removes (paper §4.2, eqs. 5 to 7)."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from instructbrush.config import Mode, PhraseOptions
from instructbrush.models.features import ClipFeatures
from tenfold.errors import UserError
from tenfold.reading import read_text

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


_encoded: "weakref.WeakKeyDictionary[CLIPModel, dict[tuple[str, ...], Tensor]]" = weakref.WeakKeyDictionary()


def read_bank(path: Path | None = None, tiny: bool = False) -> tuple[str, ...]:
    """Phrases, one a line.

    Args:
        path: a text file, such as clip-interrogator's lists; None for the list that the package ships.
        tiny: of the shipped lists, the one in the embedded model's words.

    Raises:
        UserError: unreadable or empty.
    """
    if path is None:
        name = "tiny.txt" if tiny else "phrases.txt"
        text = (resources.files("instructbrush") / "banks" / name).read_text(encoding="utf-8")
    else:
        text = read_text(path)
    phrases = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    if not phrases:
        raise UserError(f"{path}: holds no phrases; one a line")
    return phrases


def extract_phrases(
    before: Float[Tensor, "k 3 h w"],
    after: Float[Tensor, "k 3 h w"],
    clip: ClipFeatures,
    bank: Sequence[str] | None = None,
    options: PhraseOptions | None = None,
    tokenizer: Any = None,
) -> InitResult:
    """The words that an edit removes and adds, and the instruction they make.

    Args:
        before: pictures in [0, 1].
        after: the same, edited.
        clip: compares pictures and words.
        bank: phrases to choose from.
        options: of the choice.
        tokenizer: whose length the instruction must keep to; by default the CLIP's.
    """
    options = options or PhraseOptions()
    words = tuple(bank) if bank is not None else read_bank()
    features = _bank_features(words, clip)
    counter = tokenizer or clip.tokenizer

    def fits(text: str) -> bool:
        return len(counter(text, verbose=False).input_ids) <= counter.model_max_length

    if options.side == "after":
        similarity = mean_similarity(clip.images(after), features)
        picked = tuple((words[each], float(similarity[each])) for each in pick_phrases(similarity, options.top, 0.0))
        names = [word for word, _ in picked]
        while len(names) > 1 and not fits(", ".join(names)):
            names.pop()
        return InitResult((), picked, ", ".join(names))
    return initial_instruction(
        clip.images(before),
        clip.images(after),
        features,
        words,
        fits,
        r=options.top,
        eta=options.eta,
        mode=options.sensitivity,
    )


def _bank_features(words: tuple[str, ...], clip: ClipFeatures) -> Tensor:
    """Features of the bank, computed once in a process for each CLIP."""
    known = _encoded.setdefault(clip.model, {})
    if words not in known:
        known[words] = clip.texts(words)
    return known[words]
