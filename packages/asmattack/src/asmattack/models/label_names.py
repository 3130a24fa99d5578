"""Which of two outputs means fake, read from a model's label names; what cannot be decided is asked for, never guessed."""

import re
from collections.abc import Mapping

from tenfold import UserError

FAKE = {"fake", "deepfake", "deepfakes", "forged", "forgery", "manipulated", "spoof", "spoofed", "ai", "synthetic"}
REAL = {"real", "realism", "bonafide", "live", "genuine", "original", "pristine", "human"}


def _kind(name: str) -> int | None:
    words = set(re.findall(r"[a-z]+", name.lower().replace("bona fide", "bonafide").replace("bona-fide", "bonafide")))
    fake, real = bool(words & FAKE), bool(words & REAL)
    return None if fake == real else int(fake)


def fake_index_of(id2label: Mapping[int, str]) -> int:
    """The index of the class whose name says fake; the other one must say real or nothing known.

    Raises:
        UserError: not two classes, or names that do not decide it.
    """
    names = {int(index): str(name) for index, name in id2label.items()}
    kinds = {index: _kind(name) for index, name in names.items()}
    listed = ", ".join(f"{index}: {name}" for index, name in sorted(names.items()))
    if sorted(names) != [0, 1]:
        raise UserError(f"labels {listed}: a detector has two classes, real and fake")
    fakes = [index for index, kind in kinds.items() if kind == 1]
    reals = [index for index, kind in kinds.items() if kind == 0]
    if len(fakes) == 1:
        return fakes[0]
    if len(reals) == 1 and not fakes:
        return 1 - reals[0]
    raise UserError(f"labels {listed}: which one means fake is not clear; say so with fake_index (--fake-index)")
