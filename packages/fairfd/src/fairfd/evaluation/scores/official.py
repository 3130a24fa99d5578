"""The score files of the authors' code: `saved_confidences/<model>/<method>_<race>.npy`.

They hold bare scores in shuffled order, without link to image or person, so that only unclustered intervals are possible; they are
too narrow, because images of one person are dependent.
"""

from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fairfd.data.scores.validation import REAL, listed
from fairfd.evaluation.scores.score_table import ScoreTable
from tenfold.errors import UserError
from tenfold.reading import read_array

REAL_METHOD = "data"
"""How the authors name the real images."""

UNCLUSTERED = (
    "imported official scores have no identities: only unclustered intervals are possible, and they are too narrow"
)


def read_official_scores(folder: str | PathLike[str]) -> dict[str, ScoreTable]:
    """The scores of each model in a folder of the authors' score files.

    Args:
        folder: `saved_confidences`, with a folder per model, or one model's folder.

    Returns:
        By model name; approach is the method ("data" becomes "real"), group the race. Cells without a file are named in the
        warnings.

    Raises:
        UserError: no such folder, no score files, a file name without `_<race>`, or a file that is not a vector of numbers.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name saved_confidences or one model's folder in it")
    models = [root] if any(root.glob("*.npy")) else sorted(path.parent for path in root.glob("*/*.npy"))
    if not models:
        raise UserError(f"{root}: no score files <model>/<method>_<race>.npy")
    return {model.name: _model_scores(model) for model in dict.fromkeys(models)}


def _model_scores(folder: Path) -> ScoreTable:
    cells = {_method_and_race(path): _load(path) for path in sorted(folder.glob("*.npy"))}
    sizes = [len(scores) for scores in cells.values()]
    approaches = np.repeat(np.array([REAL if method == REAL_METHOD else method for method, _ in cells]), sizes)
    table = ScoreTable.create(
        score=np.concatenate(list(cells.values())),
        label=(approaches != REAL).astype(np.int64),
        group=np.repeat(np.array([race for _, race in cells]), sizes),
        approach=approaches,
        detector=folder.name,
    )
    return replace(table, warnings=tuple(_import_warnings(set(cells)))).with_warnings()


def _method_and_race(path: Path) -> tuple[str, str]:
    """The last underscore parts them: methods have underscores of their own (Dual_Generator_Face_Reen_Asian)."""
    method, _, race = path.stem.rpartition("_")
    if not method or not race:
        raise UserError(f"{path}: a score file is named <method>_<race>.npy")
    return method, race


def _load(path: Path) -> Float[np.ndarray, " n"]:
    scores = read_array(path)
    if scores.dtype.kind != "f" or scores.size != max(scores.shape, default=0):
        raise UserError(f"{path}: one P(fake) per image is needed, as a vector of floating-point numbers")
    scores = scores.reshape(-1)
    if not np.isfinite(scores).all() or (scores.size and not 0 <= scores.min() <= scores.max() <= 1):
        raise UserError(f"{path}: scores must be finite and in [0, 1]")
    return scores


def _import_warnings(cells: set[tuple[str, str]]) -> Iterator[str]:
    yield UNCLUSTERED
    methods, races = sorted({method for method, _ in cells}), sorted({race for _, race in cells})
    missing = [f"{method}_{race}.npy" for method in methods for race in races if (method, race) not in cells]
    if missing:
        yield f"missing score files: {listed(missing)}"
    if REAL_METHOD not in methods:
        yield f"no {REAL_METHOD}_<race>.npy: without real images the equalised-odds metrics are undefined"
