"""The phrase bank, and the initial instruction from pictures."""

import weakref
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel

from instructbrush.method.sensitivity import InitResult, initial_instruction, mean_similarity, pick_phrases
from instructbrush.models.features import ClipFeatures
from instructbrush.training.presets import PhraseOptions
from tenfold.errors import UserError
from tenfold.reading import read_text

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
